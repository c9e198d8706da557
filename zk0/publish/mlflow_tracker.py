"""A session as one run of an MLflow server: one step per round. It talks MLflow's REST API 2.0, without the package."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import httpx
from pydantic import SecretStr

from zk0.errors import PublishError, TrackerUnavailable, first_line
from zk0.publish.metrics_tracker import MetricsTracker
from zk0.records import RoundRecord
from zk0.settings.session import Session
from zk0.settings.setting_differences import dotted_settings
from zk0.storage.redaction import public_values

MLFLOW_TOKEN = "MLFLOW_TRACKING_TOKEN"
"""Name of the environment variable with the token."""
ROUND_METRIC = "round"
"""Metric that says which rounds a run has."""
_SESSION_TAG = "zk0_session"
_METRICS_AT_ONCE, _PARAMETERS_AT_ONCE, _LONGEST_PARAMETER = 1000, 100, 500
_NOT_ALLOWED = re.compile(r"[^\w .:/-]")


class MlflowTracker(MetricsTracker):
    """An open run of an MLflow server."""

    def __init__(self, server: "_MlflowServer", run: Mapping[str, Any]) -> None:
        self._server, self.run_id = server, str(run["info"]["run_id"])
        metrics = run.get("data", {}).get("metrics", [])
        logged = [int(metric["value"]) for metric in metrics if metric["key"] == ROUND_METRIC]
        super().__init__(max(logged) + 1 if logged else 0)

    def write_round(self, record: RoundRecord, values: Mapping[str, float]) -> None:
        """Log the values with the round as step; the metric `round` comes last, so that a lost request is repeated."""
        when = round(1000 * datetime.fromisoformat(record.finished_at).timestamp())
        named = {**{_NOT_ALLOWED.sub("_", key): value for key, value in values.items()}, ROUND_METRIC: record.round}
        rows = [{"key": k, "value": float(v), "timestamp": when, "step": record.round} for k, v in named.items()]
        for first in range(0, len(rows), _METRICS_AT_ONCE):
            self._server.post("runs/log-batch", run_id=self.run_id, metrics=rows[first : first + _METRICS_AT_ONCE])

    def log_settings(self, settings: Mapping[str, Any]) -> None:
        """Log the session's settings as parameters of the run."""
        flat = [{"key": key, "value": value[:_LONGEST_PARAMETER]} for key, value in dotted_settings(settings)]
        for first in range(0, len(flat), _PARAMETERS_AT_ONCE):
            self._server.post("runs/log-batch", run_id=self.run_id, params=flat[first : first + _PARAMETERS_AT_ONCE])


class _MlflowServer:
    def __init__(self, url: str, token: SecretStr | None) -> None:
        headers = {"Authorization": f"Bearer {token.get_secret_value()}"} if token else {}
        self._url = url
        self.client = httpx.Client(base_url=f"{url.rstrip('/')}/api/2.0/mlflow/", headers=headers, timeout=30)

    def post(self, path: str, **content: Any) -> Any:
        """Return the server's answer.

        Raises:
            PublishError: it refuses.
            TrackerUnavailable: it does not respond, or has an error of its own.
        """
        return self._checked(path, lambda: self.client.post(path, json=content))

    def find_experiment(self, name: str) -> str:
        """Return the id of the experiment of this name, which is created if there is none."""
        try:
            found = self.client.get("experiments/get-by-name", params={"experiment_name": name})
        except httpx.HTTPError as e:
            raise self._unreachable(e) from e
        if found.status_code == httpx.codes.NOT_FOUND:
            return str(self.post("experiments/create", name=name)["experiment_id"])
        return str(self._checked("experiments/get-by-name", lambda: found)["experiment"]["experiment_id"])

    def _checked(self, path: str, request: Any) -> Any:
        try:
            answer = request()
        except httpx.HTTPError as e:
            raise self._unreachable(e) from e
        if answer.is_error:
            kind = TrackerUnavailable if answer.is_server_error else PublishError
            raise kind(f"MLflow at {self._url}: {path} answered {answer.status_code}: {answer.text[:200]}")
        return answer.json()

    def _unreachable(self, error: httpx.HTTPError) -> TrackerUnavailable:
        return TrackerUnavailable(
            f"MLflow at {self._url}: {first_line(error)}; is the server running (tracking.mlflow)?"
        )


@contextmanager
def open_mlflow_tracker(session: Session, name: str, token: SecretStr | None) -> Iterator[MlflowTracker]:
    """Open the run of a session; the end of the block finishes it, as failed if the block raises.

    Args:
        session: its tracking settings, and the settings that are logged.
        name: of the session's folder; name of the run, which a resumed session continues.
        token: None: the server needs none.

    Raises:
        PublishError: the server refuses.
        TrackerUnavailable: the server does not respond.
    """
    assert session.tracking.mlflow is not None
    server = _MlflowServer(session.tracking.mlflow, token)
    with server.client:
        experiment = server.find_experiment(session.tracking.project)
        query = {"experiment_ids": [experiment], "filter": f"tags.{_SESSION_TAG} = '{name}'"}
        found = server.post("runs/search", **query).get("runs", [])
        tags = [{"key": _SESSION_TAG, "value": name}]
        run = found[0] if found else _created(server, experiment, name, tags)
        tracker = MlflowTracker(server, run)
        if not found:
            tracker.log_settings(public_values(session.model_dump(mode="json", exclude_none=True)))
        status = "FAILED"
        try:
            yield tracker
            status = "FINISHED"
        finally:
            server.post("runs/update", run_id=tracker.run_id, status=status)


def _created(server: _MlflowServer, experiment: str, name: str, tags: list[dict[str, str]]) -> Any:
    return server.post("runs/create", experiment_id=experiment, run_name=name, tags=tags)["run"]
