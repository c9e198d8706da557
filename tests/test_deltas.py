"""Steps in few bits: rounded to the nearest, added to the right weights, and nothing lost over the rounds."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from zk0.bf16 import from_bf16, to_bf16
from zk0.deltas import DeltaWeights, delta_specs, save_deltas
from zk0.errors import CheckpointError, UpdateError
from zk0.int8 import from_int8, open_int8, save_int8, to_int8
from zk0.tensor_spec import TensorSpec, file_order, write_head
from zk0.weights import digest, load_weights, open_weights, save_weights

SHAPES = {"a.weight": (30, 41), "b.bias": (7,), "c": (3, 4, 5), "empty": (0, 4), "none": (0,), "scalar": ()}
Weights = dict[str, np.ndarray]


def random_weights(seed: int, scale: float = 1.0) -> Weights:
    rng = np.random.default_rng(seed)
    return {name: np.asarray(rng.normal(0, scale, shape), np.float32) for name, shape in SHAPES.items()}


def moved(weights: Weights, seed: int, scale: float) -> Weights:
    return {n: np.asarray(w + random_weights(seed, scale)[n], np.float32) for n, w in weights.items()}


def read_back(anchor: Path, path: Path, wire: str, block: int = 13) -> Weights:
    """What a server reads, in odd blocks."""
    with open_weights(anchor) as start, open_weights(path) as file:
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


def test_weights_go_down_in_8_bits(tmp_path):
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
    with pytest.raises(CheckpointError, match="not levels with the scales"), open_int8(tmp_path / "other", other):
        pass
    for name, values in (("far", np.array([1, 3e3], np.float32)), ("half", np.zeros(2, np.float16))):
        save_weights(tmp_path / name, {"w": values})
        with pytest.raises(CheckpointError, match="tensor w"):
            save_int8(tmp_path / name, tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize(("wire", "bytes_a_value", "error"), [("bf16", 2, 2**-8), ("int8", 1, 0.5 / 116)])
def test_server_reads_what_the_client_meant(tmp_path, wire, bytes_a_value, error):
    old = random_weights(0)
    new = moved(old, 1, 1e-2)
    save_weights(tmp_path / "global", old)
    with open_weights(tmp_path / "global") as anchor:
        digest, size = save_deltas(tmp_path / "update", new, anchor, wire)
    load_weights(tmp_path / "update", digest)
    values = sum(w.size for w in old.values())
    assert size == (tmp_path / "update").stat().st_size < bytes_a_value * values + 1500
    found = read_back(tmp_path / "global", tmp_path / "update", wire)
    for name, weights in new.items():
        step = np.abs(weights - old[name])
        bound = error * step if wire == "bf16" else np.full(weights.shape, error * step.max(initial=0))
        if wire == "int8" and name == "a.weight":
            bound = error * step.max(axis=1, keepdims=True)
        assert (np.abs(found[name].astype(float) - weights) <= bound + 1e-7 * np.abs(weights)).all()
    with open_weights(tmp_path / "update") as file:
        assert dict(file.specs) == delta_specs({n: TensorSpec.of(w) for n, w in old.items()}, wire)


def test_scales_are_those_of_rows_or_columns(tmp_path):
    rows = np.array([[127, 1, -2], [127 / 1024, 0, 0]], np.float32)
    old = {"w": np.zeros((2, 3), np.float32), "v": np.zeros((3, 2), np.float32)}
    new = {"w": rows, "v": np.ascontiguousarray(rows.T)}
    save_weights(tmp_path / "global", old)
    with open_weights(tmp_path / "global") as anchor:
        save_deltas(tmp_path / "update", new, anchor, "int8")
    found = load_weights(tmp_path / "update")
    np.testing.assert_array_equal(found["w"], [[127, 1, -2], [127, 0, 0]])
    np.testing.assert_array_equal(found["v"], found["w"].T)
    for name in ("w:scale", "v:scale"):
        np.testing.assert_array_equal(found[name], [32, 112])  # 2 ** 0 and 2 ** -10
    back = read_back(tmp_path / "global", tmp_path / "update", "int8", block=1)
    assert all((back[name] == new[name]).all() for name in new)


def test_what_rounding_loses_comes_with_the_next_step(tmp_path):
    """Twenty rounds of int8 steps: what was read in all differs from what was meant by the last loss alone."""
    old = random_weights(0, 0.0)
    save_weights(tmp_path / "global", old)
    meant, read, plain = (np.zeros(SHAPES["a.weight"]) for _ in range(3))
    lost: Path | None = None
    for number in range(20):
        step = moved(old, 100 + number, 1e-2)
        step["a.weight"][:, 0] = 1.0  # the rest of a row is rounded coarsely beside it
        with open_weights(tmp_path / "global") as anchor:
            save_deltas(tmp_path / "update", step, anchor, "int8", (lost, tmp_path / f"lost-{number}"))
            save_deltas(tmp_path / "plain", step, anchor, "int8")
        lost = tmp_path / f"lost-{number}"
        meant += step["a.weight"]
        read += read_back(tmp_path / "global", tmp_path / "update", "int8")["a.weight"]
        plain += read_back(tmp_path / "global", tmp_path / "plain", "int8")["a.weight"]
    assert lost is not None
    np.testing.assert_allclose(read + load_weights(lost)["a.weight"], meant, atol=1e-5)
    assert np.abs(read - meant).max() < 0.5 / 116 * 1.02
    assert np.abs(plain - meant).max() > 2 * np.abs(read - meant).max()


def test_same_step_and_same_loss_give_the_same_bytes(tmp_path):
    old = random_weights(0)
    save_weights(tmp_path / "global", old)
    save_weights(tmp_path / "lost", random_weights(5, 1e-4))
    with open_weights(tmp_path / "global") as anchor:
        found = [
            save_deltas(tmp_path / name, moved(old, 1, 1e-2), anchor, "int8", (tmp_path / "lost", tmp_path / "next"))
            for name in ("first", "second")
        ]
    assert found[0] == found[1]
    assert (tmp_path / "first").read_bytes() == (tmp_path / "second").read_bytes()


def test_what_cannot_be_sent_so_is_told(tmp_path):
    save_weights(tmp_path / "global", {"w": np.zeros(3, np.float32)})
    save_weights(tmp_path / "half", {"w": np.zeros(3, np.float16)})
    save_weights(tmp_path / "other", {"v": np.zeros(3, np.float32)})
    with open_weights(tmp_path / "global") as anchor:
        with pytest.raises(UpdateError, match="not finite"):
            save_deltas(tmp_path / "new", {"w": np.array([0, np.nan, 0], np.float32)}, anchor, "bf16")
        with pytest.raises(UpdateError, match="w is float64, expected float32"):
            save_deltas(tmp_path / "new", {"w": np.zeros(3)}, anchor, "bf16")
        lost = tmp_path / "other", tmp_path / "next"
        with pytest.raises(CheckpointError, match="other tensors than are sent"):
            save_deltas(tmp_path / "new", {"w": np.zeros(3, np.float32)}, anchor, "int8", lost)
        with pytest.raises(UpdateError, match="3000 is too large for int8, which holds 2032"):
            save_deltas(tmp_path / "new", {"w": np.array([0, 3000, 0], np.float32)}, anchor, "int8")
        assert not (tmp_path / "new").exists()
        assert not (tmp_path / "next").exists()
        save_deltas(tmp_path / "new", {"w": np.ones(3, np.float32)}, anchor, "int8")
        with open_weights(tmp_path / "new") as file, pytest.raises(UpdateError, match="not those of bf16 steps"):
            DeltaWeights(anchor, file, "bf16")
    with (
        open_weights(tmp_path / "half") as anchor,
        open_weights(tmp_path / "new") as file,
        pytest.raises(UpdateError, match="only float32 is sent in few bits"),
    ):
        DeltaWeights(anchor, file, "int8")


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
    sizes = {w: sum(s.nbytes for s in f.values()) + len(write_head(file_order(f), f)) for w, f in files.items()}
    assert {wire: round(size / 1e6, 1) for wire, size in sizes.items()} == {"fp32": 399.5, "bf16": 199.8, "int8": 100.0}
    assert sizes["int8"] <= 100_000_000
