"""A node with a valid enrolment kit that speaks Flower's Fleet API as it likes, through the gateway."""

import base64
import ssl
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Message, RecordDict
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    ActivateNodeResponse,
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
    PushMessagesResponse,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest, SendNodeHeartbeatResponse
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ConfirmMessageReceivedResponse,
    PullObjectRequest,
    PullObjectResponse,
    PushObjectRequest,
    PushObjectResponse,
)
from flwr.proto.node_pb2 import Node
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from flwr.supercore.runtime_version_compatibility import RuntimeVersionMetadata

from zk0.federation.flower.flower_message import embed_weights, from_flower, to_flower
from zk0.federation.network.enrolment_kit import EnrolmentKit


class HostileNode:
    """The Fleet API of a gateway, for the owner of a kit."""

    def __init__(self, kit: EnrolmentKit, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.name, self.folder = kit.name, folder
        self._key: Any = serialization.load_ssh_private_key(kit.key.encode(), None)
        self._public = self._key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        context = ssl.create_default_context(cadata=kit.ca_certificate)
        self._http = httpx.Client(base_url=f"https://{kit.server}", verify=context, timeout=60, trust_env=False)
        self._node = Node()
        self._beat = 0.0

    def activate(self) -> None:
        """Connect; the server then lists the node as online."""
        request = ActivateNodeRequest(public_key=self._public, heartbeat_interval=30)
        self._node = Node(node_id=self._call("activate-node", request, ActivateNodeResponse).node_id)

    def next_request(self, stop: Callable[[], float]) -> Message | None:
        """Return the next request of the server; None at a time of `time.monotonic`, which may change meanwhile."""
        while time.monotonic() < stop():
            if time.monotonic() > self._beat + 10:
                beat = SendNodeHeartbeatRequest(node=self._node, heartbeat_interval=30)
                self._call("send-node-heartbeat", beat, SendNodeHeartbeatResponse)
                self._beat = time.monotonic()
            found = self._call("pull-messages", PullMessagesRequest(node=self._node), PullMessagesResponse)
            for head, tree in zip(found.messages_list, found.message_object_trees, strict=True):
                return self._open(head.metadata.run_id, tree)
            time.sleep(0.5)
        return None

    def answer(
        self, request: Message, content: RecordDict, objects: int | None = None, sender: int | None = None
    ) -> None:
        """Answer a request.

        Args:
            request: of the server.
            content: of the answer.
            objects: of the answer, after which the upload stops for ever; None: all are sent.
            sender: id of the node in whose name the answer is; None: this one.
        """
        serialized, run = to_flower(Message(embed_weights(content), reply_to=request)), request.metadata.run_id
        if sender is not None:
            serialized.proto.metadata.src_node_id = sender
        offer = PushMessagesRequest(
            node=self._node, messages_list=[serialized.proto], message_object_trees=[serialized.object_tree]
        )
        found = self._call("push-messages", offer, PushMessagesResponse)
        for object_id in list(found.objects_to_push)[:objects]:
            push = PushObjectRequest(
                node=self._node,
                run_id=run,
                object_id=object_id,
                object_content=serialized.objects[object_id].deflate(),
                session_id=found.session_id,
            )
            self._call("push-object", push, PushObjectResponse)

    def _open(self, run: int, tree: Any) -> Message:
        def fetch(object_id: str) -> bytes:
            while True:
                pull = PullObjectRequest(node=self._node, run_id=run, object_id=object_id)
                found = self._call("pull-object", pull, PullObjectResponse)
                if found.object_available:
                    return bytes(found.object_content)
                time.sleep(0.1)

        message = from_flower(tree, fetch, self.folder / "asked.safetensors")
        confirm = ConfirmMessageReceivedRequest(node=self._node, run_id=run, message_object_id=tree.object_id)
        self._call("confirm-message-received", confirm, ConfirmMessageReceivedResponse)
        return message

    def _call(self, method: str, request: Any, response: Any) -> Any:
        stamp = datetime.now(UTC).isoformat()
        headers = {
            "content-type": PROTOBUF_MEDIA_TYPE,
            "accept": PROTOBUF_MEDIA_TYPE,
            **dict(RuntimeVersionMetadata.from_local_component("flwr-supernode").as_metadata()),
            "flwr-public-key": base64.b64encode(self._public).decode(),
            "flwr-signature": base64.b64encode(self._key.sign(stamp.encode(), ec.ECDSA(hashes.SHA256()))).decode(),
            "flwr-timestamp": stamp,
        }
        found = self._http.post(f"/v1/fleet/{method}", content=request.SerializeToString(), headers=headers)
        found.raise_for_status()
        return response.FromString(found.content)
