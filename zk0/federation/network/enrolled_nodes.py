"""The enrolled nodes of a server: one public key a file, `NAME.pub`. Requests of all other nodes are rejected."""

import asyncio
import base64
import binascii
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from loguru import logger

from zk0.errors import FederationError, SettingsError, TransientError
from zk0.federation.flower.api_client import ApiClient, Endpoint
from zk0.federation.flower.private_api import (
    CLOCK_TOLERANCE_SECONDS,
    FLEET_HTTP_PUBLIC_KEY_HEADER,
    FLEET_HTTP_SIGNATURE_HEADER,
    LIST_NODES,
    REGISTER_NODE,
    SIGNATURE_SECONDS,
    TIMESTAMP_HEADER,
    UNREGISTER_NODE,
    UNREGISTERED,
    is_signed_by,
)
from zk0.federation.network.certificate_authority import public_key_pem

_POLL_SECONDS = 1.0
_SYNC_SECONDS = 15.0


class UnknownNode(Exception):
    """A request does not come from an enrolled node, or does not prove it."""


class EnrolledNodes:
    """The nodes whose public keys lie in a folder; a change of the folder counts at once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._names: dict[bytes, str] = {}
        self._files: tuple[tuple[str, int], ...] = ()

    def names_by_key(self) -> Mapping[bytes, str]:
        """Return the name of each enrolled node by its public key (PEM), as a SuperNode sends it."""
        found = sorted(self._folder.glob("*.pub"))
        files = tuple((file.name, file.stat().st_mtime_ns) for file in found)
        if files != self._files:
            names = {}
            for file in found:
                try:
                    names[public_key_pem(file.read_bytes())] = file.stem
                except SettingsError as e:
                    logger.error("{}: {}", file, e)
            self._names, self._files = names, files
        return self._names

    def authenticate(self, headers: Mapping[bytes, Sequence[bytes]]) -> str:
        """Return the name of the node that signed a request with the headers that SuperNodes send.

        Raises:
            UnknownNode: the key is not enrolled, or the signature is wrong or too old.
        """
        try:
            key = base64.b64decode(_single_header(headers, FLEET_HTTP_PUBLIC_KEY_HEADER), validate=True)
            signature = base64.b64decode(_single_header(headers, FLEET_HTTP_SIGNATURE_HEADER), validate=True)
            timestamp = _single_header(headers, TIMESTAMP_HEADER)
            age = (datetime.now(UTC) - datetime.fromisoformat(timestamp.decode("ascii"))).total_seconds()
        except (ValueError, TypeError, binascii.Error) as e:
            raise UnknownNode(f"a request without valid signature headers ({e})") from None
        name = self.names_by_key().get(key)
        if name is None:
            raise UnknownNode("a key that is not enrolled")
        if not -CLOCK_TOLERANCE_SECONDS < age < SIGNATURE_SECONDS + CLOCK_TOLERANCE_SECONDS:
            limit = f"{SIGNATURE_SECONDS:g} s"
            raise UnknownNode(f"{name}: its clock is {age:.0f} s behind the server's; expected at most {limit}")
        if not is_signed_by(key, timestamp, signature):
            raise UnknownNode(f"{name}: the signature does not match its key")
        return name

    async def sync_superlink(self, superlink: Endpoint) -> None:
        """Keep the SuperLink's list of nodes equal to the enrolled ones, until cancelled.

        A change is sent within a second; the whole list every 15 s, because a SuperLink may have lost it.
        """
        synced: Mapping[bytes, str] | None = None
        synced_at = 0.0
        while True:
            names = dict(self.names_by_key())
            if names != synced or time.monotonic() > synced_at + _SYNC_SECONDS:
                try:
                    await asyncio.to_thread(_sync_nodes, superlink, names)
                    synced, synced_at = names, time.monotonic()
                except TransientError as e:
                    logger.debug("the SuperLink does not answer yet: {}", e)
                except FederationError as e:
                    logger.error("the SuperLink rejects the enrolled nodes: {}", e)
            await asyncio.sleep(_POLL_SECONDS)


def _single_header(headers: Mapping[bytes, Sequence[bytes]], name: str) -> bytes:
    values = headers.get(name.encode(), ())
    if len(values) != 1:
        raise ValueError(f"{len(values)} headers {name}, expected one")
    return values[0]


def _sync_nodes(superlink: Endpoint, names: Mapping[bytes, str]) -> None:
    with ApiClient(superlink) as api:
        nodes = api.call(LIST_NODES).nodes_info
        known = {bytes(n.public_key): n for n in nodes if n.status != UNREGISTERED}
        for key, node in known.items():
            if names.get(key) != node.name:
                api.call(UNREGISTER_NODE, node_id=node.node_id)
                logger.info("{} is no longer enrolled", node.name)
        for key, name in names.items():
            if key not in known or known[key].name != name:
                api.call(REGISTER_NODE, public_key=key, name=name)
                logger.info("{} is enrolled", name)
