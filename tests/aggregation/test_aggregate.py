"""The mean of the clients' weights beside plain numpy, and every reason to reject an update."""

import os
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from zk0.aggregation.aggregate import aggregate
from zk0.aggregation.verify import verify_update
from zk0.errors import CheckpointError, UpdateError
from zk0.records import ClientMetrics, Refusal, Update
from zk0.weights.digests import load_weights
from zk0.weights.writer import save_weights

METRICS = ClientMetrics(
    policy_loss=1, fedprox_loss=0, grad_norm=1, update_norm=1, local_steps=1, lr_first=1, lr_last=1, seconds=1
)
SHAPES = {"a.weight": (300, 401), "b.bias": (7,), "scalar": (), "empty": (0, 4)}  # the first: almost two blocks


def random_weights(seed: int, scale: float = 1.0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: np.asarray(rng.normal(0, scale, shape), np.float32) for name, shape in SHAPES.items()}


def write_update(folder: Path, client: str, weights: dict[str, np.ndarray], examples: int = 1) -> Update:
    path = folder / f"{client}.safetensors"
    found, size = save_weights(path, weights)
    return Update(
        client=client,
        round=3,
        global_digest="g" * 64,
        path=str(path),
        digest=found,
        bytes=size,
        examples=examples,
        dataset="d",
        metrics=METRICS,
    )


def rejection_reason(update: Update, global_path: Path, seen: tuple[str, ...] = ()) -> str | None:
    found = verify_update(update, round=3, global_digest="g" * 64, global_path=global_path, already_received=seen)
    if not isinstance(found, Refusal):
        return None
    assert found.client == update.client
    return found.reason


@pytest.fixture
def global_path(tmp_path):
    save_weights(tmp_path / "global.safetensors", random_weights(0))
    return tmp_path / "global.safetensors"


# ── the mean ──────────────────────────────────────────────────────────────────


def test_mean_is_numpys_average_rounded_once(tmp_path, global_path):
    examples = {"c": 1201, "a": 3, "b": 877}
    weights = {client: random_weights(i + 1) for i, client in enumerate(examples)}
    updates = [write_update(tmp_path, c, weights[c], n) for c, n in examples.items()]
    result = aggregate(updates, global_path, tmp_path / "new" / "weights.safetensors")

    new = load_weights(tmp_path / "new" / "weights.safetensors", result.digest)
    assert result.bytes == (tmp_path / "new" / "weights.safetensors").stat().st_size
    assert result.path == str(tmp_path / "new" / "weights.safetensors")
    for name, shape in SHAPES.items():
        stacked = np.stack([weights[c][name] for c in examples]).astype(np.float64)
        expected = np.average(stacked, axis=0, weights=list(examples.values()))
        assert new[name].shape == shape
        np.testing.assert_allclose(new[name], expected, rtol=6.1e-8, atol=1e-15)  # half a unit of fp32, and no more


def test_norms_and_cosines_are_those_of_whole_vectors(tmp_path, global_path):
    old = load_weights(global_path)
    weights = {
        c: {n: w + d[n] for n, w in old.items()}
        for c, d in (("a", random_weights(5, 0.1)), ("b", random_weights(6, 0.2)))
    }
    result = aggregate(
        [write_update(tmp_path, c, w, n) for (c, w), n in zip(weights.items(), (10, 30), strict=True)],
        global_path,
        tmp_path / "new",
    )

    def flat(values):
        return np.concatenate([values[n].ravel().astype(np.float64) for n in sorted(SHAPES)])

    step = flat(load_weights(tmp_path / "new")) - flat(old)
    assert result.param_update_norm == pytest.approx(np.linalg.norm(step), rel=1e-7)
    assert [c.client for c in result.contributions] == ["a", "b"]
    assert [c.weight for c in result.contributions] == [0.25, 0.75]
    for contribution in result.contributions:
        delta = flat(weights[contribution.client]) - flat(old)
        cosine = delta @ step / np.linalg.norm(delta) / np.linalg.norm(step)
        assert contribution.update_norm == pytest.approx(np.linalg.norm(delta), rel=1e-7)
        assert contribution.cosine_to_mean == pytest.approx(cosine, rel=1e-7)
    assert result.contributions[0].cosine_to_mean < 0.9 < result.contributions[1].cosine_to_mean


