import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zk0.data.episode_digests import episode_digests
from zk0.data.statistics import compute_moments, measure_statistics, pool_moments
from zk0.errors import DatasetError
from zk0.records import Statistics


def write(root, episodes, state="observation.state", action="action", split_at=None, dtype=np.float32):
    """A data/ folder with these (state, action) episodes, in one file or two."""
    rows = {"episode_index": [], "frame_index": [], state: [], action: []}
    for index, (s, a) in episodes.items():
        rows["episode_index"] += [index] * len(s)
        rows["frame_index"] += range(len(s))
        rows[state] += list(np.asarray(s, dtype))
        rows[action] += list(np.asarray(a, dtype))
    table = pa.table(rows)
    folder = root / "data" / "chunk-000"
    folder.mkdir(parents=True)
    cut = split_at or table.num_rows
    pq.write_table(table.slice(0, cut), folder / "file-000.parquet")
    if split_at:
        pq.write_table(table.slice(cut), folder / "file-001.parquet")
    return root


@pytest.fixture
def episodes():
    rng = np.random.default_rng(0)
    return {
        i: (rng.normal(20 * i, 5 + i, (n, 6)).astype(np.float32), rng.normal(-i, 1, (n, 6)).astype(np.float32))
        for i, n in enumerate([7, 3, 11, 5])
    }


def test_measured_by_hand(tmp_path) -> None:
    write(tmp_path, {0: ([[1.0], [3.0]], [[0.0], [0.0]]), 1: ([[8.0]], [[6.0]]), 2: ([[999.0]], [[999.0]])})
    found = measure_statistics(tmp_path, [0, 1])
    assert found.state.count == 3
    assert found.state.mean == (4.0,)
    assert found.state.std[0] == pytest.approx((26 / 3) ** 0.5, abs=1e-12)  # deviations -3, -1, 4; ddof 0
    assert (found.state.min, found.state.max) == ((1.0,), (8.0,))
    assert found.action.mean == (2.0,)


def test_only_the_given_episodes_count(tmp_path, episodes) -> None:
    write(tmp_path, episodes)
    found = measure_statistics(tmp_path, [3, 1])
    rows = np.concatenate([episodes[1][0], episodes[3][0]]).astype(np.float64)
    np.testing.assert_allclose(found.state.mean, rows.mean(0), rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.state.std, rows.std(0), rtol=0, atol=1e-12)


def test_a_missing_episode_is_refused(tmp_path, episodes) -> None:
    write(tmp_path, episodes)
    with pytest.raises(DatasetError, match="no frame of episode 9"):
        measure_statistics(tmp_path, [0, 9])


def test_a_value_that_is_not_finite_is_refused(tmp_path, episodes) -> None:
    episodes[1][0][2, 3] = np.nan
    write(tmp_path, episodes)
    with pytest.raises(DatasetError, match="1 value"):
        measure_statistics(tmp_path, [1])
    measure_statistics(tmp_path, [0, 2])


matrices = st.integers(1, 4).flatmap(
    lambda parts: st.tuples(
        st.lists(st.integers(1, 40), min_size=parts, max_size=parts),
        st.lists(st.floats(-1e4, 1e4), min_size=parts, max_size=parts),
        st.lists(st.floats(1e-3, 1e3), min_size=parts, max_size=parts),
        st.integers(0, 2**32 - 1),
    )
)


@settings(max_examples=60, deadline=None)
@given(matrices)
def test_pooled_equals_the_statistics_of_all_rows_together(drawn) -> None:
    counts, offsets, scales, seed = drawn
    rng = np.random.default_rng(seed)
    parts = [rng.normal(o, s, (n, 3)) for n, o, s in zip(counts, offsets, scales, strict=True)]
    pooled = pool_moments([Statistics(state=compute_moments(p), action=compute_moments(-p)) for p in parts])
    rows = np.concatenate(parts)
    assert pooled.state.count == len(rows)
    np.testing.assert_allclose(pooled.state.mean, rows.mean(0), rtol=1e-9, atol=1e-6)
    np.testing.assert_allclose(pooled.state.std, rows.std(0), rtol=1e-9, atol=1e-6)
    assert pooled.state.min == tuple(rows.min(0))
    assert pooled.action.max == tuple((-rows).max(0))
    again = pool_moments([Statistics(state=compute_moments(p), action=compute_moments(-p)) for p in reversed(parts)])
    assert again == pooled  # the same bits in any order


def test_pooled_equals_lerobots_own_aggregation(episodes) -> None:
    from lerobot.datasets.compute_stats import aggregate_stats

    parts = [Statistics(state=compute_moments(s), action=compute_moments(a)) for s, a in episodes.values()]
    pooled = pool_moments(parts)
    theirs = aggregate_stats(
        [
            {
                key: {k: np.asarray(v if k != "count" else [v]) for k, v in moments.model_dump().items()}
                for key, moments in (("observation.state", p.state), ("action", p.action))
            }
            for p in parts
        ]
    )
    for key, ours in (("observation.state", pooled.state), ("action", pooled.action)):
        assert theirs[key]["count"].item() == ours.count
        for name in ("mean", "std", "min", "max"):
            np.testing.assert_allclose(getattr(ours, name), theirs[key][name], rtol=0, atol=1e-9)


def test_clients_of_different_width_are_not_pooled(episodes) -> None:
    whole = Statistics(state=compute_moments(episodes[0][0]), action=compute_moments(episodes[0][1]))
    narrow = Statistics(state=compute_moments(episodes[1][0][:, :5]), action=compute_moments(episodes[1][1]))
    with pytest.raises(DatasetError, match=r"state: .*\[5, 6\] dimensions"):
        pool_moments([whole, narrow])
    with pytest.raises(DatasetError, match="no statistics"):
        pool_moments([])


def test_a_copy_under_other_names_numbers_and_layout_has_the_same_digests(tmp_path, episodes) -> None:
    original = write(tmp_path / "a", episodes)
    copied = {10 + i: e for i, e in reversed(episodes.items())}
    copy = write(tmp_path / "b", copied, state="joints", action="goal", split_at=9, dtype=np.float64)
    rename = {"joints": "observation.state", "goal": "action"}
    assert episode_digests(original, [0, 1, 2, 3]) == episode_digests(copy, [10, 11, 12, 13], rename)


def test_one_bit_of_one_action_changes_the_digest(tmp_path, episodes) -> None:
    before = episode_digests(write(tmp_path / "a", episodes), [0, 1])
    episodes[1][1][2, 5] = np.nextafter(episodes[1][1][2, 5], np.float32(1e9))
    after = episode_digests(write(tmp_path / "b", episodes), [0, 1])
    assert before[0] == after[0]
    assert before[1] != after[1]


def test_an_episode_with_repeated_frames_is_refused(tmp_path, episodes) -> None:
    root = write(tmp_path, episodes)
    (root / "data/chunk-000/episode_000000.parquet").write_bytes(
        (root / "data/chunk-000/file-000.parquet").read_bytes()
    )
    with pytest.raises(DatasetError, match="found 14 rows with frame_index 0 to 6"):
        episode_digests(root, [0])
