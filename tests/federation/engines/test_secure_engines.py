"""Secure aggregation on every engine: two rounds end with the same digests, and the sum needs no update to be sent."""

import json
import os
import signal
from collections.abc import Callable, Iterator
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import pytest

from zk0.audit.journal import SentJournal
from zk0.settings.plans import SecureRules
from zk0.settings.session import Session

RULES = SecureRules(bits=16, neighbors=10, limit=0.004, max_share_factor=3.0)


def digests(driven: Any, federation: Any) -> list[str]:
    """Run two rounds; return the digests of all global weights and of all sums."""
    driven.begin(federation)
    sums = []
    for _ in range(2):
        before = driven.history[-1]
        plans = driven.plans(secure=RULES)
        found = federation.train_secure(plans, Path(before.path), driven.spool())
        assert found.refusals == ()
        assert found.sum.summed.clients == ("a", "b", "c")
        sums.append(found.sum.digest)
        driven.average([found.sum])
    check_sent_journals(driven)
    return [*(checkpoint.digest for checkpoint in driven.history), *sums]


def check_sent_journals(driven: Any) -> None:
    """A client's journal says which sums it took part in, and that no update has left it, nor a metric of its own."""
    for client in "abc":
        sent = SentJournal(driven.folder / "clients" / client / "sent.jsonl").read()[-10:]
        kinds = ["train", "secure_shares", "secure_mask", "secure_consent", "secure_reveal"]
        assert [(line.kind, line.round) for line in sent] == [(kind, number) for number in (1, 2) for kind in kinds]
        assert [line.kind for line in sent if line.weights] == ["secure_mask"] * 2
        sums = [json.loads(line.asked)["sum"]["survivors"] for line in sent if line.kind == "secure_consent"]
        assert sums == [["a", "b", "c"]] * 2
        assert not any(name in line.text for line in sent for name in ("policy_loss", "grad_norm", "update_norm"))


@pytest.fixture(scope="module")
def in_this_process(
    session_of: Callable[..., Session], drive: type, tmp_path_factory: pytest.TempPathFactory
) -> list[str]:
    """Digests of the rounds without workers."""
    return opened(session_of(**settings(0)), drive, tmp_path_factory.mktemp("here"))


def settings(workers: int) -> dict[str, Any]:
    return {
        "federation": {"workers": workers, "secure": True},
        "aggregation": {"quarantine_factor": 0},
        "evaluation": {"clients_frequency": 0},
    }


def opened(session: Session, drive: type, folder: Path) -> list[str]:
    from zk0.federation.open import open_federation

    with open_federation(session, "mini", folder) as federation:
        return digests(drive(session, folder), federation)


def test_two_local_workers_end_with_the_same_digests(
    session_of: Callable[..., Session], drive: type, tmp_path: Path, in_this_process: list[str]
) -> None:
    assert len(set(in_this_process)) == 5
    assert opened(session_of(**settings(2)), drive, tmp_path) == in_this_process


def test_ray_ends_with_the_same_digests(ray_engine: Any, drive: type, in_this_process: list[str]) -> None:
    from zk0.federation.protocol.secure_federation import SecureFederation

    federation = SecureFederation(ray_engine.grid, ("a", "b", "c"), 240, ray_engine.nodes_file)
    assert digests(drive(ray_engine.session, ray_engine.folder), federation) == in_this_process


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_nodes_over_the_network_end_with_the_same_digests(
    deployment_engine: Any, drive: type, in_this_process: list[str]
) -> None:
    """Each node's journal says which sums it took part in, and that no update has left it."""
    from zk0.federation.protocol.secure_federation import SecureFederation

    engine = deployment_engine
    driven = drive(engine.session, engine.folder)
    engine.show_ledger(driven)
    federation = SecureFederation(engine.grid, ("a", "b", "c"), 240, engine.nodes_file, heads=engine.heads)
    assert digests(driven, federation) == in_this_process


class Killed(Exception):
    """The session ends here."""


STEPS = ("secure_shares", "secure_mask", "secure_consent", "secure_reveal")


