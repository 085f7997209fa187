"""What a policy class is, down to its code: a digest of its functions and of everything that they read.

Knows bytecode and what numba makes of a plain function: globals and closures are frozen when it is compiled, and so is
the digest then. Of what no digest can stand for (an object of one's own) it says so; whoever keeps results keeps none
of such a policy. Refuses to know what a policy decides.
"""

from __future__ import annotations

import dis
import enum
import functools
import secrets
import types
import weakref
from typing import TYPE_CHECKING, Any, NamedTuple

import numba
import numpy as np
from numba.core.caching import NullCache
from numba.core.dispatcher import Dispatcher

from moe_lab.digests import Stretch, digest, digests
from moe_lab.libraries import of_python
from moe_lab.parameters import Schedule

if TYPE_CHECKING:
    from moe_lab.policy import Policy

FUNCTIONS = ("rank", "keep", "touch", "left", "token")
"""What a policy class may have as functions that are compiled."""
PLAIN = ("name", "state_size", "columns", "needs")
"""What else it says of itself."""
_KINDS = frozenset({"moe_lab.policy", "moe_lab.routing.base", "moe_lab.eviction.base"})
_BY_NAME = frozenset({"numpy", "numba"})
"""Packages whose functions and classes are told by name, beside Python's own."""


class Code(NamedTuple):
    """A policy class as it runs."""

    digest: str
    strange: str
    """What the digest cannot stand for, in words; empty where it stands for all. It then holds in this process only."""


_frozen: weakref.WeakKeyDictionary[type[Policy], tuple[Any, list[str]]] = weakref.WeakKeyDictionary()
"""The functions of compiled classes as they were then, and what was strange in them."""
_helpers: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
"""What compiled helpers were when the first policy that calls them was compiled."""
_names: weakref.WeakKeyDictionary[type[Policy], str] = weakref.WeakKeyDictionary()
"""Of classes that have no digest."""


def code_of(cls: type[Policy]) -> Code:
    """The code of a policy class: its functions as they were compiled, or as they would be now.

    >>> from moe_lab.eviction import FIFO, LRU
    >>> code_of(LRU) == code_of(LRU) != code_of(FIFO)
    True
    """
    functions, strange = _frozen.get(cls) or _functions(cls, {})
    look = _Look({})
    parts = [[[key, repr(p)] for key, p in {**cls.parameters(), **cls.tables()}.items()],
             [look.value(key, getattr(cls, key, None)) for key in PLAIN], functions,
             [[key, look.value(key, value)] for key, value in sorted(own(cls).items())]]
    if strange := strange + look.strange:
        return Code(_names.setdefault(cls, secrets.token_hex(16)), strange[0])
    return Code(digest(parts), "")


def freeze(cls: type[Policy]) -> None:
    """Remember the functions of a class that is compiled now; what their globals become later changes nothing."""
    seen: dict[Any, Any] = {}
    _frozen[cls] = _functions(cls, seen)
    for helper, found in seen.items():
        _helpers.setdefault(helper, found)


def _functions(cls: type[Policy], helpers: dict[Any, Any]) -> tuple[Any, list[str]]:
    """The functions of a class as values, and what is strange in them; ``helpers`` gets those that they call."""
    look = _Look(helpers)
    return [look.value(key, getattr(cls, key, None)) for key in FUNCTIONS], look.strange


def policy_key(policy: Policy) -> list[Any]:
    """What a policy is, as plain values: kind, name, parameters, learned tables and the digest of its code.

    >>> from moe_lab.routing import MaxRank
    >>> policy_key(MaxRank(window=4))[:3]
    ['routing', 'max-rank', {'window': 4, 'keep_top': 1}]
    """
    values = {key: [list(step) for step in value.steps] if isinstance(value, Schedule) else value
              for key, value in policy.values().items()}
    return [policy.kind, policy.name, values, {key: list(getattr(policy, key)) for key in policy.tables()},
            code_of(type(policy)).digest]


def own(cls: type[Policy]) -> dict[str, Any]:
    """What a class does otherwise than its kind of policy does, as attributes; empty where it only declares."""
    known = {*cls.parameters(), *cls.tables(), *PLAIN, *FUNCTIONS}
    kind = next(base for base in cls.__mro__ if base.__module__ in _KINDS)
    found: dict[str, Any] = {}
    for base in reversed(cls.__mro__[: cls.__mro__.index(kind)]):
        found |= {key: value for key, value in vars(base).items() if key not in known and not key.startswith("__")}
    return found if any(hasattr(kind, key) for key in found) else {}


