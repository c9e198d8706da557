"""The nodes that are enrolled: one public key a file, `NAME.pub`. Whoever is not among them is nobody."""

import asyncio
import base64
import binascii
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from flwr.common.constant import SYSTEM_TIME_TOLERANCE, TIMESTAMP_HEADER, TIMESTAMP_TOLERANCE
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListNodesResponse,
    RegisterNodeRequest,
    RegisterNodeResponse,
    UnregisterNodeRequest,
    UnregisterNodeResponse,
)
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.primitives.asymmetric import bytes_to_public_key, verify_signature
from loguru import logger

from zk0.errors import FederationError, SettingsError, TransientError
from zk0.federation.api import Api, Endpoint
from zk0.federation.authority import wire_key

_LOOK_SECONDS = 1.0
_TELL_SECONDS = 15.0
_UNREGISTERED = "unregistered"


class Unknown(Exception):
    """Who asks is not enrolled, or does not show it."""


class Guests:
    """Who may come in, as the files of a folder say at this moment."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._names: dict[bytes, str] = {}
        self._seen: tuple[tuple[str, int], ...] = ()

    def names(self) -> Mapping[bytes, str]:
        """Name of each enrolled node by its key, as a SuperNode shows it."""
        found = sorted(self._folder.glob("*.pub"))
        seen = tuple((file.name, file.stat().st_mtime_ns) for file in found)
        if seen != self._seen:
            names = {}
            for file in found:
                try:
                    names[wire_key(file.read_bytes())] = file.stem
                except SettingsError as e:
                    logger.error("{}: {}", file, e)
            self._names, self._seen = names, seen
        return self._names

    def recognise(self, headers: Mapping[bytes, Sequence[bytes]]) -> str:
        """The name of the node that has signed a request just now, with the headers that SuperNodes send.

        Raises:
            Unknown: nobody we know, a signature that is not theirs, or an old one.
        """
        try:
            key = base64.b64decode(_only(headers, FLEET_HTTP_PUBLIC_KEY_HEADER), validate=True)
            signature = base64.b64decode(_only(headers, FLEET_HTTP_SIGNATURE_HEADER), validate=True)
            stamp = _only(headers, TIMESTAMP_HEADER)
            age = (datetime.now(UTC) - datetime.fromisoformat(stamp.decode("ascii"))).total_seconds()
        except (ValueError, TypeError, binascii.Error) as e:
            raise Unknown(f"does not say who it is ({e})") from None
        name = self.names().get(key)
        if name is None:
            raise Unknown("a key that is not enrolled")
        if not -SYSTEM_TIME_TOLERANCE < age < TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE:
            raise Unknown(f"{name}: its clock is {age:.0f} s behind ours; expected at most {TIMESTAMP_TOLERANCE} s")
        if not verify_signature(bytes_to_public_key(key), stamp, signature):
            raise Unknown(f"{name}: a signature that is not its own")
        return name

    async def keep_registered(self, superlink: Endpoint) -> None:
        """Tell the SuperLink who is enrolled, at once when that changes, and now and then: it may have forgotten."""
        told: Mapping[bytes, str] | None = None
        told_at = 0.0
        while True:
            names = dict(self.names())
            if names != told or time.monotonic() > told_at + _TELL_SECONDS:
                try:
                    await asyncio.to_thread(_register, superlink, names)
                    told, told_at = names, time.monotonic()
                except TransientError as e:
                    logger.debug("the SuperLink is not there yet: {}", e)
                except FederationError as e:
                    logger.error("the SuperLink does not take who is enrolled: {}", e)
            await asyncio.sleep(_LOOK_SECONDS)


def _only(headers: Mapping[bytes, Sequence[bytes]], name: str) -> bytes:
    values = headers.get(name.encode(), ())
    if len(values) != 1:
        raise ValueError(f"{len(values)} headers {name}, expected one")
    return values[0]


def _register(superlink: Endpoint, names: Mapping[bytes, str]) -> None:
    with Api(superlink) as api:
        nodes = api.call("/v1/control/list-nodes", ListNodesRequest(), ListNodesResponse).nodes_info
        known = {bytes(n.public_key): n for n in nodes if n.status != _UNREGISTERED}
        for key, node in known.items():
            if names.get(key) != node.name:
                request = UnregisterNodeRequest(node_id=node.node_id)
                api.call("/v1/control/unregister-node", request, UnregisterNodeResponse)
                logger.info("{} is no longer enrolled", node.name)
        for key, name in names.items():
            if key not in known or known[key].name != name:
                request = RegisterNodeRequest(public_key=key, name=name)
                api.call("/v1/control/register-node", request, RegisterNodeResponse)
                logger.info("{} is enrolled", name)
