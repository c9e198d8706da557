"""What deployments/sessions/so100.toml loads from the Hub, as tiny repositories of the same names and shapes."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub import running_hub
from hub_state import Hub

PLAIN = ("shoulder_pan", "shoulder_lift", "elbow_flex", "wrist_flex", "wrist_roll", "gripper")
OLD = (tuple(f"main_{name}" for name in PLAIN), (0, 130, 120, 60, -60, 20), (35, 55, 50, 30, 40, 18))
"""Joints, centers and amplitudes of an arm with LeRobot's calibration of before June 2025: degrees, up to 185."""
NEW = (tuple(f"{name}.pos" for name in PLAIN), (8, -55, 45, 50, -53, 10), (80, 40, 34, 30, 40, 9))
"""The same of a later arm: -100..100; nothing reaches exactly 100, so the values would also fit degrees."""
DATASETS: dict[str, tuple[str, Any, tuple[str, str]]] = {
    "lerobot/svla_so100_pickplace": ("so100", OLD, ("top", "wrist")),
    "lerobot/svla_so100_stacking": ("so100", OLD, ("top", "wrist")),
    "lerobot/svla_so100_sorting": ("so100", OLD, ("top", "wrist")),
    "lerobot/svla_so101_pickplace": ("so100_follower", NEW, ("up", "side")),
    "choyf3/so101_test_20250908": ("so101_follower", NEW, ("front", "wrist")),
    "griffinlabs/record-trial-2": ("so101_follower", NEW, ("laptop", "phone")),
    "JamesChen007/so101-test": ("so101_follower", NEW, ("front", "wrist")),
}
OPTIONAL: dict[str, tuple[str, Any, tuple[str, str]]] = {
    "chrvngr/so101_grab": ("so101_follower", NEW, ("front", "wrist")),
    "zacapa/infer_rec_test": ("so101_follower", NEW, ("front", "wrist")),
    "tinjyuu/record-test6": ("so101_follower", NEW, ("front", "wrist")),
}
"""Evaluation sets that the session loads only if it is asked to."""
OLDER = ("lerobot/svla_so100_sorting", "griffinlabs/record-trial-2")
"""Published in format v2.1, as most datasets of their time were."""
VLM = "HuggingFaceTB/SmolVLM2-500M-Video-Instruct"
FRAMES, SIDE = 8, 64


@contextmanager
def hub_in_use(cache: Path) -> Iterator[Hub]:
    """Start a Hub on loopback; inside the block huggingface_hub asks it, and caches in a folder."""
    import huggingface_hub.constants as constants

    with running_hub() as hub, pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_ENDPOINT", hub.url)
        patch.setenv("HF_TOKEN", hub.token)
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "ENDPOINT", hub.url)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
        patch.setattr(constants, "HF_HUB_CACHE", str(cache))
        yield hub


def publish_datasets(hub: Hub, folder: Path, frames: int = FRAMES) -> None:
    """Write two short episodes of each dataset into `folder`, and publish them."""
    from zk0.data.dataset_writer import write_dataset

    for seed, (name, (robot, arm, cameras)) in enumerate((DATASETS | OPTIONAL).items()):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        options: dict[str, Any] = {"fps": 30, "joints": arm[0], "robot_type": robot}
        if name in OLDER:
            _write_v21(target, list(_episodes(seed, arm, cameras, frames)), options)
        else:
            write_dataset(target, _episodes(seed, arm, cameras, frames), **options)
        hub.publish(f"datasets/{name}", target)


