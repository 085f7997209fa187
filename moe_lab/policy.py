"""What every policy is: a name and frozen parameters that know their range, unit and meaning.

Knows how policies are named, set, compared and found; what a parameter may be stands in ``moe_lab.parameters``.
Refuses to know what a policy decides: the two kinds stand in ``moe_lab.routing`` and ``moe_lab.eviction``. All
state belongs to whoever runs a policy.
"""

from __future__ import annotations

import difflib
import inspect
import itertools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Self, TypeVar

import numpy as np

from moe_lab.errors import PolicyError
from moe_lab.parameters import ByLayer, Parameter, Schedule, Table

__all__ = ["Parameter", "Policy", "Schedule", "Table", "check_arguments", "check_layers", "declared", "resolve"]

P = TypeVar("P", bound="Policy")
D = TypeVar("D")


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

    def __init__(self, **values: Any) -> None:
        known = {**self.parameters(), **self.tables()}
        what = type(self).__name__
        for key in values:
            if key not in known:
                have = f"it has {_listed(_nearest_first(key, known))}" if known else "it has none"
                raise PolicyError(f"{what} has no parameter {key!r}; {have}")
        self.__dict__["_values"] = {key: p.accept(values[key], f"{key} of {what}") if key in values else p.default
                                    for key, p in self.parameters().items()}
        self.__dict__["_tables"] = {key: t.accept(values[key], f"{key} of {what}") if key in values else t.default
                                    for key, t in self.tables().items()}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" not in vars(cls):
            cls.name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", cls.__name__).replace("_", "-").lower()
        for key in (*cls.parameters(), *cls.tables()):
            if hasattr(Policy, key):
                raise PolicyError(f"a parameter cannot be called {key!r}: every policy has an attribute of that name")

    @classmethod
    def parameters(cls) -> dict[str, Parameter]:
        """Declared parameters by name, in the order in which functions see them in ``params``."""
        return _declared_in(cls, Parameter)

    @classmethod
    def tables(cls) -> dict[str, Table]:
        """Declared tables by name; their numbers follow the parameters in ``params``."""
        return _declared_in(cls, Table)

    @classmethod
    def summary(cls) -> str:
        """The first line of its documentation."""
        return next(iter((inspect.getdoc(cls) or "").splitlines()), "")

    def values(self) -> dict[str, Any]:
        """Values of the parameters by name, in declared order: numbers, unless one differs by layer or token."""
        return dict(self.__dict__["_values"])

    def replace(self, **changes: Any) -> Self:
        """The same policy with other values for some of its parameters or tables.

        Example:
            >>> from moe_lab.routing import CachePrior
            >>> CachePrior(penalty=0.2, keep_top=2).replace(penalty=0.5)
            CachePrior(penalty=0.5, keep_top=2)
        """
        return type(self)(**{**self.values(), **self.__dict__["_tables"], **changes})

    @property
    def plain(self) -> bool:
        """Whether every parameter is one number, for all layers and tokens."""
        return all(isinstance(value, (int, float)) for value in self.values().values())

    def at(self, layer: int, token: int = 0) -> Self:
        """The policy with the numbers that hold for one layer and for its tokens from ``token`` on.

        Example:
            >>> from moe_lab.routing import CachePrior
            >>> CachePrior(penalty=[0.1, 0.5]).at(layer=1)
            CachePrior(penalty=0.5, keep_top=1)
        """
        if self.plain:
            return self
        return self.replace(**{key: value if isinstance(value, (int, float)) else value.at(layer, token)
                               for key, value in self.values().items()})

    def pieces(self, layer: int, token: int, tokens: int) -> Iterator[tuple[int, int, Self]]:
        """Stretches (first, end, policy) of the next ``tokens`` tokens of a layer that has seen ``token`` of them.

        Within one every parameter is one number; a walk of them in order, each with its policy, follows a schedule.

        Example:
            >>> from moe_lab.routing import CachePrior
            >>> list(CachePrior(penalty=Schedule({0: 0, 100: 0.5})).pieces(layer=0, token=90, tokens=64))
            [(0, 10, CachePrior(penalty=0, keep_top=1)), (10, 64, CachePrior(penalty=0.5, keep_top=1))]
        """
        changes = {change - token for value in self.values().values() if isinstance(value, Schedule)
                   for change in value.changes(token, token + tokens)}
        cuts = [0, *sorted(changes), tokens]
        for first, end in itertools.pairwise(cuts):
            yield first, end, self.at(layer, token + first)

    def span(self, key: str) -> tuple[float, float]:
        """The smallest and the largest number that a parameter takes, over all layers and tokens."""
        value = self.values()[key]
        return (value, value) if isinstance(value, (int, float)) else (min(value.numbers()), max(value.numbers()))

    def vector(self) -> np.ndarray:
        """Values, then tables, (P,) float64, as the policy's functions receive them.

        Raises:
            PolicyError: a parameter differs by layer or by token; ask :meth:`at` first.
        """
        if not self.plain:
            raise PolicyError(f"{self!r} differs by layer or token; type policy.at(layer, token).vector()")
        numbers = [*self.values().values()]
        for table in self.__dict__["_tables"].values():
            numbers += table
        return np.array(numbers, dtype=np.float64)

    def __setattr__(self, key: str, value: object) -> None:
        hint = f"; make a new one: {type(self).__name__}({key}={value!r})" if key in self.parameters() else ""
        raise PolicyError(f"a policy is frozen: {key} of {self!r} cannot be set{hint}")

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and other.__dict__ == self.__dict__

    def __hash__(self) -> int:
        return hash((type(self), *self.values().items(), *self.__dict__["_tables"].items()))

    def __repr__(self) -> str:
        values, given = self.values(), self.__dict__["_tables"]
        shown = [f"{key}={p.shown(values[key])}" for key, p in self.parameters().items()
                 if not (p.rare and values[key] == p.default)]
        tables = [f"{key}={t.shown(given[key])}" for key, t in self.tables().items() if given[key] != t.default]
        return f"{type(self).__name__}({', '.join([*shown, *tables])})"


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


