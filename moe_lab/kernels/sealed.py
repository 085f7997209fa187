"""Arguments that stay the same from call to call, written down once, so that a call brings two numbers.

numba takes an array apart at every call, a tenth of a microsecond each, and a decoder layer has thirty of them. Here
their addresses and sizes stand in a block of integers, which the kernel opens by itself. Knows arrays, whole numbers
and named tuples of them; knows no kernel.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import operator
from collections.abc import Callable, Iterator
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from moe_lab.kernels.jit import compiling, jit
from moe_lab.kernels.pointers import emit_array


class Sealed:
    """``kernel(argument, number)`` with an argument that stays: a named tuple. What its arrays hold may change.

    ``name`` tells a kernel that closes over others from its siblings, as in ``jit``; ``keep`` owns memory that the
    argument knows by address.

    >>> from typing import NamedTuple
    >>> class Line(NamedTuple):
    ...     numbers: np.ndarray
    >>> @jit
    ... def count_up(line, at):
    ...     line.numbers[at] += 1
    >>> line = Line(np.zeros(3))
    >>> again = Sealed(count_up, line)
    >>> again(2), again(2), line.numbers.tolist()
    (None, None, [0.0, 0.0, 2.0])
    """

    def __init__(self, kernel: Callable[..., Any], argument: tuple[Any, ...], name: str = "",
                 keep: object = None) -> None:
        self._argument, self._keep = argument, keep      # their memory is in use as long as this is
        self._block = np.array(list(_written(argument)), dtype=np.int64)
        self._address = int(self._block.ctypes.data)
        self._kernel = _over(kernel, numba.typeof(argument), name)

    def __call__(self, number: int) -> Any:
        return self._kernel(self._address, number)

    def compiling(self) -> Callable[[], object]:
        """What compiles the kernel, or finds it on disk; it holds nothing of the argument."""
        return compiling(self._kernel, self._address, 0)


def _written(argument: Any) -> Iterator[int]:
    """The numbers of a block: of an array its address, shape and steps."""
    if isinstance(argument, np.ndarray):
        yield from (argument.ctypes.data, *argument.shape, *argument.strides)
    elif isinstance(argument, tuple):
        for part in argument:
            yield from _written(part)
    else:
        yield operator.index(argument)           # refuses what is no whole number


@functools.cache
def _over(kernel: Any, kind: Any, own: str) -> Callable[[int, int], Any]:
    """The kernel over the address of a block, for arguments of ``kind``, a numba type."""
    opened = _opener(kind)
    which = f"{kernel.py_func.__module__}.{kernel.py_func.__qualname__} {own}"
    name = f"{which} {hashlib.sha256(str(kind).encode()).hexdigest()}"

    @jit(name=name)
    def sealed(address, number):  # type: ignore[no-untyped-def]
        return kernel(opened(address), number)

    return sealed


def _opener(kind: Any) -> Any:
    """``(address of a block) -> argument`` of ``kind``."""
    @intrinsic
    def opened(typingctx: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            block, at = builder.inttoptr(args[0], ir.IntType(64).as_pointer()), itertools.count()

            def word() -> Any:
                return builder.load(builder.gep(block, [ir.Constant(ir.IntType(64), next(at))]))

            def value(kind: Any) -> Any:
                if isinstance(kind, types.BaseTuple):
                    return context.make_tuple(builder, kind, [value(part) for part in kind])
                if not isinstance(kind, types.Array):
                    return context.cast(builder, word(), types.int64, kind)
                address, shape, steps = word(), *([word() for _ in range(kind.ndim)] for _ in range(2))
                return emit_array(context, builder, kind, address, shape, steps)

            return value(kind)

        return kind(types.int64), generate

    return opened