def dropping(at: str, lose: Callable[[], None] | None, dies: bool = True) -> type:
    """Return a kind of federation in which c drops out at one of the `STEPS`.

    Args:
        at: the step.
        lose: called then; None: the message to c is lost.
        dies: the session ends before the step after it, if there is one.
    """
    from zk0.federation.protocol.exchange import Reply
    from zk0.federation.protocol.secure_federation import SecureFederation

    following = dict(pairwise(STEPS)).get(at)

    class Dropping(SecureFederation):
        def ask(self, plans: Any, message_type: str, requests: Any, files: Any) -> Iterator[Any]:
            step = message_type.rpartition(".")[2]
            if dies and step == following:
                raise Killed
            if step == at and lose is not None:
                lose()
            elif step == at:
                plans = [plan for plan in plans if plan.client != "c"]
                requests = {name: one for name, one in requests.items() if name != "c"}
                lost = iter((Reply("c", None, "lost"),))
                return chain(lost, super().ask(plans, message_type, requests, files))
            return super().ask(plans, message_type, requests, files)

    return Dropping


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("at", STEPS)
def test_a_supernode_that_is_killed_within_a_sum_and_a_session_that_resumes(
    at: str, deployment_engine: Any, session_of: Callable[..., Session], drive: type, tmp_path: Path
) -> None:
    """The sum has the bits of one in which that client drops out in this process, at each step of the protocol."""
    from waiting import wait_until

    from zk0.federation.open import open_federation
    from zk0.federation.protocol.secure_federation import SecureFederation
    from zk0.settings.plans import session_terms

    engine, name = deployment_engine, f"dropout-{at}"
    node = engine.deployment.nodes["c"]
    own_seed = {"seed": 100 + STEPS.index(at)}  # nodes agree to no sum of other clients' updates of the same seed
    session = session_of(**settings(0)).model_copy(update=own_seed)
    with open_federation(session, "here", tmp_path / "here") as opened:
        here = drive(session, tmp_path / "here", name)
        federation = dropping(at, None, dies=False)(opened._grid, ("a", "b", "c"), 240)
        here.begin(federation)
        wanted = federation.train_secure(here.plans(secure=RULES), Path(here.history[-1].path), here.spool())

    def kill() -> None:
        os.kill(engine.deployment.pid(node, "supernode"), signal.SIGKILL)

    there = drive(engine.session.model_copy(update=own_seed), tmp_path / "there", name)
    engine.show_ledger(there)
    there.begin(SecureFederation(engine.grid, ("a", "b", "c"), 240, heads=engine.heads))
    terms = session_terms(there.session, name)
    federation = dropping(at, kill)(engine.grid, ("a", "b", "c"), 20, heads=engine.heads)
    federation.join(terms, previous=there.members)
    plans, weights = there.plans(secure=RULES), Path(there.history[-1].path)
    if at == STEPS[-1]:  # no step follows, before which the session could end
        found = federation.train_secure(plans, weights, there.spool())
    else:
        with pytest.raises(Killed):
            federation.train_secure(plans, weights, there.spool())
        resumed = SecureFederation(engine.grid, ("a", "b", "c"), 20, heads=engine.heads)
        resumed.join(terms, previous=there.members)
        found = resumed.train_secure(plans, weights, there.spool())
    masked = at in STEPS[2:]
    assert found.sum.summed.clients == (("a", "b", "c") if masked else ("a", "b"))
    assert found.sum.summed.dropped == (("c",) if at == "secure_mask" else ()), "those whose masks are in the sum"
    assert found.sum.digest == wanted.sum.digest
    if not masked:
        assert {(one.client, one.reason) for one in found.refusals} == {("c", "no answer within 20 s")}
    began = {name: SentJournal(engine.deployment.nodes[name].scratch / "sent.jsonl").read()[-2:] for name in "ab"}
    assert all([line.kind for line in lines] == ["secure_consent", "secure_reveal"] for lines in began.values())
    wait_until(lambda: {n.status for n in engine.deployment.server.node_statuses()} == {"online"})
