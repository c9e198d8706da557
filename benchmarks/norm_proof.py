"""CPU time of the steps that a proof of a masked update's norm would add to a round (RiseFL, arXiv 2311.15310).

    python benchmarks/norm_proof.py

The design is in docs/decisions/0036-no-proofs-of-norms.md. Points are those of the curve P-256 in the OpenSSL of this
machine, the fastest group here that has an addition. The steps whose number of operations is the number of weights are
measured:

    commitments     a client: u G + r W for each weight's number u, one r for all of them, W another point for each
    projections     a client: sums of its numbers with random signs
    bases           the server: sums of all W with the same signs, which both need for the commitments of projections
    commitments with a table    a client: r G + u H with another r for each weight: a multiplication of one fixed point

Every step does the same for each weight. A tenth of the weights is measured and times ten is printed (`--part`), and
projections are `--measured` of `--projections`. Of points W a few thousand are made and used in turn: a multiplication
takes the same time for each of them.
"""

import argparse
import ctypes
import ctypes.util
import secrets
import sys
from collections.abc import Callable, Iterator
from time import process_time

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

LORA_VALUES = 3_416_064
"""Weights of the LoRA factors of rank 16."""
_BASES = 4096
_BLOCK = 1 << 16
_P256 = 415
"""OpenSSL's number of the curve (NID_X9_62_prime256v1)."""


class Curve:
    """Points of P-256, in libcrypto."""

    def __init__(self) -> None:
        name = ctypes.util.find_library("crypto")
        if name is None:
            raise SystemExit("libcrypto of OpenSSL 3 is not installed; expected it where the dynamic linker looks")
        self.library = ctypes.CDLL(name)
        for function in ("EC_GROUP_new_by_curve_name", "EC_POINT_new", "BN_bin2bn", "BN_CTX_new"):
            getattr(self.library, function).restype = ctypes.c_void_p
        self.group = ctypes.c_void_p(self.library.EC_GROUP_new_by_curve_name(_P256))
        self.context = ctypes.c_void_p(self.library.BN_CTX_new())

    def number(self, value: bytes) -> ctypes.c_void_p:
        """Return a whole number, big-endian."""
        return ctypes.c_void_p(self.library.BN_bin2bn(value, len(value), None))

    def point(self) -> ctypes.c_void_p:
        """Return a new point, which is zero."""
        return ctypes.c_void_p(self.library.EC_POINT_new(self.group))

    def multiply(
        self, out: ctypes.c_void_p, of_base: ctypes.c_void_p | None, point: ctypes.c_void_p | None, by: object
    ) -> None:
        """Set `out` to `of_base * G + by * point`."""
        if self.library.EC_POINT_mul(self.group, out, of_base, point, by, self.context) != 1:
            raise SystemExit("OpenSSL could not multiply a point")

    def add(self, out: ctypes.c_void_p, point: ctypes.c_void_p) -> None:
        """Add a point to `out`."""
        if self.library.EC_POINT_add(self.group, out, out, point, self.context) != 1:
            raise SystemExit("OpenSSL could not add points")


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--values", type=int, default=LORA_VALUES, help=f"weights; default: {LORA_VALUES:,}")
    parser.add_argument("--part", type=float, default=0.1, help="of the weights, which is measured; default: 0.1")
    parser.add_argument("--projections", type=int, default=1000, help="of one update; default: 1000, as in RiseFL")
    parser.add_argument("--measured", type=int, default=20, help="projections that are measured; default: 20")
    arguments = parser.parse_args()
    sys.stdout.write("\n".join(measure(arguments)) + "\n")


def measure(arguments: argparse.Namespace) -> list[str]:
    """Return the lines of the table."""
    values, projections, measured = arguments.values, arguments.projections, arguments.measured
    part = round(values * arguments.part)
    curve = Curve()
    bases = random_points(curve, _BASES)
    numbers = [curve.number(secrets.token_bytes(2)) for _ in range(_BASES)]
    blinds = [curve.number(secrets.token_bytes(32)) for _ in range(_BASES)]
    out, blind = curve.point(), blinds[0]

    def commit(i: int) -> None:
        curve.multiply(out, numbers[i % _BASES], bases[i % _BASES], blind)

    def commit_with_table(i: int) -> None:
        curve.multiply(out, blinds[i % _BASES], None, None)
        curve.add(out, bases[i % _BASES])

    def add(i: int) -> None:
        curve.add(out, bases[i % _BASES])

    rows = [
        ("client", f"{values:,} commitments", cpu_seconds(commit, part)),
        ("client", f"{projections:,} projections", project(part, measured) / measured * projections),
        ("server", f"{projections:,} sums of bases", cpu_seconds(add, part) * projections),
        ("client", f"{values:,} commitments with a table", cpu_seconds(commit_with_table, part)),
    ]
    lines = [
        f"| {who} | {what} | {found / arguments.part:.0f} | {found / part * 1e6:.1f} |" for who, what, found in rows
    ]
    title = f"{part:,} of {values:,} weights and {measured} of {projections:,} projections are measured"
    return [title, "", "| who | step | CPU s | µs for each weight |", "|---|---|---:|---:|", *lines]


def random_points(curve: Curve, count: int) -> list[ctypes.c_void_p]:
    """Return random multiples of the base point."""
    points = []
    for _ in range(count):
        points.append(curve.point())
        curve.multiply(points[-1], curve.number(secrets.token_bytes(32)), None, None)
    return points


def cpu_seconds(operation: Callable[[int], None], count: int) -> float:
    """Return the CPU time of so many operations."""
    started = process_time()
    for i in range(count):
        operation(i)
    return process_time() - started


def project(values: int, projections: int) -> float:
    """Return the CPU time of sums of 16-bit numbers with signs from a stream cipher."""
    draw = np.random.default_rng(0)
    numbers = draw.integers(-(2**15), 2**15, values).astype(np.float64)  # sums stay below 2^53
    started, total = process_time(), np.zeros(projections)
    for start, signs in sign_blocks(values, projections):
        part = numbers[start : start + signs.shape[1]]
        total += 2.0 * (signs @ part) - part.sum()
    return process_time() - started


def sign_blocks(values: int, projections: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the first weight of a block, and a matrix of 0 and 1: projections x weights."""
    stream = Cipher(algorithms.ChaCha20(secrets.token_bytes(32), bytes(16)), None).encryptor()
    for start in range(0, values, _BLOCK):
        length = min(_BLOCK, values - start)
        words = np.frombuffer(stream.update(bytes(projections * ((length + 7) // 8))), np.uint8)
        yield start, np.unpackbits(words.reshape(projections, -1), axis=1)[:, :length].astype(np.float64)


if __name__ == "__main__":
    main()
