"""What secure aggregation costs a client and the server, for the trained weights of the full policy.

    python benchmarks/secure.py --neighbors 10

One client masks real-sized deltas with its neighbors; the others only exchange keys and shares. Seconds are those of
the processor. Needs 1.2 GB of disk for a while.
"""

import argparse
import resource
import sys
import tempfile
from pathlib import Path
from time import process_time

import numpy as np

VALUES = 99_880_992
"""Trained weights of SmolVLA."""
_BLOCK = 1 << 20


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--values", type=int, default=VALUES, help=f"weights; default: {VALUES:,}")
    parser.add_argument(
        "--neighbors", type=int, default=10, help="clients with which each one shares masks; default: 10"
    )
    parser.add_argument("--bits", type=int, default=16, choices=(16, 32), help="of a word; default: 16")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        lines = measure(Path(folder), arguments.values, arguments.neighbors, arguments.bits)
    sys.stdout.write("\n".join(lines) + "\n")


def measure(folder: Path, values: int, neighbors: int, bits: int) -> list[str]:
    """Return the lines of the table."""
    from zk0.audit.signing_key import SigningKey
    from zk0.records import ClientMetrics
    from zk0.secure.known_peers import KnownPeers
    from zk0.secure.mask_streams import Mask, MaskStreams
    from zk0.secure.masked_file import save_masked
    from zk0.secure.masking_client import MaskingClient
    from zk0.secure.masking_state import MaskingStore
    from zk0.secure.messages import Roster, SecureRound
    from zk0.secure.unmasking import masking_request
    from zk0.settings.plans import SecureRules

    rules = SecureRules(bits=16 if bits == 16 else 32, neighbors=neighbors, limit=1e-2, max_share_factor=3)
    common = SecureRound(session="benchmark", round=1, global_digest="g", rules=rules)
    names = [f"c{i:03d}" for i in range(neighbors + 1)]
    clients = {
        name: MaskingClient(
            name,
            MaskingStore(folder / name / "state.json"),
            SigningKey(folder / name / "key", folder / name / "pub"),
            KnownPeers(folder / name / "peers.json"),
        )
        for name in names
    }
    deltas, masked = save_deltas(folder, values), folder / "masked"
    metrics = ClientMetrics(
        policy_loss=1, fedprox_loss=0, grad_norm=1, update_norm=1, local_steps=1, lr_first=1, lr_last=1, seconds=1
    )
    seconds = {}
    started = process_time()
    first = clients[names[0]].advertise(common, 100)
    seconds["keys"] = process_time() - started
    others = [clients[name].advertise(common, 100) for name in names[1:]]
    roster = Roster(common=common, adverts=(first, *others))
    started = process_time()
    sealed = {names[0]: clients[names[0]].share(roster)}
    seconds["shares"] = process_time() - started
    sealed |= {name: clients[name].share(roster) for name in names[1:]}
    request = masking_request(roster, sealed, names[0])

    def write(masks: list[Mask], found: Roster) -> str:
        return save_masked(masked, deltas, metrics, (found, names[0]), masks, "blake3")

    started = process_time()
    clients[names[0]].mask(common, request, write)
    seconds["masked update"] = process_time() - started
    started, streams = process_time(), MaskStreams([Mask(bytes([i]) * 32, False) for i in range(neighbors)])
    words = np.zeros(_BLOCK, f"uint{bits}")
    for _ in range(0, values, _BLOCK):
        streams.apply(words)
    seconds[f"(of it {neighbors} masks)"] = process_time() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    rows = [f"| {name} | {used:.2f} |" for name, used in seconds.items()]
    title = f"{values:,} weights, {neighbors} neighbors, {bits} bits: {masked.stat().st_size / 1e6:.1f} MB are sent"
    return [f"{title}, at most {peak:.0f} MB of memory", "", "| message | CPU s |", "|---|---:|", *rows]


def save_deltas(folder: Path, values: int) -> Path:
    """Write deltas as those of a round, and return their file."""
    from zk0.weights.tensor_spec import TensorSpec
    from zk0.weights.writer import open_weights_writer

    path, draw = folder / "deltas", np.random.default_rng(0)
    with open_weights_writer(path, {"w": TensorSpec("float32", (values,))}) as writer:
        for start in range(0, values, _BLOCK):
            writer.write(draw.normal(0, 1e-3, min(_BLOCK, values - start)).astype(np.float32))
    return path


if __name__ == "__main__":
    main()
