"""Near copies of episodes in two datasets are found from sketches of their paths."""

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from zk0.data.frame_table import read_episodes, stored_episodes
from zk0.data.path_sketches import MAX_LISTED_DATASETS, find_near_copies, path_sketch, path_sketches

Path = NDArray[np.float64]


def random_path(seed: int, frames: int = 120) -> Path:
    """A smooth random path of six joints, in degrees."""
    rng = np.random.default_rng(seed)
    corners = rng.uniform(-60, 60, (6, 6))
    places = np.linspace(0, 5, frames)
    return np.stack([np.interp(places, range(6), corners[:, joint]) for joint in range(6)], axis=1)


def sketches(*paths: Path) -> dict[int, str]:
    return {number: path_sketch(path, "degrees") for number, path in enumerate(paths)}


COPIES: dict[str, Callable[[Path], Path]] = {
    "equal": lambda path: path,
    "rounded": lambda path: path.round(1),
    "float16": lambda path: path.astype(np.float16).astype(np.float64),
    "noise": lambda path: path + np.random.default_rng(0).normal(0, 0.15, path.shape),
    "cut": lambda path: path[15:-15],
    "at twice the speed": lambda path: path[::2],
    "backward": lambda path: path[::-1],
    "with idle ends": lambda path: np.concatenate([path[:1].repeat(50, 0), path, path[-1:].repeat(50, 0)]),
}


@pytest.mark.parametrize("change", COPIES.values(), ids=COPIES)
def test_a_near_copy_is_found_among_others(change: Callable[[Path], Path]) -> None:
    first = [random_path(seed) for seed in range(20)]
    second = [random_path(seed) for seed in range(100, 120)]
    second[7] = change(first[3])
    found = find_near_copies([("a", sketches(*first))], [("other", {}), ("b", sketches(*second))])
    assert found.listed.keys() == {(0, 1)}
    assert found.listed[0, 1].episodes == ((3, 7),)
    assert str(found.listed[0, 1]) == "episode 3 of a is nearly a copy of episode 7 of b"


def test_all_datasets_are_compared_as_every_two_of_them() -> None:
    """Some have no sketch, some none that counts, and copies are within, before and after them."""
    numbers = ((1, 2), (), (3, 1, 1), (4,), (2, 5), ())
    datasets = [(f"d{i}", sketches(*map(random_path, found)) | {9: ""}) for i, found in enumerate(numbers)]
    by_two = {
        (i, j): found[0, 0]._replace(first=one[0], second=other[0])
        for i, one in enumerate(datasets)
        for j, other in enumerate(datasets)
        if (found := find_near_copies([one], [other]).listed)
    }
    assert by_two[0, 2].episodes == ((0, 1), (0, 2))
    assert find_near_copies(datasets, datasets) == (by_two, len(by_two))
    assert by_two.keys() == {(i, i) for i in (0, 2, 3, 4)} | {(0, 2), (2, 0), (0, 4), (4, 0)}
    distinct = find_near_copies(datasets, datasets, same_places=False).listed
    assert distinct == {places: found for places, found in by_two.items() if places[0] != places[1]}
    assert find_near_copies(datasets) == ({places: by_two[places] for places in ((0, 2), (0, 4))}, 2)


def test_different_paths_are_no_copies() -> None:
    first, second = (sketches(*(random_path(s) for s in range(k, k + 150))) for k in (0, 1000))
    assert find_near_copies([("a", first)], [("b", second)]) == ({}, 0)


def test_arms_that_stand_still_are_no_copies() -> None:
    still = sketches(*[np.zeros((100, 6))] * 3)
    assert set(still.values()) == {""}
    assert find_near_copies([("a", still)], [("b", still)]) == ({}, 0)


def test_equal_sketches_cost_no_memory() -> None:
    """A node may send any number of equal sketches: of 5000 there are 25 million pairs."""
    sketch = path_sketch(random_path(1), "degrees")
    many = ("evil", dict.fromkeys(range(20_000), sketch))
    (found,) = find_near_copies([many], [("b", {0: sketch}), many], same_places=False).listed.values()
    assert (found.first, found.second, found.number, len(found.episodes)) == ("evil", "evil", 25_000_000, 1000)
    assert str(found) == "episode 0 of evil is nearly a copy of episode 0 of evil and 24999999 more"
    assert find_near_copies([many], [many], same_places=False) == ({}, 0)


def test_copies_of_many_datasets_are_counted() -> None:
    """Of 200 equal datasets there are 19,900 pairs; the first ones are listed."""
    equal = sketches(random_path(1))
    found = find_near_copies([(f"d{i}", equal) for i in range(200)])
    assert (len(found.listed), found.number) == (MAX_LISTED_DATASETS, 19_900)
    assert [*found.listed] == [(0, j) for j in range(1, MAX_LISTED_DATASETS + 1)]


def test_units_do_not_change_what_is_found() -> None:
    path = np.radians(random_path(1))
    one, other = ({0: path_sketch(p, "radians")} for p in (path, path[10:-10]))
    assert find_near_copies([("a", one)], [("b", other)]).listed[0, 0].episodes == ((0, 0),)


def test_real_and_simulated_episodes_are_no_copies_of_each_other(real_data) -> None:
    """Every episode of all real sets and of the simulated ones against those of the same set."""
    for root in sorted(path for path in real_data.iterdir() if path.is_dir()):
        of = dict(enumerate(path_sketches(read_episodes(root, stored_episodes(root)).values())))
        found = find_near_copies([("a", of)], [("b", of)]).listed
        assert all(one == other for copies in found.values() for one, other in copies.episodes)


def test_halved_real_episodes_are_found(real_data) -> None:
    root = real_data / "so101-cloth-right"
    episodes = stored_episodes(root)
    frames = read_episodes(root, episodes)
    whole = dict(zip(frames, path_sketches(frames.values()), strict=True))
    cut = {e: path_sketch(frames[e].state[len(frames[e].state) // 8 :], "degrees") for e in episodes}
    found = find_near_copies([("a", whole)], [("b", cut)])
    assert set(found.listed[0, 0].episodes) == {(e, e) for e in episodes}
