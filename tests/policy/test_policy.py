"""Building, freezing, installing and saving the policy, compared with plain LeRobot."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from published_hub import hub_in_use

from zk0.errors import CheckpointError, PolicyError
from zk0.policy.policy_shapes import TINY_SHAPES, read_policy_sizes
from zk0.records import Moments, PolicyRecipe, Statistics
from zk0.settings.training_settings import PolicySettings

ACT = """
import sys, numpy as np, torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from lerobot.utils.import_utils import register_third_party_plugins
register_third_party_plugins()
given = dict(np.load("given.npz"))
noise = torch.from_numpy(given.pop("noise"))
for number, path in enumerate(sys.argv[1:]):
    config = PreTrainedConfig.from_pretrained(path)
    policy = get_policy_class(config.type).from_pretrained(path)
    pre, post = make_pre_post_processors(config, path)
    batch = {k: torch.from_numpy(v) for k, v in given.items()} | {"task": ["Lift the red cube."]}
    np.save(f"actions-{number}.npy", post(policy.predict_action_chunk(pre(batch), noise=noise)).numpy())
    for part in (policy, pre, post):
        part.save_pretrained("again")
"""


def recipe(**changes: Any) -> PolicyRecipe:
    return PolicyRecipe(**{"path": "tiny", "cameras": ("overhead", "wrist"), "joints": 6, "seed": 1} | changes)


def statistics_of(seed: int = 0) -> Statistics:
    rng = np.random.default_rng(seed)

    def moments() -> Moments:
        mean, std = rng.uniform(-60, 60, 6), rng.uniform(1, 30, 6)
        return Moments(count=9, mean=tuple(mean), std=tuple(std), min=tuple(mean - 2 * std), max=tuple(mean + 2 * std))

    return Statistics(state=moments(), action=moments())


def observation(chunk: int, width: int) -> dict[str, np.ndarray]:
    """One observation and the noise of one chunk."""
    rng = np.random.default_rng(3)
    images = {f"observation.images.{c}": rng.random((1, 3, 64, 80), dtype=np.float32) for c in ("overhead", "wrist")}
    noise = rng.standard_normal((1, chunk, width), dtype=np.float32)
    return {"observation.state": rng.uniform(-50, 50, (1, 6)).astype(np.float32), "noise": noise, **images}


def actions_of(policy: Any, processors: tuple[Any, Any], given: dict[str, np.ndarray]) -> np.ndarray:
    pre, post = processors
    batch = {k: torch.from_numpy(v) for k, v in given.items() if k != "noise"} | {"task": ["Lift the red cube."]}
    return post(policy.predict_action_chunk(pre(batch), noise=torch.from_numpy(given["noise"]))).numpy()


@pytest.fixture(scope="module")
def tiny(shared_cache: Path) -> Any:
    from zk0.policy.build import build_policy

    return build_policy(recipe(), shared_cache)


@pytest.fixture(scope="module")
def saved(tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved policy that was moved to another folder."""
    from zk0.policy.save_policy import save_policy

    folder = tmp_path_factory.mktemp("here") / "models" / "checkpoint_round_1"
    save_policy(tiny, statistics_of(), folder, {"README.md": "a card"})
    return Path(shutil.move(folder, tmp_path_factory.mktemp("elsewhere") / "policy"))


@pytest.mark.parametrize(("wanted", "stored"), [(None, 10), (3, 3), (10, 10), (99, 10)])
def test_a_saved_policy_declares_the_steps_that_are_executed(
    tiny: Any, tmp_path: Path, wanted: int | None, stored: int
) -> None:
    """LeRobot refuses more than a chunk has."""
    from zk0.policy.save_policy import save_policy

    save_policy(tiny, statistics_of(), tmp_path / "saved", executed_steps=wanted)
    assert json.loads((tmp_path / "saved/config.json").read_text())["n_action_steps"] == stored
    assert tiny.config.n_action_steps == 10


