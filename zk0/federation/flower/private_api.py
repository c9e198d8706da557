"""Flower's non-public interfaces: every import of a private Flower module and every write into a private attribute.

Flower documents `flwr.app`, `flwr.clientapp`, `flwr.serverapp` and `flwr.simulation`. zk0 also needs the HTTP APIs of
SuperLink and SuperNode, their authentication, the object tree of a message, and messages with an id and a run of zk0's
choice. All of it is named here; no other module imports a private Flower module (ruff rule TID251).
`tests/federation/flower/test_private_api.py` compares each name, signature, path and command-line option with the
installed flwr. After an upgrade, its failures say what to adapt in this module.
"""

import time
import uuid
from collections.abc import Sequence
from typing import Any, NamedTuple

from flwr.app import Array, ConfigRecord, Message, Metadata, RecordDict
from flwr.app.message import remove_content_from_message as remove_content_from_message
from flwr.app.message.arraychunk import ArrayChunk as ArrayChunk
from flwr.common.constant import FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE, SYSTEM_TIME_TOLERANCE, TIMESTAMP_TOLERANCE
from flwr.common.constant import TIMESTAMP_HEADER as TIMESTAMP_HEADER
from flwr.common.constant import ErrorCode as ErrorCode
from flwr.common.serde import message_to_proto as message_to_proto
from flwr.common.serde import metadata_from_proto
from flwr.proto import control_pb2, fleet_pb2, message_pb2, runtime_pb2
from flwr.proto.fab_pb2 import Fab as Fab
from flwr.proto.node_pb2 import Node as Node
from flwr.supercore.auth import create_superexec_auth_metadata, derive_auth_secret
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER as FLEET_HTTP_PUBLIC_KEY_HEADER
from flwr.supercore.constant import FLEET_HTTP_SIGNATURE_HEADER as FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.constant import OBJECT_PUSH_SESSION_TTL_SECONDS as OBJECT_PUSH_SESSION_TTL_SECONDS
from flwr.supercore.constant import TASK_TOKEN_HEADER
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects as get_all_nested_objects
from flwr.supercore.inflatable.inflatable_object import get_object_body as get_object_body
from flwr.supercore.inflatable.inflatable_object import get_object_head_values_from_object_content
from flwr.supercore.inflatable.inflatable_object import get_object_id as get_object_id
from flwr.supercore.inflatable.inflatable_object import get_object_tree as get_object_tree
from flwr.supercore.inflatable.inflatable_object import no_object_id_recompute as no_object_id_recompute
from flwr.supercore.primitives.asymmetric import bytes_to_public_key, verify_signature
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from google.protobuf.message import DecodeError

MAX_CHUNK_BYTES = int(FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE)
"""Size of the pieces in which Flower sends an array."""
CLOCK_TOLERANCE_SECONDS = float(SYSTEM_TIME_TOLERANCE)
"""How far a node's clock may be ahead of the server's."""
SIGNATURE_SECONDS = float(TIMESTAMP_TOLERANCE)
"""How long a signed request is valid."""
SERVER_APP = "flwr-serverapp"
"""Task type and component name of a ServerApp."""
CLIENT_APP = "flwr-clientapp"
"""Task type and component name of a ClientApp."""
UNREGISTERED = "unregistered"
"""Status of a node whose key was removed; a SuperLink goes on listing it."""
SUPERLINK_CODE = "from flwr.superlink.cli import flower_superlink as run; run()"
"""Python code of the command `flower-superlink`, which need not be on the PATH."""
SUPERNODE_CODE = "from flwr.supernode.cli import flower_supernode as run; run()"
"""Python code of the command `flower-supernode`."""
_ACQUIRE_TASK_RPC = "/flwr.proto.Runtime/AcquireTask"


class ApiMethod(NamedTuple):
    """One method of the HTTP API of a SuperLink or SuperNode."""

    path: str
    request: type[Any]
    response: type[Any]


LIST_NODES = ApiMethod("/v1/control/list-nodes", control_pb2.ListNodesRequest, control_pb2.ListNodesResponse)
REGISTER_NODE = ApiMethod(
    "/v1/control/register-node", control_pb2.RegisterNodeRequest, control_pb2.RegisterNodeResponse
)
UNREGISTER_NODE = ApiMethod(
    "/v1/control/unregister-node", control_pb2.UnregisterNodeRequest, control_pb2.UnregisterNodeResponse
)
START_RUN = ApiMethod("/v1/control/start-run", control_pb2.StartRunRequest, control_pb2.StartRunResponse)
STOP_RUN = ApiMethod("/v1/control/stop-run", control_pb2.StopRunRequest, control_pb2.StopRunResponse)

