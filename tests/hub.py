"""A Hub on loopback that speaks what huggingface_hub speaks: repositories, commits, tags, LFS and Xet uploads."""

import base64
import hashlib
import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

TOKEN = "hf_aSecretThatNobodyMayRead"


@dataclass
class Repository:
    """Files by commit; the last commit is main's head."""

    private: bool
    commits: list[tuple[str, str, dict[str, bytes]]] = field(default_factory=list)
    """(oid, message, files)."""
    tags: dict[str, str] = field(default_factory=dict)

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """What lies there at a commit, a tag or main."""
        oid = self.tags.get(revision, revision)
        return next((files for o, _, files in reversed(self.commits) if oid in ("main", o)), {})

    def commit(self, message: str, files: dict[str, bytes]) -> str:
        """One more commit; its oid."""
        oid = hashlib.sha1(f"{len(self.commits)}{message}{sorted(files)}".encode()).hexdigest()
        self.commits.append((oid, message, files))
        return oid


class Hub:
    """What the server knows, and how it misbehaves when it is told to."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.stored: dict[str, bytes] = {}
        """Large files by SHA-256; of those that came by Xet only the length is kept."""
        self.requests: list[str] = []
        self.cut: Callable[[str], bool] = lambda request: False
        """The connection breaks while this request is being answered."""
        self.status: Callable[[str], int | None] = lambda request: None
        """The request is answered with this status and nothing else."""
        self.url = ""
        self.token = TOKEN

    def seen(self, pattern: str) -> int:
        """How many requests looked like this."""
        return sum(bool(re.search(pattern, request)) for request in self.requests)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: Any) -> None:
        """Nothing on the terminal."""

    def _answer(self) -> None:
        path = unquote(self.path.partition("?")[0])
        request = f"{self.command} {path}"
        self.hub.requests.append(request)
        if self.hub.cut(request):
            self.rfile.read(min(10, int(self.headers.get("Content-Length") or 0)))
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        self._handle(request, path)

    def _handle(self, request: str, path: str) -> None:
        body = self._body()
        if (status := self.hub.status(request)) is not None:
            self._send(status, {"error": "as told"})
        elif not path.startswith(("/lfs/", "/cas/")) and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._send(401, {"error": "Invalid credentials in Authorization header"})
        else:
            fitting = ((handle, found) for p, handle in ROUTES if (found := re.fullmatch(p, request)))
            handle, found = next(fitting, (None, None))
            if handle is None or found is None:
                self._send(404, {"error": f"no such page: {request}"})
            else:
                handle(self, *found.groups(), body)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _answer  # noqa: N815

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        whole = b""
        while size := int(self.rfile.readline(), 16):
            whole += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return whole

    def _send(self, status: int, value: Any = None, headers: dict[str, str] | None = None) -> None:
        data = json.dumps({} if value is None else value).encode()
        self.send_response(status)
        for name, text in ({"Content-Type": "application/json"} | (headers or {})).items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _repository(self, name: str) -> Repository | None:
        if name not in self.hub.repositories:
            self._send(404, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        return self.hub.repositories.get(name)

    def create(self, body: bytes) -> None:
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        if name in self.hub.repositories:
            return self._send(409, {"error": "You already created this model repo", "url": f"{self.hub.url}/{name}"})
        self.hub.repositories[name] = Repository(private=asked.get("visibility") == "private")
        return self._send(200, {"url": f"{self.hub.url}/{name}"})

    def validate(self, body: bytes) -> None:
        content = json.loads(body)["content"]
        self._send(200 if content.startswith("---\n") else 400, {"errors": [{"message": "no front matter"}]})

    def info(self, name: str, body: bytes) -> None:
        if found := self._repository(name):
            head = found.commits[-1][0] if found.commits else "0" * 40
            self._send(200, {"id": name, "private": found.private, "sha": head, "siblings": []})

    def tree(self, name: str, revision: str, body: bytes) -> None:
        if found := self._repository(name):
            files = found.files(revision).items()
            self._send(200, [{"type": "file", "path": p, "size": len(b), "oid": _git_oid(b)} for p, b in files])

    def refs(self, name: str, body: bytes) -> None:
        if found := self._repository(name):
            tags = [{"name": t, "ref": f"refs/tags/{t}", "targetCommit": c} for t, c in found.tags.items()]
            self._send(200, {"branches": [], "converts": [], "tags": tags})

    def preupload(self, name: str, body: bytes) -> None:
        if found := self._repository(name):
            there = found.files()
            files = [
                {
                    "path": f["path"],
                    "uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                    "oid": _known_oid(f["path"], there),
                }
                for f in json.loads(body)["files"]
            ]
            self._send(200, {"files": files})

    def batch(self, name: str, body: bytes) -> None:
        def answer(one: dict[str, Any]) -> dict[str, Any]:
            if one["oid"] in self.hub.stored:
                return one
            return one | {"actions": {"upload": {"href": f"{self.hub.url}/lfs/{one['oid']}"}}}

        objects = [answer(one) for one in json.loads(body)["objects"]]
        self._send(200, {"transfer": "basic", "objects": objects}, {"Content-Type": "application/vnd.git-lfs+json"})

    def put_large(self, oid: str, body: bytes) -> None:
        whole = hashlib.sha256(body).hexdigest() == oid
        if whole:
            self.hub.stored[oid] = body
        self._send(200 if whole else 400)

    def xet_token(self, name: str, body: bytes) -> None:
        self._send(200, {"accessToken": "short-lived", "exp": 9_999_999_999, "casUrl": f"{self.hub.url}/cas"})

    def xorb(self, oid: str, body: bytes) -> None:
        self.hub.stored[oid] = body
        self._send(200, {"was_inserted": True})

    def shard(self, body: bytes) -> None:
        self._send(200, {"type": "result", "result": 1})

    def commit(self, name: str, body: bytes) -> None:
        if found := self._repository(name):
            files, message = dict(found.files()), ""
            for entry in map(json.loads, body.splitlines()):
                value = entry["value"]
                if entry["key"] == "header":
                    message = value["summary"]
                elif entry["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif entry["key"] == "lfsFile":
                    files[value["path"]] = self.hub.stored.get(value["oid"], b"xet " + value["oid"].encode())
                elif entry["key"] == "deletedFile":
                    del files[value["path"]]
            oid = found.commit(message, files)
            self._send(200, {"success": True, "commitOid": oid, "commitUrl": f"{self.hub.url}/{name}/commit/{oid}"})

    def tag(self, name: str, revision: str, body: bytes) -> None:
        if found := self._repository(name):
            wanted = json.loads(body)["tag"]
            if wanted in found.tags:
                return self._send(409, {"error": "Tag reference exists already"})
            found.tags[wanted] = revision
            return self._send(200)
        return None

    def untag(self, name: str, tag: str, body: bytes) -> None:
        if found := self._repository(name):
            del found.tags[tag]
            self._send(200)


def _git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _known_oid(path: str, there: dict[str, bytes]) -> str | None:
    """What the Hub calls a file that it has: SHA-256 of a large one, git's name of a small one."""
    if path not in there:
        return None
    return hashlib.sha256(there[path]).hexdigest() if path.endswith(".safetensors") else _git_oid(there[path])