def test_its_sizes_are_known_without_building_it(saved: Path, tiny: Any) -> None:
    assert read_policy_sizes(PolicySettings(path=str(saved))) == TINY_SHAPES
    assert TINY_SHAPES.parameters == sum(p.numel() for p in tiny.parameters())
    assert TINY_SHAPES.trainable == sum(p.numel() for p in tiny.parameters() if p.requires_grad)


def test_a_folder_without_a_device_loads_without_a_warning(saved: Path, caplog: pytest.LogCaptureFixture) -> None:
    from zk0.policy.load_files import read_policy_config

    assert json.loads((saved / "config.json").read_text())["device"] is None
    assert read_policy_config(str(saved)).device == "cpu"
    assert caplog.records == []


class TestTiny:
    def test_the_seed_decides_every_weight(self, tiny: Any, shared_cache: Path) -> None:
        from zk0.policy.build import build_policy

        again, other = build_policy(recipe(), shared_cache), build_policy(recipe(seed=2), shared_cache)
        first = tiny.state_dict()
        assert all(torch.equal(value, first[name]) for name, value in again.state_dict().items())
        assert not torch.equal(other.state_dict()["model.state_proj.weight"], first["model.state_proj.weight"])

    def test_building_leaves_the_random_state_alone(self, shared_cache: Path) -> None:
        import random

        from zk0.policy.build import build_policy

        torch.manual_seed(5)
        np.random.seed(5)
        random.seed(5)
        expected = torch.rand(3), np.random.rand(3), random.random()
        torch.manual_seed(5)
        np.random.seed(5)
        random.seed(5)
        build_policy(recipe(), shared_cache)
        assert torch.equal(torch.rand(3), expected[0])
        assert (np.random.rand(3) == expected[1]).all()
        assert random.random() == expected[2]

    def test_only_expert_and_projections_are_trained_in_fp32(self, tiny: Any) -> None:
        from zk0.policy.trainable import trainable_parameters

        trained = trainable_parameters(tiny)
        parts = {name.split(".")[1 if "vlm_with_expert" not in name else 2] for name in trained}
        assert parts == {
            "lm_expert", "state_proj", "action_in_proj", "action_out_proj", "action_time_mlp_in", "action_time_mlp_out",
        }  # fmt: skip
        assert {p.dtype for p in trained.values()} == {torch.float32}
        assert list(trained) == sorted(trained)
        assert sum(p.numel() for p in trained.values()) == 194_976
        assert sum(p.numel() for p in tiny.parameters()) == 532_000

    def test_a_bf16_expert_becomes_fp32(self, saved: Path, shared_cache: Path, tmp_path: Path) -> None:
        """LeRobot loads the expert in bf16 with load_vlm_weights; at lr 1e-5 bf16 weights hardly change."""
        from zk0.policy.build import build_policy
        from zk0.policy.trainable import trainable_parameters

        folder = Path(shutil.copytree(saved, tmp_path / "policy"))
        files = json.loads((folder / "config.json").read_text())["vlm_files"]
        config = json.loads(files["config.json"])
        config["text_config"]["dtype"] = config["dtype"] = "bfloat16"
        change_config(vlm_files=files | {"config.json": json.dumps(config)})(folder)
        policy = build_policy(recipe(path=str(folder)), shared_cache)
        assert {p.dtype for p in trainable_parameters(policy).values()} == {torch.float32}