ACQUIRE_TASK = ApiMethod("/v1/runtime/acquire-task", runtime_pb2.AcquireTaskRequest, runtime_pb2.AcquireTaskResponse)
PULL_TASK_INPUT = ApiMethod(
    "/v1/runtime/pull-task-input", runtime_pb2.PullTaskInputRequest, runtime_pb2.PullTaskInputResponse
)
PUSH_TASK_OUTPUT = ApiMethod(
    "/v1/runtime/push-task-output", runtime_pb2.PushTaskOutputRequest, runtime_pb2.PushTaskOutputResponse
)
SEND_TASK_HEARTBEAT = ApiMethod(
    "/v1/runtime/send-task-heartbeat", runtime_pb2.SendTaskHeartbeatRequest, runtime_pb2.SendTaskHeartbeatResponse
)
GET_NODES = ApiMethod("/v1/runtime/get-nodes", runtime_pb2.GetNodesRequest, runtime_pb2.GetNodesResponse)
PUSH_MESSAGES = ApiMethod(
    "/v1/runtime/push-messages", runtime_pb2.PushAppMessagesRequest, runtime_pb2.PushAppMessagesResponse
)
PULL_MESSAGES = ApiMethod(
    "/v1/runtime/pull-messages", runtime_pb2.PullAppMessagesRequest, runtime_pb2.PullAppMessagesResponse
)
PUSH_OBJECT = ApiMethod("/v1/runtime/push-object", message_pb2.PushObjectRequest, message_pb2.PushObjectResponse)
PULL_OBJECT = ApiMethod("/v1/runtime/pull-object", message_pb2.PullObjectRequest, message_pb2.PullObjectResponse)
CONFIRM_MESSAGE_RECEIVED = ApiMethod(
    "/v1/runtime/confirm-message-received",
    message_pb2.ConfirmMessageReceivedRequest,
    message_pb2.ConfirmMessageReceivedResponse,
)
SUPERNODE_PATHS = tuple(
    f"/v1/fleet/{name}"
    for name in (
        "activate-node",
        "deactivate-node",
        "send-node-heartbeat",
        "pull-messages",
        "push-messages",
        "get-run",
        "get-fab",
        "push-object",
        "pull-object",
        "confirm-message-received",
    )
)
"""All that a SuperNode requests of the Fleet API, but register-node and unregister-node."""
SUPERNODE_ANSWER_PATH = "/v1/fleet/push-messages"
"""With which a SuperNode announces an answer."""


def new_message(
    run_id: int, content: RecordDict, dst_node_id: int, message_type: str, ttl: float, group_id: str
) -> Message:
    """Create a message of a run. Flower's public constructor takes the run from the process that Flower started."""
    metadata = Metadata(run_id, uuid.uuid4().hex, 1, dst_node_id, "", group_id, time.time(), ttl, message_type)
    return Message(content=content, metadata=metadata)


def message_without_content(message: Any, message_id: str) -> Message:
    """Return a message of a list of messages that was not downloaded: with its metadata, and an empty `config`.

    Args:
        message: as the API lists it.
        message_id: its id, which is that of its object.
    """
    content = RecordDict({"config": ConfigRecord({})})
    found = Message(content=content, metadata=metadata_from_proto(message.metadata))
    set_message_id(found, message_id)
    return found


def set_message_id(message: Message, message_id: str) -> None:
    """Set the id of a message; Flower has no setter."""
    message.metadata.__dict__["_message_id"] = message_id


def set_reply_to_message_id(message: Message, message_id: str) -> None:
    """Set the id of the message that this one answers; Flower has no setter."""
    message.metadata.__dict__["_reply_to_message_id"] = message_id


def set_array_chunks(array: Array, chunks: Sequence[ArrayChunk]) -> None:
    """Give an array its chunks, where `Array.slice_array` stores those that it has cut from `data`."""
    array.__dict__["_chunks"] = [(chunk.object_id, chunk) for chunk in chunks]


def object_type_and_children(content: bytes) -> tuple[str, list[str]]:
    """Return the class name of a deflated object and the ids of its children.

    Raises:
        ValueError: the object has no valid head.
    """
    object_type, children, _ = get_object_head_values_from_object_content(content)
    return object_type, children


def answers_for_itself(push_messages: bytes) -> bool:
    """Return whether a SuperNode announces answers in its own name only: `SUPERNODE_ANSWER_PATH`.

    A SuperLink compares the node in the request with the key that signed it, but not with the sender of the answer.
    """
    try:
        request = fleet_pb2.PushMessagesRequest.FromString(push_messages)
    except DecodeError:
        return False
    return {message.metadata.src_node_id for message in request.messages_list} <= {request.node.node_id}


def api_headers(component: str, token: str = "") -> dict[str, str]:
    """Return the HTTP headers of a request to a Flower API.

    Args:
        component: name of the caller, SERVER_APP or CLIENT_APP.
        token: of the caller's task; empty for calls without a task.
    """
    from flwr.supercore.runtime_version_compatibility import RuntimeVersionMetadata  # imports FastAPI: 0.7 s

    return {
        "content-type": PROTOBUF_MEDIA_TYPE,
        "accept": PROTOBUF_MEDIA_TYPE,
        **dict(RuntimeVersionMetadata.from_local_component(component).as_metadata()),
        **({TASK_TOKEN_HEADER: token} if token else {}),
    }


def acquire_task_headers(secret: bytes, request: Any) -> dict[str, str]:
    """Return the headers that authenticate an ACQUIRE_TASK request with the secret of the SuperLink or SuperNode."""
    found = create_superexec_auth_metadata(
        auth_secret=derive_auth_secret(secret), method=_ACQUIRE_TASK_RPC, request=request
    )
    return dict(found)


def is_signed_by(public_key_pem: bytes, timestamp: bytes, signature: bytes) -> bool:
    """Return whether a SuperNode's request was signed with the private half of this key."""
    return bool(verify_signature(bytes_to_public_key(public_key_pem), timestamp, signature))
