"""Vectors inside numba: small named operations that become one or a few machine instructions each.

numba has no vector type. Here a vector is a numba type whose value is an LLVM vector, so that a kernel may
say ``total = fma(weights, x, total)`` on sixteen lanes and keep it in a register. The operations of this file
are generic LLVM: every processor has them, cut into registers of its own width. What only some processors
have stands in ``dots``. Memory is named by address (int64); nothing here knows what lies there.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

LANES = 16
"""Numbers in a vector."""

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


def constant(kind: Any, value: int) -> Any:
    """A vector constant with the same value in every lane."""
    return ir.Constant(kind, [value] * kind.count)


def shuffle(b: Any, x: Any, lanes: range, y: Any = None) -> Any:
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


@operation(NOTHING, ADDRESS, F)
def store_f32(b, address, x):  # type: ignore[no-untyped-def]
    """16 float32."""
    b.store(x, b.inttoptr(address, FLOATS.as_pointer())).align = 1


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


@operation(I, I)
def low_nibbles(b, x):  # type: ignore[no-untyped-def]
    """The lower four bits of every byte."""
    return b.and_(x, constant(INTS, 0x0F0F0F0F))


@operation(I, I)
def high_nibbles(b, x):  # type: ignore[no-untyped-def]
    """The upper four bits of every byte."""
    return b.and_(b.lshr(x, constant(INTS, 4)), constant(INTS, 0x0F0F0F0F))
