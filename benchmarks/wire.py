"""The effect of wire formats on bytes and loss: one session per format, its last loss compared with that of fp32.

    python benchmarks/wire.py deployments/sessions/demo.toml --seeds 42,43 --set policy.path=tiny --json wire.json

A wire format is `up`, or `up/down`: that of updates and that of global weights (`federation.wire`,
`federation.wire_down`); `secure` is secure aggregation, whose words cannot be compressed. Losses are
paired over episodes. Megabytes are those of files, per client and round; a relay in
tests/federation/protocol/test_wire_bytes.py counts the bytes on the socket. Compression is lossless; its column is that
of the same session's last updates. Sessions that are already in `--out` are read, not run again.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

WIRES = "fp32,bf16,int8,bf16/bf16,int8/int8,secure"
SECURE = {"federation.secure": True, "aggregation.quarantine_factor": 0, "evaluation.clients_frequency": 0}


def main() -> None:
    """Run the missing sessions and print a table."""
    from flows.cli.session_run import parse_overrides

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("session", type=Path)
    parser.add_argument("--wires", default=WIRES, help=f"the others are compared with the first; default: {WIRES}")
    parser.add_argument("--seeds", default="42", help="seeds of the sessions: 42,43")
    parser.add_argument("--out", type=Path, default=Path("outputs/wire"), help="folder of the sessions")
    parser.add_argument("--json", metavar="FILE", help="also write the numbers to this file")
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
    """Return the folder of the session with this wire format and seed; run the session if it is missing."""
    from flows.federated_session import federated_session
    from flows.prefect_local.temporary_server import configured_or_temporary_server
    from zk0.audit.ledger import Ledger
    from zk0.storage.session_folder import SessionFolder

    wire, seed = which
    place = out.resolve() / f"{wire.replace('/', '-')}-{seed}"
    for folder in sorted(place.glob("*")):
        here = SessionFolder(folder)
        if Ledger(here.ledger).read()[-1:] and here.report.is_file():
            return folder
    up, _, down = wire.partition("/")
    secure = up == "secure"
    chosen = {
        "output_dir": str(place),
        "seed": seed,
        "federation.wire": "fp32" if secure else up,
        "federation.wire_down": down or "fp32",
        **(SECURE if secure else {}),
    }
    quick = {"rollout.tasks": [], "checkpoint_interval": 0, "keep_updates": True}
    with configured_or_temporary_server(Path.cwd(), lambda _: None):
        return Path(federated_session(config=str(session), overrides=settings | chosen | quick))


def row(wire: str, base: str, seeds: list[int], folders: dict[tuple[str, int], Path]) -> dict[str, Any]:
    """Return bytes and losses of a wire format, and its change from the first format with an interval per seed."""
    from zk0.audit.ledger import Ledger
    from zk0.stats.model_comparison import compare_models, read_model_results

    measured = [read_model_results(folders[wire, seed]) for seed in seeds]
    last = Ledger(folders[wire, seeds[0]] / "ledger.jsonl").read()[-1]
    changes = []
    for seed, after in zip(seeds, measured, strict=True):
        if wire != base:
            found = compare_models(read_model_results(folders[base, seed]), after, ("policy_loss",))
            changes.append([d for d in found if "held" not in d.subject][-1].model_dump())
    first = last.updates[0]
    path = folders[wire, seeds[0]] / first.path
    return {
        "wire": wire,
        "up_megabytes": first.bytes / first.client_count / 1e6,
        "up_compressed_megabytes": (first.bytes / first.client_count if first.summed else compressed_bytes(path)) / 1e6,
        "down_megabytes": (last.sent_bytes or last.checkpoint.bytes) / 1e6,
        "loss": [m.unseen.policy_loss for m in measured if m.unseen],
        "changes": changes,
    }


def compressed_bytes(path: Path) -> int:
    """Return the bytes that a client with `federation.compress` would send."""
    from zk0.weights.compression import compress_weights

    with tempfile.TemporaryDirectory() as folder:
        compress_weights(path, Path(folder, "compressed"))
        return Path(folder, "compressed").stat().st_size


def table(rows: list[dict[str, Any]], base: str, seeds: int) -> str:
    """Format the result as a table."""
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
