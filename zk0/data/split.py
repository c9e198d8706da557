"""The split of a dataset into training and held-out episodes, and the check that no two sets share an episode."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

from zk0.errors import DatasetError, SettingsError
from zk0.records import Record, Split


class Overlap(Record):
    """Two sets of episodes that share some."""

    first: str
    second: str
    digests: tuple[str, ...]
    """Digest (SHA-256) of every shared episode, sorted."""

    def __str__(self) -> str:
        return f"{self.first} and {self.second} share {len(self.digests)} episode(s), first {self.digests[0][:12]}"


def split_episodes(episodes: Sequence[int], holdout: int, partition_index: int = 0, partition_count: int = 1) -> Split:
    """Hold out the last `holdout` episodes for evaluation, and return this partition's share of the others.

    An episode belongs to partition `episode_index % partition_count`. The held-out episodes are the same for every
    partition, so no client trains on another client's held-out episodes.

    >>> split_episodes(range(8), holdout=2, partition_index=1, partition_count=2)
    Split(train=(1, 3, 5), held_out=(6, 7))

    Raises:
        SettingsError: the partition does not exist, `holdout` is negative, or an episode is listed twice.
        DatasetError: no episode is left to train on.
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


def find_overlap(sets: Mapping[str, Sequence[str]]) -> tuple[Overlap, ...]:
    """Return every pair of sets that share episodes, from the digests of their episodes.

    >>> [str(o) for o in find_overlap({"a": ["x", "y"], "b": ["z"], "c": ["y"]})]
    ['a and c share 1 episode(s), first y']
    """
    pairs = ((pair, digest) for digest, names in _names_by_digest(sets).items() for pair in combinations(names, 2))
    return _overlaps(pairs, tuple(sets), tuple(sets))


def find_leaks(train: Mapping[str, Sequence[str]], held_out: Mapping[str, Sequence[str]]) -> tuple[Overlap, ...]:
    """Return every set of training episodes that shares episodes with a set of held-out episodes of another name.

    >>> [str(o) for o in find_leaks({"a": ["x"], "b": ["y"]}, {"a": ["x", "y"]})]
    ['b and a share 1 episode(s), first y']
    """
    trained, evaluated = _names_by_digest(train), _names_by_digest(held_out)
    pairs = (
        ((a, b), digest)
        for digest in trained.keys() & evaluated.keys()
        for a in trained[digest]
        for b in evaluated[digest]
        if a != b
    )
    return _overlaps(pairs, tuple(train), tuple(held_out))


def _names_by_digest(sets: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Return digest -> names of the sets that have it, in their order; the time is linear in the number of episodes."""
    found: dict[str, list[str]] = {}
    for name, digests in sets.items():
        for digest in set(digests):
            found.setdefault(digest, []).append(name)
    return found


def _overlaps(
    pairs: Iterable[tuple[tuple[str, str], str]], firsts: Sequence[str], seconds: Sequence[str]
) -> tuple[Overlap, ...]:
    """Return one overlap for each pair of names, in the order of the sets; `pairs` are ((first, second), digest)."""
    shared: dict[tuple[str, str], list[str]] = {}
    for pair, digest in pairs:
        shared.setdefault(pair, []).append(digest)
    first_place, second_place = ({name: place for place, name in enumerate(names)} for names in (firsts, seconds))
    ordered = sorted(shared, key=lambda pair: (first_place[pair[0]], second_place[pair[1]]))
    return tuple(Overlap(first=a, second=b, digests=tuple(sorted(shared[a, b]))) for a, b in ordered)


def assert_disjoint(sets: Mapping[str, Sequence[str]]) -> None:
    """Raise if two sets of episodes share an episode.

    Args:
        sets: name of the set -> digests of its episodes.

    Raises:
        DatasetError: names every pair of sets and how many episodes they share.
    """
    if overlaps := find_overlap(sets):
        raise DatasetError(
            "; ".join(map(str, overlaps)) + "; expected every episode in one place only: take it out of one of the two"
        )


def assert_not_trained_on(train: Mapping[str, Sequence[str]], held_out: Mapping[str, Sequence[str]]) -> None:
    """Raise if an episode that is held out anywhere is trained on anywhere.

    Args:
        train: name of a set of training episodes -> their digests.
        held_out: name of a set of held-out episodes -> their digests.

    Raises:
        DatasetError: names every such pair and how many episodes they share.
    """
    if leaks := find_leaks(train, held_out):
        raise DatasetError(
            "; ".join(map(str, leaks)) + "; expected no episode that evaluates to be trained on: take it out of one"
        )
