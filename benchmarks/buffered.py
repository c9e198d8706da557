"""Virtual time to the same unseen loss: buffered rounds against synchronous ones, with clients of different speeds.

    python benchmarks/buffered.py deployments/sessions/demo.toml --seeds 42,43,44 --set policy.path=tiny \
        --set training.lr=2e-3 --set training.local_steps=40 --json buffered.json

Every client has a number of virtual seconds for its training, `--seconds` in the order of the session file. A
synchronous round takes as long as its slowest client; the ledger of a buffered session has the virtual clock
(`buffer.simulated_seconds`). Both train the same policy on the same data with the same seed. The target of a seed is
the last loss of its synchronous session on the evaluation sets; the buffered session ends with the first server step
after `--share` of the synchronous session's virtual time. Last losses are paired over episodes. Sessions that are
already in `--out` are read, not run again.

With `--wall N` the same sessions run in real time: each client trains in a worker process of its own, and its answer
comes N seconds for each of its virtual seconds after its request, or when it is there, if that is later. Times are then
those from the ledger's record of round 0 to that of a round, with what the server needs.

    python benchmarks/buffered.py --many 100,300,1000

runs ten buffered rounds of ten updates with so many clients, all in one process and without Prefect, and prints the CPU
time of an update (its training of one step, messages, checks, aggregation), the resident memory after rounds 2 and 10,
and the bytes of a round's line in the ledger.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from statistics import fmean, median
from typing import Any


def main() -> None:
    """Run the missing sessions and print a table."""
    from flows.cli.session_run import parse_overrides

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("session", type=Path, nargs="?")
    parser.add_argument("--many", metavar="N,N", help="numbers of clients; prints what an update costs, and ends")
    parser.add_argument("--seeds", default="42,43,44", help="seeds of the sessions")
    parser.add_argument("--seconds", default="1,2,5,10", help="virtual seconds of each client's training")
    parser.add_argument("--size", type=int, default=2, help="buffer.size")
    parser.add_argument("--share", type=float, default=1 / 3, help="of the synchronous virtual time; default: a third")
    parser.add_argument("--wall", type=float, metavar="N", help="real time: N seconds for each virtual one")
    parser.add_argument("--out", type=Path, default=Path("outputs/buffered"), help="folder of the sessions")
    parser.add_argument("--json", metavar="FILE", help="also write the numbers to this file")
    parser.add_argument("--set", metavar="NAME=VALUE", action="append", default=[], help="replace a setting")
    arguments = parser.parse_args()
    if arguments.many:
        sys.stdout.write("\n".join(many_lines([int(count) for count in arguments.many.split(",")])) + "\n")
        return
    if arguments.session is None:
        parser.error("SESSION or --many is needed")
    seconds = [float(one) for one in arguments.seconds.split(",")]
    settings = parse_overrides(arguments.set)
    rows = [
        row(
            arguments.session,
            int(seed),
            settings,
            (seconds, arguments.size, arguments.share, arguments.wall),
            arguments.out,
        )
        for seed in arguments.seeds.split(",")
    ]
    sys.stdout.write(table(rows, "virtual" if arguments.wall is None else "wall") + "\n")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps({"rows": rows}, indent=2) + "\n", encoding="utf-8")


def row(
    session: Path,
    seed: int,
    settings: dict[str, Any],
    federation: tuple[Sequence[float], int, float, float | None],
    out: Path,
) -> dict[str, Any]:
    """Return the virtual time to the target loss of both modes, and their last losses, for one seed.

    Args:
        session: the session file.
        seed: of both sessions.
        settings: that replace those of the file.
        federation: virtual seconds of each client, size of the buffer, share of the synchronous virtual time, and real
            seconds of a virtual one (None: a virtual clock).
        out: folder of the sessions.
    """
    from zk0.audit.ledger import Ledger
    from zk0.settings.loading import load_session
    from zk0.stats.model_comparison import compare_models, read_model_results

    seconds, size, share, wall = federation
    chosen = settings | {"seed": seed}
    loaded = load_session(session, chosen)
    of_client = dict(zip(loaded.client_names(), seconds, strict=True))
    slowest = max(seconds)
    end = slowest * loaded.rounds * share
    mode: dict[str, Any] = {
        "federation.mode": "buffered",
        "buffer.size": size,
        "rounds": server_steps(of_client, size, end),
    }
    if wall is None:
        waiting = run(session, chosen, out / f"synchronous-{seed}")
        clock = {"buffer.simulated_seconds": of_client}
        eager = run(session, chosen | mode | clock, out / f"buffered-{size}-{seed}")
        synchronous = [(slowest * r.round, loss(r)) for r in Ledger(waiting / "ledger.jsonl").read()]
        buffered = [(r.buffered.clock if r.buffered else 0.0, loss(r)) for r in Ledger(eager / "ledger.jsonl").read()]
    else:
        chosen |= {"federation.workers": len(of_client)}
        with slow_clients({name: wall * found for name, found in of_client.items()}):
            waiting = run(session, chosen, out / f"synchronous-wall-{seed}")
            eager = run(session, chosen | mode, out / f"buffered-wall-{size}-{seed}")
        synchronous, buffered = (wall_times(Ledger(found / "ledger.jsonl").read()) for found in (waiting, eager))
    target = synchronous[-1][1]
    change = [
        one.model_dump()
        for one in compare_models(read_model_results(waiting), read_model_results(eager), ("policy_loss",))
        if "held" not in one.subject
    ][-1]
    return {
        "seed": seed,
        "target": target,
        "synchronous_seconds": synchronous[-1][0],
        "buffered_seconds": time_to(buffered, target),
        "end": buffered[-1],
        "change": change,
        "synchronous": synchronous,
        "buffered": buffered,
    }


def server_steps(seconds: dict[str, float], size: int, end: float) -> int:
    """Return the number of server steps of a buffered session until the virtual clock passes `end`."""
    from zk0.records import Arrival, BufferedRound
    from zk0.rules.buffered_rounds import ClientsInRound
    from zk0.settings.buffer_settings import BufferSettings

    last: BufferedRound | None = None
    number, settings = 0, BufferSettings(size=size)
    while last is None or last.clock < end:
        number += 1
        now = ClientsInRound.begin(number, tuple(seconds), last, settings)
        while not now.is_over:
            client = now.next_by_clock(seconds)
            now = now.with_arrival(Arrival(client=client, began=now.began(client), factor=1.0), seconds)
        last = now.record(dict.fromkeys(seconds, 0.0))
    return number


def run(session: Path, settings: dict[str, Any], place: Path) -> Path:
    """Return the folder of a finished session in `place`; run it if there is none."""
    from flows.federated_session import federated_session
    from flows.prefect_local.temporary_server import configured_or_temporary_server
    from zk0.audit.ledger import Ledger
    from zk0.storage.session_folder import SessionFolder

    place = place.resolve()
    for folder in sorted(place.glob("*")):
        here = SessionFolder(folder)
        if Ledger(here.ledger).read()[-1:] and here.report.is_file():
            return folder
    quick = {"rollout.tasks": [], "checkpoint_interval": 0, "video.episodes": 0, "output_dir": str(place)}
    quick |= {"evaluation.clients_frequency": 0}
    with configured_or_temporary_server(Path.cwd(), lambda _: None):
        return Path(federated_session(config=str(session), overrides=settings | quick))


@contextmanager
def slow_clients(seconds: dict[str, float]) -> Iterator[None]:
    """Let the answers to requests to train arrive so many seconds after these, in sessions of the local engine."""
    from zk0.federation.engines import local

    class SlowGrid(local.LocalGrid):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self._due: dict[str, float] = {}

        def push_messages(self, messages: Any) -> list[str]:
            now, sent = time.monotonic(), list(messages)
            for message in sent:
                if message.metadata.message_type == "train":
                    name = self._clients[message.metadata.dst_node_id]
                    self._due[message.metadata.message_id] = now + seconds[name]
            return super().push_messages(sent)

        def pull_messages(self, ids: Any) -> list[Any]:
            now = time.monotonic()
            return super().pull_messages([one for one in ids if self._due.get(one, now) <= now])

    original, local.LocalGrid = local.LocalGrid, SlowGrid
    try:
        yield
    finally:
        local.LocalGrid = original


def wall_times(history: Sequence[Any]) -> list[tuple[float, float]]:
    """Return for each round the seconds since round 0, and its loss."""
    began = datetime.fromisoformat(history[0].finished_at)
    return [((datetime.fromisoformat(one.finished_at) - began).total_seconds(), loss(one)) for one in history]


def loss(record: Any) -> float:
    """Return the loss of a round on the evaluation sets."""
    return float(record.evaluation.policy_loss)


def time_to(losses: Sequence[tuple[float, float]], target: float) -> float | None:
    """Return the virtual time of the first round whose loss is at most the target; None if there is none."""
    return next((time for time, found in losses if found <= target), None)


def many_lines(counts: list[int]) -> list[str]:
    """Return the lines of the table of many clients."""
    from overhead import write_data

    lines = [
        "| clients | CPU ms of an update | at work | MB after round 2 | MB after round 10 | bytes of a line |",
        "|---:|---:|---:|---:|---:|---:|",
    ]
    with tempfile.TemporaryDirectory() as place:
        write_data(Path(place), 1)
        for count in counts:
            lines.append(f"| {count} | {' | '.join(many_clients(Path(place), count))} |")
            sys.stderr.write(lines[-1] + "\n")
    return lines


def many_clients(folder: Path, count: int) -> list[str]:
    """Return the cells of one row: buffered rounds of so many clients, which share one dataset."""
    from zk0.aggregation.aggregate import aggregate
    from zk0.aggregation.reduction_plan import AggregationTerms
    from zk0.aggregation.stale_updates import StaleStart
    from zk0.data.statistics import pool_moments
    from zk0.diagnostics import resident_bytes
    from zk0.evaluation.global_model import build_start_policy
    from zk0.federation.open import get_buffered_federation, open_federation
    from zk0.federation.protocol.buffered_federation import BufferedRequest, RoundStart
    from zk0.records import BufferedRound
    from zk0.settings.loading import parse_session
    from zk0.settings.plans import RoundPlan, session_terms

    names = [f"client-{number:04d}" for number in range(count)]
    values = {
        "clients": [{"name": name, "dataset": f"local:{folder / 'client-000'}"} for name in names],
        "evaluation": {"datasets": [{"dataset": f"local:{folder / 'unseen'}"}]},
        "contract": {"cameras": ["front"]},
        "policy": {"path": "tiny"},
        "training": {"local_steps": 1, "batch_size": 8, "lr": 1e-3},
        "federation": {"workers": 0, "mode": "buffered"},
        "buffer": {"size": 10, "concurrency": 20},
        "cache_dir": str(folder / "cache"),
    }
    session, here = parse_session(values, "many"), folder / f"many-{count}"
    terms, weights, used = session_terms(session, here.name), [here / "0.safetensors"], list[float]()
    last: BufferedRound | None = None
    resident = list[float]()
    with open_federation(session, here.name, here):
        federation = get_buffered_federation(here.name)
        statistics = pool_moments([member.statistics for member in federation.join(terms)])
        recipe, digest, _ = build_start_policy(session, weights[0])
        digests = [digest]

        def start(client: str, began: int) -> RoundStart:
            plan = RoundPlan(
                terms=terms, round=began, client=client, recipe=recipe, global_digest=digests[began - 1], lr=1e-3,
                statistics=statistics, mu=0.01, training=session.training.local_settings(), buffered=True,
                scheduler=session.scheduler,
            )  # fmt: skip
            return RoundStart(plan, weights[began - 1], weights[began - 1])

        for number in range(1, 11):
            began, spool = time.process_time(), here / f"updates-{number}"
            found = federation.train_buffered(BufferedRequest(number, spool, session.buffer, names, last, start))
            last = found.clients.record(found.waited_seconds)
            old = [one for one in last.arrivals if one.factor and one.began < number]
            stale = {one.client: StaleStart(weights[one.began - 1], one.factor or 0.0) for one in old}
            weights.append(here / f"{number}.safetensors")
            updates = found.updates.updates
            digests.append(aggregate(updates, weights[-2], weights[-1], AggregationTerms(stale=stale)).digest)
            used.append((time.process_time() - began) / len(updates))
            resident.append(resident_bytes() / 1e6)
    assert last is not None, "ten rounds have run"
    sizes = f"{resident[1]:.0f}", f"{resident[9]:.0f}", f"{len(last.model_dump_json()):,}"
    return [f"{median(used[1:]) * 1e3:.0f}", str(len(last.at_work)), *sizes]


def table(rows: list[dict[str, Any]], clock: str) -> str:
    """Format the result as a table."""
    lines = [
        f"| seed | loss of synchronous rounds | after, {clock} s | buffered: at most this loss after | ratio | "
        "loss at its end | change |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    ratios = []
    for found in rows:
        reached, (end, last), change = found["buffered_seconds"], found["end"], found["change"]
        ratios += [found["synchronous_seconds"] / reached] if reached else []
        low, high = change["interval"] or (float("nan"), float("nan"))
        lines.append(
            f"| {found['seed']} | {found['target']:.4f} | {found['synchronous_seconds']:g} | "
            f"{f'{reached:g}' if reached else '–'} | {f'{ratios[-1]:.1f}' if reached else '–'} | "
            f"{last:.4f} after {end:g} | {change['change']:+.4f} ({low:+.4f} to {high:+.4f}) |"
        )
    reached_by = f"{len(ratios)} of {len(rows)} seeds reach the loss"
    summary = f"; ratio {fmean(ratios):.1f} on average, {min(ratios):.1f} at least" if ratios else ""
    lines += ["", reached_by + summary]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
