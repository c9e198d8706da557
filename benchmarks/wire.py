"""What fewer bytes cost: one session for each wire format, its last loss beside that of fp32, paired over episodes.

    python benchmarks/wire.py deployments/sessions/demo.toml --seeds 42,43 --set policy.path=tiny --json wire.json

A wire is `up`, or `up/down`: what clients send, and what they are sent (`federation.wire`, `federation.wire_down`).
Megabytes are of files, a client and round; what goes over a socket is counted by a relay in
tests/federation/test_wire_bytes.py. Compression changes no value; its row is of the same session's last updates.
Sessions that are already in `--out` are only read.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

WIRES = "fp32,bf16,int8,bf16/bf16,int8/int8"


def main() -> None:
    """Run what is missing and print a table."""
    from flows.session_run import parse_overrides

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("session", type=Path)
    parser.add_argument("--wires", default=WIRES, help=f"the first is what the others are compared to; {WIRES}")
    parser.add_argument("--seeds", default="42", help="of sessions: 42,43")
    parser.add_argument("--out", type=Path, default=Path("outputs/wire"), help="where the sessions are kept")
    parser.add_argument("--json", metavar="FILE", help="write the figures here too")
    parser.add_argument("--set", metavar="NAME=VALUE", action="append", default=[], help="replace a setting")
    arguments = parser.parse_args()
    wires, seeds = arguments.wires.split(","), [int(seed) for seed in arguments.seeds.split(",")]
    settings = parse_overrides(arguments.set)
    folders = {
        (wire, seed): run(arguments.session, (wire, seed), settings, arguments.out) for seed in seeds for wire in wires
    }
    rows = [row(wire, wires[0], seeds, folders) for wire in wires]
    sys.stdout.write(table(rows, wires[0], len(seeds)) + "\n")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps({"rows": rows}, indent=2) + "\n", encoding="utf-8")


def run(session: Path, which: tuple[str, int], settings: dict[str, Any], out: Path) -> Path:
    """The folder of the session with this wire and seed."""
    from flows.federated_session import federated_session
    from flows.stack import some_server
    from zk0.folder import SessionFolder
    from zk0.ledger import Ledger

    wire, seed = which
    place = out.resolve() / f"{wire.replace('/', '-')}-{seed}"
    for folder in sorted(place.glob("*")):
        here = SessionFolder(folder)
        if Ledger(here.ledger).read()[-1:] and here.report.is_file():
            return folder
    up, _, down = wire.partition("/")
    chosen = {"output_dir": str(place), "seed": seed, "federation.wire": up, "federation.wire_down": down or "fp32"}
    quick = {"rollout.tasks": [], "checkpoint_interval": 0, "keep_updates": True}
    with some_server(Path.cwd(), lambda _: None):
        return Path(federated_session(config=str(session), overrides=settings | chosen | quick))


def row(wire: str, base: str, seeds: list[int], folders: dict[tuple[str, int], Path]) -> dict[str, Any]:
    """Bytes and losses of a wire, and the change against the first wire with its paired 95 % interval of each seed."""
    from zk0.comparison import compare, read_measured
    from zk0.ledger import Ledger

    measured = [read_measured(folders[wire, seed]) for seed in seeds]
    last = Ledger(folders[wire, seeds[0]] / "ledger.jsonl").read()[-1]
    changes = []
    for seed, after in zip(seeds, measured, strict=True):
        if wire != base:
            found = compare(read_measured(folders[base, seed]), after, ("policy_loss",))
            changes.append([d for d in found if "held" not in d.what][-1].model_dump())
    first = last.updates[0]
    path = folders[wire, seeds[0]] / first.path
    return {
        "wire": wire,
        "up_megabytes": first.bytes / 1e6,
        "up_compressed_megabytes": packed_bytes(path) / 1e6,
        "down_megabytes": (last.sent_bytes or last.checkpoint.bytes) / 1e6,
        "loss": [m.unseen.policy_loss for m in measured if m.unseen],
        "changes": changes,
    }


def packed_bytes(path: Path) -> int:
    """What `federation.compress` would send of it."""
    from zk0.packing import pack

    with tempfile.TemporaryDirectory() as folder:
        pack(path, Path(folder, "packed"))
        return Path(folder, "packed").stat().st_size


def table(rows: list[dict[str, Any]], base: str, seeds: int) -> str:
    """The result for people."""
    lines = [
        f"last loss on unseen data, {seeds} seed(s); change against {base} with its 95 % interval over episodes",
        "",
        "| wire | MB up | compressed | MB down | loss | change |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for found in rows:
        sizes = " | ".join(f"{found[f'{key}_megabytes']:.2f}" for key in ("up", "up_compressed", "down"))
        losses = ", ".join(f"{loss:.4f}" for loss in found["loss"])
        changes = "; ".join(
            f"{c['change']:+.4f}" + (f" ({c['interval'][0]:+.4f} to {c['interval'][1]:+.4f})" if c["interval"] else "")
            for c in found["changes"]
        )
        lines.append(f"| `{found['wire']}` | {sizes} | {losses} | {changes} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