class TestWeights:
    def test_installed_weights_are_read_back(self, tiny: Any) -> None:
        from zk0.policy.trainable import install_weights, trainable_weights

        before = {name: values.copy() for name, values in trainable_weights(tiny).items()}
        moved = {name: value + 1 for name, value in before.items()}
        install_weights(tiny, moved)
        assert all((value == moved[n]).all() for n, value in trainable_weights(tiny).items())
        install_weights(tiny, before)
        assert (trainable_weights(tiny)["model.state_proj.bias"] == before["model.state_proj.bias"]).all()

    @pytest.mark.parametrize("fault", ["missing", "extra", "shape"])
    def test_other_names_or_shapes_change_nothing(self, tiny: Any, fault: str) -> None:
        from zk0.policy.trainable import install_weights, trainable_weights

        before = {name: values.copy() for name, values in trainable_weights(tiny).items()}
        wrong = {name: value + 1 for name, value in before.items()}
        last = max(wrong)
        if fault == "missing":
            del wrong[last]
        elif fault == "extra":
            wrong["model.more"] = np.zeros(3, np.float32)
        else:
            wrong[last] = wrong[last][:-1]
        with pytest.raises(CheckpointError, match="model.more" if fault == "extra" else last.replace(".", r"\.")):
            install_weights(tiny, wrong)
        assert all((value == before[name]).all() for name, value in trainable_weights(tiny).items())

    def test_the_frozen_digest_covers_frozen_weights_only(self, shared_cache: Path) -> None:
        from zk0.policy.build import build_policy
        from zk0.policy.trainable import frozen_digest, trainable_parameters

        policy = build_policy(recipe(), shared_cache)
        before = frozen_digest(policy)
        with torch.no_grad():
            trainable_parameters(policy)["model.state_proj.bias"].add_(1)
        assert frozen_digest(policy) == before
        with torch.no_grad():
            next(policy.model.vlm_with_expert.vlm.parameters()).view(-1)[0].add_(1e-3)
        assert frozen_digest(policy) != before


