"""Client for Flower's Control and Runtime APIs: protobuf over HTTP on loopback.

Flower's own clients are made for Flower's processes: when a call is rejected, they send SIGINT to their own process
(`flwr.supercore.retry`). Here that process is a Prefect flow. This client speaks the same protocol and raises an error.
"""

import ssl
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from zk0.errors import FederationError, RunEnded, ServerUnavailable
from zk0.federation.flower.private_api import ACQUIRE_TASK, SERVER_APP, ApiMethod, acquire_task_headers, api_headers
from zk0.records import Record

_CALL_SECONDS = 30.0
_PAUSE_SECONDS = (0.2, 3.0)
"""Between two attempts: the first pause and the longest one."""
_UNAVAILABLE = {httpx.codes.BAD_GATEWAY, httpx.codes.SERVICE_UNAVAILABLE, httpx.codes.GATEWAY_TIMEOUT}


class Endpoint(Record):
    """Address of a Flower API and the credentials to use it."""

    address: str
    """host:port"""
    ca_certificate: Path | None = None
    """Certificate of the authority that signed the server's certificate; None: no TLS."""
    secret: Path | None = None
    """File with the secret that ACQUIRE_TASK requires."""


class ApiClient:
    """A connection to one API; several threads may call at a time.

    Args:
        endpoint: of the SuperLink or SuperNode.
        token: of the caller's task; empty for calls without a task.
        component: name of the caller, SERVER_APP or CLIENT_APP.
    """

    def __init__(self, endpoint: Endpoint, token: str = "", component: str = SERVER_APP) -> None:
        self.endpoint = endpoint
        verify: Any = False
        if endpoint.ca_certificate is not None:
            verify = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            verify.load_verify_locations(endpoint.ca_certificate)
        scheme = "http" if endpoint.ca_certificate is None else "https"
        self._headers = api_headers(component, token)
        base = f"{scheme}://{endpoint.address}"
        self._client = httpx.Client(base_url=base, verify=verify, timeout=_CALL_SECONDS, trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, trace: TracebackType | None) -> None:
        self._client.close()

    def call(self, method: ApiMethod, /, retry_seconds: float = 0.0, **fields: Any) -> Any:
        """Call a method and return its protobuf response.

        Args:
            method: of the API.
            retry_seconds: how long an unavailable server is tried again.
            fields: of the protobuf request.

        Raises:
            ServerUnavailable: the server does not answer, or is overloaded.
            RunEnded: the server rejects the token: the task has ended, or belongs to another process.
            FederationError: the server rejects the request.
        """
        request, deadline, pause = method.request(**fields), None, _PAUSE_SECONDS[0]
        while True:
            try:
                return method.response.FromString(self._post(method, request))
            except ServerUnavailable:
                deadline = deadline or time.monotonic() + retry_seconds
                if time.monotonic() + pause > deadline:
                    raise
            time.sleep(pause)
            pause = min(2 * pause, _PAUSE_SECONDS[1])

    def _post(self, method: ApiMethod, request: Any) -> bytes:
        headers = self._headers | (self._secret_headers(request) if method == ACQUIRE_TASK else {})
        content = request.SerializeToString(deterministic=True)
        try:
            found = self._client.post(method.path, content=content, headers=headers)
        except httpx.TransportError as e:
            name = e or type(e).__name__
            raise ServerUnavailable(f"{self.endpoint.address}{method.path} does not answer: {name}") from e
        del found.stream  # it refers to the response: the cycle would keep the bytes of both until garbage is collected
        if found.is_success:
            return found.content
        problem = f"{self.endpoint.address}{method.path} answers {found.status_code}: {found.text[:300]}"
        if found.status_code in _UNAVAILABLE:
            raise ServerUnavailable(problem)
        if found.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
            raise RunEnded(problem)
        raise FederationError(problem)

    def _secret_headers(self, request: Any) -> dict[str, str]:
        return {} if self.endpoint.secret is None else acquire_task_headers(self.endpoint.secret.read_bytes(), request)
