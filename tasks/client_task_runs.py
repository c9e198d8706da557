"""A Prefect task run for each client's part in a round, and for each step of its joining, nested in the task run.

The UI then shows which clients work, since when, and what they returned. A client runs in another process or on another
machine, where there is no Prefect. So its task run has no task engine and no thread that waits: this module sends the
server the events that an engine would send, from which the server makes task runs.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, Self

from prefect.client.schemas.objects import State, TaskRun
from prefect.context import TaskRunContext
from prefect.events import Event
from prefect.states import Completed, Crashed, Failed, Running

from tasks.events import ProgressEvent, emit_progress, log_line
from tasks.prefect_private import emit_state_change, nested_task_run
from zk0.records import ClientScore, JoiningStep, Refusal, Update
from zk0.secure.messages import MaskedUpdate


class ClientTaskRuns:
    """Starts a task run for each client that is sent a request and ends it with the result, or at the end of the block.

    `collect` calls it as its `zk0.federation.protocol.replies.ResultListener`.

    Args:
        doing: what clients do, such as "trains".
        round_number: the round they do it in.
        shown: whether clients have task runs; else only the round's own task run has their lines.
    """

    def __init__(self, doing: str, round_number: int, shown: bool = True) -> None:
        if (context := TaskRunContext.get()) is None:
            raise RuntimeError("clients work within a task run: call the task, not its function")
        self._parent = context.task_run
        self._doing, self._round, self._shown = doing, round_number, shown
        self._runs: dict[str, tuple[TaskRun, Event | None]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None) -> None:
        stopped = e is not None and not isinstance(e, Exception)
        for client, (run, _) in self._runs.items():
            if run.end_time is None and stopped:
                self._set_state(client, Crashed(message="the session was stopped before the client answered"))
            elif run.end_time is None:
                self._set_state(client, Failed(message=f"the round ended before the client answered: {e}"))

    def on_request(self, client: str) -> None:
        """Start the client's task run."""
        self._start(client, self._doing)
        self._set_state(client, Running())

    def on_reused(self, found: Update | ClientScore) -> None:
        """Show a completed task run for a result of an earlier attempt; its client is not asked again."""
        self._start(found.client, "had answered")
        self._set_state(found.client, Completed(message=f"in an earlier attempt: {answer_summary(found)}"))
        emit_progress(ProgressEvent(kind="client_answered", client=found.client, round=self._round))

    def on_result(self, found: Update | ClientScore | MaskedUpdate | Refusal) -> None:
        """End the client's task run: completed with its numbers, or failed with the reason of the refusal."""
        reason = ""
        if isinstance(found, Refusal):
            self.mark_refused(found)
            reason = found.reason
        else:
            self._set_state(found.client, Completed(message=answer_summary(found)))
        emit_progress(ProgressEvent(kind="client_answered", client=found.client, round=self._round, text=reason))

    def mark_refused(self, refusal: Refusal) -> None:
        """Mark the client's task run as failed with the reason, also where it had completed."""
        self._set_state(refusal.client, Failed(message=refusal.reason))

    def mark_at_work(self, client: str, began: int) -> None:
        """End the task run of a client that was sent this round's weights and goes on training.

        It has another one in the round in which it answers, and none between; none here where the updates of an earlier
        attempt fill the buffer.
        """
        if client not in self._runs:
            return
        text = f"trains from the weights of round {began - 1}; its update comes in a later round"
        self._set_state(client, Completed(name="StillAtWork", message=text))

    def log_line(self, client: str, text: str) -> None:
        """Log one line, which the UI shows with the client's task run."""
        run, _ = self._runs.get(client, (None, None))
        log_line(f"round {self._round}: {client}{text}", run)

    def _start(self, client: str, doing: str) -> None:
        if not self._shown:
            return
        attempt = f", attempt {self._parent.run_count}" if self._parent.run_count > 1 else ""
        name = f"{client} {doing}, round {self._round}{attempt}"
        self._runs[client] = nested_task_run(name, "client", self._parent), None

    def _set_state(self, client: str, state: State[Any]) -> None:
        if not self._shown:
            return
        run, last = self._runs[client]
        self._runs[client] = _enter_state(run, state, last)


class JoinTaskRuns:
    """Shows each client that joins as a task run, and the steps of its joining as task runs nested in it.

    The federation calls it as its `zk0.federation.protocol.membership.JoinListener`. A client's own task run is Running
    from the request to the answer; its steps are known with the answer, which holds their durations.

    Args:
        most: the most clients that have task runs; where more join, none has.
    """

    def __init__(self, most: int) -> None:
        if (context := TaskRunContext.get()) is None:
            raise RuntimeError("clients join within a task run: call the task, not its function")
        self._parent, self._most = context.task_run, most
        self._runs: dict[int, tuple[TaskRun, Event | None]] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None) -> None:
        reason = f"joining ended before the client answered: {e}"
        state: State[Any] = Failed(message=reason) if e is None or isinstance(e, Exception) else Crashed(message=reason)
        for run, event in self._runs.values():
            _enter_state(run, state, event)

    def on_join_requests(self, names: Mapping[int, str]) -> None:
        """Start a task run for each node."""
        for node, name in names.items() if len(names) <= self._most else ():
            run = nested_task_run(f"{name} joins", "client-joins", self._parent)
            self._runs[node] = _enter_state(run, Running(), None)

    def on_join_answer(self, node: int, client: str, steps: Sequence[JoiningStep], problem: str) -> None:
        """End the node's task run, and show its steps as they were on the client's clock."""
        if node not in self._runs:
            return
        run, event = self._runs.pop(node)
        now = datetime.now(UTC)
        began = now - timedelta(seconds=sum(step.seconds for step in steps))
        for step in steps:
            ended = began + timedelta(seconds=step.seconds)
            nested = nested_task_run(f"{client}: {step.step}", f"client-{step.step}", run)
            started, first = _enter_state(nested, Running(timestamp=began), None)
            done: State[Any] = (
                Failed(message=problem, timestamp=ended)
                if step.failed
                else Completed(message=step.found, timestamp=ended)
            )
            _enter_state(started, done, first)
            began = ended
        _enter_state(run, Failed(message=problem) if problem else Completed(message="takes part"), event)


def _enter_state(run: TaskRun, state: State[Any], follows: Event | None) -> tuple[TaskRun, Event | None]:
    """Return the task run in its new state, and the event by which the server learns it."""
    began = run.start_time or state.timestamp
    times: dict[str, Any] = {"start_time": began, "expected_start_time": began}
    if state.is_final() and run.end_time is None:
        times |= {"end_time": state.timestamp, "total_run_time": state.timestamp - began}
    changed = run.model_copy(update={"state": state, **times})
    return changed, emit_state_change(changed, run.state, follows)


def answer_summary(found: Update | ClientScore | MaskedUpdate) -> str:
    """Return the numbers of a client's result, for a log line."""
    if isinstance(found, MaskedUpdate):
        return "masked update"
    if isinstance(found, ClientScore):
        own = "" if found.personal is None else f", {found.personal.policy_loss:.4f} of the client's own policy"
        return f"policy loss {found.score.policy_loss:.4f}{own} on held-out episodes"
    return f"loss {found.metrics.policy_loss:.4f}, {found.metrics.local_steps} steps, {found.metrics.seconds:.1f} s"
