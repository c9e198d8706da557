"""State of the local Hub: repositories, uploaded files, requests, and injected faults."""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

TOKEN = "hf_aSecretThatNobodyMayRead"


@dataclass
class Repository:
    """Files by commit; the last commit is main's head."""

    private: bool
    commits: list[tuple[str, str, dict[str, bytes]]] = field(default_factory=list)
    """(oid, message, files)."""
    tags: dict[str, str] = field(default_factory=dict)
    etags: dict[int, str] = field(default_factory=dict)

    def etag(self, content: bytes) -> str:
        """Git's hash of a file of this repository, computed once: it takes seconds for one of some GB."""
        if id(content) not in self.etags:
            self.etags[id(content)] = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        return self.etags[id(content)]

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """Files at a commit, a tag or main."""
        oid = self.oid(revision)
        return next((files for o, _, files in self.commits if o == oid), {})

    def oid(self, revision: str = "main") -> str | None:
        """Commit that a commit, a tag or main stands for; None if there is no such revision."""
        wanted = self.tags.get(revision, revision)
        return next((o for o, _, _ in reversed(self.commits) if wanted in ("main", o)), None)

    def commit(self, message: str, files: dict[str, bytes]) -> str:
        """Add a commit, and return its oid."""
        oid = hashlib.sha1(f"{len(self.commits)}{message}{sorted(files)}".encode()).hexdigest()
        self.commits.append((oid, message, files))
        return oid


class Hub:
    """State of the server, and the faults that a test injects."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.stored: dict[str, bytes] = {}
        """Large files by SHA-256; files that were uploaded by Xet by the hash of their xorb."""
        self.requests: list[str] = []
        self.cut: Callable[[str], bool] = lambda request: False
        """Whether the connection is closed during this request."""
        self.status: Callable[[str], int | None] = lambda request: None
        """Status of a response without content to this request; None: the normal response."""
        self.url = ""
        self.token = TOKEN

    def publish(self, name: str, folder: Path) -> None:
        """Publish a folder as the main branch of a repository: `user/name` for a model, `datasets/user/name`."""
        files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
        self.repositories[name] = Repository(private=False)
        self.repositories[name].commit("a folder", files)
        for content in files.values():
            self.repositories[name].etag(content)

    def count_requests(self, pattern: str) -> int:
        """Number of requests that match a pattern."""
        return sum(bool(re.search(pattern, request)) for request in self.requests)
