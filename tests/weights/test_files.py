"""Weights on disk: the same bytes each time, and never part of a file."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import load_file, save, save_file

from zk0.errors import CheckpointError
from zk0.weights.digests import check_weights, digest, load_weights, open_checked
from zk0.weights.files import check_header_size, open_weights
from zk0.weights.tensor_spec import TensorSpec
from zk0.weights.writer import open_weights_writer, save_weights

DTYPES = ("float64", "float32", "float16", "int64", "int32", "int16", "int8", "uint8", "bool")


def example() -> dict[str, np.ndarray]:
    return {
        "b.bias": np.array([1.5, -0.0, np.pi], np.float32),
        "a.weight": np.arange(12, dtype=np.float32).reshape(3, 4),
        "scalar": np.array(7.0, np.float32),
        "empty": np.zeros((0, 5), np.float32),
    }


def test_digest_is_that_of_the_documented_form():
    long = np.arange(300_000, dtype="<f4")
    text = b'["a","float32",[300000]]\n' + long.tobytes() + b'["none","float32",[0]]\n'
    text += b'["\xc3\xbc","int64",[]]\n' + np.array(3, "<i8").tobytes()
    weights = {"ü": np.array(3, np.int64), "none": np.zeros(0, np.float32), "a": long}
    assert digest(weights) == blake3(text).hexdigest()
    assert digest(weights, "sha256") == f"sha256:{hashlib.sha256(text).hexdigest()}"


@pytest.mark.parametrize("algorithm", ["blake3", "sha256"])
def test_a_digest_names_the_algorithm_by_which_it_is_checked(tmp_path, algorithm):
    found, _ = save_weights(tmp_path / "w", example(), algorithm=algorithm)
    assert found == digest(example(), algorithm)
    check_weights(tmp_path / "w", found)
    with pytest.raises(CheckpointError, match="not the weights that were recorded"):
        check_weights(tmp_path / "w", found[:-1] + ("0" if found[-1] != "0" else "1"))


def test_digest_depends_on_names_dtypes_shapes_and_bits():
    base = {"w": np.zeros((2, 3), np.float32)}
    others = [
        {"v": base["w"]},
        {"w": base["w"].reshape(3, 2)},
        {"w": base["w"].astype(np.float64)},
        {"w": base["w"].view(np.int32)},
        {"w": -base["w"]},
        {**base, "x": np.zeros(0, np.float32)},
    ]
    assert len({digest(w) for w in [base, *others]}) == 7


def test_digest_does_not_depend_on_order_or_memory_layout():
    weights = example()
    turned = dict(reversed(weights.items()))
    turned["a.weight"] = np.asfortranarray(turned["a.weight"])
    turned["b.bias"] = turned["b.bias"].astype(">f4")
    assert digest(turned) == digest(weights)


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8),
        st.sampled_from(DTYPES).flatmap(lambda d: hnp.arrays(d, hnp.array_shapes(min_dims=0, min_side=0, max_side=4))),
        max_size=5,
    )
)
def test_loaded_weights_equal_the_saved_ones(tmp_path_factory, weights):
    path = tmp_path_factory.mktemp("w") / "weights.safetensors"
    found, size = save_weights(path, weights)
    assert found == digest(weights)
    assert size == path.stat().st_size
    loaded = load_weights(path, found)
    assert loaded.keys() == weights.keys()
    for name, tensor in weights.items():
        assert loaded[name].dtype == tensor.dtype
        assert loaded[name].shape == tensor.shape
        assert loaded[name].tobytes() == tensor.tobytes()
    theirs = load_file(path)
    assert {n: t.tobytes() for n, t in theirs.items()} == {n: t.tobytes() for n, t in weights.items()}


def test_file_is_the_one_that_safetensors_writes(tmp_path):
    path = tmp_path / "deep" / "er" / "weights.safetensors"
    weights = {**example(), "half": np.ones(3, np.float16), "double": np.ones(2)}
    save_weights(path, weights)
    assert path.read_bytes() == save(weights)
    save_weights(path, dict(reversed(weights.items())))
    assert path.read_bytes() == save(weights)


def test_foreign_file_with_metadata_is_read(tmp_path):
    save_file(example(), tmp_path / "w", metadata={"format": "pt"})
    assert digest(load_weights(tmp_path / "w")) == digest(example())


def test_arrays_of_other_memory_layout_are_saved_as_they_are(tmp_path):
    weights = {"w": np.asfortranarray(np.arange(6, dtype=np.float32).reshape(2, 3)), "v": np.arange(10)[::3]}
    save_weights(tmp_path / "w", weights)
    np.testing.assert_array_equal(load_weights(tmp_path / "w")["w"], weights["w"])
    np.testing.assert_array_equal(load_weights(tmp_path / "w")["v"], [0, 3, 6, 9])


def test_wrong_digest_names_found_and_expected(tmp_path):
    path = tmp_path / "w.safetensors"
    found, _ = save_weights(path, example())
    with pytest.raises(CheckpointError, match=rf"w\.safetensors: digest {found[:12]}, expected {'f' * 12}:"):
        load_weights(path, "f" * 64)


def test_flipped_bit_is_found(tmp_path):
    path = tmp_path / "w"
    found, size = save_weights(path, example())
    data = bytearray(path.read_bytes())
    data[size - 3] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="digest"):
        load_weights(path, found)


def test_a_file_is_hashed_once_until_it_is_written(tmp_path):
    def check(digest: str) -> None:
        with open_checked(path, digest) as file:
            assert set(file) == set(example())

    path = tmp_path / "w"
    found, size = save_weights(path, example())
    check(found)
    with pytest.raises(CheckpointError, match=f"expected {'f' * 12}"):
        check("f" * 64)
    before, data = path.stat(), bytearray(path.read_bytes())
    data[size - 3] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    check(found)  # size and time are unchanged: it is not read again
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    for _ in range(2):
        with pytest.raises(CheckpointError, match="not the weights that were recorded"):
            check(found)
    path.unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        check(found)


def test_every_truncation_is_found(tmp_path):
    path = tmp_path / "w"
    save_weights(path, example())
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError):
            load_weights(path)
    path.write_bytes(whole + b"\0")
    with pytest.raises(CheckpointError, match="not a complete safetensors file"):
        load_weights(path)


@pytest.mark.parametrize("garbage", [b"", b"hello", os.urandom(4096), b"\x02" + bytes(7) + b"[]", bytes(100)])
def test_garbage_is_rejected(tmp_path, garbage):
    (tmp_path / "w").write_bytes(garbage)
    with pytest.raises(CheckpointError, match="not a complete safetensors file"):
        load_weights(tmp_path / "w")


def test_missing_file_and_folder_are_rejected(tmp_path):
    for path in (tmp_path / "nothing", tmp_path):
        with pytest.raises(CheckpointError, match=r"cannot be read|not a complete"):
            load_weights(path)


def test_dtype_that_numpy_does_not_have_is_rejected(tmp_path):
    head = b'{"w":{"dtype":"BF16","shape":[1],"data_offsets":[0,2]}}'
    head += b" " * (-len(head) % 8)
    (tmp_path / "w").write_bytes(len(head).to_bytes(8, "little") + head + b"\0\0")
    with pytest.raises(CheckpointError, match="tensor w is BF16, expected one of F16"):
        load_weights(tmp_path / "w")


def test_weights_that_a_file_cannot_hold_leave_no_file(tmp_path):
    path = tmp_path / "here" / "w"
    for weights in ({"w": np.array(["text"])}, {"__metadata__": np.zeros(1)}):
        with pytest.raises(CheckpointError):
            save_weights(path, weights)
    assert not path.parent.exists()


def test_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "w"
    found, _ = save_weights(path, example())
    with (
        pytest.raises(CheckpointError, match="68 bytes were written, expected 72"),
        open_weights_writer(path, {"w": TensorSpec("float32", (2,))}) as writer,
    ):
        writer.write(np.zeros(1, np.float32))
    assert [p.name for p in tmp_path.iterdir()] == ["w"]
    load_weights(path, found)


@pytest.mark.parametrize("old", [10_000, 20])
def test_a_reused_file_is_overwritten(tmp_path, old):
    weights = {"w": np.arange(100, dtype=np.float32)}
    reused = tmp_path / "reused"
    reused.write_bytes(os.urandom(old))
    node = reused.stat().st_ino
    found, size = save_weights(tmp_path / "w", weights, durable=False, reuse_file=reused)
    assert (tmp_path / "w").stat().st_ino == node
    assert (tmp_path / "w").stat().st_size == size
    assert [p.name for p in tmp_path.iterdir()] == ["w"]
    load_weights(tmp_path / "w", found)
    save_weights(tmp_path / "v", weights, durable=False, reuse_file=reused)  # it is gone: a new file
    assert (tmp_path / "v").read_bytes() == (tmp_path / "w").read_bytes()


def test_a_file_with_another_hard_link_is_not_overwritten(tmp_path):
    reused, other = tmp_path / "reused", tmp_path / "other"
    reused.write_bytes(b"still needed")
    os.link(reused, other)
    save_weights(tmp_path / "w", example(), durable=False, reuse_file=reused)
    assert other.read_bytes() == b"still needed"
    assert not reused.exists()


def test_blocks_of_an_open_file(tmp_path):
    save_weights(tmp_path / "w", example())
    with open_weights(tmp_path / "w") as file:
        assert set(file) == set(example())
        assert file.specs["a.weight"] == TensorSpec("float32", (3, 4))
        assert digest(file) == digest(example())
        block = np.empty(5, np.float32)
        file.read("a.weight", 4, block)
        np.testing.assert_array_equal(block, [4, 5, 6, 7, 8])
        with pytest.raises(ValueError, match="expected within"):
            file.read("a.weight", 8, block)
        with pytest.raises(KeyError):
            file["c"]


def test_file_cut_while_it_is_open(tmp_path):
    path = tmp_path / "w"
    save_weights(path, {"w": np.zeros(100_000, np.float32)})
    with open_weights(path) as file:
        os.truncate(path, 1000)
        with pytest.raises(CheckpointError, match="ends inside tensor w"):
            file["w"]


def test_killed_writer_leaves_the_old_file(tmp_path):
    path: Path = tmp_path / "w"
    found, _ = save_weights(path, {"w": np.zeros(10, np.float32)})
    script = f"""
import numpy as np, pathlib
from zk0.weights.writer import save_weights
n = 0
while True:
    n += 1
    save_weights(pathlib.Path({str(path)!r}), {{"w": np.full(1_000_000, n, np.float32)}})
    print(n, flush=True)
"""
    for wait in (0.0, 0.007, 0.013):
        writer = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
        writer.stdout.readline()
        time.sleep(wait)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        loaded = load_weights(path)["w"]
        assert loaded.size == 1_000_000
        assert (loaded == loaded[0]).all()
    assert digest(load_weights(path)) != found


def test_a_header_that_is_too_long_is_not_read(tmp_path: Path) -> None:
    """A header of 400,000 tensors took 4 s and 376 MB to read."""
    save_weights(tmp_path / "good", example())
    with open_weights(tmp_path / "good") as file:
        specs = dict(file.specs)
    check_header_size(tmp_path / "good", specs)
    (tmp_path / "long").write_bytes((100_000).to_bytes(8, "little") + b"{}")
    with pytest.raises(CheckpointError, match="long: a header of 100000 bytes, expected at most 6"):
        check_header_size(tmp_path / "long", specs)
    with pytest.raises(CheckpointError, match="missing: cannot be read"):
        check_header_size(tmp_path / "missing", specs)