class TestSaved:
    def test_no_absolute_path_and_no_temporary_file(self, saved: Path) -> None:
        assert {p.relative_to(saved).as_posix() for p in saved.rglob("*") if p.is_file()} == {
            "README.md", "config.json", "model.safetensors", "policy_preprocessor.json", "policy_postprocessor.json",
            "SHA256SUMS",
            "policy_preprocessor_step_5_normalizer_processor.safetensors",
            "policy_postprocessor_step_0_unnormalizer_processor.safetensors",
        }  # fmt: skip
        paths = [str(saved.parent), str(Path.cwd()), str(Path.home()), "/tmp/"]
        for file in saved.rglob("*"):
            if file.is_file():
                text = file.read_bytes().decode("utf-8", "ignore")
                assert not [path for path in paths if path in text], file
        assert saved.stat().st_mode & 0o777 == 0o755

    def test_plain_lerobot_predicts_the_same_actions_from_anywhere(
        self, tiny: Any, saved: Path, tmp_path: Path, hub_server: Any
    ) -> None:
        """By folder, as saved again by LeRobot, and by name on the Hub; zk0 is not imported."""
        from zk0.policy.processors import make_processors

        hub_server.publish("lab/arm", saved)
        given = observation(tiny.config.chunk_size, tiny.config.max_action_dim)
        np.savez(tmp_path / "given.npz", **given)
        hub = {"HF_ENDPOINT": hub_server.url, "HF_TOKEN": hub_server.token, "HF_HOME": str(tmp_path / "hf")}
        run = [sys.executable, "-c", ACT, str(saved), "again", "lab/arm"]
        subprocess.run(
            run, cwd=tmp_path, env=os.environ | hub | {"HF_HUB_OFFLINE": "0"}, check=True, capture_output=True
        )
        files = [r for r in hub_server.requests if "resolve" in r]
        assert files == [r for r in files if "lab/arm" in r] != []
        expected = actions_of(tiny, make_processors(tiny, statistics_of()), given)
        assert expected.shape == (1, 10, 6)
        for number in range(3):
            assert (np.load(tmp_path / f"actions-{number}.npy") == expected).all()
        assert str(tmp_path) not in (tmp_path / "again" / "config.json").read_text()

    def test_a_folder_of_zk0_0_1_is_read_and_saved_in_todays_form(
        self, tiny: Any, saved: Path, shared_cache: Path, tmp_path: Path
    ) -> None:
        """Then the files were in `vlm/`, which was named relative to the folder."""
        from zk0.policy.save_policy import save_policy
        from zk0.policy.saved_policy import load_saved_policy
        from zk0.policy.smolvla.tiny_geometry import write_tiny_vlm

        old = Path(shutil.copytree(saved, tmp_path / "old"))
        shutil.copytree(write_tiny_vlm(shared_cache), old / "vlm")
        change_config(type="smolvla", vlm_model_name="vlm")(old)
        settings = json.loads((old / "config.json").read_text())
        del settings["vlm_files"]
        (old / "config.json").write_text(json.dumps(settings))
        steps = json.loads((old / "policy_preprocessor.json").read_text())
        (step,) = (s for s in steps["steps"] if s["registry_name"] == "bundled_tokenizer_processor")
        step["registry_name"] = "tokenizer_processor"
        step["config"] = {k: v for k, v in step["config"].items() if k != "vlm_files"} | {"tokenizer_name": "vlm"}
        (old / "policy_preprocessor.json").write_text(json.dumps(steps))
        given = observation(tiny.config.chunk_size, tiny.config.max_action_dim)
        found = load_saved_policy(str(old))
        expected = load_saved_policy(str(saved))
        actions = [actions_of(p.policy, (p.preprocessor, p.postprocessor), given) for p in (found, expected)]
        assert (actions[0] == actions[1]).all()
        save_policy(found.policy, statistics_of(), tmp_path / "new", {"README.md": "a card"})
        for file in ("config.json", "policy_preprocessor.json"):
            assert json.loads((tmp_path / "new" / file).read_text()) == json.loads((saved / file).read_text()), file
        assert (tmp_path / "new/model.safetensors").read_bytes() == (saved / "model.safetensors").read_bytes()

    def test_a_policy_of_the_hub_names_no_folder_of_this_machine(
        self, saved: Path, shared_cache: Path, tmp_path: Path
    ) -> None:
        """Else its author would choose which folder's files are saved and published with the trained policy."""
        from zk0.policy.build import build_policy
        from zk0.policy.smolvla.tiny_geometry import write_tiny_vlm

        evil = Path(shutil.copytree(saved, tmp_path / "evil"))
        change_config(type="smolvla", vlm_model_name=str(write_tiny_vlm(shared_cache)))(evil)
        settings = json.loads((evil / "config.json").read_text())
        del settings["vlm_files"]
        (evil / "config.json").write_text(json.dumps(settings))
        recipe = PolicyRecipe(path="lab/evil", cameras=("overhead", "wrist"), joints=6, seed=1)
        with hub_in_use(tmp_path / "hub-cache") as hub:
            hub.publish("lab/evil", evil)
            with pytest.raises(PolicyError, match=r"lab/evil: its config.json names a folder of this machine"):
                build_policy(recipe, shared_cache)
        build_policy(recipe.model_copy(update={"path": str(evil)}), shared_cache)  # its owner has named the folder

    def test_a_saved_policy_can_be_built_again(self, tiny: Any, saved: Path, shared_cache: Path) -> None:
        from zk0.policy.build import build_policy
        from zk0.policy.processors import make_processors
        from zk0.policy.save_policy import save_policy
        from zk0.policy.trainable import frozen_digest, trainable_weights

        policy = build_policy(recipe(path=str(saved), seed=77), shared_cache)
        assert all((value == trainable_weights(tiny)[name]).all() for name, value in trainable_weights(policy).items())
        assert frozen_digest(policy) == frozen_digest(tiny)
        given = observation(policy.config.chunk_size, policy.config.max_action_dim)
        actions = [actions_of(p, make_processors(p, statistics_of()), given) for p in (policy, tiny)]
        assert (actions[0] == actions[1]).all()
        save_policy(policy, statistics_of(), saved.parent / "again")
        again = json.loads((saved.parent / "again/config.json").read_text())
        assert again == json.loads((saved / "config.json").read_text())

    def test_a_failed_save_leaves_the_old_folder(self, tiny: Any, saved: Path, tmp_path: Path) -> None:
        from zk0.policy.save_policy import save_policy

        folder = Path(shutil.copytree(saved, tmp_path / "policy"))
        with pytest.raises(OSError, match="no-such-folder"):
            save_policy(tiny, statistics_of(1), folder, {"no-such-folder/README.md": "?"})
        assert [p.name for p in tmp_path.iterdir()] == ["policy"]
        for file in (f for f in saved.rglob("*") if f.is_file()):
            assert (folder / file.relative_to(saved)).read_bytes() == file.read_bytes()

    def test_saving_over_a_folder_replaces_it(self, tiny: Any, saved: Path, tmp_path: Path) -> None:
        from zk0.policy.save_policy import save_policy

        folder = Path(shutil.copytree(saved, tmp_path / "policy"))
        (folder / "old").touch()
        save_policy(tiny, statistics_of(1), folder)
        assert [p.name for p in tmp_path.iterdir()] == ["policy"]
        assert not (folder / "old").exists()
        assert not (folder / "README.md").exists()


