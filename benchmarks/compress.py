"""Compression of updates: ours (byte shuffle and Zstandard), Zstandard alone, and Blosc2, side by side.

    uv run --with blosc2 python benchmarks/compress.py --parameters 25000000
    uv run --with blosc2 python benchmarks/compress.py --update UPDATE.safetensors --start WEIGHTS.safetensors

The files are those that a client sends: weights in float32, deltas in bfloat16, deltas in int8. Without `--update` the
weights are drawn (std 0.02) and the deltas have std 2e-4. Every way reads a file of weights, writes a compressed one,
and restores it; the restored file must be equal to the first byte by byte. The ways take turns `--repeats` times and
the best of each counts. Without Blosc2 its rows are left out.
"""

import argparse
import io
import sys
import tempfile
import time
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import zstandard

from zk0.weights.compression import compress_weights, decompress_weights
from zk0.weights.deltas import save_deltas
from zk0.weights.digests import load_weights
from zk0.weights.files import open_weights
from zk0.weights.tensor_spec import encode_header, file_order
from zk0.weights.writer import save_weights

BLOCK_BYTES = 1 << 20
Way = tuple[Callable[[Path, Path], object], Callable[[Path, Path], object]]
"""Compress a file, restore a file."""


def main() -> None:
    """Measure every way on every file and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", type=Path, help="float32 weights that a client trained")
    parser.add_argument("--start", type=Path, help="the global weights that it trained from")
    parser.add_argument("--parameters", type=int, default=25_000_000, help="without --update")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        files = write_files(Path(folder), arguments)
        lines = ["| file | way | MB | of the file | s to compress | s to restore |", "|---|---|---:|---:|---:|---:|"]
        for wire, path in files.items():
            for name, row in measure(path, arguments.repeats).items():
                ratio = row["bytes"] / path.stat().st_size
                lines.append(
                    f"| {wire}, {path.stat().st_size / 1e6:.1f} MB | {name} | {row['bytes'] / 1e6:.2f} | {ratio:.3f} | "
                    f"{row['compress']:.3f} | {row['restore']:.3f} |"
                )
    sys.stdout.write("\n".join(lines) + "\n")


def write_files(folder: Path, arguments: argparse.Namespace) -> dict[str, Path]:
    """Write what a client would send, by wire format."""
    start, update = arguments.start, arguments.update
    if update is None:
        rng = np.random.default_rng(0)
        weights = rng.normal(0, 0.02, (arguments.parameters // 1000, 1000)).astype(np.float32)
        delta = rng.normal(0, 2e-4, weights.shape).astype(np.float32)
        start, update = folder / "start", folder / "update"
        save_weights(start, {"w": weights})
        save_weights(update, {"w": weights + delta})
    with open_weights(start) as before, open_weights(update) as after:
        for wire in ("bf16", "int8"):
            save_deltas(folder / wire, after, before, wire)
    save_weights(folder / "fp32", load_weights(update))
    return {wire: folder / wire for wire in ("fp32", "bf16", "int8")}


def measure(path: Path, repeats: int) -> dict[str, dict[str, float]]:
    """Bytes and best seconds of each way on one file."""
    found: dict[str, dict[str, float]] = {}
    small, back = path.with_suffix(".small"), path.with_suffix(".back")
    for _ in range(repeats):
        for name, (compress, restore) in ways(path).items():
            small.unlink(missing_ok=True)
            started = time.perf_counter()
            compress(path, small)
            compressed = time.perf_counter()
            restore(small, back)
            seconds = {"compress": compressed - started, "restore": time.perf_counter() - compressed}
            assert back.read_bytes() == path.read_bytes(), name
            row = found.setdefault(name, {**seconds, "bytes": small.stat().st_size})
            row.update({key: min(row[key], value) for key, value in seconds.items()})
    return found


def ways(path: Path) -> dict[str, Way]:
    """Every way to compress this file; restoring knows its tensors, as the server does."""
    with open_weights(path) as file:
        specs = dict(file.specs)
    blosc: dict[str, Way] = {}
    if find_spec("blosc2"):
        for filter_name in ("SHUFFLE", "BITSHUFFLE"):
            blosc[f"Blosc2, {filter_name.lower()}"] = (
                lambda a, b, f=filter_name: with_blosc2(a, b, f),
                lambda a, b: from_blosc2(a, b, specs),
            )
    return {
        "zk0": (compress_weights, lambda a, b: decompress_weights(a, b, specs)),
        "zstandard": (with_zstandard, from_zstandard),
        **blosc,
    }


def with_zstandard(source: Path, target: Path) -> None:
    """Zstandard without a filter, level 1."""
    with source.open("rb") as file, target.open("wb") as out:
        zstandard.ZstdCompressor(level=1, write_checksum=True).copy_stream(file, out)


def from_zstandard(source: Path, target: Path) -> None:
    """Restore what Zstandard compressed."""
    with source.open("rb") as file, target.open("wb") as out:
        zstandard.ZstdDecompressor().copy_stream(file, out)


def with_blosc2(source: Path, target: Path, filter_name: str) -> None:
    """A Blosc2 frame for each tensor (Zstandard, level 1, chunks of 1 MiB), one after the other in one file."""
    blosc2: Any = import_module("blosc2")
    with open_weights(source) as file, target.open("wb") as out:
        for name in file_order(file.specs):
            itemsize = np.dtype(file.specs[name].dtype).itemsize
            parameters = blosc2.CParams(
                codec=blosc2.Codec.ZSTD, clevel=1, typesize=itemsize, filters=[blosc2.Filter[filter_name]],
                filters_meta=[0], nthreads=1,
            )  # fmt: skip
            chunks = blosc2.SChunk(chunksize=BLOCK_BYTES, cparams=parameters, contiguous=True)
            for block in file.blocks(name, BLOCK_BYTES):
                chunks.append_data(block)
            frame = chunks.to_cframe()
            out.write(len(frame).to_bytes(8, "little") + frame)


def from_blosc2(source: Path, target: Path, specs: Any) -> None:
    """Restore what Blosc2 compressed."""
    blosc2: Any = import_module("blosc2")
    blosc2.set_nthreads(1)
    names, data = file_order(specs), io.BytesIO(source.read_bytes())
    with target.open("wb") as out:
        out.write(encode_header(names, specs))
        for _ in names:
            chunks = blosc2.schunk_from_cframe(data.read(int.from_bytes(data.read(8), "little")))
            for number in range(chunks.nchunks):
                out.write(chunks.decompress_chunk(number))


if __name__ == "__main__":
    main()
