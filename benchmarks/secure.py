"""What secure aggregation costs a client and the server, for the trained weights of the full policy.

    python benchmarks/secure.py --neighbors 10
    python benchmarks/secure.py --dropouts
    python benchmarks/secure.py --rounding
    python benchmarks/secure.py --rounds 5

One client masks real-sized deltas with its neighbors; the others only exchange keys and shares. Seconds are those of
the processor. Needs 1.2 GB of disk for a while. `--dropouts` prints instead how often a round goes on when so many of
its clients, drawn at random, drop out after they have shared their secrets. `--rounding` prints by how much rounding
changes the mean of deltas whose standard deviation is 1 % of the grid's limit. `--rounds` runs so many rounds with and
without secure aggregation, with four clients of the tiny policy in one process, and prints their time.
"""

import argparse
import resource
import sys
import tempfile
from pathlib import Path
from time import perf_counter, process_time

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
    parser.add_argument("--dropouts", action="store_true", help="print how often rounds survive dropouts, and end")
    parser.add_argument("--rounding", action="store_true", help="print what rounding changes, and end")
    parser.add_argument(
        "--rounds", type=int, metavar="N", help="print the CPU time of N rounds beside open ones, and end"
    )
    arguments = parser.parse_args()
    if arguments.rounds:
        with tempfile.TemporaryDirectory() as place:
            sys.stdout.write("\n".join(round_lines(Path(place), arguments.rounds)) + "\n")
        return
    if arguments.rounding:
        sys.stdout.write("\n".join(rounding_lines(10_000)) + "\n")
        return
    if arguments.dropouts:
        sys.stdout.write("\n".join(dropout_lines(2000)) + "\n")
        return
    with tempfile.TemporaryDirectory() as folder:
        lines = measure(Path(folder), arguments.values, arguments.neighbors, arguments.bits)
    sys.stdout.write("\n".join(lines) + "\n")


