"""Flower's private interfaces still have the names, signatures and formats that zk0/federation/flower relies on.

Each failure names what has changed in the installed flwr, and the module to adapt. This file imports nothing private
itself, so that a name that is gone fails one test with a clear message.
"""

import ast
import importlib
import inspect
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
MODULE = "zk0/federation/flower/private_api.py"
PUBLIC = {"flwr.app", "flwr.clientapp", "flwr.serverapp", "flwr.simulation"}

FIELDS = {
    "LIST_NODES": ((), ("nodes_info",)),
    "REGISTER_NODE": (("public_key", "name"), ()),
    "UNREGISTER_NODE": (("node_id",), ()),
    "START_RUN": (("fab",), ("run_id",)),
    "STOP_RUN": (("run_id",), ()),
    "ACQUIRE_TASK": (("supported_task_types",), ("token", "task")),
    "PULL_TASK_INPUT": ((), ("run", "context")),
    "PUSH_TASK_OUTPUT": (("sub_status", "details"), ()),
    "SEND_TASK_HEARTBEAT": ((), ()),
    "GET_NODES": ((), ("nodes",)),
    "PUSH_MESSAGES": (("messages_list", "message_object_trees"), ("message_ids", "objects_to_push", "session_id")),
    "PULL_MESSAGES": (("message_ids",), ("messages_list", "message_object_trees")),
    "PUSH_OBJECT": (("node", "run_id", "object_id", "object_content", "session_id"), ("stored",)),
    "PULL_OBJECT": (("node", "run_id", "object_id"), ("object_found", "object_available", "object_content")),
    "CONFIRM_MESSAGE_RECEIVED": (("node", "run_id", "message_object_id"), ()),
}
"""Fields of request and response that zk0 uses, by ApiMethod."""
NESTED_FIELDS = {
    ("LIST_NODES", "nodes_info"): ("node_id", "name", "public_key", "status", "last_activated_at"),
    ("GET_NODES", "nodes"): ("node_id", "name", "last_activated_at"),
    ("ACQUIRE_TASK", "task"): ("run_id",),
    ("PULL_TASK_INPUT", "run"): ("run_id",),
    ("PULL_TASK_INPUT", "context"): ("node_id",),
    ("PULL_MESSAGES", "messages_list"): ("metadata",),
    ("PULL_MESSAGES", "message_object_trees"): ("object_id",),
}
"""Fields of messages in a response."""
PARAMETERS = {
    "flwr.supercore.auth.derive_auth_secret": ["master_secret"],
    "flwr.supercore.auth.create_superexec_auth_metadata": ["auth_secret", "method", "request"],
    "flwr.supercore.primitives.asymmetric.bytes_to_public_key": 1,
    "flwr.supercore.primitives.asymmetric.verify_signature": 3,
    "flwr.supercore.inflatable.inflatable_object.get_all_nested_objects": 1,
    "flwr.supercore.inflatable.inflatable_object.get_object_body": 2,
    "flwr.supercore.inflatable.inflatable_object.get_object_head_values_from_object_content": 1,
    "flwr.supercore.inflatable.inflatable_object.get_object_id": 1,
    "flwr.supercore.inflatable.inflatable_object.get_object_tree": 1,
    "flwr.supercore.inflatable.inflatable_object.no_object_id_recompute": 0,
    "flwr.app.message.remove_content_from_message": 1,
    "flwr.common.serde.message_to_proto": 1,
}
"""Names of the parameters that zk0 passes by keyword, or the number of those that it passes by position."""
METADATA = ["run_id", "message_id", "src_node_id", "dst_node_id", "reply_to_message_id", "group_id", "created_at"]
METADATA += ["ttl", "message_type"]
ERROR_CODES = ["UNKNOWN", "MESSAGE_UNAVAILABLE", "REPLY_MESSAGE_UNAVAILABLE", "NODE_UNAVAILABLE", "CLIENT_APP_CRASHED"]


def expect(holds: bool, what: str, module: str = MODULE) -> None:
    assert holds, f"flwr {version('flwr')}: {what}; adapt {module}"


def private_imports() -> list[str]:
    """Every private name that the module under test imports, read from its source."""
    found = []
    for node in ast.walk(ast.parse((ROOT / MODULE).read_text())):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("flwr.") and node.module not in PUBLIC:
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def load(name: str) -> Any:
    """The module or object of a dotted name in flwr."""
    module, _, attribute = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute, None) or importlib.import_module(name)
    except ImportError as e:
        expect(False, f"{name} was expected to exist ({e})")


@pytest.fixture(scope="module")
def api() -> Any:
    return importlib.import_module("zk0.federation.flower.private_api")


