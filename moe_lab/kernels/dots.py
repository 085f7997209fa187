"""Products of bytes, as each kind of processor does them fastest: the only file that names its instructions.

A dot adds to 16 int32 lanes the products of four bytes each: lane r of ``total`` += sum over i of
w[4 r + i] * x[4 r + i]. Asking LLVM for an instruction that the processor lacks ends the process, so nothing
here is compiled before ``instructions`` has looked. Exact in all forms: w lies in -127 to 127, or in 0 to 15.
"""

from __future__ import annotations

from llvmlite import ir

from moe_lab.kernels.vectors import (
    BYTE,
    BYTES,
    INT,
    INTS,
    SHORT,
    I,
    call,
    constant,
    joined,
    operation,
    pieces,
)

_HALF_BYTES, _HALF_SHORTS, _HALF_INTS = (ir.VectorType(kind, n) for kind, n in ((BYTE, 32), (SHORT, 16), (INT, 8)))
_FOUR_INTS, _SIXTEEN_BYTES = ir.VectorType(INT, 4), ir.VectorType(BYTE, 16)


@operation(I, I)
def flip_signs(b, w):  # type: ignore[no-untyped-def]
    """Signed bytes + 128, as unsigned ones."""
    return b.xor(w, constant(INTS, -0x7F7F7F80))


# --- x86, AVX-512 with VNNI: one vpdpbusd on a 64-byte register ------------------------------------------


@operation(I, I, I, I)
def dot_avx512(b, total, w, x):  # type: ignore[no-untyped-def]
    """w unsigned, x signed."""
    return call(b, "llvm.x86.avx512.vpdpbusd.512", INTS, total, b.bitcast(w, BYTES), b.bitcast(x, BYTES))


# --- x86, AVX-VNNI (or AVX-512 with VNNI): two vpdpbusd on 32-byte registers -----------------------------


@operation(I, I, I, I)
def dot_avxvnni(b, total, w, x):  # type: ignore[no-untyped-def]
    """w unsigned, x signed."""
    halves = zip(*(pieces(b, v, 2) for v in (total, w, x)), strict=True)
    return joined(b, [call(b, "llvm.x86.avx512.vpdpbusd.256", _HALF_INTS, t, b.bitcast(u, _HALF_BYTES),
                           b.bitcast(v, _HALF_BYTES)) for t, u, v in halves])


# --- x86, AVX2: vpmaddubsw adds two products of bytes in int16, vpmaddwd two of those in int32 -----------


def _byte_halves(b, v):  # type: ignore[no-untyped-def]
    return [b.bitcast(part, _HALF_BYTES) for part in pieces(b, v, 2)]


def _pairs_of_bytes(b, w, x):  # type: ignore[no-untyped-def]
    return call(b, "llvm.x86.avx2.pmadd.ub.sw", _HALF_SHORTS, w, x)


def _pairs_of_shorts(b, x):  # type: ignore[no-untyped-def]
    return call(b, "llvm.x86.avx2.pmadd.wd", _HALF_INTS, x, constant(_HALF_SHORTS, 1))


def _signed_as(b, x, w):  # type: ignore[no-untyped-def]
    """x with the sign of w: negated where w is negative, 0 where it is 0."""
    return call(b, "llvm.x86.avx2.psign.b", _HALF_BYTES, x, w)


@operation(I, I, I, I)
def dot_avx2(b, total, w, x):  # type: ignore[no-untyped-def]
    """w signed, x signed: |w| * (x with the sign of w)."""
    sums = [_pairs_of_shorts(b, _pairs_of_bytes(b, _signed_as(b, u, u), _signed_as(b, v, u)))
            for u, v in zip(_byte_halves(b, w), _byte_halves(b, x), strict=True)]
    return b.add(total, joined(b, sums))


@operation(I, I, I, I)
def dot_in_shorts_avx2(b, total, w, x):  # type: ignore[no-untyped-def]
    """w 0 to 15, x signed; ``total`` has two int16 a lane, which hold eight such dots (8 * 2 * 15 * 127 < 2^15)."""
    halves = zip(pieces(b, total, 2), _byte_halves(b, w), _byte_halves(b, x), strict=True)
    sums = [b.add(b.bitcast(t, _HALF_SHORTS), _pairs_of_bytes(b, u, v)) for t, u, v in halves]
    return joined(b, [b.bitcast(part, _HALF_INTS) for part in sums])


@operation(I, I)
def sum_shorts_avx2(b, total):  # type: ignore[no-untyped-def]
    """The two int16 of each lane, added."""
    return joined(b, [_pairs_of_shorts(b, b.bitcast(t, _HALF_SHORTS)) for t in pieces(b, total, 2)])


# --- ARM, with the dot product extension: four sdot on 16-byte registers -----------------------------------


def emit_neon(b, total, w, x):  # type: ignore[no-untyped-def]
    """w signed, x signed."""
    quarters = zip(*(pieces(b, v, 4) for v in (total, w, x)), strict=True)
    return joined(b, [call(b, "llvm.aarch64.neon.sdot.v4i32.v16i8", _FOUR_INTS, t, b.bitcast(u, _SIXTEEN_BYTES),
                           b.bitcast(v, _SIXTEEN_BYTES)) for t, u, v in quarters])


dot_neon = operation(I, I, I, I)(emit_neon)
