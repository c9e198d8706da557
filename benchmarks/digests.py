"""What `federation.digest = "sha256"` costs compared with BLAKE3, by itself and in a round of the server.

    python benchmarks/digests.py --parameters 100000000 --clients 4

Rows: the digest of a file of weights; the server's part of a round, which verifies every update and aggregates them
into new global weights, with one digest of each. Both algorithms take turns `--repeats` times and the best of each
counts. The last column is the time with SHA-256 divided by that with BLAKE3.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from zk0.aggregation.aggregate import aggregate
from zk0.aggregation.verify import verify_update
from zk0.records import ClientMetrics, DigestAlgorithm, Refusal, Update
from zk0.weights.digests import check_weights
from zk0.weights.writer import save_weights

ALGORITHMS: tuple[DigestAlgorithm, ...] = ("blake3", "sha256")


def main() -> None:
    """Measure both algorithms and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parameters", type=int, default=100_000_000, help="float32 values of the weights")
    parser.add_argument("--clients", type=int, default=4, help="updates of the round")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", metavar="FILE", help="write the numbers to this file too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="zk0-digests-") as folder:
        rounds = {one: ServerRound(Path(folder) / one, arguments, one) for one in ALGORITHMS}
        rows = {
            "digest of the weights": best_seconds({k: r.check for k, r in rounds.items()}, arguments.repeats),
            "verify and aggregate": best_seconds({k: r.run for k, r in rounds.items()}, arguments.repeats),
        }
    lines = [f"{arguments.parameters * 4 / 1e6:.0f} MB of weights, {arguments.clients} updates", ""]
    lines += ["| | BLAKE3 (s) | SHA-256 (s) | SHA-256 / BLAKE3 |", "|---|---:|---:|---:|"]
    for name, row in rows.items():
        lines.append(f"| {name} | {row['blake3']:.3f} | {row['sha256']:.3f} | {row['sha256'] / row['blake3']:.2f} |")
    sys.stdout.write("\n".join(lines) + "\n")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


class ServerRound:
    """The files of a round, and the server's work on them."""

    def __init__(self, folder: Path, arguments: argparse.Namespace, algorithm: DigestAlgorithm) -> None:
        rng = np.random.default_rng(7)
        start = rng.normal(0, 0.02, arguments.parameters).astype(np.float32)
        self.folder, self.weights = folder, folder / "global.safetensors"
        self.digest, _ = save_weights(self.weights, {"w": start}, False, None, algorithm)
        self.updates = []
        for number in range(arguments.clients):
            path = folder / f"client-{number:03d}.safetensors"
            found, size = save_weights(path, {"w": start + np.float32(1e-4 * (number + 1))}, False, None, algorithm)
            self.updates.append(self._update(path, found, size))

    def check(self) -> None:
        """Check the digest of the global weights."""
        check_weights(self.weights, self.digest)

    def run(self) -> None:
        """Verify all updates and aggregate them."""
        for update in self.updates:
            norm = verify_update(
                update, round=1, global_digest=self.digest, global_path=self.weights, already_received=()
            )
            if isinstance(norm, Refusal):
                raise SystemExit(norm.reason)
        aggregate(self.updates, self.weights, self.folder / "new.safetensors")

    def _update(self, path: Path, digest: str, size: int) -> Update:
        metrics: dict[str, Any] = dict.fromkeys(ClientMetrics.model_fields, 1)
        return Update(
            client=path.stem,
            round=1,
            global_digest=self.digest,
            path=str(path),
            digest=digest,
            bytes=size,
            examples=100,
            dataset="random",
            metrics=ClientMetrics.model_validate(metrics),
        )


def best_seconds(calls: dict[DigestAlgorithm, Callable[[], None]], repeats: int) -> dict[str, float]:
    """Return the shortest time of each call; the calls take turns."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            found[name].append(time.perf_counter() - began)
    return {name: min(times) for name, times in found.items()}


if __name__ == "__main__":
    main()