def test_no_other_module_imports_private_names() -> None:
    """Ruff's rule TID251 says the same; it can be silenced, this test cannot."""
    found = set()
    for file in [*(ROOT / "zk0").rglob("*.py"), *(ROOT / "tasks").rglob("*.py"), *(ROOT / "flows").rglob("*.py")]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [str(node.module)] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if any(name.split(".")[0] == "flwr" and name not in PUBLIC for name in names):
                found.add(str(file.relative_to(ROOT)))
    assert found == {MODULE}


@pytest.mark.parametrize("name", private_imports())
def test_a_private_name_exists(name: str) -> None:
    load(name)


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_function_takes_these_arguments(name: str) -> None:
    signature, wanted = inspect.signature(load(name)), PARAMETERS[name]
    try:
        if isinstance(wanted, int):
            signature.bind(*range(wanted))
        else:
            signature.bind(**dict.fromkeys(wanted))
    except TypeError as e:
        expect(False, f"{name}{signature} was expected to take {wanted}: {e}")


@pytest.mark.parametrize("name", FIELDS)
def test_an_api_method_has_its_path_and_fields(name: str, api: Any) -> None:
    method, routes = getattr(api, name), load("flwr.supercore.protobuf.translation.PROTOBUF_REQUEST_TYPES")
    found = routes.get(("POST", method.path))
    expect(found is method.request, f"{method.path} was expected to take {method.request.__name__}, found {found}")
    for message, fields in zip((method.request, method.response), FIELDS[name], strict=True):
        missing = set(fields) - set(message.DESCRIPTOR.fields_by_name)
        expect(not missing, f"{message.__name__} was expected to have the fields {sorted(missing)}")
    for (owner, field), nested in NESTED_FIELDS.items():
        if owner == name:
            there = method.response.DESCRIPTOR.fields_by_name[field].message_type.fields_by_name
            expect(set(nested) <= set(there), f"{field} in {name} was expected to have {nested}, found {sorted(there)}")


def test_every_api_method_is_checked(api: Any) -> None:
    assert {name for name, value in vars(api).items() if isinstance(value, api.ApiMethod)} == FIELDS.keys()


def test_a_supernode_requests_these_paths_and_no_other(api: Any) -> None:
    routes = load("flwr.supercore.protobuf.translation.PROTOBUF_REQUEST_TYPES")
    fleet = {path for _, path in routes if path.startswith("/v1/fleet/")}
    known = {*api.SUPERNODE_PATHS, "/v1/fleet/register-node", "/v1/fleet/unregister-node"}
    expect(fleet == known, f"the Fleet API was expected to have {sorted(known)}; different: {sorted(fleet ^ known)}")


def test_constants(api: Any) -> None:
    codes = load("flwr.common.constant.ErrorCode")
    missing = [name for name in ERROR_CODES if not isinstance(getattr(codes, name, None), int)]
    expect(not missing, f"ErrorCode was expected to have {missing}")
    task_type, status = load("flwr.supercore.constant.TaskType"), load("flwr.supercore.constant.NodeStatus")
    expect(task_type.SERVER_APP == api.SERVER_APP, f"TaskType.SERVER_APP was expected to be {api.SERVER_APP}")
    expect(task_type.CLIENT_APP == api.CLIENT_APP, f"TaskType.CLIENT_APP was expected to be {api.CLIENT_APP}")
    expect(status.UNREGISTERED == api.UNREGISTERED, f"NodeStatus.UNREGISTERED was expected to be {api.UNREGISTERED}")
    expect(api.MAX_CHUNK_BYTES > 0, "FLWR_PRIVATE_MAX_ARRAY_CHUNK_SIZE was expected to be a positive number")
    headers = (api.FLEET_HTTP_PUBLIC_KEY_HEADER, api.FLEET_HTTP_SIGNATURE_HEADER, api.TIMESTAMP_HEADER)
    expect(all(name.startswith("flwr-") for name in headers), f"headers flwr-* were expected, found {headers}")


def test_headers_of_a_call(api: Any) -> None:
    found = api.api_headers(api.CLIENT_APP, "token")
    expect({"content-type", "accept"} <= found.keys(), "api_headers builds the media type")
    expect("token" in found.values() and api.CLIENT_APP in found.values(), "headers with token and component expected")
    expect(version("flwr") in found.values(), "RuntimeVersionMetadata was expected to send the version of flwr")


def test_flower_accepts_the_secret(api: Any) -> None:
    request = api.ACQUIRE_TASK.request(supported_task_types=[api.SERVER_APP])
    headers = api.acquire_task_headers(b"x" * 32, request)
    names = [load(f"flwr.supercore.constant.SUPEREXEC_AUTH_{n}_HEADER") for n in ("TIMESTAMP", "NONCE", "BODY_SHA256")]
    timestamp, nonce, body_sha256 = (headers.get(name) for name in names)
    accepted = load("flwr.supercore.auth.verify_superexec_request")(
        request=request,
        method="/flwr.proto.Runtime/AcquireTask",
        auth_secret=load("flwr.supercore.auth.derive_auth_secret")(b"x" * 32),
        timestamp_raw=timestamp,
        nonce=nonce,
        body_sha256_header=body_sha256,
        signature=headers.get(load("flwr.supercore.constant.SUPEREXEC_AUTH_SIGNATURE_HEADER")),
        nonce_store=SimpleNamespace(reserve_nonce=lambda *_, **__: True),
    )
    expect(accepted, "the SuperLink was expected to accept the headers of an AcquireTask request")