def test_opposite_deltas_by_hand(tmp_path):
    save_weights(tmp_path / "global", {"w": np.array([1, 1], np.float32)})
    updates = [
        write_update(tmp_path, "a", {"w": np.array([4, 5], np.float32)}, 3),
        write_update(tmp_path, "b", {"w": np.array([-2, -3], np.float32)}, 1),
        write_update(tmp_path, "c", {"w": np.array([1, 1], np.float32)}, 4),
    ]
    result = aggregate(updates, tmp_path / "global", tmp_path / "new")
    np.testing.assert_array_equal(load_weights(tmp_path / "new")["w"], [1.75, 2.0])  # (3*4-2+4)/8, (3*5-3+4)/8
    assert result.param_update_norm == 1.25
    a, b, c = result.contributions
    assert (a.update_norm, b.update_norm, c.update_norm) == (5.0, 5.0, 0.0)
    assert (a.cosine_to_mean, b.cosine_to_mean, c.cosine_to_mean) == (1.0, -1.0, None)


@settings(max_examples=40, deadline=None)
@given(
    hnp.arrays(np.float32, (11,), elements=st.floats(-1e6, 1e6, width=32)),
    st.lists(st.integers(1, 10_000_000), min_size=1, max_size=5),
)
def test_values_that_all_clients_agree_on_stay_bit_for_bit(tmp_path_factory, tensor, examples):
    folder = tmp_path_factory.mktemp("agree")
    save_weights(folder / "global", {"w": np.zeros(11, np.float32)})
    updates = [write_update(folder, f"c{i}", {"w": tensor}, n) for i, n in enumerate(examples)]
    aggregate(updates, folder / "global", folder / "new")
    assert load_weights(folder / "new")["w"].tobytes() == tensor.tobytes()


def test_mean_of_a_single_client_is_its_file(tmp_path, global_path):
    weights = random_weights(9)
    weights["b.bias"][:2] = [-0.0, np.float32(1e-42)]  # the sign of zero and a subnormal
    update = write_update(tmp_path, "only", weights, 12_345)
    result = aggregate([update], global_path, tmp_path / "new")
    assert result.digest == update.digest
    assert (tmp_path / "new").read_bytes() == Path(update.path).read_bytes()
    assert result.contributions[0].weight == 1.0
    assert result.contributions[0].cosine_to_mean == pytest.approx(1.0, abs=1e-15)


@settings(max_examples=12, deadline=None)
@given(st.integers(2, 6), st.randoms(use_true_random=False))
def test_order_of_arrival_changes_no_bit(tmp_path_factory, clients, chance: random.Random):
    folder = tmp_path_factory.mktemp("order")
    save_weights(folder / "global", random_weights(0))
    scale = [10.0 ** chance.randint(-6, 6) for _ in range(clients)]
    updates = [
        write_update(folder, f"c{i}", random_weights(i + 1, scale[i]), chance.randint(1, 5000)) for i in range(clients)
    ]
    first = aggregate(updates, folder / "global", folder / "new")
    chance.shuffle(updates)
    second = aggregate(updates, folder / "global", folder / "new")
    assert second == first


def test_number_of_threads_changes_no_bit(tmp_path):
    weights = {f"w{i}": np.random.default_rng(i).normal(size=200_003).astype(np.float32) for i in range(3)}
    save_weights(tmp_path / "global", weights)
    updates = [
        write_update(tmp_path, f"c{i}", {n: w * np.float32(1 + 0.1 * i) for n, w in weights.items()}, 7 + i)
        for i in range(5)
    ]
    one, three = (aggregate(updates, tmp_path / "global", tmp_path / "new", threads=threads) for threads in (1, 3))
    assert one == three
    expected = np.average(
        [load_weights(Path(u.path))["w2"].astype(float) for u in updates], axis=0, weights=[7, 8, 9, 10, 11]
    )
    np.testing.assert_allclose(load_weights(tmp_path / "new")["w2"], expected, rtol=6.1e-8)


