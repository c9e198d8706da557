import random
from itertools import combinations, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zk0.data.split import assert_disjoint, assert_not_trained_on, find_leaks, find_overlap, split_episodes
from zk0.errors import DatasetError, SettingsError


def test_the_last_episodes_of_the_dataset_are_held_out_of_every_partition() -> None:
    splits = [split_episodes(range(10), holdout=3, partition_index=i, partition_count=2) for i in range(2)]
    assert [s.train for s in splits] == [(0, 2, 4, 6), (1, 3, 5)]
    assert {s.held_out for s in splits} == {(7, 8, 9)}


def test_partition_goes_by_episode_index_and_not_by_position() -> None:
    assert split_episodes([3, 9, 4, 12], holdout=1, partition_index=1, partition_count=2).train == (3, 9)


def test_nothing_left_to_train_on_is_refused() -> None:
    with pytest.raises(DatasetError, match=r"found 2 episode.*last 2 are held out.*partition 0 of 1"):
        split_episodes(range(2), holdout=2)
    with pytest.raises(DatasetError, match="partition 3 of 4"):
        split_episodes(range(3), holdout=0, partition_index=3, partition_count=4)


def test_a_partition_that_does_not_exist_is_refused() -> None:
    with pytest.raises(SettingsError, match="partition_index 2"):
        split_episodes(range(9), holdout=1, partition_index=2, partition_count=2)
    with pytest.raises(SettingsError, match="listed twice"):
        split_episodes([1, 1, 2], holdout=0)


@given(st.sets(st.integers(0, 500), min_size=20, max_size=60), st.integers(0, 5), st.integers(1, 5))
def test_partitions_and_held_out_are_disjoint_and_complete(episodes: set[int], holdout: int, count: int) -> None:
    parts, held_out = [], set()
    for index in range(count):
        try:
            split = split_episodes(list(episodes), holdout, index, count)
        except DatasetError:
            continue
        parts += split.train
        held_out = set(split.held_out)
        assert not split.held_out or max(split.train) < min(split.held_out)
    kept = sorted(episodes)[: len(episodes) - holdout]
    assert sorted(parts) == [e for e in kept if e in parts]
    assert len(parts) == len(set(parts))
    assert set(parts) | held_out <= episodes
    assert len(held_out) == holdout
    assert set(kept) == set(parts)


def test_shared_episodes_are_found_by_pair() -> None:
    overlaps = find_overlap({"client a": ["1", "2", "3"], "client b": ["3", "4"], "evaluation": ["2", "3"]})
    assert [(o.first, o.second, o.digests) for o in overlaps] == [
        ("client a", "client b", ("3",)),
        ("client a", "evaluation", ("2", "3")),
        ("client b", "evaluation", ("3",)),
    ]


def test_shared_episodes_of_many_sets_are_those_of_every_two_of_them() -> None:
    draw = random.Random(3)
    train, held_out = (
        {f"client {i}": [str(draw.randrange(60)) for _ in range(draw.randrange(5))] for i in range(30)}
        for _ in range(2)
    )
    expected = [
        (a, b, tuple(sorted({*train[a]} & {*train[b]}))) for a, b in combinations(train, 2) if {*train[a]} & {*train[b]}
    ]
    assert [(o.first, o.second, o.digests) for o in find_overlap(train)] == expected
    assert len(expected) > 20
    leaked = [
        (a, b, tuple(sorted({*train[a]} & {*held_out[b]})))
        for a, b in product(train, held_out)
        if a != b and {*train[a]} & {*held_out[b]}
    ]
    assert [(o.first, o.second, o.digests) for o in find_leaks(train, held_out)] == leaked
    assert len(leaked) > 20


def test_overlap_is_refused_naming_both_places_and_how_many() -> None:
    with pytest.raises(DatasetError, match="client a and evaluation share 2 episode"):
        assert_disjoint({"client a": ["1", "2"], "client b": ["9"], "evaluation": ["2", "1", "7"]})
    assert_disjoint({"client a": ["1"], "client b": ["2"], "evaluation": []})


def test_an_episode_that_one_client_holds_out_and_another_trains_on_is_refused() -> None:
    train, held_out = {"a": ["1", "2"], "b": ["3"]}, {"held out by a": ["4"], "held out by b": ["2", "5"]}
    with pytest.raises(DatasetError, match=r"a and held out by b share 1 episode.*expected no episode that evaluates"):
        assert_not_trained_on(train, held_out)
    assert_not_trained_on(train, {"held out by a": ["4"], "held out by b": ["4"]})
