"""The one jit decorator of the project.

Knows how kernels are compiled: without the GIL, kept on disk between processes, without fast-math. Full
fast-math promises the compiler that there is no infinity, and routers mask with -inf.

numba keeps a compiled kernel until the file it stands in changes, but does not look at the files of the
functions it calls; here any change in this folder makes all of its kernels afresh. Machine code of several
processes meets on disk, so the names inside it are drawn by lot.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, overload

import numba
import numpy as np
from numba.core.bytecode import FunctionIdentity
from numba.core.compiler_lock import global_compiler_lock

from moe_lab.kernels import switches
from moe_lab.kernels.kept import KernelCache, say_once

F = TypeVar("F", bound=Callable[..., Any])


def _own_names() -> None:
    """Begin to number functions at a random place.

    numba names machine code by qualified name, types and a number that counts from 1 in every process. Siblings that
    close over different functions then bear one name if two processes made them, and whoever finds both on disk runs
    one of them in the place of the other: bfloat16 weights were read as float32.
    """
    FunctionIdentity._unique_ids = itertools.count(int.from_bytes(os.urandom(6), "big"))


_own_names()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_own_names)
    # A child has none of the other threads: a lock that one of them held to compile would never be free there.
    os.register_at_fork(before=global_compiler_lock.acquire, after_in_parent=global_compiler_lock.release,
                        after_in_child=global_compiler_lock.release)


@functools.cache
def _folder_stamp() -> str:
    """Hash of all sources in this folder and below."""
    stamp = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        stamp.update(path.read_bytes())
    return stamp.hexdigest()


def keep_on_disk(dispatcher: Any, inner: Callable[..., Any] | None = None, name: str | None = None) -> None:
    """Let a numba dispatcher find its machine code of an earlier process; without a folder for it, do nothing.

    numba tells closures apart by an id that is new in every process. Here they are told apart by the source of
    ``inner``, a function that the dispatcher closes over, or by ``name``, where all that it closes over stands in this
    folder and follows from the name.
    """
    if inner is not None:
        source = hashlib.sha256(Path(inner.__code__.co_filename).read_bytes()).hexdigest()
        name = f"{inner.__module__}.{inner.__qualname__} {source}"
    anew = "so every process compiles them anew, which takes up to a minute"
    if switches.unkept():
        say_once(f"under {switches.unkept()} kernels cannot be kept on disk, {anew}")
        return
    try:
        dispatcher._cache = KernelCache(dispatcher.py_func, _folder_stamp(), name)
    except OSError:             # said where it was found
        return
    except RuntimeError:
        if os.path.exists(dispatcher.py_func.__code__.co_filename):         # not a function of a prompt
            say_once(f"there is no folder to keep kernels in, {anew}; set NUMBA_CACHE_DIR to one that can be written")


@overload
def jit(function: F) -> F: ...
@overload
def jit(function: None = None, *, reorder: bool = False, cache: bool = True, helper: bool = False,
        inline: bool = False, name: str | None = None) -> Callable[[F], F]: ...


def jit(function: F | None = None, *, reorder: bool = False, cache: bool = True, helper: bool = False,
        inline: bool = False, name: str | None = None) -> F | Callable[[F], F]:
    """Compile ``function`` with numba at its first call.

    Args:
        reorder: sums may be added in another order and products fused, so that they fit vector units; infinities
            and NaNs keep their meaning.
        cache: keep the machine code on disk. Off for what other kernels call, which is kept with them.
        helper: only other kernels call it, never Python: not kept by itself, and a fifth less to compile.
        inline: a helper whose body is put in the place of every call. Vectors are passed in registers only then.
        name: of a function that closes over others of this folder: what tells it from its siblings on disk.

    Raises:
        SettingError: a switch of numba lets nothing be compiled.

    Example:
        >>> @jit
        ... def double(x):
        ...     return 2 * x
        >>> double(3)
        6
    """
    switches.refuse()

    def compiled(plain: F) -> F:
        fastmath: Any = {"reassoc", "contract"} if reorder else False
        alone = not (helper or inline)
        dispatcher = numba.njit(nogil=True, error_model="numpy", fastmath=fastmath, forceinline=inline, debug=False,
                                no_cpython_wrapper=not alone, no_cfunc_wrapper=not alone)(plain)
        if cache and alone:
            keep_on_disk(dispatcher, name=name)
        return dispatcher

    return compiled if function is None else compiled(function)


def compiling(kernel: Any, *arguments: Any) -> Callable[[], object]:
    """What compiles ``kernel``, or finds it on disk, as a call with ``arguments`` would. It is not called, and the
    arguments are not held meanwhile.

    >>> @jit
    ... def half(x):
    ...     return x / 2
    >>> _ = compiling(half, 1.0)()
    >>> half.signatures
    [(float64,)]
    """
    return functools.partial(kernel.compile, tuple(numba.typeof(argument) for argument in arguments))


@jit(cache=False)
def copied(source: np.ndarray, target: np.ndarray) -> None:
    """target = source, of one length. ``target[:] = source`` would take numba two seconds to compile: it brings the
    words of an error about shapes with it."""
    for i in range(source.size):
        target[i] = source[i]