def measure(folder: Path, values: int, neighbors: int, bits: int) -> list[str]:
    """Return the lines of the table."""
    from zk0.audit.signing_key import SigningKey
    from zk0.records import ClientMetrics
    from zk0.secure.agreed_sums import AgreedSums
    from zk0.secure.known_peers import KnownPeers
    from zk0.secure.mask_streams import Mask, MaskStreams
    from zk0.secure.masked_file import save_masked
    from zk0.secure.masking_client import MaskingClient
    from zk0.secure.masking_state import MaskingStore
    from zk0.secure.messages import Roster, SecureRound
    from zk0.secure.unmasking import masking_request
    from zk0.settings.plans import SecureRules

    rules = SecureRules(bits=16 if bits == 16 else 32, neighbors=neighbors, limit=1e-2, max_share_factor=3)
    common = SecureRound(session="benchmark", round=1, global_digest="g", seed=42, rules=rules)
    names = [f"c{i:03d}" for i in range(neighbors + 1)]
    clients = {
        name: MaskingClient(
            name,
            MaskingStore(folder / name / "state.json"),
            SigningKey(folder / name / "key", folder / name / "pub"),
            KnownPeers(folder / name / "peers.json"),
            AgreedSums(folder / name / "sums.json"),
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


def rounding_lines(values: int) -> list[str]:
    """Return the lines of the table of rounding errors: clients have equal shares, and almost equal deltas."""
    from zk0.weights.fixed_point import FixedPointGrid

    lines = ["| clients | 16 bits | 32 bits |", "|---:|---:|---:|"]
    draw = np.random.default_rng(0)
    common = draw.normal(0, 0.01, values)
    for clients in (4, 20, 100, 128, 300, 1000):
        cells = []
        for bits in (16, 32):
            grid, total, mean = FixedPointGrid(bits, 1.0, clients), np.zeros(values, f"uint{bits}"), np.zeros(values)
            for _ in range(clients):
                delta = common + draw.normal(0, 0.001, values)
                total += grid.encode(delta, 1 / clients)
                mean += delta / clients
            error = total.view(f"int{bits}") * grid.step - mean
            cells.append(f"{np.sqrt(np.square(error).mean() / np.square(mean).mean()):.2%}".replace("%", " %"))
        lines.append(f"| {clients} | {' | '.join(cells)} |")
    return lines


def dropout_lines(draws: int) -> list[str]:
    """Return the lines of the table of dropouts."""
    parts = {"5 %": 0.05, "10 %": 0.1, "20 %": 0.2, "a third": 1 / 3}
    lines = [f"| clients | neighbors | {' | '.join(parts)} |", "|---:" * (2 + len(parts)) + "|"]
    for clients, neighbors in ((11, 10), (20, 10), (50, 10), (50, 20), (100, 10), (100, 20), (100, 40), (100, None)):
        found = [survival(clients, neighbors, int(clients * part), draws) for part in parts.values()]
        cells = " | ".join(f"{one:.0%}".replace("%", " %") for one in found)
        lines.append(f"| {clients} | {neighbors or 'all'} | {cells} |")
    return lines


def survival(clients: int, neighbors: int | None, gone: int, draws: int) -> float:
    """Return the fraction of draws in which every client's secrets can still be put together."""
    from zk0.secure.messages import threshold_of
    from zk0.secure.neighbors import neighbor_graph

    names = [f"c{i:03d}" for i in range(clients)]
    graph = neighbor_graph(names, neighbors, b"seed")
    holders = np.zeros((clients, clients), np.int64)
    for at, name in enumerate(names):
        holders[at, [at, *(names.index(other) for other in graph[name])]] = 1
    least = np.array([threshold_of(int(count)) for count in holders.sum(axis=1)])
    draw, good = np.random.default_rng(0), 0
    for _ in range(draws):
        left = np.ones(clients, np.int64)
        left[draw.choice(clients, gone, replace=False)] = 0
        good += bool((holders @ left >= least).all() and left.sum() >= threshold_of(clients))
    return good / draws


def round_lines(folder: Path, rounds: int) -> list[str]:
    """Return the lines of the table of rounds: the medians of CPU time and wall time of a round."""
    from statistics import median

    from overhead import write_data

    from zk0.aggregation.aggregate import aggregate
    from zk0.data.statistics import pool_moments
    from zk0.evaluation.global_model import build_start_policy
    from zk0.federation.open import open_federation
    from zk0.federation.protocol.secure_federation import SecureFederation
    from zk0.settings.loading import parse_session
    from zk0.settings.plans import RoundPlan, SecureRules, session_terms

    write_data(folder, 4)
    rules = SecureRules(bits=16, neighbors=10, limit=4e-3, max_share_factor=3.0)
    lines = ["| rounds of 4 clients, one step each | CPU s | wall s |", "|---|---:|---:|"]
    for name, secure in (("open", None), ("secure", rules)):
        session = parse_session(session_values(folder, secure is not None), name)
        terms, weights, found = (
            session_terms(session, name),
            folder / name / "round-000" / "weights",
            list[tuple[float, float]](),
        )
        with open_federation(session, name, folder / name) as federation:
            members = federation.join(terms)
            recipe, digest, _ = build_start_policy(session, weights)
            for number in range(1, rounds + 2):
                plans = [
                    RoundPlan(
                        terms=terms, round=number, client=member.client, recipe=recipe, global_digest=digest,
                        statistics=pool_moments([m.statistics for m in members]), lr=1e-3, mu=0.01, secure=secure,
                        training=session.training.local_settings(), scheduler=session.scheduler,
                    )
                    for member in members
                ]  # fmt: skip
                spool, target = folder / name / f"{number}", folder / name / f"weights-{number}"
                began, began_wall = process_time(), perf_counter()
                if isinstance(federation, SecureFederation):
                    updates = [federation.train_secure(plans, weights, spool).sum]
                else:
                    updates = list(federation.train(plans, weights, spool).updates)
                digest, weights = aggregate(updates, weights, target).digest, target
                found.append((process_time() - began, perf_counter() - began_wall))
        cpu, wall = (median(times) for times in zip(*found[1:], strict=True))
        lines.append(f"| {name} | {cpu:.2f} | {wall:.2f} |")
    return lines


def session_values(folder: Path, secure: bool) -> dict[str, object]:
    """Return the settings of a session with four clients in this process."""
    return {
        "clients": [{"name": f"c{i}", "dataset": f"local:{folder / f'client-{i:03d}'}"} for i in range(4)],
        "evaluation": {"datasets": [{"dataset": f"local:{folder / 'unseen'}"}], "clients_frequency": 0},
        "contract": {"cameras": ["front"]},
        "policy": {"path": "tiny"},
        "training": {"local_steps": 1, "batch_size": 8, "lr": 1e-3, "features": "off"},
        "federation": {"workers": 0, "secure": secure},
        "aggregation": {"quarantine_factor": 0},
        "cache_dir": str(folder / "cache"),
    }


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
