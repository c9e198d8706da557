"""Sizes of a policy from its config.json and the list of tensors in its file."""

import json
from pathlib import Path

import huggingface_hub.constants as constants
import pytest
from full_policy_tensors import CONFIG, full_policy_tensors

from zk0.errors import HubUnavailable, PolicyError
from zk0.policy.policy_shapes import PolicyShapes, read_policy_sizes, shapes_of_tensors
from zk0.policy.published_config import BASE_POLICY_FOLDER
from zk0.policy.stored_tensors import read_stored_tensors
from zk0.settings.training_settings import PolicySettings


@pytest.fixture(scope="module")
def full() -> PolicyShapes:
    return shapes_of_tensors(CONFIG, full_policy_tensors())


def test_the_published_policy_has_its_known_sizes(full: PolicyShapes) -> None:
    assert (full.parameters, full.trainable) == (450_046_176, 99_880_992)
    assert (full.patches, full.image_tokens, full.text.width, full.text.key_width) == (1024, 64, 960, 320)
    assert (full.vision.layers, full.text.layers, full.expert.layers) == (12, 16, 16)
    assert 16 * full.lora_sides == 3_416_064
    assert full.weight_bytes == 399_523_968


def test_features_of_a_frame_have_their_known_sizes(full: PolicyShapes) -> None:
    assert full.feature_bytes(2, "embeddings") == 2 * 64 * 960 * 2
    in_fp32 = shapes_of_tensors({**CONFIG, "load_vlm_weights": False}, full_policy_tensors())
    assert in_fp32.feature_bytes(2, "embeddings") == 2 * 64 * 960 * 4
    twelve_tokens = full.model_copy(update={"task_tokens": 12})
    assert twelve_tokens.feature_bytes(2, "kv") == 16 * 2 * (128 + 12) * 320 * 2
    assert full.feature_bytes(2, "off") == 0


def test_the_base_policy_is_read_from_its_folder() -> None:
    found = read_policy_sizes(PolicySettings(path="base"))
    stored = read_stored_tensors(str(BASE_POLICY_FOLDER)).values()
    assert found.saved_bytes == sum(one.stored_bytes for one in stored)
    assert (BASE_POLICY_FOLDER / "model.safetensors").stat().st_size - found.saved_bytes < 50_000
    assert found.download_bytes == 0


def test_a_folder_without_tensors_of_a_policy_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"type": "smolvla"}')
    with pytest.raises(PolicyError, match=r"list of tensors of model.safetensors cannot be read .*FileNotFound"):
        read_policy_sizes(PolicySettings(path=str(tmp_path)))
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    assert read_stored_tensors(str(tmp_path))["w"].stored_bytes == 8
    with pytest.raises(PolicyError, match=r"not the tensors of a SmolVLA policy \(KeyError"):
        read_policy_sizes(PolicySettings(path=str(tmp_path)))
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 8 + header)
    with pytest.raises(PolicyError, match="bytes of header, expected at most"):
        read_policy_sizes(PolicySettings(path=str(tmp_path)))


def test_a_hub_that_cannot_be_reached_is_an_outage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(HubUnavailable, match="lab/policy: the Hub does not respond"):
        read_stored_tensors("lab/policy")
