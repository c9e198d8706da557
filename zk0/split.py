"""Which episodes train, which judge, and the proof that nobody trains on what judges."""

from collections.abc import Mapping, Sequence
from itertools import combinations

from zk0.errors import DatasetError, SettingsError
from zk0.records import Record, Split


class Overlap(Record):
    """Two places that hold the same episodes."""

    first: str
    second: str
    digests: tuple[str, ...]
    """SHA-256 of every shared episode, sorted."""

    def __str__(self) -> str:
        return f"{self.first} and {self.second} share {len(self.digests)} episode(s), first {self.digests[0][:12]}"


def split_episodes(episodes: Sequence[int], holdout: int, partition_index: int = 0, partition_count: int = 1) -> Split:
    """The last `holdout` episodes of the data set judge; of the others, this partition's train.

    An episode belongs to the partition `episode_index % partition_count`. What is held out is the same for
    every partition, so that no partition trains on another's judging episodes.

    >>> split_episodes(range(8), holdout=2, partition_index=1, partition_count=2)
    Split(train=(1, 3, 5), held_out=(6, 7))

    Raises:
        SettingsError: the partition does not exist, or an episode is listed twice.
        DatasetError: nothing is left to train on.
    """
    if not 0 <= partition_index < partition_count:
        raise SettingsError(f"partition_index {partition_index}: expected 0 to {partition_count - 1}")
    if holdout < 0:
        raise SettingsError(f"holdout_episodes {holdout}: expected 0 or more")
    ordered = sorted(episodes)
    if len(set(ordered)) != len(ordered):
        raise SettingsError(f"{len(ordered) - len(set(ordered))} episode(s) are listed twice; expected each once")
    cut = max(len(ordered) - holdout, 0)
    train = tuple(e for e in ordered[:cut] if e % partition_count == partition_index)
    if not train:
        raise DatasetError(
            f"no episode is left to train on: found {len(ordered)} episode(s), of which the last {holdout} are held "
            f"out, for partition {partition_index} of {partition_count}; bring more episodes or hold out fewer"
        )
    return Split(train=train, held_out=tuple(ordered[cut:]))


def find_overlap(places: Mapping[str, Sequence[str]]) -> tuple[Overlap, ...]:
    """Every pair of places that share episodes, from the episodes' digests.

    >>> [str(o) for o in find_overlap({"a": ["x", "y"], "b": ["z"], "c": ["y"]})]
    ['a and c share 1 episode(s), first y']
    """
    held = {place: frozenset(digests) for place, digests in places.items()}
    return tuple(
        Overlap(first=a, second=b, digests=tuple(sorted(held[a] & held[b])))
        for a, b in combinations(held, 2)
        if held[a] & held[b]
    )


def assert_disjoint(places: Mapping[str, Sequence[str]]) -> None:
    """Nothing, if no two places share an episode.

    Raises:
        DatasetError: names every pair of places and how many episodes they share.
    """
    if overlaps := find_overlap(places):
        raise DatasetError(
            "; ".join(map(str, overlaps)) + "; expected every episode in one place only: take it out of one of the two"
        )
