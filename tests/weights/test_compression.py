"""Compressed weights are restored byte for byte; anything else is rejected."""

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from zk0.errors import CheckpointError
from zk0.weights.compression import compress_weights, decompress_weights
from zk0.weights.tensor_spec import TensorSpec
from zk0.weights.writer import save_weights


def specs_of(weights: dict[str, np.ndarray]) -> dict[str, TensorSpec]:
    return {name: TensorSpec.of(tensor) for name, tensor in weights.items()}


@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8),
        st.sampled_from(("float32", "uint16", "int8", "float64")).flatmap(
            lambda d: hnp.arrays(d, hnp.array_shapes(min_dims=0, min_side=0, max_side=4))
        ),
        max_size=4,
    )
)
def test_restored_file_equals_the_compressed_one(tmp_path_factory, weights):
    folder = tmp_path_factory.mktemp("compressed")
    save_weights(folder / "w", weights)
    size = compress_weights(folder / "w", folder / "w.small")
    assert size == (folder / "w.small").stat().st_size
    decompress_weights(folder / "w.small", folder / "back", specs_of(weights))
    assert (folder / "back").read_bytes() == (folder / "w").read_bytes()


def test_large_tensors_are_compressed_in_blocks_and_become_smaller(tmp_path):
    weights = {"w": np.random.default_rng(0).normal(0, 0.02, 700_001).astype(np.float32)}
    save_weights(tmp_path / "w", weights)
    assert compress_weights(tmp_path / "w", tmp_path / "p") < 0.9 * (tmp_path / "w").stat().st_size
    decompress_weights(tmp_path / "p", tmp_path / "back", specs_of(weights))
    assert (tmp_path / "back").read_bytes() == (tmp_path / "w").read_bytes()


def test_small_tensors_are_compressed_as_well_as_large_ones(tmp_path):
    """Each run of shuffled bytes is a Zstandard block: exponents share no codes with mantissas."""
    rng = np.random.default_rng(0)
    weights = {f"w{i:02d}": rng.normal(0, 0.02, 6_000).astype(np.float32) for i in range(50)}
    save_weights(tmp_path / "w", weights)
    assert compress_weights(tmp_path / "w", tmp_path / "p") < 0.86 * (tmp_path / "w").stat().st_size
    decompress_weights(tmp_path / "p", tmp_path / "back", specs_of(weights))
    assert (tmp_path / "back").read_bytes() == (tmp_path / "w").read_bytes()


def test_every_truncation_and_every_flipped_byte_is_rejected_or_harmless(tmp_path):
    weights = {"w": np.arange(40, dtype=np.float32), "v": np.ones(3, np.float32)}
    save_weights(tmp_path / "w", weights)
    compress_weights(tmp_path / "w", tmp_path / "p")
    whole, right = (tmp_path / "p").read_bytes(), (tmp_path / "w").read_bytes()
    damaged = [whole[:n] for n in range(len(whole))]
    damaged += [whole[:n] + bytes([whole[n] ^ 0x55]) + whole[n + 1 :] for n in range(len(whole))]
    for data in damaged:
        (tmp_path / "p").write_bytes(data)
        try:
            decompress_weights(tmp_path / "p", tmp_path / "back", specs_of(weights))
        except CheckpointError:
            assert not (tmp_path / "back").exists()
        else:
            assert (tmp_path / "back").read_bytes() == right
            (tmp_path / "back").unlink()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["p", "w"]


def test_a_decompression_bomb_is_rejected(tmp_path):
    (tmp_path / "p").write_bytes(zstandard.ZstdCompressor().compress(bytes(1 << 30)))
    with pytest.raises(CheckpointError, match="other tensors"):
        decompress_weights(tmp_path / "p", tmp_path / "back", {"w": TensorSpec("float32", (3,))})
    weights = {"w": np.zeros(3, np.float32)}
    save_weights(tmp_path / "w", weights)
    (tmp_path / "p").write_bytes(zstandard.ZstdCompressor().compress((tmp_path / "w").read_bytes() + bytes(1 << 30)))
    with pytest.raises(CheckpointError, match="continues after the last tensor"):
        decompress_weights(tmp_path / "p", tmp_path / "back", specs_of(weights))


def test_a_missing_file_is_reported(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be decompressed"):
        decompress_weights(tmp_path / "nothing", tmp_path / "back", {})
