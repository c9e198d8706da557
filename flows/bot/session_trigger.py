"""Starts sessions automatically when enough nodes are connected: `zk0bot watch`.

Which nodes are connected comes from the SuperLink, whether a session runs from the Prefect server.
"""

import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from flows.prefect_local.prefect_server import SESSION_DEPLOYMENT
from zk0.errors import FederationError, LedgerError, PrefectServerError, SettingsError, TransientError, first_line

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

    from zk0.federation.network.server import ServerFolder
    from zk0.federation.network.start_rule import StartRule
    from zk0.settings.session import Session

_SOON = timedelta(minutes=1)


class SessionTrigger:
    """Starts a run of the session's deployment when the nodes of a server fulfill a rule.

    Args:
        server: folder of the server whose nodes count.
        rule: when a session starts.
        session: the session that would start; where it names nodes, only these count. As many nodes must be connected
            as it begins with at least.
        parameters: of the deployment's run.
    """

    def __init__(
        self, server: "ServerFolder", rule: "StartRule", session: "Session", parameters: dict[str, Any]
    ) -> None:
        self._server = server
        self._named, self._secure = session.federation.nodes, session.federation.secure
        self._rule = rule.of_session(session.min_clients(), self._named)
        self._parameters = parameters
        self._file = server.path / "watch.json"
        self.alive = server.path / "watch.alive"
        """Touched after each check; an old one shows that the watcher hangs."""

    def check_once(self) -> str:
        """Check the rule once, and start a session if it is fulfilled; return the decision in one line."""
        from zk0.federation.network.start_rule import LastSession, decide_start

        try:
            online = {node.name: node.since for node in self._server.node_statuses() if node.status == "online"}
            present = {name: since for name, since in online.items() if not self._named or name in self._named}
            last, runs = LastSession.read(self._file), _session_is_running()
            decision = decide_start(present, last, runs, time.time(), self._rule)
            if decision.start and (left_out := self._refused(present)):
                counted = [name for name in present if name not in left_out]
                decision = decide_start(counted, last, runs, time.time(), self._rule).without(left_out)
            if decision.start:
                run = _start_session(self._run_parameters())
                LastSession(run=run, at=time.time(), known=tuple(sorted(present))).write(self._file)
                return f"session started as {run}: {decision.reason}"
            if runs and last is not None and last.with_known(present) != last:
                last.with_known(present).write(self._file)
        except (TransientError, FederationError, LedgerError, PrefectServerError) as e:
            return f"cannot start a session now: {e}"
        return decision.reason

    def _run_parameters(self) -> dict[str, Any]:
        """Return the parameters of the next run; with secure sums each has a seed of its own.

        Clients refuse a second sum of the same updates (`zk0.secure.agreed_sums`), and other clients may be there.
        """
        if not self._secure:
            return self._parameters
        overrides = {"seed": secrets.randbelow(2**31)} | self._parameters["overrides"]
        return self._parameters | {"overrides": overrides}

    def _refused(self, present: Mapping[str, str]) -> list[str]:
        """Return which connected nodes could not join the last session, and have not connected anew since.

        Args:
            present: when each node connected, by its name.
        """
        from zk0.audit.journal import ReceivedJournal
        from zk0.federation.network.refused_nodes import refused_nodes
        from zk0.federation.protocol.received_log import RECEIVED_JOURNAL

        now, cooldown = time.time(), self._rule.cooldown_seconds
        found = refused_nodes(ReceivedJournal(self._server.path / RECEIVED_JOURNAL).newest_first(), now)
        return [name for name in found if name in present and not found[name].counts(present[name], now, cooldown)]


def check_forever(trigger: SessionTrigger, interval_seconds: float, on_status: Callable[[str], None]) -> None:
    """Check the rule again and again; call `on_status` with the decision whenever it changes."""
    reported = ""
    while True:
        decision = trigger.check_once()
        trigger.alive.touch()
        if decision != reported:
            on_status(decision)
            reported = decision
        time.sleep(interval_seconds)


def check_prefect_configured() -> None:
    """Check that Prefect is configured to use a running server: a temporary one would end with this command.

    Raises:
        SettingsError: it is not.
    """
    from prefect.settings import PREFECT_API_URL

    if not PREFECT_API_URL.value():
        raise SettingsError(
            "zk0bot watch: no Prefect server is configured; start `zk0 ui` in this folder, or set PREFECT_API_URL"
        )


def _session_is_running() -> bool:
    """Return whether a session runs on this Prefect server, or is about to, whoever started it."""
    from prefect.client.schemas.filters import FlowFilter, FlowRunFilter
    from prefect.client.schemas.objects import StateType

    states = [StateType.RUNNING, StateType.PENDING, StateType.CANCELLING, StateType.SCHEDULED]
    soon = {"before_": datetime.now(UTC) + _SOON}
    running = {"state": {"type": {"any_": states}}, "expected_start_time": soon}
    with _prefect_client() as client:
        return bool(
            client.read_flow_runs(
                flow_filter=FlowFilter.model_validate({"name": {"any_": [SESSION_DEPLOYMENT.partition("/")[0]]}}),
                flow_run_filter=FlowRunFilter.model_validate(running),
                limit=1,
            )
        )


@contextmanager
def _prefect_client() -> "Iterator[SyncPrefectClient]":
    """Yield a client of the configured Prefect server; its connection errors become a PrefectServerError."""
    import httpx
    from prefect.client.orchestration import get_client
    from prefect.exceptions import PrefectHTTPStatusError

    try:
        with get_client(sync_client=True) as client:
            yield client
    except (httpx.HTTPError, PrefectHTTPStatusError) as e:
        raise PrefectServerError(f"the Prefect server does not respond: {type(e).__name__}: {first_line(e)}") from e


def _start_session(parameters: dict[str, Any]) -> str:
    from prefect.exceptions import ObjectNotFound

    with _prefect_client() as client:
        try:
            deployment = client.read_deployment_by_name(SESSION_DEPLOYMENT).id
        except ObjectNotFound as e:
            message = f"{SESSION_DEPLOYMENT}: not deployed; run `prefect deploy --all` in a clone"
            raise PrefectServerError(message) from e
        return str(client.create_flow_run_from_deployment(deployment, parameters=parameters, tags=["watch"]).id)
