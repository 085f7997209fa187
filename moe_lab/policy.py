"""What every policy is: a name and frozen parameters that know their range, unit and meaning.

Knows how policies are named, set, compared and found. Refuses to know what a policy decides: the two
kinds stand in ``moe_lab.routing`` and ``moe_lab.eviction``. All state belongs to whoever runs a policy.
"""

from __future__ import annotations

import difflib
import inspect
import math
import numbers
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self, TypeVar, overload

import numpy as np

from moe_lab.errors import PolicyError

P = TypeVar("P", bound="Policy")


@dataclass(frozen=True)
class Parameter:
    """A number that a policy can be set to; declared as a class attribute, so that a slider can be drawn for it.

    Args:
        default: the value where none is given.
        low: the least value allowed.
        high: the end of a slider, and the largest value allowed unless ``open_ended``.
        unit: such as ``"uses"``; empty for a plain number.
        doc: one line on what it does.
        integer: only whole numbers.
        open_ended: values above ``high`` are allowed.

    Example:
        >>> Parameter(64, 1, 4096, unit="uses", doc="uses until a use counts half")
        Parameter(64, 1, 4096, unit='uses', doc='uses until a use counts half')
    """

    default: float
    low: float
    high: float
    unit: str = ""
    doc: str = ""
    integer: bool = False
    open_ended: bool = False
    name: str = field(default="", init=False, compare=False)

    def __post_init__(self) -> None:
        if not all(math.isfinite(x) for x in (self.default, self.low, self.high)) or self.low > self.high:
            raise PolicyError(f"a Parameter needs finite numbers with low <= high, not {self!r}")
        object.__setattr__(self, "default", self.check(self.default, "the default"))

    def __set_name__(self, owner: type, name: str) -> None:
        object.__setattr__(self, "name", name)

    @overload
    def __get__(self, policy: None, owner: type) -> Self: ...
    @overload
    def __get__(self, policy: Policy, owner: type) -> Any: ...

    def __get__(self, policy: Policy | None, owner: type) -> Any:
        return self if policy is None else policy.values()[self.name]

    def check(self, value: object, asked: str) -> float:
        """``value`` as a float (an int where ``integer``), or a PolicyError that names ``asked`` and the range."""
        span = f"from {self.low:g}" + ("" if self.open_ended else f" to {self.high:g}")
        span = f"{'a whole number' if self.integer else 'a number'} {span}{' ' + self.unit if self.unit else ''}"
        if isinstance(value, (bool, np.bool_)) or not isinstance(value, numbers.Real):
            raise PolicyError(f"{asked} must be {span}, not {value!r}")
        number = float(value)
        inside = math.isfinite(number) and number >= self.low and (self.open_ended or number <= self.high)
        if not inside or (self.integer and number != int(number)):
            raise PolicyError(f"{asked} must be {span}, not {value!r}")
        return int(number) if self.integer else number

    def __repr__(self) -> str:
        optional = ("unit", "doc", "integer", "open_ended")
        more = [f"{key}={getattr(self, key)!r}" for key in optional if getattr(self, key)]
        return f"Parameter({', '.join([f'{self.default:g}', f'{self.low:g}', f'{self.high:g}', *more])})"


