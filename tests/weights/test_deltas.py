"""Quantized deltas: rounded to nearest, added to the right weights, and with error feedback over the rounds."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from zk0.errors import CheckpointError, UpdateError
from zk0.weights.bf16 import from_bf16, to_bf16
from zk0.weights.deltas import DeltaWeights, ErrorFeedback, delta_specs, save_deltas
from zk0.weights.digests import digest, load_weights
from zk0.weights.files import open_weights
from zk0.weights.int8 import from_int8, open_int8, save_int8, to_int8
from zk0.weights.tensor_spec import TensorSpec, encode_header, file_order
from zk0.weights.writer import save_weights

SHAPES = {"a.weight": (30, 41), "b.bias": (7,), "c": (3, 4, 5), "empty": (0, 4), "none": (0,), "scalar": ()}
Weights = dict[str, np.ndarray]


def random_weights(seed: int, scale: float = 1.0) -> Weights:
    rng = np.random.default_rng(seed)
    return {name: np.asarray(rng.normal(0, scale, shape), np.float32) for name, shape in SHAPES.items()}


def with_deltas(weights: Weights, seed: int, scale: float) -> Weights:
    return {n: np.asarray(w + random_weights(seed, scale)[n], np.float32) for n, w in weights.items()}


def server_weights(global_path: Path, path: Path, wire: str, block: int = 13) -> Weights:
    """The dense weights that a server reads, in blocks of an odd length."""
    with open_weights(global_path) as start, open_weights(path) as file:
        source = DeltaWeights(start, file, wire)
        assert source.specs == start.specs
        found = {}
        for name, spec in source.specs.items():
            flat = np.empty(spec.size, np.float32)
            for at in range(0, spec.size, block):
                source.read(name, at, flat[at : at + block])
            found[name] = flat.reshape(spec.shape)
    return found


@settings(max_examples=200, deadline=None)
@given(hnp.arrays(np.float32, st.integers(0, 50), elements=st.floats(width=32, allow_nan=False)))
def test_bf16_is_that_of_torch(values):
    expected = torch.from_numpy(values).to(torch.bfloat16)
    np.testing.assert_array_equal(to_bf16(values), expected.view(torch.uint16).numpy())
    np.testing.assert_array_equal(from_bf16(to_bf16(values)), expected.float().numpy())


@settings(max_examples=100, deadline=None)
@given(hnp.arrays(np.float32, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.floats(-2e3, 2e3, width=32)))
def test_int8_is_within_half_a_level_of_its_channel(matrix):
    levels, codes = to_int8(matrix)
    axis = 1 if matrix.shape[0] <= matrix.shape[1] else 0  # the channels are those that are fewer
    assert codes.shape == (min(matrix.shape),)
    largest, highest = np.abs(matrix).max(axis=axis), np.abs(levels.astype(int)).max(axis=axis)
    assert ((codes == 255) == (largest == 0)).all()
    fits = largest > 127 * 2.0 ** (4 - 254 / 8)
    assert (highest[fits] >= 116).all()  # no level is more than 2^(1/8) wider than need be
    assert (highest <= 127).all()
    widths = np.where(codes == 255, 0.0, 2.0 ** (4 - codes.astype(float) / 8))
    off = np.abs(from_int8(levels, codes).astype(np.float64) - matrix)
    assert (off <= 0.500001 * np.expand_dims(widths, axis) + 1e-6 * np.abs(matrix)).all()


def test_global_weights_are_sent_in_8_bits(tmp_path):
    weights = random_weights(0)
    save_weights(tmp_path / "global", weights)
    save_int8(tmp_path / "global", tmp_path / "sent")
    assert (tmp_path / "sent").stat().st_size < sum(w.size for w in weights.values()) + 1700
    with open_weights(tmp_path / "sent") as file:
        found = digest(file)
    with open_int8(tmp_path / "sent", found) as back:
        assert {n: s.shape for n, s in back.specs.items()} == SHAPES
        for name, values in weights.items():
            np.testing.assert_array_equal(back[name], from_int8(*to_int8(values)))
    with pytest.raises(CheckpointError, match="not the weights"), open_int8(tmp_path / "sent", "0" * 64):
        pass
    other, _ = save_weights(tmp_path / "other", {"w": np.ones(3, np.int8)})
    with pytest.raises(CheckpointError, match="not int8 levels with the scales"), open_int8(tmp_path / "other", other):
        pass
    for name, values in (("far", np.array([1, 3e3], np.float32)), ("half", np.zeros(2, np.float16))):
        save_weights(tmp_path / name, {"w": values})
        with pytest.raises(CheckpointError, match="tensor w"):
            save_int8(tmp_path / name, tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize(("wire", "bytes_a_value", "error"), [("bf16", 2, 2**-8), ("int8", 1, 0.5 / 116)])
def test_server_reads_the_weights_of_the_client_within_the_rounding_error(tmp_path, wire, bytes_a_value, error):
    old = random_weights(0)
    new = with_deltas(old, 1, 1e-2)
    save_weights(tmp_path / "global", old)
    with open_weights(tmp_path / "global") as global_weights:
        digest, size = save_deltas(tmp_path / "update", new, global_weights, wire)
    load_weights(tmp_path / "update", digest)
    values = sum(w.size for w in old.values())
    assert size == (tmp_path / "update").stat().st_size < bytes_a_value * values + 1500
    found = server_weights(tmp_path / "global", tmp_path / "update", wire)
    for name, weights in new.items():
        delta = np.abs(weights - old[name])
        bound = error * delta if wire == "bf16" else np.full(weights.shape, error * delta.max(initial=0))
        if wire == "int8" and name == "a.weight":
            bound = error * delta.max(axis=1, keepdims=True)
        assert (np.abs(found[name].astype(float) - weights) <= bound + 1e-7 * np.abs(weights)).all()
    with open_weights(tmp_path / "update") as file:
        assert dict(file.specs) == delta_specs({n: TensorSpec.of(w) for n, w in old.items()}, wire)


def test_channels_are_rows_or_columns(tmp_path):
    rows = np.array([[127, 1, -2], [127 / 1024, 0, 0]], np.float32)
    old = {"w": np.zeros((2, 3), np.float32), "v": np.zeros((3, 2), np.float32)}
    new = {"w": rows, "v": np.ascontiguousarray(rows.T)}
    save_weights(tmp_path / "global", old)
    with open_weights(tmp_path / "global") as global_weights:
        save_deltas(tmp_path / "update", new, global_weights, "int8")
    found = load_weights(tmp_path / "update")
    np.testing.assert_array_equal(found["w"], [[127, 1, -2], [127, 0, 0]])
    np.testing.assert_array_equal(found["v"], found["w"].T)
    for name in ("w:scale", "v:scale"):
        np.testing.assert_array_equal(found[name], [32, 112])  # 2 ** 0 and 2 ** -10
    back = server_weights(tmp_path / "global", tmp_path / "update", "int8", block=1)
    assert all((back[name] == new[name]).all() for name in new)


def test_error_feedback_adds_the_rounding_error_to_the_next_delta(tmp_path):
    """Twenty rounds of int8 deltas: the sum of those received differs from the true sum by the last error only."""
    old = random_weights(0, 0.0)
    save_weights(tmp_path / "global", old)
    expected, received, without_feedback = (np.zeros(SHAPES["a.weight"]) for _ in range(3))
    errors: Path | None = None
    for number in range(20):
        delta = with_deltas(old, 100 + number, 1e-2)
        delta["a.weight"][:, 0] = 1.0  # the others of a row are rounded more coarsely then
        with open_weights(tmp_path / "global") as global_weights:
            save_deltas(
                tmp_path / "update", delta, global_weights, "int8", ErrorFeedback(errors, tmp_path / f"errors-{number}")
            )
            save_deltas(tmp_path / "plain", delta, global_weights, "int8")
        errors = tmp_path / f"errors-{number}"
        expected += delta["a.weight"]
        received += server_weights(tmp_path / "global", tmp_path / "update", "int8")["a.weight"]
        without_feedback += server_weights(tmp_path / "global", tmp_path / "plain", "int8")["a.weight"]
    assert errors is not None
    np.testing.assert_allclose(received + load_weights(errors)["a.weight"], expected, atol=1e-5)
    assert np.abs(received - expected).max() < 0.5 / 116 * 1.02
    assert np.abs(without_feedback - expected).max() > 2 * np.abs(received - expected).max()


def test_same_delta_and_same_errors_give_the_same_bytes(tmp_path):
    old = random_weights(0)
    save_weights(tmp_path / "global", old)
    save_weights(tmp_path / "errors", random_weights(5, 1e-4))
    with open_weights(tmp_path / "global") as global_weights:
        found = [
            save_deltas(
                tmp_path / name,
                with_deltas(old, 1, 1e-2),
                global_weights,
                "int8",
                ErrorFeedback(tmp_path / "errors", tmp_path / "next"),
            )
            for name in ("first", "second")
        ]
    assert found[0] == found[1]
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


def test_weights_that_cannot_be_sent_as_deltas_are_rejected(tmp_path):
    save_weights(tmp_path / "global", {"w": np.zeros(3, np.float32)})
    save_weights(tmp_path / "half", {"w": np.zeros(3, np.float16)})
    save_weights(tmp_path / "other", {"v": np.zeros(3, np.float32)})
    with open_weights(tmp_path / "global") as global_weights:
        with pytest.raises(UpdateError, match="not finite"):
            save_deltas(tmp_path / "new", {"w": np.array([0, np.nan, 0], np.float32)}, global_weights, "bf16")
        with pytest.raises(UpdateError, match="w is float64; only float32"):
            save_deltas(tmp_path / "new", {"w": np.zeros(3)}, global_weights, "bf16")
        errors = ErrorFeedback(tmp_path / "other", tmp_path / "next")
        with pytest.raises(CheckpointError, match="other tensors than the update"):
            save_deltas(tmp_path / "new", {"w": np.zeros(3, np.float32)}, global_weights, "int8", errors)
        with pytest.raises(UpdateError, match="3000 is too large for int8, which holds 2032"):
            save_deltas(tmp_path / "new", {"w": np.array([0, 3000, 0], np.float32)}, global_weights, "int8")
        assert not (tmp_path / "new").exists()
        assert not (tmp_path / "next").exists()
        save_deltas(tmp_path / "new", {"w": np.ones(3, np.float32)}, global_weights, "int8")
        with open_weights(tmp_path / "new") as file, pytest.raises(UpdateError, match="not those of bf16 deltas"):
            DeltaWeights(global_weights, file, "bf16")
    with (
        open_weights(tmp_path / "half") as global_weights,
        open_weights(tmp_path / "new") as file,
        pytest.raises(UpdateError, match="only float32 can be sent as int8 deltas"),
    ):
        DeltaWeights(global_weights, file, "int8")


def full_policy() -> dict[str, TensorSpec]:
    """The trained tensors of smolvla_base."""
    shapes: dict[str, tuple[int, ...]] = {"model.vlm_with_expert.lm_expert.norm.weight": (720,)}
    for layer in range(16):
        module, width = f"model.vlm_with_expert.lm_expert.layers.{layer}", 320 if layer % 2 else 720
        attention = {"q": (960, 720), "k": (320, width), "v": (320, width), "o": (720, 960)}
        shapes |= {f"{module}.self_attn.{name}_proj.weight": shape for name, shape in attention.items()}
        mlp = {"gate": (2048, 720), "up": (2048, 720), "down": (720, 2048)}
        shapes |= {f"{module}.mlp.{name}_proj.weight": shape for name, shape in mlp.items()}
        shapes |= {f"{module}.{name}_layernorm.weight": (720,) for name in ("input", "post_attention")}
    ends = {"state_proj": (960, 32), "action_in_proj": (720, 32), "action_out_proj": (32, 720)}
    ends |= {"action_time_mlp_in": (720, 1440), "action_time_mlp_out": (720, 720)}
    for name, shape in ends.items():
        shapes |= {f"model.{name}.weight": shape, f"model.{name}.bias": shape[:1]}
    return {name: TensorSpec("float32", shape) for name, shape in shapes.items()}


def test_megabytes_of_the_full_policy() -> None:
    specs = full_policy()
    assert sum(spec.size for spec in specs.values()) == 99_880_992
    files = {"fp32": specs, "bf16": delta_specs(specs, "bf16"), "int8": delta_specs(specs, "int8")}
    sizes = {w: sum(s.nbytes for s in f.values()) + len(encode_header(file_order(f), f)) for w, f in files.items()}
    assert {wire: round(size / 1e6, 1) for wire, size in sizes.items()} == {"fp32": 399.5, "bf16": 199.8, "int8": 100.0}
    assert sizes["int8"] <= 100_000_000
