"""Machine addresses as numba sees them: a function at an address, an array at an address.

A kernel call costs one conversion per array argument; a layer has fifteen arrays and up to five plugged-in
functions that stay the same from call to call. So their addresses are written down once, in one block of
integers, and the kernel opens the block. Whoever writes an address keeps the thing behind it alive.
"""

from __future__ import annotations

import platform
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

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
def array_at(typingctx: Any, address: Any, shape: Any, dtype: Any) -> Any:
    """The numbers at an int64 address as an array: ``array_at(block[KEYS], (E,), np.int64)``, in C order.

    ``numba.carray`` does the same and takes a quarter of a second to compile for each type and number of axes.
    """
    return _array(address, shape, dtype.dtype, dtype)


def _array(address: Any, shape: Any, number: Any, *rest: Any) -> Any:
    """Signature and emitter of an array of ``number`` at ``address``; ``rest`` are arguments that it does not need."""
    sizes = tuple(shape) if isinstance(shape, types.BaseTuple) else (shape,)
    kind = types.Array(number, len(sizes), "C")

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        given = cgutils.unpack_tuple(builder, args[1]) if isinstance(shape, types.BaseTuple) else (args[1],)
        axes = [context.cast(builder, size, of, types.intp) for size, of in zip(given, sizes, strict=True)]
        steps = [_item_size(context, number)]
        for size in reversed(axes[1:]):
            steps.insert(0, builder.mul(steps[0], size))
        return emit_array(context, builder, kind, args[0], axes, steps)

    return kind(types.int64, shape, *rest), generate


def emit_array(context: Any, builder: Any, kind: Any, address: Any, shape: list[Any], steps: list[Any]) -> Any:
    """Emit an array of ``kind`` over memory that somebody else keeps alive."""
    array, data = context.make_array(kind)(context, builder), context.get_data_type(kind.dtype)
    populate_array(array, builder.inttoptr(address, data.as_pointer()), shape, steps, _item_size(context, kind.dtype),
                   meminfo=None)
    return array._getvalue()


def _item_size(context: Any, number: Any) -> Any:
    return context.get_constant(types.intp, context.get_abi_sizeof(context.get_data_type(number)))


def _numbers_at(number: Any) -> Any:
    @intrinsic
    def numbers_at(typingctx: Any, address: Any, count: Any) -> Any:
        return _array(address, count, number)

    return numbers_at


floats_at = _numbers_at(types.float32)
"""``(address, count)``: that many float32 at an address, as an array; the next three alike."""
ints_at = _numbers_at(types.int32)
shorts_at = _numbers_at(types.uint16)
bytes_at = _numbers_at(types.int8)


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