def _write_v21(target: Path, episodes: list[list[Any]], options: dict[str, Any]) -> None:
    """Write a dataset in format v2.1: one parquet file and one video per camera for each episode."""
    from zk0.data.dataset_writer import write_dataset

    (target / "meta").mkdir(parents=True)
    lines: dict[str, list[Any]] = {"episodes": [], "episodes_stats": []}
    for index, frames in enumerate(episodes):
        single = target.with_name(f"{target.name}-{index}")
        write_dataset(single, [frames], **options)
        (table,) = (single / "data").rglob("*.parquet")
        rows = pq.read_table(table).to_pandas().assign(episode_index=index)
        rows["index"] += index * len(frames)
        (target / "data/chunk-000").mkdir(parents=True, exist_ok=True)
        schema = pq.read_schema(table).remove_metadata()
        path = target / f"data/chunk-000/episode_{index:06d}.parquet"
        pq.write_table(pa.Table.from_pandas(rows, schema, preserve_index=False), path)
        for video in (single / "videos").rglob("*.mp4"):
            camera = target / "videos/chunk-000" / video.relative_to(single / "videos").parts[0]
            camera.mkdir(parents=True, exist_ok=True)
            shutil.copy(video, camera / f"episode_{index:06d}.mp4")
        lines["episodes"].append({"episode_index": index, "tasks": [frames[0].task], "length": len(frames)})
        statistics = json.loads((single / "meta/stats.json").read_text(encoding="utf-8"))
        lines["episodes_stats"].append({"episode_index": index, "stats": statistics})
    lines["tasks"] = [{"task_index": 0, "task": episodes[0][0].task}]
    for name, found in lines.items():
        (target / "meta" / f"{name}.jsonl").write_text("\n".join(map(json.dumps, found)), encoding="utf-8")
    info = json.loads((single / "meta/info.json").read_text(encoding="utf-8"))
    info |= {
        "codebase_version": "v2.1", "total_episodes": len(episodes), "total_chunks": 1,
        "total_frames": sum(map(len, episodes)), "total_videos": len(episodes) * len(frames[0].images),
        "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    }  # fmt: skip
    (target / "meta/info.json").write_text(json.dumps(info), encoding="utf-8")


def _episodes(seed: int, arm: Any, cameras: tuple[str, str], count: int) -> Iterator[list[Any]]:
    from zk0.data.dataset_writer import RecordedFrame

    rng = np.random.default_rng(seed)
    for _ in range(2):
        phases, image = rng.uniform(0, 6, 6), rng.integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
        path = [
            (np.array(arm[1]) + np.array(arm[2]) * np.sin(t / 3 + phases)).astype(np.float32) for t in range(count + 2)
        ]
        pictures = [{camera: np.roll(image, t, axis=0) for camera in cameras} for t in range(count)]
        yield [RecordedFrame(path[t], path[t + 1], pictures[t], "Pick up the cube") for t in range(count)]


LOADING: dict[str, Any] = {"load_vlm_weights": True}
"""Fields of the published configuration that differ from those of `tiny`."""


def publish_base_policy(hub: Hub, folder: Path, cache: Path) -> None:
    """Publish a tiny policy as lerobot/smolvla_base, and its tokenizer and configuration as SmolVLM2."""
    from zk0.policy.build import build_policy
    from zk0.policy.smolvla.tiny_geometry import write_tiny_vlm
    from zk0.records import PolicyRecipe

    cameras = ("camera1", "camera2", "camera3")
    policy = build_policy(PolicyRecipe(path="tiny", cameras=cameras, joints=6, seed=5), cache)
    policy.save_pretrained(folder)
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    del settings["vlm_files"]
    plain = settings | {"type": "smolvla", "vlm_model_name": VLM} | LOADING
    (folder / "config.json").write_text(json.dumps(plain), encoding="utf-8")
    hub.publish("lerobot/smolvla_base", folder)
    hub.publish(VLM, write_tiny_vlm(cache))


def publish_full_base_policy(hub: Hub, folder: Path, vlm: Path) -> None:
    """Publish a policy of the real size with random weights as lerobot/smolvla_base, and the files beside SmolVLM2's.

    Args:
        hub: where it is published.
        folder: that is written.
        vlm: folder with configuration and tokenizer of SmolVLM2, without weights.
    """
    import torch
    from lerobot.configs import FeatureType, PolicyFeature
    from lerobot.policies.factory import make_pre_post_processors
    from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
    from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy

    torch.manual_seed(0)
    cameras = {f"observation.images.camera{n}": PolicyFeature(FeatureType.VISUAL, (3, 256, 256)) for n in (1, 2, 3)}
    inputs = {"observation.state": PolicyFeature(FeatureType.STATE, (6,)), **cameras}
    outputs = {"action": PolicyFeature(FeatureType.ACTION, (6,))}
    config = SmolVLAConfig(
        device="cpu", vlm_model_name=str(vlm), input_features=inputs, output_features=outputs, push_to_hub=False
    )
    SmolVLAPolicy(config).save_pretrained(folder)
    for processor in make_pre_post_processors(config):
        processor.save_pretrained(folder)
    for file in folder.glob("*.json"):
        file.write_text(file.read_text(encoding="utf-8").replace(str(vlm), VLM), encoding="utf-8")
    settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(settings | LOADING), encoding="utf-8")
    hub.publish("lerobot/smolvla_base", folder)
    hub.publish(VLM, vlm)
