"""The policy type `smolvla_bundled`: the files that it carries, and what it refuses."""

import importlib.metadata
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

Change = Callable[[dict[str, str]], dict[str, str]]


@pytest.fixture(scope="module")
def files(shared_cache: Path) -> dict[str, str]:
    """The files of the policy `tiny`."""
    from lerobot_policy_smolvla_bundled import read_vlm_files
    from zk0.policy.smolvla.tiny_geometry import write_tiny_vlm

    return read_vlm_files(write_tiny_vlm(shared_cache))


def test_lerobot_finds_the_plugin_by_its_name() -> None:
    names = [d.metadata["Name"] for d in importlib.metadata.distributions()]
    assert "lerobot_policy_smolvla_bundled" in names


def test_the_files_are_those_of_the_folder(files: dict[str, str], shared_cache: Path, tmp_path: Path) -> None:
    from lerobot_policy_smolvla_bundled.vlm_files import read_vlm_files, unpacked
    from zk0.policy.smolvla.tiny_geometry import write_tiny_vlm

    original = write_tiny_vlm(shared_cache)
    assert set(files) == {f.name for f in original.iterdir()}
    with unpacked(files, "here") as folder:
        assert read_vlm_files(Path(folder)) == files
        for file in original.iterdir():
            assert json.loads((Path(folder) / file.name).read_text()) == json.loads(file.read_text())
    assert not Path(folder).exists()


REFUSED: dict[str, tuple[Change, str]] = {
    "none": (lambda f: {}, "no config.json and no tokenizer.json; expected the files of a vision-language model"),
    "no tokenizer": (lambda f: {k: v for k, v in f.items() if k != "tokenizer.json"}, "no tokenizer.json; expected"),
    "a path": (lambda f: f | {"../evil.json": "{}"}, r"unknown file '\.\./evil\.json'; expected config.json, "),
    "code": (lambda f: f | {"modeling.py": "1"}, "unknown file 'modeling.py'"),
    "too large": (lambda f: f | {"chat_template.jinja": "x" * 32_000_001}, "bytes, expected at most 32000000"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_other_files_are_refused(files: dict[str, str], fault: str) -> None:
    from lerobot_policy_smolvla_bundled import BundledSmolVLAConfig, BundledSmolVLAPolicy, BundledTokenizerProcessorStep

    change, message = REFUSED[fault]
    with pytest.raises(ValueError, match=f"vlm_files of config.json: .*{message}"):
        BundledSmolVLAPolicy(BundledSmolVLAConfig(device="cpu", vlm_files=change(files)))
    with pytest.raises(ValueError, match=f"vlm_files of the tokenizer step: .*{message}"):
        BundledTokenizerProcessorStep(vlm_files=change(files))


def test_a_folder_that_lacks_a_file_is_refused(tmp_path: Path) -> None:
    from lerobot_policy_smolvla_bundled import read_vlm_files

    with pytest.raises(ValueError, match=f"{tmp_path}: no config.json and no tokenizer.json"):
        read_vlm_files(tmp_path)


def test_weights_come_from_the_policys_own_file(files: dict[str, str]) -> None:
    from lerobot_policy_smolvla_bundled import BundledSmolVLAConfig, BundledSmolVLAPolicy

    with pytest.raises(ValueError, match="load_vlm_weights is true, expected false"):
        BundledSmolVLAPolicy(BundledSmolVLAConfig(device="cpu", vlm_files=files, load_vlm_weights=True))


def test_the_processors_are_smolvlas_with_the_carried_tokenizer(files: dict[str, str], shared_cache: Path) -> None:
    from lerobot.policies.factory import make_pre_post_processors
    from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig

    from lerobot_policy_smolvla_bundled import BundledSmolVLAConfig
    from zk0.policy.smolvla.tiny_geometry import write_tiny_vlm

    def tokens(config: Any) -> tuple[Any, list[Any]]:
        pre, post = make_pre_post_processors(config)
        batch = pre({"observation.state": torch.zeros(2, 6), "task": ["Lift the red cube.", "Push it."]})
        kinds = [type(s).__name__.removeprefix("Bundled") for s in (*pre.steps, *post.steps)]
        return batch["observation.language.tokens"], kinds

    settings: dict[str, Any] = {"device": "cpu", "tokenizer_max_length": 9}
    found, kinds = tokens(BundledSmolVLAConfig(vlm_files=files, **settings))
    expected, plain = tokens(SmolVLAConfig(vlm_model_name=str(write_tiny_vlm(shared_cache)), **settings))
    assert found.shape == (2, 9)
    assert (found == expected).all()
    assert kinds == plain
