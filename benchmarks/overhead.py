"""What a round costs beside training and judging: messages, checks, averaging, ledger, charts, Prefect.

    python benchmarks/overhead.py --rounds 8 --json overhead.json

A session of two clients with the tiny policy runs as `zk0 run` runs it, with one worker process, so that clients train
one after the other. A round's wall time is from one finished round to the next; work is what the clients and the judge
themselves measured. Medians over rounds after the first, which fills caches.
"""

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CLIENTS, FRAMES, FPS, SIDE = 2, 20, 10, 64


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--steps", type=int, default=30, help="optimizer steps of a client in a round")
    parser.add_argument("--json", metavar="FILE", help="write the figures here too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="zk0-overhead-") as folder:
        result = measured(Path(folder), arguments.rounds, arguments.steps)
    sys.stdout.write(table(result) + "\n")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def measured(folder: Path, rounds: int, steps: int) -> dict[str, Any]:
    """Run the session and take its rounds apart."""
    from flows.federated_session import federated_session
    from flows.stack import some_server
    from tasks.events import Event, listen
    from zk0.folder import SessionFolder
    from zk0.ledger import Ledger

    ended: dict[int, float] = {}

    def note(event: Event) -> None:
        if event.kind == "round":
            ended[event.round] = time.perf_counter()

    config = write_session(folder, rounds, steps)
    stop = listen(note)
    try:
        with some_server(Path.cwd(), lambda _: None):
            here = SessionFolder(Path(federated_session(config=str(config))))
    finally:
        stop()
    history = Ledger(here.ledger).read()
    walls = {later: ended[later] - ended[earlier] for earlier, later in itertools.pairwise(sorted(ended))}
    rows = [
        {
            "wall": walls[record.round],
            "train": sum(update.metrics.seconds for update in record.updates),
            "judge": record.evaluation.seconds if record.evaluation else 0.0,
        }
        for record in history
        if record.round > 1
    ]
    middle = {key: statistics.median(row[key] for row in rows) for key in ("wall", "train", "judge")}
    ratio = statistics.median(row["wall"] / (row["train"] + row["judge"]) for row in rows)
    return {
        "rounds": len(rows),
        "seconds": middle | {"rest": statistics.median(r["wall"] - r["train"] - r["judge"] for r in rows)},
        "ratios": {"overhead: a round / its training and judging": ratio},
    }


def write_session(folder: Path, rounds: int, steps: int) -> Path:
    """A session file over invented recordings."""
    import numpy as np
    import tomli_w

    from zk0.robot.dataset import RecordedFrame, write_dataset
    from zk0.session import SO101_JOINTS

    def episode(rng: np.random.Generator) -> Iterator[RecordedFrame]:
        states = np.cumsum(rng.normal(size=(FRAMES + 1, 6)), axis=0).astype(np.float32) * 5
        image = rng.integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
        for t in range(FRAMES):
            yield RecordedFrame(states[t], states[t + 1], {"front": np.roll(image, t, axis=0)}, "Move the arm.")

    names = [*(f"client-{i}" for i in range(CLIENTS)), "judge"]
    for seed, name in enumerate(names):
        rng = np.random.default_rng(seed)
        episodes = [list(episode(rng)) for _ in range(3)]
        write_dataset(folder / name, episodes, fps=FPS, joints=SO101_JOINTS, robot_type="so101_follower")
    values = {
        "name": "overhead",
        "rounds": rounds,
        "clients": [{"name": name, "dataset": f"local:{folder / name}"} for name in names[:-1]],
        "evaluation": {"datasets": [{"dataset": f"local:{folder / 'judge'}"}]},
        "contract": {"cameras": ["front"]},
        "policy": {"path": "tiny"},
        "training": {"local_steps": steps, "batch_size": 8, "lr": 1e-3},
        "federation": {"workers": 1},
        "output_dir": str(folder / "outputs"),
        "cache_dir": str(folder / "cache"),
    }
    file = folder / "overhead.toml"
    file.write_text(tomli_w.dumps(values), encoding="utf-8")
    return file


def table(result: dict[str, Any]) -> str:
    """The result for people."""
    seconds = result["seconds"]
    (ratio,) = result["ratios"].values()
    lines = [f"a round of two clients, tiny policy, median of {result['rounds']} rounds"]
    lines += [f"{name:6}{seconds[name] * 1e3:>10.0f} ms" for name in ("wall", "train", "judge", "rest")]
    return "\n".join([*lines, f"wall / (train + judge): {ratio:.2f}"])


if __name__ == "__main__":
    main()
