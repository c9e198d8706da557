"""Flower's Control and Runtime API as they lie on the wire: protobuf over HTTP, on loopback.

Flower's own clients are made for its own processes: refused once, they send SIGINT to the process they live in
(`flwr.supercore.retry`), which here would be a Prefect flow. So this speaks the same protocol and raises instead.
"""

import ssl
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx
from flwr.supercore.auth import create_superexec_auth_metadata, derive_auth_secret
from flwr.supercore.constant import TASK_TOKEN_HEADER
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.supercore.runtime_version_compatibility import RuntimeVersionMetadata

from zk0.errors import CallRefused, FederationError, NoAnswer
from zk0.records import Record

ACQUIRE_TASK = "/v1/runtime/acquire-task"
_ACQUIRE_METHOD = "/flwr.proto.Runtime/AcquireTask"
_CALL_SECONDS = 30.0
_PAUSE_SECONDS = (0.2, 3.0)
_NOT_NOW = {httpx.codes.BAD_GATEWAY, httpx.codes.SERVICE_UNAVAILABLE, httpx.codes.GATEWAY_TIMEOUT}


class Endpoint(Record):
    """Where an API answers, and how it is known that it is the right one."""

    address: str
    """host:port"""
    authority: Path | None = None
    """Certificate that has signed the server's; None: no TLS."""
    secret: Path | None = None
    """File whose bytes show who may take tasks."""


class Api:
    """A connection to one API, for calls from any thread.

    Args:
        endpoint: where it answers.
        token: of the task that speaks; empty for calls that belong to none.
        component: who speaks, as Flower names it.
    """

    def __init__(self, endpoint: Endpoint, token: str = "", component: str = "flwr-serverapp") -> None:
        self.endpoint = endpoint
        verify: Any = False
        if endpoint.authority is not None:
            verify = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            verify.load_verify_locations(endpoint.authority)
        scheme = "http" if endpoint.authority is None else "https"
        self._headers = {
            "content-type": PROTOBUF_MEDIA_TYPE,
            "accept": PROTOBUF_MEDIA_TYPE,
            **dict(RuntimeVersionMetadata.from_local_component(component).as_metadata()),
            **({TASK_TOKEN_HEADER: token} if token else {}),
        }
        base = f"{scheme}://{endpoint.address}"
        self._client = httpx.Client(base_url=base, verify=verify, timeout=_CALL_SECONDS, trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None) -> None:
        self._client.close()

    def call(self, path: str, request: Any, answer: type[Any], patience_seconds: float = 0.0) -> Any:
        """The answer to one call; a server that is not there is asked again for `patience_seconds`.

        Raises:
            NoAnswer: the server is not there, or is overloaded.
            CallRefused: it does not accept the token: the task has ended, or was never ours.
            FederationError: it calls the request wrong.
        """
        content, deadline, pause = request.SerializeToString(deterministic=True), None, _PAUSE_SECONDS[0]
        while True:
            try:
                return answer.FromString(self._once(path, request, content))
            except NoAnswer:
                deadline = deadline or time.monotonic() + patience_seconds
                if time.monotonic() + pause > deadline:
                    raise
            time.sleep(pause)
            pause = min(2 * pause, _PAUSE_SECONDS[1])

    def _once(self, path: str, request: Any, content: bytes) -> bytes:
        headers = {**self._headers, **(self._signature(request) if path == ACQUIRE_TASK else {})}
        try:
            found = self._client.post(path, content=content, headers=headers)
        except httpx.TransportError as e:
            raise NoAnswer(f"{self.endpoint.address}{path} does not answer: {e or type(e).__name__}") from e
        if found.is_success:
            return found.content
        said = f"{self.endpoint.address}{path} answers {found.status_code}: {found.text[:300]}"
        if found.status_code in _NOT_NOW:
            raise NoAnswer(said)
        if found.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            raise CallRefused(said)
        raise FederationError(said)

    def _signature(self, request: Any) -> dict[str, str]:
        if self.endpoint.secret is None:
            return {}
        secret = derive_auth_secret(self.endpoint.secret.read_bytes())
        return dict(create_superexec_auth_metadata(auth_secret=secret, method=_ACQUIRE_METHOD, request=request))
