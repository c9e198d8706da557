"""Which failures of the Hub may pass, whatever library reports them."""

import httpx
import pytest
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from zk0.hub_outages import hub_outage

REQUEST = httpx.Request("GET", "https://hub.example/lab/arm")


def status(number: int, kind: type[HfHubHTTPError] = HfHubHTTPError) -> HfHubHTTPError:
    return kind(f"status {number}", response=httpx.Response(number, request=REQUEST))


def wrapped(cause: BaseException) -> OSError:
    """Return an error as transformers and LeRobot raise it."""
    try:
        raise LocalEntryNotFoundError("not in the cache") from cause
    except LocalEntryNotFoundError:
        try:
            raise OSError("cannot load it")
        except OSError as e:
            return e


@pytest.mark.parametrize(
    "error",
    [
        httpx.ConnectError("refused"),
        httpx.ReadTimeout("10 s"),
        httpx.RemoteProtocolError("closed"),
        status(429),
        status(503),
        wrapped(httpx.ConnectError("refused")),
        wrapped(status(502)),
    ],
)
def test_an_outage(error: BaseException) -> None:
    found = hub_outage(error, "lab/arm")
    assert str(found).startswith("lab/arm: the Hub ")
    assert str(found).endswith("; a later attempt may succeed")


@pytest.mark.parametrize(
    "error",
    [
        status(401),
        status(404, RepositoryNotFoundError),
        wrapped(status(404)),
        wrapped(OfflineModeIsEnabled("HF_HUB_OFFLINE")),
        httpx.UnsupportedProtocol("htp://"),
        FileNotFoundError("config.json"),
    ],
)
def test_no_outage(error: BaseException) -> None:
    assert hub_outage(error, "lab/arm") is None
