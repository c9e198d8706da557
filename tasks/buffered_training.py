"""The training of a buffered round: the server waits for the first updates, the other clients go on training."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.client_task_runs import ClientTaskRuns
from tasks.retry import is_transient
from tasks.rounds import RoundUpdates, usable_updates
from zk0.audit.recorded_order import recorded_arrivals
from zk0.records import RoundDecision, RoundRecord
from zk0.settings.session import Session
from zk0.storage.session_folder import SessionFolder

if TYPE_CHECKING:
    from zk0.evaluation.session_setup import SessionSetup


@task(task_run_name="train round {decision.round}", cache_policy=NO_CACHE, retry_condition_fn=is_transient)
def train_buffered(
    session: Session, folder: str, setup: "SessionSetup", history: Sequence[RoundRecord], decision: RoundDecision
) -> RoundUpdates:
    """Let clients train from the newest weights until the buffer is full; clients that train longer stay at work.

    Raises:
        RoundIncomplete: fewer than `federation.min_updates` good updates; Prefect retries the task.
    """
    from zk0.evaluation.client_plans import client_round_plan
    from zk0.federation.open import get_buffered_federation
    from zk0.federation.protocol.buffered_federation import BufferedRequest, RoundStart
    from zk0.federation.protocol.downlink import SentGlobalWeights, encode_global_weights

    here, number = SessionFolder(Path(folder)), decision.round
    names = [member.client for member in setup.members]

    @cache
    def sent_in(began: int) -> SentGlobalWeights:
        return encode_global_weights(session.federation, here.weights(began - 1), here.sent_weights(began - 1))

    def start_of(client: str, began: int) -> RoundStart:
        decided = decision if began == number else history[began].decision
        assert decided is not None, "round 0 trains nothing"
        plan = client_round_plan(client, session, here.name, setup, history[began - 1].checkpoint, decided)
        return RoundStart(sent_in(began).with_wire(plan), here.weights(began - 1), sent_in(began).path)

    request = BufferedRequest(
        number=number,
        spool=here.updates(number),
        settings=session.buffer,
        clients=names,
        last=history[-1].buffered,
        start_of=start_of,
        order=recorded_arrivals(session, number),
    )
    with ClientTaskRuns("trains", number, len(names) <= session.tracking.client_task_runs) as runs:
        found = get_buffered_federation(here.name).train_buffered(request, runs)
        for one in found.clients.at_work:
            runs.mark_at_work(one.client, one.began)
        usable = usable_updates(session, here, number, found.updates, runs)
    waited = {update.client: found.waited_seconds[update.client] for update in usable.updates}
    buffered = found.clients.record(waited)
    return usable.model_copy(update={"sent_bytes": sent_in(number).bytes, "buffered": buffered})