def test_sums_are_taken_in_the_order_of_names(tmp_path):
    rng = np.random.default_rng(0)
    values = [np.asarray(rng.normal(size=20_000) * 10.0 ** rng.integers(-3, 3), np.float32) for _ in range(7)]
    save_weights(tmp_path / "global", {"w": values[0]})
    updates = [write_update(tmp_path, f"c{i}", {"w": w}, 100 + i) for i, w in enumerate(values)]
    aggregate(updates, tmp_path / "global", tmp_path / "new")
    total = values[0] * np.float64(100)
    for i, w in enumerate(values[1:], start=1):
        total += w * np.float64(100 + i)
    assert load_weights(tmp_path / "new")["w"].tobytes() == (total / sum(range(100, 107))).astype(np.float32).tobytes()


def test_half_precision_stays_half_precision(tmp_path):
    save_weights(tmp_path / "global", {"w": np.zeros(2, np.float16)})
    updates = [write_update(tmp_path, c, {"w": np.array([v, 60000], np.float16)}) for c, v in (("a", 1), ("b", 2))]
    aggregate(updates, tmp_path / "global", tmp_path / "new")
    found = load_weights(tmp_path / "new")["w"]
    assert found.dtype == np.float16
    np.testing.assert_array_equal(found, [1.5, 60000])  # a float16 sum would be inf


def test_failed_aggregation_leaves_no_file(tmp_path, global_path):
    good = write_update(tmp_path, "a", random_weights(1))
    infinite = write_update(tmp_path, "infinite", {**random_weights(1), "b.bias": np.full(7, np.inf, np.float32)})
    other = write_update(tmp_path, "other", {"w": np.zeros(1, np.float32)})
    truncated = write_update(tmp_path, "truncated", random_weights(1))
    os.truncate(truncated.path, truncated.bytes - 1)
    target = tmp_path / "round" / "new"
    for updates, error, message in [
        ([], UpdateError, "at least one"),
        ([good, good], UpdateError, "each client once"),
        ([good, infinite], UpdateError, "is not finite"),
        ([good, other], UpdateError, "other: tensors are missing"),
        ([good, truncated], CheckpointError, "not a complete"),
    ]:
        with pytest.raises(error, match=message):
            aggregate(updates, global_path, target)
    assert not target.parent.exists() or not list(target.parent.iterdir())


# ── rejections ──────────────────────────────────────────────────────────────────


def test_valid_update_is_accepted(tmp_path, global_path):
    assert rejection_reason(write_update(tmp_path, "a", random_weights(1)), global_path, seen=("b", "c")) is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"round": 2}, "is of round 2, expected round 3"),
        ({"global_digest": "e" * 64}, "was trained from weights eeeeeeeeeeee, expected gggggggggggg"),
        ({"client": "b"}, "a second update of b in round 3"),
        ({"digest": "0" * 64}, r"digest [0-9a-f]{12}, expected 000000000000"),
        ({"path": "/nowhere/w"}, "cannot be read"),
    ],
)
def test_update_with_a_wrong_record_is_rejected(tmp_path, global_path, change, reason):
    update = write_update(tmp_path, "a", random_weights(1)).model_copy(update=change)
    assert re.search(reason, rejection_reason(update, global_path, seen=("b",)) or "")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"b.bias": None}, "tensors are missing: b.bias"),
        ({"b.bias": None, "scalar": None}, "tensors are missing: b.bias, scalar"),
        ({"c": np.zeros(1, np.float32)}, "tensors that the global weights do not have: c"),
        ({"b.bias": np.zeros((7, 1), np.float32)}, "tensor b.bias has shape (7, 1), expected (7,)"),
        ({"b.bias": np.zeros(7)}, "tensor b.bias is float64, expected float32"),
        ({"b.bias": np.array([0, 0, 0, np.nan, 0, 0, 0], np.float32)}, "tensor b.bias holds nan"),
        ({"scalar": np.array(-np.inf, np.float32)}, "tensor scalar holds -inf"),
        ({"scalar": np.array(-2e15, np.float32)}, "tensor scalar holds -2"),
    ],
)
def test_update_with_wrong_weights_is_rejected(tmp_path, global_path, change, reason):
    weights = {n: w for n, w in {**random_weights(1), **change}.items() if w is not None}
    assert (rejection_reason(write_update(tmp_path, "a", weights), global_path) or "").startswith(reason)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@given(st.data())
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_norm_of_a_delta_and_values_that_are_not_finite(tmp_path, dtype, data):
    size = data.draw(st.sampled_from([1, 2047, 2048, 2049, 300_000]))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    old, new = (rng.normal(size=size).astype(dtype) for _ in range(2))
    save_weights(tmp_path / "old", {"w": old})
    whole = write_update(tmp_path, "a", {"w": new})
    found = verify_update(whole, round=3, global_digest="g" * 64, global_path=tmp_path / "old", already_received=())
    wide = new.astype(np.float32 if dtype == np.float16 else dtype)
    assert found == pytest.approx(np.linalg.norm(wide.astype(np.float64) - old.astype(np.float64)), rel=1e-6)
    new[data.draw(st.integers(0, size - 1))] = data.draw(st.sampled_from([np.nan, np.inf, -np.inf]))
    assert "expected finite numbers" in str(rejection_reason(write_update(tmp_path, "a", {"w": new}), tmp_path / "old"))