def drop_tensor(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    del weights["model.action_in_proj.weight"]
    save_file(weights, folder / "model.safetensors")


def narrow_tensor(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights["model.action_in_proj.weight"] = weights["model.action_in_proj.weight"][:, :-1].contiguous()
    save_file(weights, folder / "model.safetensors")


def change_config(**changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        values = json.loads((folder / "config.json").read_text()) | changes
        (folder / "config.json").write_text(json.dumps(values))

    return change


UNUSABLE = {
    "a tensor is missing": (drop_tensor, "lacks 1 of .* model.action_in_proj.weight"),
    "a tensor has another shape": (narrow_tensor, "model.action_in_proj.weight|size mismatch|cannot be loaded"),
    "truncated weights": (lambda f: os.truncate(f / "model.safetensors", 5000), "cannot be loaded"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "cannot be loaded"),
    "no config": (lambda f: (f / "config.json").unlink(), "config.json"),
    "config is no JSON": (lambda f: (f / "config.json").write_text("{"), "cannot be loaded"),
    "config has an unknown field": (change_config(surprise=1), "surprise|cannot be loaded"),
    "another kind of policy": (change_config(type="nonsense"), "nonsense"),
}  # fmt: skip


@pytest.mark.parametrize("case", UNUSABLE)
def test_an_unusable_policy_is_rejected(case: str, saved: Path, shared_cache: Path, tmp_path: Path) -> None:
    from zk0.policy.build import build_policy

    damage, message = UNUSABLE[case]
    folder = Path(shutil.copytree(saved, tmp_path / "policy"))
    damage(folder)
    with pytest.raises(PolicyError, match=message) as found:
        build_policy(recipe(path=str(folder)), shared_cache)
    assert "\n" not in str(found.value)


def test_a_policy_that_does_not_exist_is_rejected(shared_cache: Path, tmp_path: Path) -> None:
    from zk0.policy.build import build_policy

    for path in (str(tmp_path / "nothing"), "no-user/no-policy"):
        with pytest.raises(PolicyError, match=f"{path}: cannot be loaded"):
            build_policy(recipe(path=path), shared_cache)


class TestProcessors:
    def test_they_normalize_and_restore_degrees(self, tiny: Any) -> None:
        from zk0.policy.processors import make_processors

        found = statistics_of()
        pre, post = make_processors(tiny, found)
        state, action = np.linspace(-40, 70, 6, dtype=np.float32), np.linspace(90, -20, 6, dtype=np.float32)
        batch = pre({"observation.state": torch.tensor(state), "action": torch.tensor(action)[None, None], "task": "x"})
        by_hand = (state - np.array(found.state.mean)) / np.array(found.state.std)
        assert batch["observation.state"][0].numpy() == pytest.approx(by_hand, rel=1e-5)
        assert post(batch["action"])[0, 0].numpy() == pytest.approx(action, rel=1e-5)

    @pytest.mark.parametrize("kind", ["STATE", "ACTION"])
    @pytest.mark.parametrize("mode", ["IDENTITY", "QUANTILES"])
    def test_a_policy_that_skips_or_changes_normalization_is_rejected(
        self, saved: Path, shared_cache: Path, tmp_path: Path, kind: str, mode: str
    ) -> None:
        from zk0.policy.build import build_policy
        from zk0.policy.processors import make_processors

        folder = Path(shutil.copytree(saved, tmp_path / "policy"))
        mapping = {"VISUAL": "IDENTITY", "STATE": "MEAN_STD", "ACTION": "MEAN_STD", kind: mode}
        change_config(normalization_mapping=mapping)(folder)
        policy = build_policy(recipe(path=str(folder)), shared_cache)
        with pytest.raises(PolicyError, match=rf"normalizes {kind} by {mode}; expected MEAN_STD or MIN_MAX"):
            make_processors(policy, statistics_of())

    def test_actions_may_be_normalized_by_their_range(self, saved: Path, shared_cache: Path, tmp_path: Path) -> None:
        from zk0.policy.build import build_policy
        from zk0.policy.processors import action_scale, make_processors

        folder = Path(shutil.copytree(saved, tmp_path / "policy"))
        mapping = {"VISUAL": "IDENTITY", "STATE": "MEAN_STD", "ACTION": "MIN_MAX"}
        change_config(normalization_mapping=mapping)(folder)
        policy, found = build_policy(recipe(path=str(folder)), shared_cache), statistics_of()
        _, post = make_processors(policy, found)
        scale, given = action_scale(policy, found), torch.tensor([[-1.0, -0.5, 0.0, 0.25, 0.5, 1.0]])
        restored = scale.restore(given.double().numpy())[0]
        assert restored == pytest.approx(post(given)[0].numpy(), rel=1e-5)
        assert (restored[0], restored[5]) == (found.action.min[0], found.action.max[5])
        still = found.action.model_copy(update={"min": found.action.max})
        with pytest.raises(PolicyError, match="joint 0 of the datasets never moves"):
            make_processors(policy, found.model_copy(update={"action": still}))

    def test_a_joint_that_never_moves_is_accepted(self, tiny: Any) -> None:
        from zk0.policy.processors import make_processors

        found = statistics_of()
        still = found.state.model_copy(update={"std": (0.0, 1e-5, *found.state.std[2:])})
        make_processors(tiny, Statistics(state=still, action=still))


@pytest.mark.slow
def test_the_full_geometry_through_the_same_function(full: Any, full_base: Path) -> None:
    from lerobot.configs import PreTrainedConfig
    from safetensors import safe_open

    from zk0.policy.processors import make_processors
    from zk0.policy.trainable import trainable_parameters

    policy = full
    with safe_open(full_base / "model.safetensors", "pt") as saved:
        expected = saved.get_tensor("model.state_proj.weight")
    trained = trainable_parameters(policy)
    assert isinstance(policy.config, PreTrainedConfig)
    assert sum(p.numel() for p in policy.parameters()) == 450_046_176
    assert sum(p.numel() for p in trained.values()) == 99_880_992
    assert len(trained) == 155
    assert list(policy.config.image_features) == ["observation.images.overhead", "observation.images.wrist"]
    assert torch.equal(policy.model.state_proj.weight, expected)
    processors = make_processors(policy, statistics_of())
    given = observation(policy.config.chunk_size, policy.config.max_action_dim)
    assert actions_of(policy, processors, given).shape == (1, 50, 6)
