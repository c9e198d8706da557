"""A small dataset without a fault, and ways to change the files of a copy."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

JOINTS = ["shoulder_pan.pos", "shoulder_lift.pos", "elbow_flex.pos", "wrist_flex.pos", "wrist_roll.pos", "gripper.pos"]
CAMERAS = ("overhead", "wrist")
EPISODES, FRAMES, FPS, SIDE = 4, 12, 10, 64


def write_healthy_dataset(root: Path) -> None:
    """Write a dataset with LeRobot: 4 episodes of 12 frames, two cameras."""
    from lerobot.configs.video import RGBEncoderConfig
    from lerobot.datasets import LeRobotDataset

    numbers = {"dtype": "float32", "shape": (6,), "names": JOINTS}
    image = {"dtype": "video", "shape": (SIDE, SIDE, 3), "names": ["height", "width", "channels"]}
    features = {"observation.state": numbers, "action": dict(numbers)}
    features |= {f"observation.images.{c}": dict(image) for c in CAMERAS}
    dataset = LeRobotDataset.create(
        "local/healthy", FPS, features, root=root, robot_type="so101_follower", use_videos=True,
        rgb_encoder=RGBEncoderConfig(vcodec="h264"),
    )  # fmt: skip
    rng = np.random.default_rng(0)
    for _ in range(EPISODES):
        phase, turn = rng.uniform(0, 6, 6), rng.uniform(20, 80, 6)
        for t in range(FRAMES):
            images = {}
            for c in CAMERAS:
                pixels = rng.integers(0, 60, (SIDE, SIDE, 3), dtype=np.uint8)
                pixels[4 * t : 4 * t + 16, 10:40] = 220
                images[f"observation.images.{c}"] = pixels
            state = (turn * np.sin(t / 4 + phase)).astype(np.float32)
            action = (turn * np.sin((t + 2) / 4 + phase)).astype(np.float32)
            for vector in (state, action):
                vector[5] = 50 + vector[5] / 2  # the gripper goes from 0 to 100
            task = "Pick up the cube."
            dataset.add_frame({"observation.state": state, "action": action, "task": task, **images})
        dataset.save_episode(parallel_encoding=False)
    dataset.finalize()


class Breaker:
    """Ways to change the files of a dataset."""

    data = "data/chunk-000/file-000.parquet"
    episodes = "meta/episodes/chunk-000/file-000.parquet"

    def __init__(self, root: Path) -> None:
        self.root = root

    def info(self, change: Callable[[dict], object]) -> None:
        self.json("meta/info.json", change)

    def json(self, file: str, change: Callable[[dict], object]) -> None:
        values = json.loads((self.root / file).read_text())
        change(values)
        (self.root / file).write_text(json.dumps(values))

    def table(self, file: str, change: Callable[[pa.Table], pa.Table]) -> None:
        changed = change(pq.read_table(self.root / file))
        pq.write_table(changed, self.root / file)

    def column(self, file: str, name: str, change: Callable[[list], list]) -> None:
        def replace(table: pa.Table) -> pa.Table:
            at = table.schema.get_field_index(name)
            values = pa.array(change(table[name].to_pylist()), type=table.schema.field(name).type)
            return table.set_column(at, table.schema.field(name), values)

        self.table(file, replace)

    def video(self, camera: str = "wrist") -> Path:
        return self.root / f"videos/observation.images.{camera}/chunk-000/file-000.mp4"
