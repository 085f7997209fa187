"""Vectors inside numba: small named operations that become one or a few machine instructions each.

numba has no vector type. Here a vector is a numba type whose value is an LLVM vector, so that a kernel may
say ``total = fma(weights, x, total)`` on sixteen lanes and keep it in a register. The operations of this file
are generic LLVM: every processor has them, cut into registers of its own width. What only some processors
have stands in ``dots``. Memory is named by address (int64); nothing here knows what lies there.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

LANES = 16
"""Numbers in a vector."""
LINE = 64
"""Bytes that memory gives at once."""

BYTE, SHORT, INT = (ir.IntType(bits) for bits in (8, 16, 32))
FLOAT, HALF = ir.FloatType(), ir.HalfType()
FLOATS, INTS, HALVES = (ir.VectorType(kind, LANES) for kind in (FLOAT, INT, HALF))
BYTES = ir.VectorType(BYTE, 4 * LANES)


class VectorType(types.Type):
    """A numba type whose values are LLVM vectors of one kind."""

    def __init__(self, name: str, llvm: Any) -> None:
        self.llvm = llvm
        super().__init__(name=f"vector of {name}")


@register_model(VectorType)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: VectorType) -> None:
        super().__init__(manager, kind, kind.llvm)


F = VectorType("16 float32", FLOATS)
I = VectorType("16 int32", INTS)
FOUR = VectorType("4 float32", ir.VectorType(FLOAT, 4))
ADDRESS = types.int64
NOTHING = types.void


def operation(result: Any, *arguments: Any) -> Callable[[Callable[..., Any]], Any]:
    """Make a function that emits LLVM, ``f(builder, *values) -> value``, into one that kernels call.

    ``arguments`` and ``result`` are its numba types; scalars given are converted as numba converts.
    """
    signature = result(*arguments)

    def decorate(emit: Callable[..., Any]) -> Any:
        def generate(context: Any, builder: Any, _: Any, values: Any) -> Any:
            value = emit(builder, *values)
            return context.get_dummy_value() if result is NOTHING else value

        def typed(typingctx: Any, *given: Any) -> Any:
            return signature, generate

        typed.__name__, typed.__doc__, typed.__module__ = emit.__name__, emit.__doc__, emit.__module__
        typed.__signature__ = inspect.signature(emit)  # type: ignore[attr-defined]  # numba counts arguments by it
        return intrinsic(typed)

    return decorate


# --- for the emitters ---------------------------------------------------------------------------------


def call(b: Any, name: str, result: Any, *values: Any) -> Any:
    """Emit a call of the LLVM intrinsic ``name``."""
    kind = ir.FunctionType(result, [value.type for value in values])
    return b.call(cgutils.get_or_insert_function(b.module, kind, name), values)


def constant(kind: Any, value: float) -> Any:
    """A vector constant with the same value in every lane."""
    return ir.Constant(kind, [value] * kind.count)


def shuffle(b: Any, x: Any, lanes: Sequence[int], y: Any = None) -> Any:
    """Emit the vector of those ``lanes`` of x, or of x followed by y."""
    picked = ir.Constant(ir.VectorType(INT, len(lanes)), list(lanes))
    return b.shuffle_vector(x, ir.Constant(x.type, ir.Undefined) if y is None else y, picked)


def pieces(b: Any, x: Any, count: int) -> list[Any]:
    """Emit ``count`` equal parts of a vector."""
    size = x.type.count // count
    return [shuffle(b, x, range(i * size, (i + 1) * size)) for i in range(count)]


def joined(b: Any, parts: list[Any]) -> Any:
    """Emit one vector of equal parts; their number is a power of two."""
    while len(parts) > 1:
        whole = range(2 * parts[0].type.count)
        parts = [shuffle(b, x, whole, y) for x, y in zip(parts[::2], parts[1::2], strict=True)]
    return parts[0]


def _load(b: Any, address: Any, kind: Any) -> Any:
    value = b.load(b.inttoptr(address, kind.as_pointer()))
    value.align = 1
    return value


def _spread(b: Any, value: Any, kind: Any) -> Any:
    one = b.insert_element(ir.Constant(kind, ir.Undefined), value, ir.Constant(INT, 0))
    return b.shuffle_vector(one, ir.Constant(kind, ir.Undefined), ir.Constant(ir.VectorType(INT, kind.count), None))


# --- memory -------------------------------------------------------------------------------------------


@operation(NOTHING, ADDRESS)
def fetch(b, address):  # type: ignore[no-untyped-def]
    """Begin to bring the 64 bytes at an address near; any address will do, nothing is read."""
    read, nearest, data = (ir.Constant(INT, n) for n in (0, 3, 1))
    call(b, "llvm.prefetch", ir.VoidType(), b.inttoptr(address, BYTE.as_pointer()), read, nearest, data)


@operation(I, ADDRESS)
def load_bytes(b, address):  # type: ignore[no-untyped-def]
    """64 bytes: 16 lanes of four."""
    return _load(b, address, INTS)


@operation(F, ADDRESS)
def load_f16(b, address):  # type: ignore[no-untyped-def]
    """16 float16, widened."""
    return b.fpext(_load(b, address, HALVES), FLOATS)


@operation(F, ADDRESS)
def load_f32(b, address):  # type: ignore[no-untyped-def]
    """16 float32."""
    return _load(b, address, FLOATS)


@operation(F, ADDRESS)
def load_bf16(b, address):  # type: ignore[no-untyped-def]
    """16 bfloat16, widened."""
    bits = b.zext(_load(b, address, ir.VectorType(SHORT, LANES)), INTS)
    return b.bitcast(b.shl(bits, constant(INTS, 16)), FLOATS)


@operation(NOTHING, ADDRESS, F)
def store_f32(b, address, x):  # type: ignore[no-untyped-def]
    """16 float32."""
    b.store(x, b.inttoptr(address, FLOATS.as_pointer())).align = 1


@operation(NOTHING, ADDRESS, I)
def store_i8(b, address, x):  # type: ignore[no-untyped-def]
    """The lowest byte of each lane: 16 bytes."""
    bytes = ir.VectorType(BYTE, LANES)
    b.store(b.trunc(x, bytes), b.inttoptr(address, bytes.as_pointer())).align = 1


@operation(NOTHING, ADDRESS, I)
def store_fours(b, address, x):  # type: ignore[no-untyped-def]
    """The lowest byte of each lane, four at a time, 64 bytes apart: to a panel's row."""
    fours = b.bitcast(b.trunc(x, ir.VectorType(BYTE, LANES)), ir.VectorType(INT, 4))
    for i in range(4):
        place = b.add(address, ir.Constant(address.type, 64 * i))
        b.store(b.extract_element(fours, ir.Constant(INT, i)), b.inttoptr(place, INT.as_pointer())).align = 1


