"""Sessions that begin by themselves: who is there is asked of the SuperLink, what runs of the Prefect server."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from zk0.errors import FederationError, SettingsError, StackError, TransientError

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

    from zk0.federation.server import ServerFolder
    from zk0.federation.watch import Rule
    from zk0.session import Session

DEPLOYMENT = "zk0/federated-session"
_SOON = timedelta(minutes=1)


class NodeWatch:
    """Looks at the nodes of a server, and has the deployment run when its rule says so.

    Args:
        server: whose nodes.
        rule: when a session begins.
        session: what it would be; where it names nodes, only they count, and all of them must be there.
        parameters: what the deployment is run with.
    """

    def __init__(self, server: "ServerFolder", rule: "Rule", session: "Session", parameters: dict[str, Any]) -> None:
        self._server = server
        self._named = session.federation.nodes
        self._rule = rule.model_copy(update={"least": max(rule.least, len(self._named))})
        self._parameters = parameters
        self._file = server.path / "watch.json"

    def look(self) -> str:
        """Look once, and begin a session if it is time; what was found, in one line."""
        from zk0.federation.watch import Begun, verdict

        try:
            present = [node.name for node in self._server.nodes() if node.status == "online"]
            present = [name for name in present if not self._named or name in self._named]
            last, runs = Begun.read(self._file), _a_session_runs()
            found = verdict(present, last, runs, time.time(), self._rule)
            if found.begin:
                run = _begin(self._parameters)
                Begun(run=run, at=time.time(), known=tuple(sorted(present))).keep(self._file)
                return f"session begun as {run}: {found.why}"
            if runs and last is not None and last.with_known(present) != last:
                last.with_known(present).keep(self._file)
        except (TransientError, FederationError, StackError) as e:
            return f"not now: {e}"
        return found.why


def watch(one: NodeWatch, every_seconds: float, tell: Callable[[str], None]) -> None:
    """Look for ever; what was found is told when it is news."""
    told = ""
    while True:
        if (found := one.look()) != told:
            tell(found)
            told = found
        time.sleep(every_seconds)


def check_prefect() -> None:
    """Raises SettingsError where no Prefect server is named: one of our own would end with us."""
    from prefect.settings import PREFECT_API_URL

    if not PREFECT_API_URL.value():
        raise SettingsError(
            "zk0bot watch: no Prefect server is named; start `zk0 ui` in this folder, or set PREFECT_API_URL"
        )


def _a_session_runs() -> bool:
    """Whether a session runs on this Prefect server, or is about to, however it was begun."""
    from prefect.client.schemas.filters import FlowFilter, FlowRunFilter
    from prefect.client.schemas.objects import StateType

    states = [StateType.RUNNING, StateType.PENDING, StateType.CANCELLING, StateType.SCHEDULED]
    soon = {"before_": datetime.now(UTC) + _SOON}
    asked = {"state": {"type": {"any_": states}}, "expected_start_time": soon}
    with _client() as client:
        return bool(
            client.read_flow_runs(
                flow_filter=FlowFilter.model_validate({"name": {"any_": [DEPLOYMENT.partition("/")[0]]}}),
                flow_run_filter=FlowRunFilter.model_validate(asked),
                limit=1,
            )
        )


@contextmanager
def _client() -> "Iterator[SyncPrefectClient]":
    """A client of the Prefect server that this process is set to; one that is not there is told as such."""
    import httpx
    from prefect.client.orchestration import get_client
    from prefect.exceptions import PrefectHTTPStatusError

    try:
        with get_client(sync_client=True) as client:
            yield client
    except (httpx.HTTPError, PrefectHTTPStatusError) as e:
        raise StackError(f"the Prefect server does not answer: {type(e).__name__}: {e}".splitlines()[0]) from e


def _begin(parameters: dict[str, Any]) -> str:
    from prefect.exceptions import ObjectNotFound

    with _client() as client:
        try:
            deployment = client.read_deployment_by_name(DEPLOYMENT).id
        except ObjectNotFound as e:
            raise StackError(f"{DEPLOYMENT}: not deployed; run `prefect deploy --all` in a clone") from e
        return str(client.create_flow_run_from_deployment(deployment, parameters=parameters, tags=["watch"]).id)