def test_private_attributes_of_a_message(api: Any) -> None:
    from flwr.app import ConfigRecord, Message, Metadata, RecordDict

    parameters = list(inspect.signature(Metadata).parameters)[: len(METADATA)]
    expect(parameters == METADATA, f"Metadata was expected to take {METADATA}, found {parameters}")
    expect("metadata" in inspect.signature(Message).parameters, "Message was expected to take metadata")
    before = time.time()
    message = api.new_message(7, RecordDict({"config": ConfigRecord({"x": 1})}), 5, "train", 60.0, "3")
    about = message.metadata
    found = (about.run_id, about.dst_node_id, about.message_type, about.ttl, about.group_id)
    expect(found == (7, 5, "train", 60.0, "3"), f"other metadata of a new message was expected, found {found}")
    assert before <= about.created_at <= time.time()
    api.set_message_id(message, "its id")
    api.set_reply_to_message_id(message, "the other's id")
    found = (message.metadata.message_id, message.metadata.reply_to_message_id)
    expect(found == ("its id", "the other's id"), f"Metadata was expected to keep values in __dict__, found {found}")


def test_private_chunks_of_an_array(api: Any) -> None:
    from flwr.app import Array

    chunks = [api.ArrayChunk(memoryview(data)) for data in (b"ab", b"cd", b"ab")]
    array = Array("uint8", (6,), "x", b"")
    api.set_array_chunks(array, chunks)
    expect(
        [chunk for _, chunk in array.slice_array()] == chunks, "Array.slice_array was expected to return Array._chunks"
    )
    content = array.deflate()
    name, children = api.object_type_and_children(content)
    expect((name, len(children)) == ("Array", 2), f"an object's head was expected to list its children, found {name}")
    expect(api.get_object_id(content) == array.object_id, "an object's id was expected to be the digest of its bytes")
    body = api.get_object_body(content, Array)
    expect(b"arraychunk_ids" in body, f"an array's body was expected to name its chunks, found {body!r}")
    chunk = chunks[0].deflate()
    expect(api.get_object_body(chunk, api.ArrayChunk) == b"ab", "a chunk's body was expected to be its bytes")


@pytest.mark.parametrize("role", ["superlink", "supernode"])
def test_a_command_line_has_these_options(role: str, tmp_path: Path) -> None:
    from zk0.federation.network.flower_commands import superlink_process, supernode_process

    file = tmp_path / "x"
    if role == "superlink":
        spec = superlink_process(tmp_path, 1, (file, file, file), file, file)
    else:
        spec = supernode_process(tmp_path, "h:1", 1, file, file, file)
    done = subprocess.run([*spec.command[:3], "--help"], capture_output=True, text=True, check=False)
    expect(done.returncode == 0, f"flower-{role} was expected to start: {done.stderr[-300:]}")
    missing = [part for part in spec.command if part.startswith("--") and part not in done.stdout]
    expect(not missing, f"flower-{role} was expected to have {missing}", "zk0/federation/network/flower_commands.py")


def test_the_simulation_passes_options_to_its_actors() -> None:
    """The Ray engine sets `max_restarts` of Flower's actors, and replaces the ClientApp by a callable of its own."""
    pytest.importorskip("ray")
    adapt = "zk0/federation/engines/ray.py"
    wanted = {"server_app", "client_app", "num_supernodes", "backend_config"}
    found = set(inspect.signature(load("flwr.simulation.run_simulation")).parameters)
    expect(wanted <= found, f"run_simulation was expected to take {sorted(wanted)}, found {sorted(found)}", adapt)
    pool = inspect.getsource(load("flwr.simulation.ray_transport.ray_actor.BasicActorPool"))
    expect("**client_resources" in pool, "BasicActorPool was expected to pass client_resources to Ray", adapt)
    call = list(inspect.signature(load("flwr.clientapp.ClientApp").__call__).parameters)
    expect(call == ["self", "message", "context"], f"ClientApp was expected to be called so, found {call}", adapt)
    expect(hasattr(load("flwr.serverapp.Grid"), "run"), "Grid was expected to have the property run", adapt)


def test_the_module_under_test_runs_with_this_python() -> None:
    code = "import zk0.federation.flower.private_api, sys; print('fastapi' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False", "the module must not import FastAPI: each worker process would pay for it"
