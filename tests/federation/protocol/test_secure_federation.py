"""Rounds with secure aggregation over the local engine: the sum, dropouts, retries, and what the server may not do."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loguru import logger

from zk0.aggregation.aggregate import aggregate
from zk0.aggregation.reduction_plan import AggregationTerms
from zk0.errors import RoundIncomplete
from zk0.federation.engines.local import LocalGrid
from zk0.federation.flower.flower_message import WEIGHTS_PATH
from zk0.federation.protocol.answers import MASKED
from zk0.federation.protocol.downlink import encode_global_weights
from zk0.federation.protocol.secure_federation import SecureFederation
from zk0.settings.aggregation_settings import AggregationSettings
from zk0.settings.federation_settings import FederationSettings
from zk0.settings.plans import SecureRules
from zk0.weights.digests import load_weights
from zk0.weights.files import open_weights
from zk0.weights.fixed_point import METRICS_TENSOR
from zk0.weights.writer import save_weights

RULES = SecureRules(bits=16, neighbors=10, limit=0.004, max_share_factor=3.0)
NAMES = ("a", "b", "c")
PRIVATE = AggregationSettings(clip_norm=2.0, noise_multiplier=0.5, quarantine_factor=0)


class ForgetfulGrid(LocalGrid):
    """A local engine in which some clients do not get some messages."""

    lost: frozenset[tuple[str, str]] = frozenset()
    """Client and part of the message type."""

    def push_messages(self, messages: Any) -> list[str]:
        kept, ids = [], []
        for message in messages:
            client = self._clients[message.metadata.dst_node_id]
            ids.append(message.metadata.message_id)
            if any(client == name and part in message.metadata.message_type for name, part in self.lost):
                continue
            kept.append(message)
        super().push_messages(kept)
        return ids


class FalseWordsGrid(LocalGrid):
    """A local engine in which the node of `b` sends a largest number as the word of each of its metrics."""

    def pull_messages(self, ids: Any) -> list[Any]:
        found = super().pull_messages(ids)
        for message in found:
            answer = message.content["answer"]
            if self._clients[message.metadata.src_node_id] == "b" and MASKED.key in answer:
                words = {name: values.copy() for name, values in load_weights(Path(answer[WEIGHTS_PATH])).items()}
                words[METRICS_TENSOR][:] = 2**62
                digest, _ = save_weights(Path(answer[WEIGHTS_PATH]), words)
                answer[MASKED.key] = json.dumps(json.loads(answer[MASKED.key]) | {"digest": digest})
        return found


@pytest.fixture
def begun(nodes_of: Any, drive: Any, tmp_path: Path) -> Callable[[Any], AbstractContextManager[Any]]:
    """Return a function that opens a session whose clients have joined: its driver, federation and engine."""

    @contextmanager
    def begin(session: Any) -> Iterator[Any]:
        with ForgetfulGrid(nodes_of(session, tmp_path), 0, tmp_path / "server") as grid:
            grid.limits_turns = False  # type: ignore[misc]  # a lost message is given up
            federation, driver = SecureFederation(grid, session.client_names(), 240.0), drive(session, tmp_path)
            driver.begin(federation)
            yield driver, federation, grid

    return begin


@pytest.fixture
def secure_session(session_of: Callable[..., Any], begun: Any) -> Iterator[Any]:
    with begun(session_of(NAMES, federation={"min_updates": 2})) as opened:
        yield opened


def train(driver: Any, federation: SecureFederation, timeout: float = 240.0, **changes: Any) -> Any:
    federation._timeout = timeout
    plans = driver.plans(secure=RULES, **changes)
    return federation.train_secure(plans, Path(driver.history[-1].path), driver.spool())


def mean_of_deltas(driver: Any, clients: tuple[str, ...]) -> dict[str, Any]:
    """Return the mean of the clients' deltas by training frames, from the files on their disks."""
    frames = {m.client: m.train_frames for m in driver.members}
    total: dict[str, Any] = {}
    for name in clients:
        (file,) = (driver.folder / "clients" / name / "sessions").glob("*/updates/round-001-*.safetensors")
        with open_weights(file) as deltas:
            for tensor in deltas:
                share = frames[name] / sum(frames[n] for n in clients)
                total[tensor] = total.get(tensor, 0) + np.clip(deltas[tensor], -0.004, 0.004) * share
    return total