class Policy:
    """Frozen parameters and the functions that read them. Equal when class and values are.

    Raises:
        PolicyError: a keyword that is no parameter of the class, or a value outside its range.
    """

    kind: ClassVar[str] = ""
    """``routing`` or ``eviction``."""
    name: ClassVar[str] = ""
    """How it is typed: lower case with hyphens, made from the class's name where none is given."""
    state_size: ClassVar[int] = 0
    """Floats of its own in the state vector, from ``OWN`` on."""

    def __init__(self, **values: float) -> None:
        known = self.parameters()
        for key in values:
            if key not in known:
                have = f"it has {_listed(_nearest_first(key, known))}" if known else "it has none"
                raise PolicyError(f"{type(self).__name__} has no parameter {key!r}; {have}")
        what = type(self).__name__
        object.__setattr__(self, "_values", {
            key: p.check(values[key], f"{key} of {what}") if key in values else p.default for key, p in known.items()
        })

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" not in vars(cls):
            cls.name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", cls.__name__).replace("_", "-").lower()
        for key in cls.parameters():
            if hasattr(Policy, key):
                raise PolicyError(f"a parameter cannot be called {key!r}: every policy has an attribute of that name")

    @classmethod
    def parameters(cls) -> dict[str, Parameter]:
        """Declared parameters by name, in the order in which functions see them in ``params``."""
        found: dict[str, Parameter] = {}
        for base in reversed(cls.__mro__):
            found.update({key: value for key, value in vars(base).items() if isinstance(value, Parameter)})
        return found

    @classmethod
    def summary(cls) -> str:
        """The first line of its documentation."""
        return next(iter((inspect.getdoc(cls) or "").splitlines()), "")

    def values(self) -> dict[str, float]:
        """Values by name, in declared order."""
        return dict(self.__dict__["_values"])

    def vector(self) -> np.ndarray:
        """The values (P,) float64, as the policy's functions receive them."""
        return np.array(list(self.values().values()), dtype=np.float64)

    def __setattr__(self, key: str, value: object) -> None:
        hint = f"; make a new one: {type(self).__name__}({key}={value!r})" if key in self.parameters() else ""
        raise PolicyError(f"a policy is frozen: {key} of {self!r} cannot be set{hint}")

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.values() == self.values()

    def __hash__(self) -> int:
        return hash((type(self), *self.values().items()))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{key}={value:.6g}' for key, value in self.values().items())})"


def resolve(thing: str | P | type[P], table: Mapping[str, type[P]], kind: str) -> P:
    """The policy meant by a name, a class (its defaults) or an instance.

    Args:
        table: names and classes, such as ``EVICTION``.
        kind: ``"routing"`` or ``"eviction"``.

    Raises:
        PolicyError: an unknown name (the known ones are listed, nearest first) or a thing of another kind.
    """
    if isinstance(thing, str):
        if thing not in table:
            raise PolicyError(f"unknown {kind} policy {thing!r}; known are {_listed(_nearest_first(thing, table))}")
        return table[thing]()
    policy: Any = thing() if isinstance(thing, type) and issubclass(thing, Policy) else thing
    if isinstance(policy, Policy):
        if policy.kind != kind:
            raise PolicyError(f"{policy!r} is a policy of the kind {policy.kind!r}, where one for {kind} is wanted")
        return policy  # type: ignore[return-value]
    hint = f"; put @ml.{kind}.policy above the function" if callable(thing) else ""
    raise PolicyError(f"a {kind} policy is a name ({_listed(table)}), a policy or its class, not {thing!r}{hint}")


def check_arguments(function: Callable[..., Any], wanted: Sequence[str], owner: str) -> None:
    """Raise a PolicyError unless ``function`` takes as many positional arguments as ``wanted`` names."""
    code = getattr(function, "__code__", None)
    if code is None:
        raise PolicyError(f"policy {owner!r}: {function!r} is not a plain Python function")
    if code.co_argcount != len(wanted) or code.co_kwonlyargcount or code.co_flags & (
            inspect.CO_VARARGS | inspect.CO_VARKEYWORDS):
        raise PolicyError(
            f"policy {owner!r}: {function.__name__} must be def {function.__name__}({', '.join(wanted)}), "
            f"it takes {code.co_argcount} arguments ({code.co_filename}, line {code.co_firstlineno})")


def declared(parameters: Mapping[str, object], owner: str) -> dict[str, Parameter]:
    """``parameters``, or a PolicyError for one that is no :class:`Parameter`."""
    found: dict[str, Parameter] = {}
    for key, value in parameters.items():
        if not isinstance(value, Parameter):
            raise PolicyError(f"policy {owner!r}: {key} must be an ml.Parameter(default, low, high), not {value!r}")
        found[key] = value
    return found


def _nearest_first(name: str, known: Mapping[str, Any]) -> list[str]:
    def unlike(other: str) -> float:
        return -difflib.SequenceMatcher(None, name.lower().replace("_", "-"), other).ratio()

    return sorted(known, key=unlike)


def _listed(names: Sequence[str] | Mapping[str, Any]) -> str:
    return ", ".join(repr(name) for name in names)
