"""Buffered sessions of `zk0 run`, and over the network also sums: killed ones resume, and orders are repeated."""

import json
import signal
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from html_page import read_page

from zk0.audit.ledger import Ledger
from zk0.federation.network.hours import DailyHours
from zk0.records import RoundRecord

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # they wait for a server and for half a minute of imports

CLIENTS = ", ".join(f'{{name="{n}", dataset="local:DATA/{n}"}}' for n in "abc")
MODE = ("federation.mode=buffered",)


def arguments(forked_zk0: Any, output: str, *settings: str) -> list[str]:
    """Return the arguments of a session with three clients."""
    clients = f"clients=[{CLIENTS.replace('DATA', str(forked_zk0.path / 'data'))}]"
    return list(forked_zk0.start_arguments(output, clients, *settings))


def rounds(output: Path) -> tuple[RoundRecord, ...]:
    (folder,) = output.iterdir()
    return Ledger(folder / "ledger.jsonl").read()


def digests(history: tuple[RoundRecord, ...]) -> list[str]:
    return [record.checkpoint.digest for record in history]


def test_a_buffer_of_all_clients_has_the_weights_of_synchronous_rounds(forked_zk0: Any) -> None:
    """Both sessions are killed when their second round is in the ledger: the report would take longest."""
    for output, settings in (("synchronous", ()), ("all", (*MODE, "buffer.size=3"))):
        killed = forked_zk0.run(arguments(forked_zk0, output, *settings), ("open", r"/\.federated_metrics", 2))
        assert killed.code == -signal.SIGKILL, killed.output[-3000:]
    synchronous, buffered = (rounds(forked_zk0.path / output) for output in ("synchronous", "all"))
    assert len(buffered) == 3
    assert digests(buffered) == digests(synchronous)
    assert [[a.factor for a in record.buffered.arrivals] for record in buffered[1:] if record.buffered] == [[1] * 3] * 2


def test_an_order_that_chance_has_made_is_repeated(forked_zk0: Any) -> None:
    """Client c joins in the second round."""
    late = CLIENTS.replace("DATA", str(forked_zk0.path / "data")).removesuffix("}") + ", from_round=2}"
    settings = (f"clients=[{late}]", *MODE, "rounds=3", "buffer.size=1", "federation.workers=2")
    done = forked_zk0.run(forked_zk0.start_arguments("chance", *settings))
    assert done.code == 0, done.output[-3000:]
    first = rounds(forked_zk0.path / "chance")
    again = repeated(forked_zk0, "chance", "again")
    assert order(again) == order(first)
    assert [len(arrivals) for arrivals in order(first)] == [0, 1, 1, 1]
    at_work = [[one.client for one in record.buffered.at_work] for record in first if record.buffered]
    assert [len(names) for names in at_work] == [1, 2, 2]
    assert [("c" in names or (("c", 2) in order(first)[2])) for names in at_work[:2]] == [False, True]


BLOCKED = ("block", "clients/b/sent.jsonl", "clients/c/sessions")
"""Client b trains and then hangs, because its journal is locked; c trains and raises, because it cannot store."""


def test_clients_that_hang_or_raise_cost_their_own_updates(forked_zk0: Any) -> None:
    """The server steps with the updates of a, whose rounds end long before the time of b is over."""
    settings = (*MODE, "rounds=3", "buffer.size=1", "federation.workers=3", "evaluation.clients_frequency=0")
    started = time.monotonic()
    arguments_of_session = arguments(forked_zk0, "hangs", *settings, "federation.round_timeout_seconds=600")
    done = forked_zk0.run(arguments_of_session, ("os.mkdir", "round-001/updates", 1), BLOCKED)
    assert done.code == 0, done.output[-3000:]
    assert time.monotonic() - started < 500
    history = rounds(forked_zk0.path / "hangs")[1:]
    assert [[update.client for update in record.updates] for record in history] == [["a"]] * 3
    refused = {refusal.client for record in history for refusal in record.refusals}
    assert refused == {"c"}
    assert [one.began for one in history[-1].buffered.at_work if one.client == "b"] == [1]
    (folder,) = (forked_zk0.path / "hangs").iterdir()
    rows = {row["client"]: row for row in read_page(folder / "report.html").rows("Staleness and waiting time")}
    assert [rows[name]["updates used"] for name in "abc"] == ["3", "0", "0"]
    assert rows["b"]["trains since round"] == "1"
    assert int(rows["c"]["refused"]) >= 1
    assert forked_zk0.state_in_ui("b trains, round 1").name == "StillAtWork"
    in_ui = {row["client"]: row["trains since round"] for row in forked_zk0.table_in_ui("staleness")}
    assert in_ui["b"] == "1"