def assert_mean(driver: Any, update: Any, clients: tuple[str, ...]) -> None:
    """Each client's rounding is half a step, of its share of all clients."""
    target = driver.folder / "new.safetensors"
    aggregate([update], Path(driver.history[-1].path), target, AggregationTerms())
    expected = mean_of_deltas(driver, clients)
    slack = 1.01 * len(clients) * 0.5 * update.summed.step / update.summed.share
    with open_weights(target) as new, open_weights(Path(driver.history[-1].path)) as old:
        worst = max(float(np.abs(new[n] - old[n] - expected[n]).max(initial=0)) for n in old)
        largest = max(float(np.abs(expected[n]).max(initial=0)) for n in old)
    assert worst <= slack + 1e-7
    assert largest > 100 * slack


def test_the_sum_is_the_mean_of_the_updates_and_a_retry_reads_it(secure_session: Any) -> None:
    driver, federation, grid = secure_session
    found = train(driver, federation)
    assert found.sum.summed.clients == NAMES
    assert found.refusals == ()
    assert found.sum.examples == sum(m.train_frames for m in driver.members)
    assert found.sum.metrics.local_steps == 3
    assert_mean(driver, found.sum, NAMES)
    grid.lost = frozenset((name, "") for name in NAMES)
    assert train(driver, federation, 0.1).sum == found.sum


def test_clients_may_be_sent_rounded_weights(secure_session: Any) -> None:
    """They answer with deltas, as with every rounding of what is sent."""
    driver, federation, _ = secure_session
    weights = Path(driver.history[-1].path)
    settings = FederationSettings(secure=True, wire_down="bf16")
    sent = encode_global_weights(settings, weights, driver.folder / "sent.safetensors")
    plans = [sent.with_wire(plan) for plan in driver.plans(secure=RULES)]
    found = federation.train_secure(plans, weights, driver.spool(), None, sent.path)
    assert_mean(driver, found.sum, NAMES)


def test_the_noise_of_a_sum_is_that_of_a_mean_of_its_clients(secure_session: Any) -> None:
    driver, federation, _ = secure_session
    found, values = train(driver, federation).sum, []
    for settings in (AggregationSettings(), PRIVATE):
        target, terms = driver.folder / "new.safetensors", AggregationTerms(settings, secret=b"s" * 32)
        aggregate([found], Path(driver.history[-1].path), target, terms)
        values.append(np.concatenate([one.ravel().astype(float) for one in load_weights(target).values()]))
    noise = values[1] - values[0]
    assert noise.std() == pytest.approx(0.5 * 2.0 / len(NAMES), rel=0.01)
    assert abs(noise.mean()) < 5 * noise.std() / np.sqrt(noise.size)


MESSAGES = ("secure_mask", "secure_consent", "secure_reveal")


@pytest.mark.parametrize("lost", MESSAGES)
def test_a_client_that_drops_out_is_left_out_or_not_needed(secure_session: Any, lost: str) -> None:
    """It is silent from that message on; the server waits for it once."""
    driver, federation, grid = secure_session
    grid.lost = frozenset(("b", message) for message in MESSAGES[MESSAGES.index(lost) :])
    found = train(driver, federation, 5.0)
    summed = ("a", "c") if lost == "secure_mask" else NAMES
    assert found.sum.summed.clients == summed
    assert found.sum.summed.dropped == (("b",) if lost == "secure_mask" else ())
    assert [(r.client, r.reason) for r in found.refusals] == [("b", "no answer within 5 s")]
    assert_mean(driver, found.sum, summed)


