"""How long the check of a data set takes, against decoding its videos twice.

    python benchmarks/check.py [--episodes 50] [--frames 60]

Records an invented data set of two 480x640 cameras at 30 fps (AV1, as LeRobot writes it by default), checks it,
checks it quickly, and decodes every video twice.
"""

import argparse
import logging
import sys
import tempfile
from pathlib import Path
from time import perf_counter

import av
import numpy as np

from zk0.robot.check import check_dataset
from zk0.robot.dataset import RecordedFrame, write_dataset
from zk0.session import SO101_JOINTS

HEIGHT, WIDTH, FPS = 480, 640, 30


def record(root: Path, episodes: int, frames: int) -> None:
    """Invented motions over a noisy table, so that the pictures are as hard to decode as real ones."""
    rng = np.random.default_rng(0)
    table = rng.integers(0, 255, (HEIGHT // 4, WIDTH // 4, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)

    def episode(number: int) -> list[RecordedFrame]:
        phase = rng.uniform(0, 6, len(SO101_JOINTS))
        moments = []
        for t in range(frames):
            state = (70 * np.sin(t / 30 + phase)).astype(np.float32)
            images = {}
            for camera, shift in (("overhead", 3 * t), ("wrist", 5 * t + number)):
                image = np.roll(table, shift, axis=1)
                image[100:220, (7 * t) % (WIDTH - 120) : (7 * t) % (WIDTH - 120) + 120] = (220, 60, 30)
                images[camera] = image
            moments.append(RecordedFrame(state, np.roll(state, -1), images, "Pick up the cube."))
        return moments

    write_dataset(root, map(episode, range(episodes)), fps=FPS, joints=SO101_JOINTS, robot_type="so101_follower")


def decode(root: Path) -> int:
    """Decode every frame of every video once; returns how many there were."""
    count = 0
    for path in sorted(root.glob("videos/**/*.mp4")):
        with av.open(str(path)) as container:
            container.streams.video[0].thread_type = "NONE"
            count += sum(1 for _ in container.decode(video=0))
    return count


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument("--frames", type=int, default=60, help="of each episode")
    asked = parser.parse_args()
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "set"
        record(root, asked.episodes, asked.frames)
        seconds = {}
        for name, run in (
            ("check", lambda: check_dataset(root, dataset="benchmark")),
            ("quick check", lambda: check_dataset(root, dataset="benchmark", quick=True)),
            ("decode twice", lambda: (decode(root), decode(root))),
        ):
            start = perf_counter()
            result = run()
            seconds[name] = perf_counter() - start
            if name == "check" and result.errors:
                sys.exit(f"the data set has faults: {', '.join(map(str, result.errors))}")
        total = asked.episodes * asked.frames * 2
        sys.stdout.write(f"{asked.episodes} episodes, {total} frames of {HEIGHT}x{WIDTH} in two cameras\n")
        for name, value in seconds.items():
            sys.stdout.write(f"{name:13s} {value:8.2f} s  {value / seconds['decode twice']:.3f} of decoding twice\n")


if __name__ == "__main__":
    main()
