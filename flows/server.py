"""What is asked of a Prefect server over its REST interface; importing Prefect for that would take a second."""

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from zk0.errors import StackError

_UNFINISHED = {"type": {"any_": ["RUNNING", "PENDING", "CANCELLING"]}}
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Server:
    """A Prefect server at `url`; every question may raise OSError while it is not there."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.api_url = f"{url}/api"

    def healthy(self) -> bool:
        """Whether it is ready for questions."""
        return self._ask("/health") is True

    def deployment_url(self, name: str) -> str:
        """The page of a deployment, named `flow/deployment`."""
        return f"{self.url}/deployments/deployment/{self._ask(f'/deployments/name/{name}')['id']}"

    def create_pools(self, folder: Path) -> None:
        """Every `<pool>-process.json` is the base job template of a process pool; one that exists is left as it is.

        Raises:
            StackError: the server refuses one.
        """
        for file in sorted(folder.glob("*-process.json")):
            pool = {
                "name": file.stem.removesuffix("-process"),
                "type": "process",
                "description": "Flows as processes. One worker for each GPU, with its own CUDA_VISIBLE_DEVICES.",
                "base_job_template": json.loads(file.read_text(encoding="utf-8")),
            }
            try:
                self._ask("/work_pools/", pool)
            except urllib.error.HTTPError as e:
                if e.code != 409:
                    raise StackError(f"{file}: the server refuses this pool: {e.read().decode()[:200]}") from e

    def heard_since(self, moment: datetime, pool: str, worker: str) -> bool:
        """Whether the worker has reported to the server since then."""
        workers = self._all(f"/work_pools/{pool}/workers/filter", {})
        beats = [w["last_heartbeat_time"] for w in workers if w["name"] == worker]
        return any(beat and datetime.fromisoformat(beat) >= moment for beat in beats)

    def crash_unfinished(self, worker: str, reason: str) -> list[str]:
        """Call what a worker that is gone left behind Crashed, so that it can be retried and blocks nobody; their ids.

        Prefect itself goes on calling it Running, and its place under a deployment's limit stays taken.
        """
        crashed = {"state": {"type": "CRASHED", "name": "Crashed", "message": reason}, "force": True}
        runs = [
            run["id"]
            for run in self._all("/flow_runs/filter", {"flow_runs": {"state": _UNFINISHED}})
            if (run["labels"] or {}).get("prefect.worker.name") == worker
        ]
        for run in runs:
            inside = {"flow_runs": {"id": {"any_": [run]}}, "task_runs": {"state": _UNFINISHED}}
            for task_run in list(self._all("/task_runs/filter", inside)):
                self._ask(f"/task_runs/{task_run['id']}/set_state", crashed)
            self._ask(f"/flow_runs/{run}/set_state", crashed)
        return runs

    def _all(self, path: str, question: dict[str, Any]) -> Iterator[dict[str, Any]]:
        page, offset = 200, 0
        while found := self._ask(path, {**question, "limit": page, "offset": offset}):
            yield from found
            offset += page

    def _ask(self, path: str, body: Any = None) -> Any:
        """The answer to GET, or to POST where there is a body."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.api_url + path, data, {"Content-Type": "application/json"})
        with _direct.open(request, timeout=10) as answer:
            return json.load(answer)