NAME = r"([\w.-]+/[\w.-]+)"
ROUTES: list[tuple[str, Callable[..., None]]] = [
    ("POST /api/repos/create", _Handler.create),
    ("POST /api/validate-yaml", _Handler.validate),
    (f"GET /api/models/{NAME}", _Handler.info),
    (f"GET /api/models/{NAME}/revision/main", _Handler.info),
    (f"GET /api/models/{NAME}/tree/(.+)", _Handler.tree),
    (f"GET /api/models/{NAME}/refs", _Handler.refs),
    (f"GET /api/models/{NAME}/xet-write-token/main", _Handler.xet_token),
    (f"POST /api/models/{NAME}/preupload/main", _Handler.preupload),
    (f"POST /api/models/{NAME}/commit/main", _Handler.commit),
    (f"POST /api/models/{NAME}/tag/(.+)", _Handler.tag),
    (f"DELETE /api/models/{NAME}/tag/(.+)", _Handler.untag),
    (rf"POST /{NAME}\.git/info/lfs/objects/batch", _Handler.batch),
    ("PUT /lfs/(.+)", _Handler.put_large),
    ("POST /cas/v1/xorbs/default/(.+)", _Handler.xorb),
    ("POST /cas/v2/shards", _Handler.shard),
]


@contextmanager
def running() -> Iterator[Hub]:
    """An empty Hub, until the end of the block."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
