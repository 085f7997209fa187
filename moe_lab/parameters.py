"""What a policy can be set to: numbers with a range, lists by layer, schedules over tokens, learned tables.

Knows how a value is checked, written and looked up for a layer and a token. Refuses to know policies.
"""

from __future__ import annotations

import bisect
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self, overload

import numpy as np

from moe_lab.errors import PolicyError
from moe_lab.units import real_number, whole_number


class ByLayer(tuple[float, ...]):
    """One number a layer; what a list given for a parameter becomes.

    Example:
        >>> f"{ByLayer([0.1, 0.25]):g}", ByLayer([0.1, 0.25]).at(layer=1, token=0)
        ('[0.1, 0.25]', 0.25)
    """

    def at(self, layer: int, token: int) -> float:
        """The number of a layer.

        Raises:
            PolicyError: more layers than numbers.
        """
        if not 0 <= layer < len(self):
            raise PolicyError(f"a parameter by layer has {len(self)} numbers, for layers 0 to {len(self) - 1}; there "
                              f"is none for layer {layer}: give one number for every MoE layer of the model")
        return self[layer]

    def numbers(self) -> tuple[float, ...]:
        """All of them."""
        return tuple(self)

    def __format__(self, spec: str) -> str:
        return f"[{', '.join(format(value, spec) for value in self)}]"


@dataclass(frozen=True, init=False)
class Schedule:
    """A parameter that follows the tokens a layer has seen: from each of these tokens on, this number.

    Args:
        steps: token and number, beginning with token 0. Between two of them the earlier number holds.

    Raises:
        PolicyError: no number for token 0, or a token that is no whole number from 0.

    Example:
        >>> ramp = Schedule({0: 0, 256: 0.25, 512: 0.5})
        >>> ramp.at(layer=0, token=300), f"{ramp:g}"
        (0.25, 'Schedule({0: 0, 256: 0.25, 512: 0.5})')
    """

    steps: tuple[tuple[int, float], ...]

    def __init__(self, steps: Mapping[int, float] | Iterable[tuple[int, float]]) -> None:
        try:
            pairs = [(whole_number(token), value)
                     for token, value in (steps.items() if isinstance(steps, Mapping) else steps)]
        except (TypeError, ValueError):         # not iterable, or no pairs
            pairs = []
        counted = sorted(((token, value) for token, value in pairs if token is not None), key=lambda pair: pair[0])
        tokens = [token for token, _ in counted]
        if not counted or tokens[0] != 0 or len(set(tokens)) < len(pairs):
            raise PolicyError(f"a schedule gives a number from token 0 on and from later tokens on, such as "
                              f"Schedule({{0: 0.0, 256: 0.5}}), not {steps!r}")
        object.__setattr__(self, "steps", tuple(counted))

    def at(self, layer: int, token: int) -> float:
        """The number that holds at ``token``."""
        return self.steps[bisect.bisect_right([first for first, _ in self.steps], token) - 1][1]

    def changes(self, start: int, end: int) -> list[int]:
        """Tokens after ``start`` and before ``end`` from which another number holds."""
        return [token for token, _ in self.steps if start < token < end]

    def numbers(self) -> tuple[float, ...]:
        """All numbers it takes."""
        return tuple(value for _, value in self.steps)

    def __format__(self, spec: str) -> str:
        return f"Schedule({{{', '.join(f'{token}: {format(value, spec)}' for token, value in self.steps)}}})"

    def __repr__(self) -> str:
        return format(self, ".6g")


Value = float | ByLayer | Schedule
_COUNTED = 2**31
"""No whole number reaches it: policies make ints of their parameters, and one beyond 64 bits would be any number."""