def test_a_client_that_hangs_is_refused_when_its_time_is_over(forked_zk0: Any) -> None:
    """No other client could fill the buffer, so the server waits for b, and steps then without it."""
    settings = (*MODE, "rounds=1", "buffer.size=2", "federation.workers=3", "evaluation.clients_frequency=0")
    late = arguments(forked_zk0, "late", *settings, "federation.round_timeout_seconds=30")
    done = forked_zk0.run(late, ("os.mkdir", "round-001/updates", 1), BLOCKED)
    assert done.code == 0, done.output[-3000:]
    record = rounds(forked_zk0.path / "late")[1]
    assert [update.client for update in record.updates] == ["a"]
    reasons = {refusal.client: refusal.reason for refusal in record.refusals}
    assert reasons["b"] == "no answer within 30 s"
    assert "NotADirectoryError" in reasons["c"]
    assert record.buffered is not None
    assert {one.client: one.factor for one in record.buffered.arrivals} == {"a": 1.0, "b": None, "c": None}
    for client, reason in reasons.items():
        assert forked_zk0.state_in_ui(f"{client} trains, round 1").message == reason


def repeated(forked_zk0: Any, output: str, target: str) -> tuple[RoundRecord, ...]:
    """Run a session again from its folder; return the rounds of the second run."""
    (folder,) = (forked_zk0.path / output).iterdir()
    place = forked_zk0.path / target
    again = forked_zk0.run(
        ["run", "--from", str(folder), "--quiet", "--set", f"output_dir={place}", "--set", "training.device=cpu"]
    )
    count = len(rounds(forked_zk0.path / output))
    assert f"reproduced: all {count} digests" in again.output, again.output[-3000:]
    return rounds(place)


def order(history: tuple[RoundRecord, ...]) -> list[list[tuple[str, int]]]:
    """Return client and round of each arrival, by round."""
    return [[(a.client, a.began) for a in (record.buffered.arrivals if record.buffered else ())] for record in history]


class Network:
    """A server and the nodes a, b and c on this machine, as `zk0bot` starts them."""

    def __init__(self, forked_zk0: Any, folder: Path) -> None:
        from zk0.federation.network.flower_commands import free_port
        from zk0.federation.network.node import NodeFolder
        from zk0.federation.network.server import ServerFolder, ServerSettings

        self.zk0 = forked_zk0
        self.server = ServerFolder(folder / "server")
        self.server.init(ServerSettings(hosts=("127.0.0.1",), port=free_port(), bind="127.0.0.1"))
        self.nodes = {name: NodeFolder(folder / f"node-{name}") for name in "abc"}
        (folder / "limits.toml").write_text("min_round_frames = 8\n", encoding="utf-8")  # rounds here are short
        for node_name, node in self.nodes.items():
            node.install_kit(self.server.enroll(node_name))
            node.install_limits(folder / "limits.toml")

    def start(self, name: str, hours: DailyHours | None = None) -> None:
        from zk0.settings.dataset_settings import ClientSettings

        client = ClientSettings(name=name, dataset=f"local:{self.zk0.path / 'data' / name}")
        self.nodes[name].start(client, self.zk0.path / "cache", detached=False, hours=hours)

    def arguments(self, output: str, *settings: str) -> list[str]:
        """Return arguments of `zk0` that start a session with the nodes."""
        deployment = ("clients=[]", "federation.engine=deployment", f"federation.server={self.server.path}")
        waits = ("federation.absence_seconds=15", "training.local_steps=12", "federation.min_updates=2")
        return list(self.zk0.start_arguments(output, *deployment, *waits, *settings))

    def resumed(self, output: str) -> tuple[RoundRecord, ...]:
        """Resume a session to its end; return its rounds."""
        (folder,) = (self.zk0.path / output).iterdir()
        done = self.zk0.run(self.zk0.resume_arguments(folder))
        assert done.code == 0, done.output[-3000:]
        return rounds(self.zk0.path / output)

    def all_online(self) -> bool:
        """Return whether every node is connected: one that connects later joins while the session runs."""
        return {(node.name, node.status) for node in self.server.node_statuses()} == {(n, "online") for n in "abc"}

    def stop(self) -> None:
        for one in (*self.nodes.values(), self.server):
            one.stop()


