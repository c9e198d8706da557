"""The training of a round with secure aggregation: the server gets the sum of the clients' updates."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.client_task_runs import ClientTaskRuns, answer_summary
from tasks.events import log_line
from tasks.retry import is_transient
from tasks.rounds import RoundUpdates
from zk0.records import RoundDecision, RoundRecord
from zk0.settings.session import Session
from zk0.storage.session_folder import SessionFolder

if TYPE_CHECKING:
    from zk0.evaluation.session_setup import SessionSetup


@task(task_run_name="train round {decision.round}", cache_policy=NO_CACHE, retry_condition_fn=is_transient)
def train_secure(
    session: Session, folder: str, setup: "SessionSetup", history: Sequence[RoundRecord], decision: RoundDecision
) -> RoundUpdates:
    """Let the clients of this round train and mask their updates, and open the sum; a retry goes on where it stopped.

    Raises:
        RoundIncomplete: too few clients took part in a message; Prefect retries the task.
    """
    from zk0.evaluation.client_plans import client_round_plan
    from zk0.federation.open import get_secure_federation
    from zk0.federation.protocol.downlink import encode_global_weights

    here, number, before = SessionFolder(Path(folder)), decision.round, history[-1].checkpoint
    weights, spool = here.path / before.path, here.updates(number)
    sent = encode_global_weights(session.federation, weights, here.sent_weights(before.round))
    names = [member.client for member in setup.members] if decision.clients is None else decision.clients
    plans = [sent.with_wire(client_round_plan(name, session, here.name, setup, before, decision)) for name in names]
    with ClientTaskRuns("trains", number, len(plans) <= session.tracking.client_task_runs) as runs:
        found = get_secure_federation(here.name).train_secure(plans, weights, spool, runs, sent.path)
    summed = found.sum.summed
    assert summed is not None, "train_secure returns a sum"
    log_line(f"round {number}: sum of {', '.join(summed.clients)}: {answer_summary(found.sum)}")
    for refusal in found.refusals:
        log_line(f"round {number}: {refusal.client} refused: {refusal.reason}")
    update = found.sum.model_copy(update={"path": here.relative(Path(found.sum.path))})
    return RoundUpdates(updates=(update,), refusals=found.refusals, sent_bytes=sent.bytes)
