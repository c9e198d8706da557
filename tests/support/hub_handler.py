"""Requests to the local Hub: the part of the Hub's API that pushes and downloads use."""

import base64
import hashlib
import json
import re
import socket
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import unquote

from hub_state import TOKEN, Hub, Repository


class HubHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: Any) -> None:
        """No output."""

    def _respond(self) -> None:
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
            self._send(status, {"error": "injected"})
        elif not path.startswith(("/lfs/", "/cas/")) and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._send(401, {"error": "Invalid credentials in Authorization header"})
        else:
            matching = ((handle, found) for p, handle in ROUTES if (found := re.fullmatch(p, request)))
            handle, found = next(matching, (None, None))
            if handle is None or found is None:
                self._send(404, {"error": f"no such page: {request}"})
            else:
                handle(self, *found.groups(), body)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _respond  # noqa: N815

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

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
        request = json.loads(body)
        name = f"{request['organization']}/{request['name']}"
        if name in self.hub.repositories:
            return self._send(409, {"error": "You already created this model repo", "url": f"{self.hub.url}/{name}"})
        self.hub.repositories[name] = Repository(private=request.get("visibility") == "private")
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
            self._send(200, [_tree_entry(path, content) for path, content in found.files(revision).items()])

    def refs(self, name: str, body: bytes) -> None:
        if found := self._repository(name):
            tags = [{"name": t, "ref": f"refs/tags/{t}", "targetCommit": c} for t, c in found.tags.items()]
            self._send(200, {"branches": [], "converts": [], "tags": tags})

    def dataset_info(self, name: str, revision: str | None, body: bytes) -> None:
        if not (found := self._repository(f"datasets/{name}")):
            return
        if (oid := found.oid(revision or "main")) is None:
            self._send(404, {"error": "Revision not found"}, {"X-Error-Code": "RevisionNotFound"})
            return
        files = found.files(oid)
        names = [{"rfilename": path, "size": len(files[path])} for path in sorted(files)]
        self._send(200, {"id": name, "private": False, "sha": oid, "siblings": names})

    def dataset_tree(self, name: str, revision: str, body: bytes) -> None:
        self.tree(f"datasets/{name}", revision, body)

    def download(self, kind: str, name: str, revision: str, path: str, body: bytes) -> None:
        if not (found := self._repository(f"{kind}{name}")):
            return
        headers = {"X-Repo-Commit": found.oid(revision) or ""}
        content = found.files(revision).get(path)
        if content is None:
            self._send(404, {"error": "Entry not found"}, headers | {"X-Error-Code": "EntryNotFound"})
        else:
            headers |= {"ETag": f'"{found.etag(content)}"', "Content-Length": str(len(content))}
            self.send_response(200)
            for key, text in headers.items():
                self.send_header(key, text)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

    def preupload(self, name: str, body: bytes) -> None:
        if found := self._repository(name):
            existing = found.files()
            files = [
                {
                    "path": f["path"],
                    "uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                    "oid": _known_oid(f["path"], existing),
                }
                for f in json.loads(body)["files"]
            ]
            self._send(200, {"files": files})

    def batch(self, name: str, body: bytes) -> None:
        def with_action(one: dict[str, Any]) -> dict[str, Any]:
            if one["oid"] in self.hub.stored:
                return one
            return one | {"actions": {"upload": {"href": f"{self.hub.url}/lfs/{one['oid']}"}}}

        objects = [with_action(one) for one in json.loads(body)["objects"]]
        self._send(200, {"transfer": "basic", "objects": objects}, {"Content-Type": "application/vnd.git-lfs+json"})

    def put_large(self, oid: str, body: bytes) -> None:
        is_complete = hashlib.sha256(body).hexdigest() == oid
        if is_complete:
            self.hub.stored[oid] = body
        self._send(200 if is_complete else 400)

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
            tag_name = json.loads(body)["tag"]
            if tag_name in found.tags:
                return self._send(409, {"error": "Tag reference exists already"})
            found.tags[tag_name] = revision
            return self._send(200)
        return None

    def untag(self, name: str, tag: str, body: bytes) -> None:
        if found := self._repository(name):
            del found.tags[tag]
            self._send(200)


def _tree_entry(path: str, content: bytes) -> dict[str, Any]:
    entry = {"type": "file", "path": path, "size": len(content), "oid": _git_oid(content)}
    if not path.endswith(".safetensors"):
        return entry
    large = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
    return entry | {"lfs": large}


def _git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _known_oid(path: str, files: dict[str, bytes]) -> str | None:
    """Oid of a file on the Hub: SHA-256 of a large file, git's oid of a small one; None if it is not there."""
    if path not in files:
        return None
    return hashlib.sha256(files[path]).hexdigest() if path.endswith(".safetensors") else _git_oid(files[path])


NAME = r"([\w.-]+/[\w.-]+)"
ROUTES: list[tuple[str, Callable[..., None]]] = [
    ("POST /api/repos/create", HubHandler.create),
    ("POST /api/validate-yaml", HubHandler.validate),
    (f"GET /api/models/{NAME}", HubHandler.info),
    (f"GET /api/datasets/{NAME}(?:/revision/(.+))?", HubHandler.dataset_info),
    (f"GET /api/datasets/{NAME}/tree/(.+)", HubHandler.dataset_tree),
    (f"(?:GET|HEAD) /(datasets/|){NAME}/resolve/([^/]+)/(.+)", HubHandler.download),
    (f"GET /api/models/{NAME}/revision/main", HubHandler.info),
    (f"GET /api/models/{NAME}/tree/(.+)", HubHandler.tree),
    (f"GET /api/models/{NAME}/refs", HubHandler.refs),
    (f"GET /api/models/{NAME}/xet-write-token/main", HubHandler.xet_token),
    (f"POST /api/models/{NAME}/preupload/main", HubHandler.preupload),
    (f"POST /api/models/{NAME}/commit/main", HubHandler.commit),
    (f"POST /api/models/{NAME}/tag/(.+)", HubHandler.tag),
    (f"DELETE /api/models/{NAME}/tag/(.+)", HubHandler.untag),
    (rf"POST /{NAME}\.git/info/lfs/objects/batch", HubHandler.batch),
    ("PUT /lfs/(.+)", HubHandler.put_large),
    ("POST /cas/v1/xorbs/default/(.+)", HubHandler.xorb),
    ("POST /cas/v2/shards", HubHandler.shard),
]
