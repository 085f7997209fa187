"""Machine addresses as numba sees them: a function at an address, an array at an address.

A kernel call costs one conversion per array argument; a layer has fifteen arrays and up to five plugged-in
functions that stay the same from call to call. So their addresses are written down once, in one block of
integers, and the kernel opens the block. Whoever writes an address keeps the thing behind it alive.
"""

from __future__ import annotations

import platform
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from moe_lab.kernels.jit import jit
from moe_lab.kernels.layout import Stats
from moe_lab.kernels.vectors import call, operation

_ARM = platform.machine().lower() in ("aarch64", "arm64")

I64 = types.Array(types.int64, 1, "C")
F32 = types.Array(types.float32, 1, "C")
F64 = types.Array(types.float64, 1, "C")
BOOL = types.Array(types.boolean, 1, "C")
STATS = types.NamedTuple([I64, I64, I64, types.Array(types.float64, 2, "C")], Stats)

SIGNATURES = {
    "rank": types.void(F32, F32, types.int64, BOOL, F64, F64, F32),
    "keep": types.float64(types.int64, STATS, F64, F64, types.int64),
    "touch": types.void(types.int64, types.float64, types.boolean, STATS, F64, F64, types.int64),
    "left": types.void(types.int64, STATS, F64, F64, types.int64),
    "token": types.void(F32, STATS, F64, F64, types.int64),
    "weakest": types.int64(BOOL, I64, I64, STATS, F64, F64, types.int64),
    "work": types.void(types.int64, types.int64),
}
"""Types of the functions of a policy, by name; ``weakest`` is the loop over ``keep`` (see ``plugin.finder``), ``work``
a piece of a job (see ``crew``)."""


@intrinsic
def pointer(typingctx: Any, address: Any) -> Any:
    """An int64 address as a pointer that ``numba.carray`` takes."""
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.inttoptr(args[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.int64), generate


@jit(helper=True)
def floats_at(address, count):  # type: ignore[no-untyped-def]
    """``count`` float32 at an address, as an array."""
    return numba.carray(pointer(address), (count,), np.float32)


@jit(helper=True)
def ints_at(address, count):  # type: ignore[no-untyped-def]
    """``count`` int32 at an address, as an array."""
    return numba.carray(pointer(address), (count,), np.int32)


@jit(helper=True)
def shorts_at(address, count):  # type: ignore[no-untyped-def]
    """``count`` uint16 at an address, as an array."""
    return numba.carray(pointer(address), (count,), np.uint16)


@jit(helper=True)
def bytes_at(address, count):  # type: ignore[no-untyped-def]
    """``count`` int8 at an address, as an array."""
    return numba.carray(pointer(address), (count,), np.int8)


# --- one word between threads -----------------------------------------------------------------------------


def _word(b: Any, address: Any) -> Any:
    return b.inttoptr(address, ir.IntType(64).as_pointer())


@operation(types.int64, types.int64)
def load_word(b, address):  # type: ignore[no-untyped-def]
    """The int64 at an address; what was written before it was stored is seen afterwards."""
    return b.load_atomic(_word(b, address), "acquire", 8)


@operation(types.void, types.int64, types.int64)
def store_word(b, address, value):  # type: ignore[no-untyped-def]
    """Store an int64; whoever loads it sees what was written before."""
    b.store_atomic(value, _word(b, address), "release", 8)


@operation(types.int64, types.int64, types.int64)
def add_to_word(b, address, value):  # type: ignore[no-untyped-def]
    """Add to the int64 at an address in one step; returns what it was."""
    return b.atomic_rmw("add", _word(b, address), value, "acq_rel")


@operation(types.boolean, types.int64)
def take_word(b, address):  # type: ignore[no-untyped-def]
    """Turn the int64 at an address from 0 to 1 in one step; whether it was 0."""
    zero, one = ir.Constant(ir.IntType(64), 0), ir.Constant(ir.IntType(64), 1)
    taken = b.extract_value(b.cmpxchg(_word(b, address), zero, one, "acq_rel", "acquire"), 1)
    return taken


@operation(types.void)
def breathe(b):  # type: ignore[no-untyped-def]
    """Tell the processor that this thread only waits."""
    if _ARM:
        call(b, "llvm.aarch64.hint", ir.VoidType(), ir.Constant(ir.IntType(32), 1))
    else:
        call(b, "llvm.x86.sse2.pause", ir.VoidType())


def _function_at(name: str) -> Any:
    kind = types.FunctionType(SIGNATURES[name])

    @intrinsic
    def function_at(typingctx: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            function = cgutils.create_struct_proxy(kind)(context, builder)
            function.jit_addr = builder.inttoptr(args[0], context.get_value_type(types.voidptr))
            return function._getvalue()

        return kind(types.int64), generate

    return function_at


rank_at = _function_at("rank")
touch_at = _function_at("touch")
left_at = _function_at("left")
token_at = _function_at("token")
weakest_at = _function_at("weakest")
work_at = _function_at("work")