def check_layers(policy: Policy, L: int, what: str = "model") -> None:
    """Raise a PolicyError unless every parameter that is given by layer has ``L`` numbers, one for each of ``what``."""
    for key, value in policy.values().items():
        if isinstance(value, ByLayer) and len(value) != L:
            fitting = ByLayer([*value, *[value[-1]] * L][:L])
            raise PolicyError(f"{key} of {type(policy).__name__} is given for {len(value)} layers, and the {what} has "
                              f"{L} MoE layers; type one number for each, such as {key}={fitting:g}, or one for all, "
                              f"such as {key}={value[0]:g}")


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


def declared(parameters: Mapping[str, object], owner: str) -> dict[str, Parameter | Table]:
    """``parameters``, or a PolicyError for one that is neither a :class:`Parameter` nor a :class:`Table`."""
    found: dict[str, Parameter | Table] = {}
    for key, value in parameters.items():
        if not isinstance(value, (Parameter, Table)):
            raise PolicyError(f"policy {owner!r}: {key} must be an ml.Parameter(default, low, high), not {value!r}")
        found[key] = value
    return found


def _declared_in(cls: type, kind: type[D]) -> dict[str, D]:
    found: dict[str, D] = {}
    for base in reversed(cls.__mro__):
        found.update({key: value for key, value in vars(base).items() if isinstance(value, kind)})
    return found


def _nearest_first(name: str, known: Mapping[str, Any]) -> list[str]:
    def unlike(other: str) -> float:
        return -difflib.SequenceMatcher(None, name.lower().replace("_", "-"), other).ratio()

    return sorted(known, key=unlike)


def _listed(names: Sequence[str] | Mapping[str, Any]) -> str:
    return ", ".join(repr(name) for name in names)