@operation(F, types.float32)
def spread(b, x):  # type: ignore[no-untyped-def]
    """One number in all lanes."""
    return _spread(b, x, FLOATS)


@operation(F, ADDRESS)
def spread_f32(b, address):  # type: ignore[no-untyped-def]
    """One float32 of memory in all lanes."""
    return _spread(b, _load(b, address, FLOAT), FLOATS)


@operation(I, ADDRESS)
def spread_i32(b, address):  # type: ignore[no-untyped-def]
    """One int32, or four bytes, of memory in all lanes."""
    return _spread(b, _load(b, address, INT), INTS)


# --- arithmetic ---------------------------------------------------------------------------------------


@operation(F)
def no_floats(b):  # type: ignore[no-untyped-def]
    """Zeros."""
    return ir.Constant(FLOATS, None)


@operation(I)
def no_ints(b):  # type: ignore[no-untyped-def]
    """Zeros."""
    return ir.Constant(INTS, None)


@operation(F, F, F)
def mul(b, x, y):  # type: ignore[no-untyped-def]
    """x * y."""
    return b.fmul(x, y)


@operation(F, F)
def negative(b, x):  # type: ignore[no-untyped-def]
    """-x."""
    return b.fneg(x)


@operation(F, F, F, F)
def fma(b, x, y, z):  # type: ignore[no-untyped-def]
    """x * y + z, rounded once."""
    return call(b, "llvm.fma.v16f32", FLOATS, x, y, z)


@operation(I, I, I)
def add(b, x, y):  # type: ignore[no-untyped-def]
    """x + y, of integers."""
    return b.add(x, y)


