"""Requests to a Prefect server over its REST API, without importing Prefect, which would take a second."""

import json
import os
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from datetime import datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import uuid4

from flows.prefect_local.own_origin import SIGN_IN, STARTER
from zk0.errors import PrefectServerError

SESSION_DEPLOYMENT = "zk0/federated-session"
"""Flow and deployment of a federated session, as prefect.yaml names them."""
_UNFINISHED = {"type": {"any_": ["RUNNING", "PENDING", "CANCELLING"]}}
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class PrefectServer:
    """A Prefect server. Every method raises OSError while the server does not respond.

    Args:
        url: of the server.
        api_key: that it requires; empty: none.
    """

    def __init__(self, url: str, api_key: str = "") -> None:
        self.url = url
        self.api_url = f"{url}/api"
        self.api_key = api_key
        self._client = uuid4().hex

    def healthy(self) -> bool:
        """Return whether a server that this process started is ready for requests, and not another on its port."""
        with _direct.open(self.url + STARTER, timeout=10) as answer:
            starter = answer.read(100)
        return bool(starter == str(os.getpid()).encode()) and self._request("/health") is True

    def deployment_url(self, name: str) -> str:
        """Return the address of a deployment's page in the UI; `name` is `flow/deployment`."""
        return f"{self.url}/deployments/deployment/{self._request(f'/deployments/name/{name}')['id']}"

    @property
    def sign_in_url(self) -> str:
        """The address that opens the UI with the key; the key is in its fragment, which a browser does not send."""
        return f"{self.url}{SIGN_IN}#{quote(self.api_key)}" if self.api_key else self.url

    def create_pools(self, folder: Path) -> None:
        """Create a process pool from each `<pool>-process.json`, a base job template; an existing pool gets it, too.

        Raises:
            PrefectServerError: the server rejects a template.
        """
        for file in sorted(folder.glob("*-process.json")):
            pool = {
                "name": file.stem.removesuffix("-process"),
                "type": "process",
                "description": "Runs flows as processes. One worker per GPU, each with its own CUDA_VISIBLE_DEVICES.",
                "base_job_template": json.loads(file.read_text(encoding="utf-8")),
            }
            try:
                self._request("/work_pools/", pool)
            except urllib.error.HTTPError as e:
                if e.code != HTTPStatus.CONFLICT:
                    message = f"{file}: the server rejects this pool: {e.read().decode()[:200]}"
                    raise PrefectServerError(message) from e
                changes = {"base_job_template": pool["base_job_template"]}
                self._request(f"/work_pools/{pool['name']}", changes, "PATCH")

    def worker_seen_since(self, moment: datetime, pool: str, worker: str) -> bool:
        """Return whether a worker has sent a heartbeat since the moment."""
        workers = self._all(f"/work_pools/{pool}/workers/filter", {})
        beats = [w["last_heartbeat_time"] for w in workers if w["name"] == worker]
        return any(beat and datetime.fromisoformat(beat) >= moment for beat in beats)

    def mark_runs_crashed(self, worker: str, reason: str) -> list[str]:
        """Set the unfinished flow runs of a worker that has ended, and their task runs, to Crashed; return their ids.

        Prefect itself leaves them Running: they could not be retried, and their place under the deployment's
        concurrency limit would stay taken.
        """
        crashed = {"state": {"type": "CRASHED", "name": "Crashed", "message": reason}, "force": True}
        runs = [
            run["id"]
            for run in self._all("/flow_runs/filter", {"flow_runs": {"state": _UNFINISHED}})
            if (run["labels"] or {}).get("prefect.worker.name") == worker
        ]
        for run in runs:
            unfinished = {"flow_runs": {"id": {"any_": [run]}}, "task_runs": {"state": _UNFINISHED}}
            for task_run in list(self._all("/task_runs/filter", unfinished)):
                self._request(f"/task_runs/{task_run['id']}/set_state", crashed)
            self._request(f"/flow_runs/{run}/set_state", crashed)
        return runs

    def _all(self, path: str, query: dict[str, Any]) -> Iterator[dict[str, Any]]:
        page, offset = 200, 0
        while found := self._request(path, {**query, "limit": page, "offset": offset}):
            yield from found
            offset += page

    def _request(self, path: str, body: Any = None, method: str | None = None) -> Any:
        """Return the answer to GET, or to POST (or another method) where there is a body; None for an empty answer."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", **self._key_headers()}
        if data is not None:
            headers |= {"Prefect-Csrf-Client": self._client, "Prefect-Csrf-Token": self._read_csrf_token()}
        request = urllib.request.Request(self.api_url + path, data, headers, method=method)
        with _direct.open(request, timeout=10) as answer:
            return json.loads(answer.read() or b"null")

    def _key_headers(self) -> dict[str, str]:
        key = b64encode(self.api_key.encode()).decode()
        return {"Authorization": f"Basic {key}"} if self.api_key else {}

    def _read_csrf_token(self) -> str:
        """Return a token for one request that changes something."""
        return str(self._request(f"/csrf-token?client={self._client}")["token"])
