"""What a policy's config.json alone tells."""

import json
from pathlib import Path

import pytest

from zk0.errors import PolicyError
from zk0.policy.config_faults import policy_config_faults
from zk0.policy.stored_statistics import read_stored_moments
from zk0.policy.stored_tensors import read_stored_tensors
from zk0.settings.loading import parse_session
from zk0.settings.session import Session

HEADERS = [
    b"[" * 100_000,
    b"{}[]",
    b'{"a":1}',
    b'{"a":{}}',
    b'{"a":{"dtype":"F32"}}',
    b'{"a":{"dtype":"X","shape":[1]}}',
    b'{"a":{"dtype":"F32","shape":[-1]}}',
]


def ascii_start(content: str | None) -> str:
    return ascii(content)[:5]


def session_with(folder: Path, features: str = "embeddings") -> Session:
    clients = [{"name": n, "dataset": f"lab/{n}"} for n in "ab"]
    values = {"clients": clients, "evaluation": {"datasets": [{"dataset": "lab/c"}]}, "policy": {"path": str(folder)}}
    return parse_session(values | {"training": {"features": features}}, "test")


@pytest.mark.parametrize(
    ("fields", "faults"),
    [
        ({"type": "smolvla"}, []),
        ({"type": "smolvla_bundled"}, []),
        ({}, ["config.json names no type of policy"]),
        ({"type": "smolvla", "max_state_dim": 4}, ["max_state_dim 4, expected at least the contract's 6 joints"]),
        (
            {"type": "smolvla", "empty_cameras": 1, "train_expert_only": False},
            ['empty_cameras adds empty cameras, so features cannot be cached; set training.features = "off"'],
        ),
        ({"type": "smolvla", "prefix_length": 99}, ["prefix_length 99 pads the prefix"]),
    ],
)
def test_faults(tmp_path: Path, fields: dict[str, object], faults: list[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(fields))
    found = policy_config_faults(session_with(tmp_path))
    assert len(found) == len(faults)
    assert all(expected in fault for expected, fault in zip(faults, found, strict=True))


def test_features_that_are_not_cached_have_no_cache_fault(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"type": "smolvla", "empty_cameras": 1, "prefix_length": 99}))
    assert policy_config_faults(session_with(tmp_path, features="off")) == []


@pytest.mark.parametrize("content", ["[]", "{", None, "[" * 100_000, " " * 40_000_001], ids=ascii_start)
def test_a_config_that_cannot_be_read(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    (fault,) = policy_config_faults(session_with(tmp_path))
    assert "config.json" in fault


@pytest.mark.parametrize("header", HEADERS)
def test_a_list_of_tensors_that_cannot_be_read(tmp_path: Path, header: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(PolicyError, match=r"the list of tensors of model.safetensors cannot be read"):
        read_stored_tensors(str(tmp_path))


def test_a_preprocessor_that_is_nested_too_deep(tmp_path: Path) -> None:
    (tmp_path / "policy_preprocessor.json").write_text("[" * 100_000)
    with pytest.raises(PolicyError, match="not the description of a preprocessor"):
        read_stored_moments(str(tmp_path), ("action",))
