"""A W&B server on loopback that opens runs and takes their data: as much of its API as a run needs."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

RUN = {
    "id": "1", "name": "run", "displayName": "run", "description": None, "config": "{}", "sweepName": None,
    "historyLineCount": 0, "project": {"name": "arms", "entity": {"name": "lab", "id": "1"}},
}  # fmt: skip
ANSWERS = {
    "upsertBucket": {"bucket": RUN, "inserted": True},
    "createRunFiles": {"runID": "1", "uploadHeaders": [], "files": []},
    "viewer": {"id": "1", "entity": "lab", "flags": "{}"},
}  # fmt: skip


class Handler(BaseHTTPRequestHandler):
    """Answers every GraphQL query with the fields in ANSWERS that it names, and every upload with an empty object."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode(errors="replace")
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        found: dict[str, Any] = {}
        if self.path.startswith("/graphql"):
            found = {"data": {name: answer for name, answer in ANSWERS.items() if name in body}}
        self.answer(found)

    def do_GET(self) -> None:
        self.answer({})

    def answer(self, found: dict[str, Any]) -> None:
        text = json.dumps(found).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def wandb_server(port: int) -> Iterator[list[str]]:
    """Start the server on a port; yield the paths that it is asked for."""
    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.asked = []  # type: ignore[attr-defined]
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.asked  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        server.server_close()