@operation(F, I)
def to_floats(b, x):  # type: ignore[no-untyped-def]
    """Integers as float32."""
    return b.sitofp(x, FLOATS)


@operation(I, F)
def rounded(b, x):  # type: ignore[no-untyped-def]
    """The nearest integers, to even at the half, of numbers below 2^22: added to 1.5 * 2^23 they stand in the lowest
    bits, on every processor."""
    shifted = b.fadd(x, constant(FLOATS, 12582912.0))
    return b.sub(b.bitcast(shifted, INTS), constant(INTS, 0x4B400000))


@operation(I, I)
def within_nibble(b, x):  # type: ignore[no-untyped-def]
    """Cut to -8 to 7."""
    cut = call(b, "llvm.smax.v16i32", INTS, x, constant(INTS, -8))
    return call(b, "llvm.smin.v16i32", INTS, cut, constant(INTS, 7))


@operation(I, I)
def plus_8(b, x):  # type: ignore[no-untyped-def]
    """x + 8."""
    return b.add(x, constant(INTS, 8))


@operation(I, I, I)
def two_nibbles(b, low, high):  # type: ignore[no-untyped-def]
    """Each lane's low + 16 * high."""
    return b.or_(low, b.shl(high, constant(INTS, 4)))


# --- across lanes -------------------------------------------------------------------------------------


@operation(types.float32, F, F)
def largest_magnitude(b, x, y):  # type: ignore[no-untyped-def]
    """The largest |number| of both; NaN where there is one, since the magnitudes are compared as integers."""
    x, y = (b.and_(b.bitcast(v, INTS), constant(INTS, 0x7FFFFFFF)) for v in (x, y))
    top = call(b, "llvm.vector.reduce.smax.v16i32", INT, call(b, "llvm.smax.v16i32", INTS, x, y))
    return b.bitcast(top, FLOAT)


@operation(types.float32, F, F)
def largest(b, x, y):  # type: ignore[no-untyped-def]
    """The largest number of both where some number is positive, else some negative one; compared as integers, which
    needs no care for NaN."""
    both = call(b, "llvm.smax.v16i32", INTS, b.bitcast(x, INTS), b.bitcast(y, INTS))
    return b.bitcast(call(b, "llvm.vector.reduce.smax.v16i32", INT, both), FLOAT)


@operation(types.int32, I)
def total(b, x):  # type: ignore[no-untyped-def]
    """The sum of the lanes."""
    return call(b, "llvm.vector.reduce.add.v16i32", INT, x)


@operation(types.float32, F)
def total_f32(b, x):  # type: ignore[no-untyped-def]
    """The sum of the lanes: upper to lower half, again and again."""
    while x.type.count > 1:
        x = b.fadd(*pieces(b, x, 2))
    return b.extract_element(x, ir.Constant(INT, 0))


@operation(FOUR, F, F, F, F)
def four_totals(b, w, x, y, z):  # type: ignore[no-untyped-def]
    """The sums of the lanes of four vectors, each with the bits of ``total_f32``, for half of the work."""
    w, x, y, z = (b.fadd(*pieces(b, b.fadd(*pieces(b, v, 2)), 2)) for v in (w, x, y, z))
    first, second = (b.fadd(shuffle(b, p, (0, 4, 1, 5), q), shuffle(b, p, (2, 6, 3, 7), q))
                     for p, q in ((w, x), (y, z)))
    return b.fadd(shuffle(b, first, (0, 1, 4, 5), second), shuffle(b, first, (2, 3, 6, 7), second))


@operation(types.float32, FOUR, types.int32)
def lane(b, x, i):  # type: ignore[no-untyped-def]
    """One of four numbers."""
    return b.extract_element(x, i)


# --- nibbles --------------------------------------------------------------------------------------------


@operation(I, I)
def low_nibbles(b, x):  # type: ignore[no-untyped-def]
    """The lower four bits of every byte."""
    return b.and_(x, constant(INTS, 0x0F0F0F0F))


@operation(I, I)
def high_nibbles(b, x):  # type: ignore[no-untyped-def]
    """The upper four bits of every byte."""
    return b.and_(b.lshr(x, constant(INTS, 4)), constant(INTS, 0x0F0F0F0F))