@pytest.mark.parametrize("lost", ["train", "secure_shares", "secure_mask", "secure_consent", "secure_reveal"])
def test_a_round_with_too_few_clients_goes_on_when_they_are_back(secure_session: Any, lost: str) -> None:
    driver, federation, grid = secure_session
    grid.lost = frozenset({("b", lost), ("c", lost)})
    with pytest.raises(RoundIncomplete, match="nothing of an update was opened"):
        train(driver, federation, 5.0)
    assert not (driver.spool() / "secure-sum.safetensors").exists()
    grid.lost = frozenset()
    found = train(driver, federation)
    assert found.sum.summed.clients == NAMES
    assert_mean(driver, found.sum, NAMES)


def test_clients_may_have_the_names_of_the_servers_own_files(
    session_of: Callable[..., Any], recordings: dict[str, Path], begun: Any
) -> None:
    """What was stored when the first attempt ended is used by the next one."""
    names = ("roster", "sum", "survivors")
    clients = [{"name": n, "dataset": f"local:{recordings[one]}"} for n, one in zip(names, NAMES, strict=True)]
    with begun(session_of((), clients=clients, federation={"min_updates": 2})) as (driver, federation, grid):
        grid.lost = frozenset((name, "secure_consent") for name in names)
        with pytest.raises(RoundIncomplete, match="0 clients have agreed to the sum"):
            train(driver, federation, 5.0)
        grid.lost = frozenset((name, lost) for name in names for lost in ("train", "secure_shares", "secure_mask"))
        found = train(driver, federation)
    assert found.sum.summed.clients == names
    assert_mean(driver, found.sum, names)


def test_false_metrics_do_not_stop_a_round(
    session_of: Callable[..., Any], nodes_of: Any, drive: Any, tmp_path: Path
) -> None:
    """The masks hide them until the sum is opened, and the masked update is stored by then."""
    session, lines = session_of(NAMES, federation={"min_updates": 2}), list[str]()
    handler = logger.add(lines.append, level="WARNING")
    with FalseWordsGrid(nodes_of(session, tmp_path), 0, tmp_path / "server") as grid:
        federation, driver = SecureFederation(grid, NAMES, 240.0), drive(session, tmp_path)
        driver.begin(federation)
        found = train(driver, federation)
    logger.remove(handler)
    assert found.sum.summed.clients == NAMES
    assert_mean(driver, found.sum, NAMES)
    assert any("the mean metrics are not possible" in line for line in lines)


def test_a_client_refuses_to_mask_an_update_twice(secure_session: Any) -> None:
    """A server that forgets the round, and lets clients train again on another plan, gets no other update."""
    driver, federation, _ = secure_session
    train(driver, federation)
    shutil.rmtree(driver.spool())
    with pytest.raises(RoundIncomplete, match=r"0 clients have sent masked updates.*not the one that it has masked"):
        train(driver, federation, lr=2e-3)


def test_a_client_with_another_node_key_than_before_costs_its_own_part(secure_session: Any) -> None:
    """The others would refuse it, too, and with it every sum of the round; with more clients the round goes on."""
    driver, federation, _ = secure_session
    driver.average([train(driver, federation).sum])
    for name in ("sent.key", "sent.pub", "sent.jsonl"):
        (driver.folder / "clients" / "b" / name).unlink()
    with pytest.raises(
        RoundIncomplete, match=r"2 clients have announced keys.*\(b: its node's key is .* as in its first"
    ):
        train(driver, federation)


def test_a_sum_has_the_updates_that_the_session_asks_for(secure_session: Any) -> None:
    driver, federation, grid = secure_session
    federation._min_clients = 3
    grid.lost = frozenset({("b", "secure_mask")})
    with pytest.raises(RoundIncomplete, match="2 clients have sent masked updates, expected at least 3"):
        train(driver, federation, 5.0)
