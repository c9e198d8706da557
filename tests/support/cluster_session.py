"""Runs two synchronous and three buffered rounds on an engine, and prints the digests of their weights.

The argument is a folder that holds session.json. On Ray it needs a process of its own, because a process can be
connected to one Ray only.
"""

import json
import sys
from pathlib import Path

from zk0.aggregation.aggregate import aggregate
from zk0.aggregation.reduction_plan import AggregationTerms
from zk0.aggregation.stale_updates import StaleStart
from zk0.data.statistics import pool_moments
from zk0.evaluation.global_model import build_start_policy
from zk0.federation.open import open_federation
from zk0.federation.protocol.buffered_federation import BufferedFederation, BufferedRequest, RoundStart
from zk0.settings.buffer_settings import BufferSettings
from zk0.settings.plans import RoundPlan, session_terms
from zk0.settings.session import Session

BUFFER = BufferSettings(size=2, simulated_seconds={"a": 1.0, "b": 2.0, "c": 3.0})


def all_rounds(folder: Path) -> list[str]:
    """Return the digest of the start weights, of two synchronous rounds, and of three buffered ones after them."""
    session = Session.model_validate_json((folder / "session.json").read_text(encoding="utf-8"))
    buffered = session.model_copy(
        update={"federation": session.federation.model_copy(update={"mode": "buffered"}), "buffer": BUFFER}
    )
    terms, weights = session_terms(session, folder.name), [folder / "round-000" / "weights.safetensors"]
    with open_federation(buffered, folder.name, folder) as federation:
        assert isinstance(federation, BufferedFederation)
        members = federation.join(terms)
        recipe, digest, _ = build_start_policy(session, weights[0])
        digests, last = [digest], None

        def plan(client: str, began: int, is_buffered: bool) -> RoundPlan:
            return RoundPlan(
                terms=terms, round=began, client=client, recipe=recipe, global_digest=digests[began - 1],
                statistics=pool_moments([m.statistics for m in members]), lr=session.training.lr, mu=0.01,
                training=session.training.local_settings(), scheduler=session.scheduler, buffered=is_buffered,
            )  # fmt: skip

        def start(client: str, began: int) -> RoundStart:
            return RoundStart(plan(client, began, True), weights[began - 1], weights[began - 1])

        for number in range(1, 6):
            spool, target = (folder / f"round-{number:03d}" / name for name in ("updates", "weights.safetensors"))
            if number <= 2:
                plans, stale = [plan(m.client, number, False) for m in members], {}
                found = federation.train(plans, weights[-1], spool)
            else:
                made = federation.train_buffered(BufferedRequest(number, spool, BUFFER, tuple("abc"), last, start))
                found, last = made.updates, made.clients.record(made.waited_seconds)
                old = [one for one in last.arrivals if one.factor and one.began < number]
                stale = {one.client: StaleStart(weights[one.began - 1], one.factor or 0.0) for one in old}
            assert found.refusals == (), found.refusals
            digests.append(aggregate(found.updates, weights[-1], target, AggregationTerms(stale=stale)).digest)
            weights.append(target)
    return digests


if __name__ == "__main__":
    sys.stdout.write(json.dumps(all_rounds(Path(sys.argv[1]))) + "\n")
