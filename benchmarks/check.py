"""Measure the time of the data check and of a repair, compared with decoding the videos twice.

    python benchmarks/check.py [--episodes 50] [--frames 60]

Records a synthetic dataset with two 480x640 cameras at 30 fps (AV1, LeRobot's default), then times the full check, the
quick check, a repair that drops an episode, and decoding every video twice.
"""

import argparse
import logging
import sys
import tempfile
from pathlib import Path
from time import perf_counter

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from zk0.data.check import check_dataset
from zk0.data.dataset_writer import RecordedFrame, write_dataset
from zk0.data.repair.repair_dataset import repair_dataset
from zk0.records import DatasetReport
from zk0.settings.dataset_settings import SO101_JOINTS

HEIGHT, WIDTH, FPS = 480, 640, 30


def record(root: Path, episodes: int, frames: int) -> None:
    """Record synthetic motions over a noisy table, whose images are as hard to decode as real ones."""
    rng = np.random.default_rng(0)
    table = rng.integers(0, 255, (HEIGHT // 4, WIDTH // 4, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)

    def episode(number: int) -> list[RecordedFrame]:
        phase = rng.uniform(0, 6, len(SO101_JOINTS))
        recorded = []
        for t in range(frames):
            state = (70 * np.sin(t / 30 + phase)).astype(np.float32)
            images = {}
            for camera, shift in (("overhead", 3 * t), ("wrist", 5 * t + number)):
                image = np.roll(table, shift, axis=1)
                image[100:220, (7 * t) % (WIDTH - 120) : (7 * t) % (WIDTH - 120) + 120] = (220, 60, 30)
                images[camera] = image
            recorded.append(RecordedFrame(state, np.roll(state, -1), images, "Pick up the cube."))
        return recorded

    write_dataset(root, map(episode, range(episodes)), fps=FPS, joints=SO101_JOINTS, robot_type="so101_follower")


def decode(root: Path) -> int:
    """Decode every frame of every video once; return their number."""
    count = 0
    for path in sorted(root.glob("videos/**/*.mp4")):
        with av.open(str(path)) as container:
            container.streams.video[0].thread_type = "NONE"
            count += sum(1 for _ in container.decode(video=0))
    return count


def spoil(root: Path) -> None:
    """Give the first action of the dataset a value that is no number."""
    path = root / "data/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    actions = table["action"].to_pylist()
    actions[0][0] = float("nan")
    column = pa.array(actions, table.schema.field("action").type)
    pq.write_table(table.set_column(table.schema.get_field_index("action"), "action", column), path)


def repair(root: Path) -> DatasetReport:
    """Repair the spoiled dataset into a folder beside it; return the check of the copy."""
    return repair_dataset(root, root.with_name("repaired"), dataset="benchmark")[1]


def main() -> None:
    """Run the benchmark and print the times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument("--frames", type=int, default=60, help="frames of each episode")
    arguments = parser.parse_args()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "dataset"
        record(root, arguments.episodes, arguments.frames)
        seconds = {}
        for name, run in (
            ("check", lambda: check_dataset(root, dataset="benchmark")),
            ("quick check", lambda: check_dataset(root, dataset="benchmark", quick=True)),
            ("decode twice", lambda: (decode(root), decode(root))),
            ("repair", lambda: (spoil(root), repair(root))),
        ):
            start = perf_counter()
            result = run()
            seconds[name] = perf_counter() - start
            if name == "check" and result.errors:
                sys.exit(f"the dataset has errors: {', '.join(map(str, result.errors))}")
        total = arguments.episodes * arguments.frames * 2
        sys.stdout.write(f"{arguments.episodes} episodes, {total} frames of {HEIGHT}x{WIDTH} in two cameras\n")
        for name, value in seconds.items():
            sys.stdout.write(f"{name:13s} {value:8.2f} s  {value / seconds['decode twice']:.3f} of decoding twice\n")


if __name__ == "__main__":
    main()
