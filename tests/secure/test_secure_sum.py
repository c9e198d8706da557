"""The sum of secure aggregation: equal to the open sum, whoever drops out, and nothing without enough clients."""

import random
from collections.abc import Callable, Iterator
from itertools import combinations, product
from typing import Any

import pytest

from zk0.errors import FederationError
from zk0.settings.federation_settings import FederationSettings
from zk0.weights.fixed_point import METRICS_TENSOR, decode_metrics

MESSAGES = range(5)


def assert_open_sum(group: Any, found: dict[str, Any], clients: list[str], members: list[str] | None = None) -> None:
    expected = group.open_sum(clients, members)
    assert {name: words.tolist() for name, words in found.items() if name != METRICS_TENSOR} == {
        name: words.tolist() for name, words in expected.items()
    }


@pytest.mark.parametrize("bits", [16, 32])
def test_the_sum_is_the_open_sum_to_the_bit(secure_group: Callable[..., Any], bits: int) -> None:
    group = secure_group(5, bits=bits)
    found = group.run()
    assert_open_sum(group, found, group.names)
    metrics = decode_metrics(found[METRICS_TENSOR], 1.0)
    assert metrics.policy_loss == pytest.approx(1.5, rel=1e-6)
    assert metrics.local_steps == 4


def test_a_masked_update_is_not_the_update(secure_group: Callable[..., Any]) -> None:
    """A mask changes every word, up to one in 65,536."""
    from zk0.weights.files import open_weights

    group = secure_group(3)
    group.run()
    words = group.open_sum(["c00"])
    with open_weights(group.masked("c00")) as file:
        assert sum(int((file[name] == words[name]).sum()) for name in words) <= 1


def dropouts(names: list[str], most: int) -> Iterator[list[list[str]]]:
    """Yield every choice of at most so many clients, each with the message before which it stops."""
    for count in range(most + 1):
        for chosen in combinations(names, count):
            for places in product(MESSAGES, repeat=count):
                yield [[n for n, at in zip(chosen, places, strict=True) if at == message] for message in MESSAGES]


@pytest.mark.parametrize(("count", "may_stop", "patterns"), [(4, 4, 1 + 4 * 5), (6, 2, 1 + 2 * 5 + 25)])
def test_a_third_may_drop_out_at_any_message(
    secure_group: Callable[..., Any], count: int, may_stop: int, patterns: int
) -> None:
    """Every client of four at every message; two clients of six at every pair of messages.

    A client that announces no keys is no member of the roster.
    """
    found = list(dropouts([f"c{i:02d}" for i in range(may_stop)], count // 3))
    assert len(found) == patterns
    for number, gone in enumerate(found):
        group = secure_group(count, folder=f"group-{number}")
        members = [n for n in group.names if n not in gone[0]]
        if len(gone[0]) and sum(map(len, gone)) > len(gone[0]) and len(members) - 1 < -(-2 * len(members) // 3):
            continue  # more than a third of the members
        summed = [n for n in members if n not in gone[1] + gone[2]]
        assert_open_sum(group, group.run(gone), summed, members)


@pytest.mark.parametrize("message", [1, 2, 3, 4])
def test_any_third_of_many_clients_may_drop_out(secure_group: Callable[..., Any], message: int) -> None:
    """All are neighbors of each other, unless a session limits their number."""
    group = secure_group(30, neighbors=FederationSettings().secure_neighbors)
    gone = random.Random(message).sample(group.names, 10)
    summed = [n for n in group.names if n not in gone or message > 2]
    assert_open_sum(group, group.run([gone if at == message else [] for at in MESSAGES]), summed)


@pytest.mark.parametrize("message", [1, 2, 3, 4])
def test_a_third_may_drop_out_of_a_regular_graph(secure_group: Callable[..., Any], message: int) -> None:
    """Of 12 clients with 8 neighbors each, four stop; of no client and its neighbors more than a third does."""
    group = secure_group(12, neighbors=8)
    roster = group.roster()
    assert {len(found) for found in roster.neighbors.values()} == {8}
    gone = next(
        [*four]
        for four in combinations(group.names, 4)
        if all(len({*four} & {*roster.holders(name)}) <= 3 for name in group.names)
    )
    summed = [n for n in group.names if n not in gone or message > 2]
    assert_open_sum(group, group.run([gone if at == message else [] for at in MESSAGES]), summed)


@pytest.mark.parametrize("message", [1, 2, 3, 4])
def test_below_the_threshold_nothing_is_opened(secure_group: Callable[..., Any], message: int) -> None:
    """Of six clients three stop. Before the last message no client gives a share; then the shares are too few."""
    group = secure_group(6)
    gone: list[list[str]] = [[] for _ in MESSAGES]
    gone[message] = group.names[:3]
    reasons = {1: "too few share secrets", 2: "a sum of 3 clients, expected 4", 3: "3 clients have signed the sum"}
    with pytest.raises(FederationError, match=reasons.get(message, "3 clients have sent shares of c")):
        group.run(gone)
    assert not (group.folder / "sum.safetensors").exists()


def test_two_sessions_do_not_show_the_update_of_a_client_in_one_of_them(secure_group: Callable[..., Any]) -> None:
    """From the same weights with the same seed all train the same updates; the sums differ by the update of one."""
    group = secure_group(4)
    group.run()
    expected = {path: path.read_bytes() for path in group.folder.glob("*/sums.json")}
    assert len(expected) == 4
    group.session = "t"
    with pytest.raises(FederationError, match=r"session s, round 1, has summed updates .* another seed \(now 42\)"):
        group.run((("c03",), (), (), (), ()))
    assert {path: path.read_bytes() for path in group.folder.glob("*/sums.json")} == expected
    group.session = "u"
    group.run()  # of the same clients
    group.session, group.seed = "v", 43
    group.run((("c03",), (), (), (), ()))


def test_a_damaged_list_of_sums_ends_the_clients_part(secure_group: Callable[..., Any]) -> None:
    group = secure_group(3)
    for text in ("{", "[]", '{"g 42": 1}', '{"g 42": {}}'):
        (group.folder / "c00" / "sums.json").parent.mkdir(parents=True, exist_ok=True)
        (group.folder / "c00" / "sums.json").write_text(text)
        with pytest.raises(FederationError, match=r"not a list of sums .*; restore it"):
            group.run()