@pytest.fixture(scope="module")
def network(
    forked_zk0: Any, tmp_path_factory: pytest.TempPathFactory, wait_until: Callable[..., Any]
) -> Iterator[Network]:
    found = Network(forked_zk0, tmp_path_factory.mktemp("network"))
    try:
        for name in "abc":
            found.start(name)
        found.server.start(detached=False)
        wait_until(found.all_online)
        yield found
    finally:
        found.stop()


@pytest.mark.timeout(1500)
def test_a_node_with_hours_costs_a_buffered_session_its_own_updates(network: Network) -> None:
    """The session is killed after the first arrival of round 2, and resumes when c is outside its hours."""
    started = network.arguments("buffered", *MODE, "rounds=3")
    killed = network.zk0.run(started, ("open", r"002/updates/arrivals\.jsonl", 1))
    assert killed.code == -signal.SIGKILL, killed.output[-3000:]
    network.nodes["c"].stop()
    now = datetime.now()
    network.start("c", DailyHours.parse(f"{now + timedelta(hours=2):%H:%M}-{now + timedelta(hours=3):%H:%M}"))
    history = network.resumed("buffered")
    assert len(history) == 4
    assert all(len(record.updates) == 2 for record in history[1:])
    assert all({update.client for update in record.updates} == {"a", "b"} for record in history[3:])
    network.nodes["c"].stop()
    network.start("c")
    assert order(repeated(network.zk0, "buffered", "buffered-again")) == order(history)


ALL_NODES = ('federation.nodes=["a", "b", "c"]', "federation.absence_seconds=300")
"""They may take long to connect to a server that was started again."""


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("process", ["superlink", "gateway"])
def test_a_server_process_that_is_killed_costs_a_buffered_session_nothing(network: Network, process: str) -> None:
    """It is killed after the first arrival of round 2, and started again by its supervisor."""
    state = network.server.supervised.state()
    assert state is not None
    pid, starts = state.processes[process].pid, state.processes[process].starts
    settings = network.arguments(process, *MODE, *ALL_NODES)
    done = network.zk0.run(settings, ("open", r"002/updates/arrivals\.jsonl", 1), ("kill_others", pid))
    assert done.code == 0, done.output[-3000:]
    after = network.server.supervised.state()
    assert after is not None
    assert after.processes[process].starts == starts + 1
    history = rounds(network.zk0.path / process)
    assert [len(record.updates) for record in history] == [0, 2, 2]
    assert [refusal for record in history for refusal in record.refusals] == []
    assert order(repeated(network.zk0, process, f"{process}-again")) == order(history)


@pytest.mark.timeout(1500)
def test_a_buffered_session_resumes_after_its_server_was_gone(network: Network, wait_until: Callable[..., Any]) -> None:
    """The server is killed after the first arrival of round 2, and started when the session has failed."""
    state = network.server.supervised.state()
    assert state is not None
    settings = network.arguments("gone", *MODE, *ALL_NODES, "federation.round_retries=0")
    failed = network.zk0.run(settings, ("open", r"002/updates/arrivals\.jsonl", 1), ("kill_others", state.pid))
    (folder,) = (network.zk0.path / "gone").iterdir()
    assert "does not answer" in failed.error_line
    assert f"zk0 run --resume {folder}" in failed.output
    network.server.stop()
    network.server.start(detached=False)
    wait_until(network.all_online)
    history = network.resumed("gone")
    assert [len(record.updates) for record in history] == [0, 2, 2]
    assert order(repeated(network.zk0, "gone", "gone-again")) == order(history)


@pytest.mark.timeout(1500)
def test_a_sum_over_the_network_is_resumed_and_repeated(network: Network) -> None:
    """The session is killed when it has written down whose updates are summed."""
    secure = ("federation.secure=true", "aggregation.quarantine_factor=0", "evaluation.clients_frequency=0")
    members = ('federation.nodes=["a", "b", "c"]', "federation.min_updates=3")
    started = network.arguments("secure", *secure, *members)
    killed = network.zk0.run(started, ("open", r"002/updates/sum/\.survivors", 1))
    assert killed.code == -signal.SIGKILL, killed.output[-3000:]
    history = network.resumed("secure")
    found = [[update.summed.clients for update in one.updates if update.summed] for one in history]
    assert found == [[], [("a", "b", "c")], [("a", "b", "c")]]
    repeated(network.zk0, "secure", "secure-again")
    sums = {folder.name for folder in network.zk0.path.glob("secure*/*")}
    for node in network.nodes.values():
        sent = [json.loads(line)["sent"] for line in (node.path / "scratch/sent.jsonl").read_text().splitlines()]
        assert {one["kind"] for one in sent if one["weights"] and one["to"] in sums} == {"secure_mask"}
