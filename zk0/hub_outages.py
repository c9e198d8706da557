"""Tells whether a request to the Hugging Face Hub failed for a reason that may pass."""

import httpx

from zk0.errors import HubUnavailable, first_line

_PASSING_STATUS = {408, 425, 429, *range(500, 600)}
_PASSING_ERRORS = (httpx.NetworkError, httpx.TimeoutException, httpx.ProxyError, httpx.RemoteProtocolError)

HUB_ERRORS: tuple[type[OSError], type[httpx.HTTPError]] = (OSError, httpx.HTTPError)
"""What a request to the Hub raises when it fails: huggingface_hub's own errors are OSErrors, but it lets those of the
connection through in some calls."""


def hub_outage(error: BaseException, what: str) -> HubUnavailable | None:
    """Return the error to raise if the Hub was unreachable or overloaded; None if the same request would fail again.

    Libraries wrap the error of the connection in others, so all errors that led to `error` are looked at.

    Args:
        error: what a call of huggingface_hub, transformers or lerobot raised.
        what: the repository, for the message.

    >>> str(hub_outage(httpx.ConnectError("refused"), "lab/arm"))
    'lab/arm: the Hub does not respond (ConnectError: refused); a later attempt may succeed'
    >>> hub_outage(ValueError("no such file"), "lab/arm") is None
    True
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, _PASSING_ERRORS):
            reason = f"does not respond ({type(cause).__name__}: {first_line(cause, 120)})"
            return HubUnavailable(f"{what}: the Hub {reason}; a later attempt may succeed")
        response = getattr(cause, "response", None)
        if isinstance(response, httpx.Response) and response.status_code in _PASSING_STATUS:
            return HubUnavailable(
                f"{what}: the Hub responds with status {response.status_code}; a later attempt may succeed"
            )
        cause = cause.__cause__ or cause.__context__
    return None
