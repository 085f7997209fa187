"""Policies' functions made into machine code, and what is said when they break their contract.

Knows how a plain Python function of a policy is compiled and which line of it is to blame. The functions of
this package are kept on disk; those of users are compiled with bounds checks, in each process. Globals and
closures are frozen when a function is compiled.
"""

from __future__ import annotations

import linecache
import os
import re
import threading
import traceback
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numba
import numpy as np
from numba.core.errors import NumbaError

from moe_lab.errors import PolicyError
from moe_lab.kernels import switches
from moe_lab.kernels.jit import keep_on_disk
from moe_lab.kernels.pointers import SIGNATURES
from moe_lab.kernels.policy_code import freeze

if TYPE_CHECKING:
    from moe_lab.policy import Policy

HOOKS = {"routing": ("rank",), "eviction": ("keep", "touch", "left", "token")}
"""Functions of a policy, by kind."""

_compiled: weakref.WeakKeyDictionary[type[Policy], dict[str, int]] = weakref.WeakKeyDictionary()
_alive: list[Any] = []
_lock = threading.Lock()


def _renew_lock() -> None:
    """In a child after a fork: who held the lock may be a thread of the parent."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


def addresses(policy: type[Policy]) -> dict[str, int]:
    """Addresses of the compiled functions of a policy class by name (``weakest`` for keep), 0 for a hook that it lacks.

    Compiled once per class; instances with other parameters share the code.

    Raises:
        PolicyError: a function that numba cannot compile, or that returns the wrong type.
    """
    with _lock:
        if policy not in _compiled:
            _compiled[policy] = _compile(policy)
            freeze(policy)
        return _compiled[policy]


def functions(policy: type[Policy]) -> list[Callable[..., Any]]:
    """The plain functions of a policy class."""
    return [function for name in HOOKS[policy.kind] if (function := getattr(policy, name)) is not None]


def finder(keep: Callable[..., float]) -> Callable[..., int]:
    """The loop that finds the resident with the lowest ``keep``, with ``keep`` inside it."""
    def weakest(resident, marks, room, stats, state, params, now):  # type: ignore[no-untyped-def]
        """Ties go to the least recently used, then to the lowest id; experts with the present mark are protected.

        -1 where there is none, -2 - e where keep of expert e is NaN. ``room`` (E,) int64 is there to work in.
        """
        last_use, mark = stats.last_use, marks[-1]
        victim, lowest, n = -1, np.inf, 0
        for e in range(resident.size):      # first without a branch: which of them are resident nobody can guess
            room[n] = e
            n += resident[e] & (marks[e] != mark)
        for i in range(n):
            e = room[i]
            value = float(keep(e, stats, state, params, now))
            if value != value:
                return -2 - e
            if victim < 0 or value < lowest or (value == lowest and last_use[e] < last_use[victim]):
                victim, lowest = e, value
        return victim

    return weakest


def _compile(policy: type[Policy]) -> dict[str, int]:
    switches.refuse()
    found = {}
    for name in HOOKS[policy.kind]:
        function = getattr(policy, name)
        if function is None:
            found[name] = 0
            continue
        ours = (function.__module__ or "").startswith("moe_lab.")     # a cell run by exec has none
        checks = {"boundscheck": False, "debug": False} if ours else {"boundscheck": True}
        dispatcher = numba.njit(nogil=True, **checks)(function)
        if name == "keep":
            if not ours:
                _address(policy, function, dispatcher, "keep")      # an error should name keep, not the loop
            name, dispatcher = "weakest", numba.njit(nogil=True, debug=False)(finder(dispatcher))
        if ours:
            keep_on_disk(dispatcher, function)
        found[name] = _address(policy, function, dispatcher, name)
    return found


def _address(policy: type[Policy], function: Callable[..., Any], dispatcher: Any, name: str) -> int:
    signature = SIGNATURES[name]
    try:
        dispatcher.compile(signature)
    except NumbaError as error:
        raise PolicyError(_not_compiled(policy, function, name, error)) from error
    result = dispatcher.get_compile_result(signature)
    _alive.append(dispatcher)       # machine code must outlive every layer that calls it
    return int(result.library.get_pointer_to_function(result.fndesc.llvm_func_name))


def _not_compiled(policy: type[Policy], function: Callable[..., Any], name: str, error: NumbaError) -> str:
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    code = function.__code__
    lines = [int(n) for n in re.findall(rf"{re.escape(code.co_filename)}[\"']?,? \(?(?:line )?(\d+)", text)]
    line = next((n for n in lines if n > code.co_firstlineno), code.co_firstlineno)
    said = [row.strip() for row in text.splitlines() if row.strip()]
    noise = ("Failed in", "During", "File", "non-precise type", ">>>", "- Resolution", "There are", "Overload")
    reason = next((row for row in said if not row.startswith(noise)), said[0]).split(" for '$")[0]
    wanted = "a float" if name == "keep" else "nothing"
    return (f"policy {policy.name!r}: {place(function, line)} cannot be compiled: {reason}\n"
            f"numba compiles plain functions over numbers and arrays; this one must return {wanted}. Names from "
            "outside are frozen as they are when it is compiled.")


def place(function: Callable[..., Any], line: int | None = None) -> str:
    """Where a function stands, and the text of that line."""
    code = function.__code__
    line = _def_line(code.co_filename, code.co_firstlineno) if line is None else line
    text = linecache.getline(code.co_filename, line).strip()
    return f"{function.__name__} ({code.co_filename}, line {line}{f': {text}' if text else ''})"


def _def_line(file: str, first: int) -> int:
    """The line with ``def``: a function's first line is that of its first decorator."""
    line = first
    while (text := linecache.getline(file, line).strip()) and not text.startswith("def ") and "lambda" not in text:
        line += 1
    return line if text else first


def blamed(error: BaseException, policy: type[Policy]) -> str | None:
    """The place in a function of ``policy`` that the traceback of ``error`` points to, if it does."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        for function in functions(policy):
            code = function.__code__
            if frame.filename == code.co_filename and frame.name == function.__name__:
                return place(function, frame.lineno)
    return None


def raised(error: Exception, policies: tuple[type[Policy], ...], rerun: Callable[[], object]) -> PolicyError:
    """The PolicyError for an exception in compiled code. ``rerun`` repeats the work with the plain functions.

    numba carries the line of a ``raise``; for a division by zero or an index out of range the plain functions
    are asked, which fail at the same place. An exception that no policy can have caused is raised again as it is.
    """
    found = [(policy, at) for policy in policies if (at := blamed(error, policy))]
    if not found and _of_nobody(error):
        raise error
    if not found:
        try:
            with np.errstate(divide="raise"):       # NumPy's numbers would only warn
                rerun()
        except Exception as again:
            found = [(policy, at) for policy in policies if (at := blamed(again, policy))]
    what = f"{type(error).__name__}: {error}"
    if found:
        return PolicyError(f"policy {found[0][0].name!r}: {found[0][1]} raised {what}. Nothing was changed.")
    names = " or ".join(repr(policy.name) for policy in policies)
    at = "; ".join(place(function) for policy in policies for function in functions(policy))
    return PolicyError(f"policy {names} raised {what}. Its functions: {at}. Nothing was changed.")


def _of_nobody(error: Exception) -> bool:
    """Whether the machine ran short of something, or numba failed before any machine code was run."""
    numba_itself = os.path.dirname(numba.__file__) + os.sep
    return isinstance(error, (MemoryError, OSError, NumbaError)) or any(
        frame.filename.startswith(numba_itself) for frame in traceback.extract_tb(error.__traceback__))
