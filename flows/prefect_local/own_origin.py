"""Protection of the Prefect server of this machine against pages of other origins in the operator's browser.

Prefect answers every Host and Origin. A page of another site, or one whose name was rebound to loopback, could
therefore send requests to it. The server that zk0 starts answers its own addresses only, and pages of its own origin.
`SIGN_IN` is the page by which the UI gets the API key: the key is in the address's fragment, which is not sent.
"""

from collections.abc import Awaitable, Callable, MutableMapping
from http import HTTPStatus
from typing import Any

from flows.prefect_local.ports import LOOPBACK

STARTER = "/zk0-starter"
"""Path that answers with the id of the process that started this server."""
SIGN_IN = "/zk0-sign-in"
"""Path of the page that stores the key from the address's fragment for the UI, and opens the UI."""
_STORED_KEY = "prefect-password"
"""Where Prefect's UI keeps the key in the browser, base64-encoded."""
_SIGN_IN_PAGE = f"""<!doctype html><title>zk0</title><script>
const key = decodeURIComponent(location.hash.slice(1));
history.replaceState(null, "", location.pathname);
if (key) localStorage.setItem("{_STORED_KEY}", btoa(key));
location.replace("/");
</script>
"""
_PAGE_HEADERS = (
    (b"content-type", b"text/html; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"referrer-policy", b"no-referrer"),
)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


def own_hosts(port: int) -> tuple[str, ...]:
    """Return the values of the Host header by which the server on this port is reached."""
    return f"{LOOPBACK}:{port}", f"localhost:{port}"


def own_origins(port: int) -> tuple[str, ...]:
    """Return the origins of the pages that the server on this port serves."""
    return tuple(f"http://{host}" for host in own_hosts(port))


class OwnOriginOnly:
    """ASGI middleware that refuses requests with another Host, or of a page of another origin.

    Args:
        app: the application that answers all others.
        port: of the server.
        starter: id of the process that started it.
    """

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]], port: int, starter: int) -> None:
        self._app, self._starter = app, starter
        self._hosts, self._origins = own_hosts(port), own_origins(port)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or pass it on."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
        elif problem := self._problem(scope):
            await _refuse(scope, send, problem)
        elif scope["type"] == "http" and (scope["method"], scope["path"]) == ("GET", SIGN_IN):
            await _respond(send, HTTPStatus.OK, _SIGN_IN_PAGE, _PAGE_HEADERS)
        elif scope["type"] == "http" and (scope["method"], scope["path"]) == ("GET", STARTER):
            await _respond(send, HTTPStatus.OK, str(self._starter), ((b"content-type", b"text/plain"),))
        else:
            await self._app(scope, receive, send)

    def _problem(self, scope: Scope) -> str:
        """Return why a request is refused; empty where it is not."""
        hosts, origins = (
            [value.decode("latin-1") for key, value in scope["headers"] if key == name] for name in (b"host", b"origin")
        )
        if len(hosts) != 1 or hosts[0].lower() not in self._hosts:
            return f"this server is reached as {' or '.join(self._hosts)} only"
        if any(origin.lower() not in self._origins for origin in origins):
            return "pages of another origin may not use this server"
        return ""


async def _refuse(scope: Scope, send: Send, problem: str) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": problem})
        return
    await _respond(send, HTTPStatus.FORBIDDEN, problem + "\n", ((b"content-type", b"text/plain"),))


async def _respond(send: Send, status: HTTPStatus, text: str, headers: tuple[tuple[bytes, bytes], ...]) -> None:
    await send({"type": "http.response.start", "status": int(status), "headers": list(headers)})
    await send({"type": "http.response.body", "body": text.encode()})
