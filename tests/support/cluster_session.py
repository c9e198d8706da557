"""Runs two rounds of a session on an engine and prints the digests of their weights: `cluster_session.py FOLDER`.

FOLDER holds session.json. On Ray it needs a process of its own, because a process can be connected to one Ray only.
"""

import json
import sys
from pathlib import Path

from zk0.aggregation.aggregate import aggregate
from zk0.data.statistics import pool_moments
from zk0.evaluation.global_model import build_start_policy
from zk0.federation.open import open_federation
from zk0.settings.plans import RoundPlan, session_terms
from zk0.settings.session import Session


def two_rounds(folder: Path) -> list[str]:
    """Return the digest of the start weights and of each round."""
    session = Session.model_validate_json((folder / "session.json").read_text(encoding="utf-8"))
    terms, weights = session_terms(session, folder.name), folder / "round-000" / "weights.safetensors"
    with open_federation(session, folder.name, folder) as federation:
        members = federation.join(terms)
        recipe, digest, _ = build_start_policy(session, weights)
        digests = [digest]
        for number in (1, 2):
            plans = [
                RoundPlan(
                    terms=terms, round=number, client=member.client, recipe=recipe, global_digest=digests[-1],
                    statistics=pool_moments([m.statistics for m in members]), lr=session.training.lr, mu=0.01,
                    training=session.training.local_settings(), scheduler=session.scheduler,
                )
                for member in members
            ]  # fmt: skip
            found = federation.train(plans, weights, folder / f"round-{number:03d}" / "updates")
            assert found.refusals == (), found.refusals
            target = folder / f"round-{number:03d}" / "weights.safetensors"
            digests.append(aggregate(found.updates, weights, target).digest)
            weights = target
    return digests


if __name__ == "__main__":
    sys.stdout.write(json.dumps(two_rounds(Path(sys.argv[1]))) + "\n")
