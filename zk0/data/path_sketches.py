"""Sketches of the paths that joints take, which find near copies of an episode in other people's datasets.

Two recordings of one motion (a copy with noise, a replay, a cut copy) differ in every number, so their digests say
nothing. A sketch says how much two paths overlap, but not where they are: the path is a set of cells of a coarse grid
over the joints' positions, of which b-bit minwise hashing (Li and König, WWW 2010, arXiv:0910.3349) keeps 512 bits.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from zk0.data.frame_table import EpisodeFrames
from zk0.data.units import Units
from zk0.records import PathSketch

HASHES = 256
"""Minimum hashes of a sketch."""
BITS = 2
"""Bits that a sketch keeps of each."""
CELL = {"degrees": 6.0, "normalized": 6.0, "radians": 0.1, "ticks": 68.0}
"""Side of a cell by units."""
MIN_CELLS = 6
"""A path through fewer cells has no sketch: arms that stand still are all alike."""
MIN_OVERLAP = 0.3
"""Share of the cells of two paths that both visit, above which one is nearly a copy of the other."""
MAX_COMPARED = 5000
"""Most episodes of a dataset that are compared, the first ones: the sketches of a node may be any number, and equal."""
MAX_LISTED_PAIRS = 1000
MAX_LISTED_DATASETS = 20
"""Most pairs of datasets that are listed, the first ones: of 1,000 equal datasets there are half a million."""
_BLOCK = 20_000
"""Pairs of episodes that are compared at a time."""
_WORDS = HASHES * BITS // 64
_LOW_BITS = np.uint64(0x5555555555555555)

SketchedDataset = tuple[str, Mapping[int, PathSketch]]
"""Name of a dataset, and the sketch of each episode by its index."""


class NearCopies(NamedTuple):
    """Episodes of two datasets that take nearly the same paths."""

    first: str
    """Name of a dataset."""
    second: str
    episodes: tuple[tuple[int, int], ...]
    """Pairs of an episode of the first and one of the second, at most MAX_LISTED_PAIRS."""
    number: int
    """Of all pairs."""

    def __str__(self) -> str:
        one, other = self.episodes[0]
        more = f" and {self.number - 1} more" if self.number > 1 else ""
        return f"episode {one} of {self.first} is nearly a copy of episode {other} of {self.second}{more}"


class FoundCopies(NamedTuple):
    """Pairs of datasets with episodes that take nearly the same paths."""

    listed: dict[tuple[int, int], NearCopies]
    """By the places of the two datasets, at most MAX_LISTED_DATASETS."""
    number: int
    """Of all pairs of datasets."""


def path_sketches(episodes: Iterable[EpisodeFrames], units: Units | None = None) -> tuple[PathSketch, ...]:
    """Return the sketch of each episode, in their order. `units` are those of the state; None: degrees."""
    return tuple(path_sketch(episode.state, units or "degrees") for episode in episodes)


def path_sketch(state: NDArray[np.floating], units: Units) -> PathSketch:
    """Return the sketch of a path (frames, joints) as 128 hexadecimal digits; empty if it visits too few cells."""
    cells = np.unique(np.floor(np.asarray(state, dtype=np.float64) / CELL[units]).astype("<i8"), axis=0)
    if len(cells) < MIN_CELLS:
        return ""
    digests = [hashlib.blake2b(np.ascontiguousarray(cell).tobytes(), digest_size=8).digest() for cell in cells]
    bases = np.frombuffer(b"".join(digests), dtype="<u8")
    smallest = _mix(bases ^ _mix(np.arange(1, HASHES + 1, dtype=np.uint64)[:, None])).min(axis=1)
    kept = (smallest & np.uint64(2**BITS - 1)).astype(np.uint8)
    bits = np.unpackbits(kept[:, None], axis=1, count=BITS, bitorder="little")
    return np.packbits(bits.reshape(-1), bitorder="little").tobytes().hex()


def find_near_copies(
    first: Sequence[SketchedDataset], second: Sequence[SketchedDataset] | None = None, *, same_places: bool = True
) -> FoundCopies:
    """Return the pairs of datasets with episodes whose paths overlap by more than MIN_OVERLAP.

    Args:
        first: datasets; of each the first MAX_COMPARED episodes with a sketch count.
        second: datasets that each of these is compared with. None: every two of `first`.
        same_places: also compare datasets at the same place of both.
    """
    listed = first if second is None else second
    ours, theirs = ([_compared(sketches) for _, sketches in datasets] for datasets in (first, listed))
    owners = np.repeat(np.arange(len(listed)), [len(episodes) for episodes, _ in theirs])
    words = np.concatenate([np.zeros((0, _WORDS), np.uint64), *(one for _, one in theirs)])
    found, number = dict[tuple[int, int], NearCopies](), 0
    for i, (episodes, own_words) in enumerate(ours):
        start = int(np.searchsorted(owners, i + 1)) if second is None else 0
        near = np.unique(owners[start:][_any_near(own_words, words[start:])])
        places = [j for j in near.tolist() if same_places or i != j]
        number += len(places)
        for j in places[: MAX_LISTED_DATASETS - len(found)]:
            pairs, count = _near_pairs(own_words, theirs[j][1])
            shown = tuple((episodes[one], theirs[j][0][other]) for one, other in pairs)
            found[i, j] = NearCopies(first[i][0], listed[j][0], shown, count)
    return FoundCopies(found, number)


def _compared(sketches: Mapping[int, PathSketch]) -> tuple[list[int], NDArray[np.uint64]]:
    """Return the episodes that are compared, and their sketches as words."""
    episodes = [episode for episode, sketch in sketches.items() if sketch][:MAX_COMPARED]
    return episodes, _words([sketches[episode] for episode in episodes])


def _any_near(words: NDArray[np.uint64], others: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Return of each of the others whether the sketch of any row overlaps with it."""
    found = np.zeros(len(others), dtype=bool)
    step = max(1, _BLOCK // max(1, len(words)))
    for start in range(0, len(others) if len(words) else 0, step):
        near = _overlap(words[:, None], others[start : start + step]) > MIN_OVERLAP
        found[start : start + step] = near.any(axis=0)
    return found


def _near_pairs(words: NDArray[np.uint64], others: NDArray[np.uint64]) -> tuple[list[tuple[int, int]], int]:
    """Return the first pairs of rows whose sketches overlap, and the number of all such pairs."""
    pairs, count = list[tuple[int, int]](), 0
    step = max(1, _BLOCK // max(1, len(others)))
    for start in range(0, len(words) if len(others) else 0, step):
        near = _overlap(words[start : start + step, None], others) > MIN_OVERLAP
        count += int(near.sum())
        if len(pairs) < MAX_LISTED_PAIRS:
            rows, columns = (where[: MAX_LISTED_PAIRS - len(pairs)].tolist() for where in np.nonzero(near))
            pairs += [(start + row, column) for row, column in zip(rows, columns, strict=True)]
    return pairs, count


def _overlap(sketch: NDArray[np.uint64], others: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Return the estimated Jaccard index of sets of cells, from the hashes of equal bits; words are the last axis."""
    differ = sketch ^ others
    unequal = np.bitwise_count((differ | differ >> np.uint64(1)) & _LOW_BITS).sum(axis=-1, dtype=np.int64)
    by_chance = 1 / 2**BITS
    return np.asarray((1 - unequal / HASHES - by_chance) / (1 - by_chance))


def _words(sketches: Sequence[PathSketch]) -> NDArray[np.uint64]:
    """Return sketches as (episodes, words) of 64 bits."""
    return np.frombuffer(bytes.fromhex("".join(sketches)), dtype="<u8").reshape(len(sketches), _WORDS)


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return values with all bits mixed: the finalizer of SplitMix64 (Steele et al., OOPSLA 2014)."""
    values = (values ^ values >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ values >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return values ^ values >> np.uint64(31)