class _Look:
    """Values as JSON can hold them, functions by their code."""

    def __init__(self, helpers: dict[Any, Any]) -> None:
        self.strange: list[str] = []
        self._done: dict[types.FunctionType, str] = {}
        self._helpers = helpers

    def value(self, name: str, value: Any) -> Any:
        """A stand-in for what is called ``name``; where there is none, its name among the strange."""
        if value is None or isinstance(value, bool | int | float | complex | str | bytes | range | slice):
            return [type(value).__name__, repr(value)]
        if isinstance(value, np.ndarray | np.generic) and not np.asarray(value).dtype.hasobject:
            array = np.ascontiguousarray(value)
            return [str(array.dtype), list(np.shape(value)), digests([Stretch.of(array)])]
        if isinstance(value, tuple | list):
            return [type(value).__name__, [self.value(f"{name}[{i}]", one) for i, one in enumerate(value)]]
        if isinstance(value, dict):
            return [[self.value(name, key), self.value(f"{name}[{key!r}]", one)] for key, one in value.items()]
        if isinstance(value, set | frozenset):
            return sorted(digest(self.value(name, one)) for one in value)
        if isinstance(value, enum.Enum):
            return [str(value), self.value(name, value.value)]
        return self._code(name, value)

    def _code(self, name: str, value: Any) -> Any:
        """What has code, or is told by a name."""
        if isinstance(value, staticmethod | classmethod):
            return self.value(name, value.__func__)
        if isinstance(value, property):
            return [self.value(name, part) for part in (value.fget, value.fset)]
        if isinstance(value, functools.partial):
            return [self.value(name, part) for part in (value.func, value.args, value.keywords)]
        if isinstance(value, Dispatcher):
            return self._compiled(name, value)
        if isinstance(value, types.ModuleType):         # what is read in it has a line of its own
            return value.__name__
        if hasattr(value, "__qualname__") and (_root(value) in _BY_NAME or of_python(_root(value))):
            return f"{value.__module__}.{value.__qualname__}"
        if isinstance(value, np.dtype | np.ufunc | numba.types.Type):
            return str(value)
        if isinstance(value, types.FunctionType):
            return self._function(name, value)
        if isinstance(value, type) and issubclass(value, tuple) and hasattr(value, "_fields"):
            return [value.__qualname__, list(value._fields)]
        if isinstance(value, enum.EnumType):
            members: list[Any] = list(value)
            return [value.__qualname__, [self.value(name, one) for one in members]]
        kind = f"the class {value.__qualname__}" if isinstance(value, type) else f"a {type(value).__qualname__}"
        self.strange.append(f"{name} is {kind}, which no digest can stand for")
        return ""

    def _compiled(self, name: str, helper: Any) -> Any:
        """A function that numba compiles: its code, and how it is compiled."""
        if helper in _helpers:
            return _helpers[helper]
        if type(helper._cache) is not NullCache and _root(helper.py_func) != "moe_lab":
            self.strange.append(f"{name} is kept on disk by numba, which does not look whether what it reads has "
                                "changed; compile it without cache=True")
        signatures = [] if getattr(helper, "_can_compile", True) else sorted(map(str, helper.overloads))
        found = [self.value(name, helper.py_func), signatures,
                 [[key, str(one)] for key, one in sorted(helper.targetoptions.items())]]
        if not self.strange:
            self._helpers[helper] = found
        return found

    def _function(self, name: str, function: types.FunctionType) -> str:
        """Bytecode and defaults, and the globals and closures that are read."""
        if function in self._done:
            return self._done[function]
        self._done[function] = f"function {len(self._done)}"        # while it is looked at: it may call itself
        body = function.__code__
        cells = {key: cell.cell_contents for key, cell in zip(body.co_freevars, function.__closure__ or (), strict=True)
                 if cell != types.CellType()}
        around = {}
        for chain in sorted(_read(body)):
            if chain[0] in cells or chain[0] in function.__globals__:
                key, value = _end(chain, cells.get(chain[0], function.__globals__.get(chain[0])))
                around[key] = value.__name__ if key == "__class__" else value        # super() reads it
        found = [self._bytecode(name, body, function.__doc__), self.value(name, function.__defaults__),
                 self.value(name, function.__kwdefaults__),
                 [[key, self.value(f"{name} reads {key}: it", value)] for key, value in around.items()]]
        self._done[function] = digest(found)
        return self._done[function]

    def _bytecode(self, name: str, body: types.CodeType, doc: str | None = None) -> list[Any]:
        """Instructions, names and constants; a docstring does not steer."""
        constants = [self._bytecode(name, c) if isinstance(c, types.CodeType) else self.value(name, c)
                     for i, c in enumerate(body.co_consts) if i or c != doc or doc is None]
        return [body.co_code.hex(), body.co_exceptiontable.hex(), body.co_flags, body.co_argcount, list(body.co_names),
                list(body.co_freevars), list(body.co_cellvars), constants]


def _root(thing: Any) -> str:
    """The package in which a thing was made."""
    around = getattr(thing, "__globals__", None)
    home = getattr(thing, "__module__", None) if around is None else around.get("__name__")
    return str(home or "").partition(".")[0]


def _codes(body: types.CodeType) -> list[types.CodeType]:
    """A function's code and that of the functions in it."""
    return [body, *(code for c in body.co_consts if isinstance(c, types.CodeType) for code in _codes(c))]


def _read(body: types.CodeType) -> set[tuple[str, ...]]:
    """Names from outside that are read, each with the attributes that follow at once: ``np.exp`` is (np, exp)."""
    found: set[tuple[str, ...]] = set()
    for code in _codes(body):
        chain: tuple[str, ...] = ()
        for line in dis.get_instructions(code):
            if line.opname in ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_DEREF"):
                chain = (str(line.argval),)
            elif line.opname in ("LOAD_ATTR", "LOAD_METHOD") and chain:
                chain = (*chain, str(line.argval))
            elif line.opname != "EXTENDED_ARG":
                chain = ()
            found |= {chain} if chain else set()
    return found


def _end(chain: tuple[str, ...], value: Any) -> tuple[str, Any]:
    """Where a chain of names leaves the modules of other authors, and what is there."""
    at = 1
    while at < len(chain) and isinstance(value, types.ModuleType) and value.__name__.partition(".")[0] not in _BY_NAME:
        value = getattr(value, chain[at], None)
        at += 1
    return ".".join(chain[:at]), value