@dataclass(frozen=True)
class Parameter:
    """A number that a policy can be set to; declared as a class attribute, so that a slider can be drawn for it.

    A list sets it layer by layer, a :class:`Schedule` token by token.

    Args:
        default: the value where none is given.
        low: the least value allowed.
        high: the end of a slider, and the largest value allowed unless ``open_ended``.
        unit: such as ``"uses"``; empty for a plain number.
        doc: one line on what it does.
        integer: only whole numbers.
        open_ended: values above ``high`` are allowed.
        words: words that may be typed for certain numbers, which need not be in the range.
        rare: left out where a policy is written, while it has its default.

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
    words: Mapping[str, float] = field(default_factory=dict, hash=False)
    rare: bool = False
    name: str = field(default="", init=False, compare=False)

    def __post_init__(self) -> None:
        asked = (self.default, self.low, self.high)
        if any(real_number(x) is None for x in asked) or self.low > self.high:
            raise PolicyError(f"a Parameter needs finite numbers with low <= high, not Parameter{asked!r}")
        for key in ("low", "high"):             # plain numbers, whatever kind was given
            whole = whole_number(getattr(self, key))
            object.__setattr__(self, key, real_number(getattr(self, key)) if whole is None else whole)
        object.__setattr__(self, "default", self.check(self.default, "the default"))

    def __set_name__(self, owner: type, name: str) -> None:
        object.__setattr__(self, "name", name)

    @overload
    def __get__(self, policy: None, owner: type) -> Self: ...
    @overload
    def __get__(self, policy: Any, owner: type) -> Any: ...

    def __get__(self, policy: Any, owner: type) -> Any:
        return self if policy is None else policy.values()[self.name]

    def check(self, value: object, asked: str) -> float:
        """``value`` as a float (an int where ``integer``), or a PolicyError that names ``asked`` and the range."""
        span = f"from {self.low:g}" + ("" if self.open_ended else f" to {self.high:g}")
        span = f"{'a whole number' if self.integer else 'a number'} {span}{' ' + self.unit if self.unit else ''}"
        if self.words:
            span += f", or {', '.join(map(repr, self.words))}"
        if isinstance(value, str) and value in self.words:
            return self.words[value]
        number = real_number(value)
        if number is None or (self.integer and number != int(number)):
            raise PolicyError(f"{asked} must be {span}, not {value!r}")
        inside = self.low <= number and (self.open_ended or number <= self.high)
        if not (inside or number in self.words.values()):
            raise PolicyError(f"{asked} must be {span}, not {value!r}")
        if self.integer and abs(number) >= _COUNTED:
            raise PolicyError(f"{asked} must be {span}, below 2^31; {value!r} is more than anything counts")
        return int(number) if self.integer else number

    def accept(self, value: object, asked: str) -> Value:
        """As :meth:`check`; also a list of such numbers, one a layer, and a :class:`Schedule` of them."""
        if isinstance(value, Schedule):
            return Schedule([(token, self.check(number, f"{asked} from token {token} on"))
                             for token, number in value.steps])
        if isinstance(value, (list, tuple)) or (isinstance(value, np.ndarray) and value.ndim):
            if not len(value):
                raise PolicyError(f"{asked} by layer needs one number for every MoE layer, not an empty list")
            return ByLayer([self.check(number, f"{asked} in layer {layer}") for layer, number in enumerate(value)])
        return self.check(value, asked)

    def shown(self, value: Value) -> str:
        """``value`` as it can be typed."""
        for word, number in self.words.items():
            if value == number:
                return repr(word)
        return f"{value:.6g}"

    def __repr__(self) -> str:
        optional = ("unit", "doc", "integer", "open_ended", "words", "rare")
        more = [f"{key}={getattr(self, key)!r}" for key in optional if getattr(self, key)]
        return f"Parameter({', '.join([f'{self.default:g}', f'{self.low:g}', f'{self.high:g}', *more])})"


class Table:
    """A row of numbers that a policy has learned, such as the weights of a network; declared as a class attribute.

    A policy's functions find its numbers in ``params``, after all parameters. No slider is drawn for it.

    Args:
        default: its numbers before anything was learned; all tables given for it have as many.
        doc: one line on what it holds.

    Raises:
        PolicyError: no numbers, or one that is not finite.

    Example:
        >>> Table([0.0] * 4, doc="distance to the next use, by age")
        Table(4 numbers, doc='distance to the next use, by age')
    """

    def __init__(self, default: Iterable[float], doc: str = "") -> None:
        self.default: tuple[float, ...] = ()
        self.default = self._finite(default, "the default of a Table")
        self.doc, self.name = doc, ""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, policy: Any, owner: type) -> Any:
        return self if policy is None else policy.__dict__["_tables"][self.name]

    def accept(self, values: Any, asked: str) -> tuple[float, ...]:
        """``values`` as a tuple of floats, or a PolicyError that names ``asked`` and how many are wanted."""
        return self._finite(values, asked)

    def _finite(self, values: Any, asked: str) -> tuple[float, ...]:
        wanted = len(self.default)
        try:
            array = np.array(list(values) if not isinstance(values, np.ndarray) else values)
        except (TypeError, ValueError):
            raise PolicyError(f"{asked} must be a row of {wanted or 'finite'} numbers, not {values!r}") from None
        if array.dtype.kind not in "iuf":
            raise PolicyError(f"{asked} must be a row of {wanted or 'finite'} numbers, not {values!r}")
        array = array.astype(np.float64)
        if array.ndim != 1 or not array.size or (wanted and array.size != wanted) or not np.isfinite(array).all():
            raise PolicyError(f"{asked} must be a row of {f'{wanted} ' if wanted else ''}finite numbers, not an array "
                              f"{array.shape} with {int((~np.isfinite(array)).sum())} that are not finite")
        return tuple(array.tolist())

    def shown(self, values: tuple[float, ...]) -> str:
        """How many numbers, and a mark that tells two tables apart."""
        mark = hashlib.blake2b(np.array(values).tobytes(), digest_size=3).hexdigest()
        return f"<{len(values)} numbers, {mark}>"

    def __repr__(self) -> str:
        return f"Table({len(self.default)} numbers{f', doc={self.doc!r}' if self.doc else ''})"


Declared = Parameter | Table
"""What a policy class declares."""