def test_last_value_of_a_large_tensor_is_checked(tmp_path, global_path):
    weights = random_weights(1)
    weights["a.weight"][-1, -1] = np.nan
    assert "tensor a.weight holds nan" in (rejection_reason(write_update(tmp_path, "a", weights), global_path) or "")


def test_many_missing_tensors_are_counted(tmp_path):
    save_weights(tmp_path / "global", {f"w{i}": np.zeros(1, np.float32) for i in range(9)})
    update = write_update(tmp_path, "a", {"w0": np.zeros(1, np.float32)})
    assert rejection_reason(update, tmp_path / "global") == "tensors are missing: w1, w2, w3 and 5 more"


def test_tensor_that_is_not_floating_point_is_rejected(tmp_path):
    save_weights(tmp_path / "global", {"steps": np.array(3)})
    update = write_update(tmp_path, "a", {"steps": np.array(4)})
    assert "only floating point can be aggregated" in (rejection_reason(update, tmp_path / "global") or "")


def test_file_that_changed_after_the_reply_is_rejected(tmp_path, global_path):
    update = write_update(tmp_path, "a", random_weights(1))
    data = bytearray(Path(update.path).read_bytes())
    data[-1] ^= 1
    Path(update.path).write_bytes(data)
    assert f"expected {update.digest[:12]}" in (rejection_reason(update, global_path) or "")
    Path(update.path).write_bytes(data[:-1])
    assert "not a complete safetensors file" in (rejection_reason(update, global_path) or "")


# ── memory ────────────────────────────────────────────────────────────────────

MEASURE = """
import sys
from pathlib import Path
import numpy as np
from zk0.aggregation import kernels
from zk0.aggregation.aggregate import aggregate
from zk0.records import Update

def status(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field))

folder, clients = Path(sys.argv[1]), int(sys.argv[2])
base = Update.model_validate_json((folder / "update.json").read_text())
updates = [base.model_copy(update={"client": f"c{i:03d}"}) for i in range(clients)]
one, sums = np.ones((1, 1), np.float32), np.ones(1)
kernels.weighted_mean_kernel(one, sums, np.zeros(1, np.intp), sums)  # the compiler's memory does not count
kernels.delta_products_kernel(one, one[0], one[0], sums, sums)
Path("/proc/self/clear_refs").write_text("5")  # resets the peak
before = status("VmRSS")
aggregate(updates, folder / "global", folder / f"new-{clients}", threads=2)
print(status("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from Linux's /proc")
def test_memory_does_not_grow_with_clients_or_model(tmp_path):
    weights = {f"w{i}": np.full(1_000_000, i, np.float32) for i in range(8)}  # 32 MB a client
    save_weights(tmp_path / "global", weights)
    (tmp_path / "update.json").write_text(write_update(tmp_path, "a", weights).model_dump_json())

    def peak_kib(clients: int) -> int:
        command = [sys.executable, "-c", MEASURE, str(tmp_path), str(clients)]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    few, many = peak_kib(4), peak_kib(100)
    assert few > 500  # the measurement works
    assert many < few + 2048
    assert many < 24_000  # three quarters of one client's weights, with 3.2 GB averaged
