"""The contract of an eviction policy, and the decorator that makes one from a function.

Knows what an eviction policy is given and what it must answer. Refuses to know bytes and slots: it puts
a value on experts, the walk does the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, ClassVar, overload

from moe_lab.errors import PolicyError
from moe_lab.parameters import Declared
from moe_lab.policy import Policy, check_arguments, declared

KEEP = ("expert", "stats", "state", "params", "now")
TOUCH = ("expert", "weight", "hit", "stats", "state", "params", "now")
LEFT = ("expert", "stats", "state", "params", "now")
TOKEN = ("logits", "stats", "state", "params", "now")
_ARGUMENTS = {"keep": KEEP, "touch": TOUCH, "left": LEFT, "token": TOKEN}
_NEEDS = frozenset({"logits", "weights"})

Hook = Callable[..., None]


class EvictionPolicy(Policy):
    """Puts a value on each resident expert of one layer; the lowest leaves.

    A subclass gives ``keep(expert, stats, state, params, now) -> float``, a plain function that numba compiles:
    ``expert`` int, ``stats`` (``moe_lab.kernels.layout.Stats``), ``state`` (OWN + state_size,) float64, ``params``
    (P,) float64, ``now`` the tick, counted in expert uses. Ties go to the least recently used, then to the lowest
    id; experts chosen for the present token are protected; a NaN is an error. ``keep`` must not change anything.

    Optional, and free to write to ``stats.own`` and ``state[OWN:]``: ``touch(expert, weight, hit, ...)`` at each
    use, before room is made and before ``stats`` of the expert change; ``left(expert, ...)`` after it was evicted;
    ``token(logits, ...)`` once a token, before its experts are touched.
    """

    kind = "eviction"
    columns: ClassVar[int] = 0
    """Rows of its own in ``stats.own``, one number per expert each."""
    needs: ClassVar[frozenset[str]] = frozenset()
    """What a trace must hold to replay it: ``"weights"`` (gate weights), ``"logits"``."""
    keep: ClassVar[Callable[..., float]]
    touch: ClassVar[Hook | None] = None
    left: ClassVar[Hook | None] = None
    token: ClassVar[Hook | None] = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not hasattr(cls, "keep"):
            raise PolicyError(f"eviction policy {cls.name!r} needs a function keep({', '.join(KEEP)}) -> float")
        for hook, arguments in _ARGUMENTS.items():
            if (function := getattr(cls, hook)) is not None:
                check_arguments(function, arguments, cls.name)
        unknown = set(cls.needs) - _NEEDS
        if unknown:
            raise PolicyError(f"policy {cls.name!r} needs {sorted(unknown)}; a trace can only hold {sorted(_NEEDS)}")
        cls.needs = frozenset(cls.needs) | ({"logits"} if cls.token is not None else set())


@overload
def policy(function: Callable[..., float], /) -> type[EvictionPolicy]: ...
@overload
def policy(*, touch: Hook | None = None, left: Hook | None = None, token: Hook | None = None, columns: int = 0,
           state_size: int = 0, needs: Iterable[str] = (),
           **parameters: Declared) -> Callable[[Callable[..., float]], type[EvictionPolicy]]: ...


def policy(function: Callable[..., float] | None = None, /, *, touch: Hook | None = None, left: Hook | None = None,
           token: Hook | None = None, columns: int = 0, state_size: int = 0, needs: Iterable[str] = (),
           **parameters: Declared) -> type[EvictionPolicy] | Callable[[Callable[..., float]], type[EvictionPolicy]]:
    """Make an eviction policy class of a ``keep`` function, bare or with parameters and hooks.

    Args:
        touch, left, token: the optional functions of :class:`EvictionPolicy`.
        columns: rows of its own in ``stats.own``.
        state_size: floats of its own in ``state``, from ``OWN`` on.
        needs: ``"weights"`` where ``touch`` reads the gate weight.
        parameters: ``ml.Parameter`` or ``Table`` by name; ``params`` holds their numbers in this order, tables last.

    Example:
        >>> @policy
        ... def most_recent_leaves(expert, stats, state, params, now):
        ...     return -stats.last_use[expert]
        >>> most_recent_leaves().name
        'most-recent-leaves'
    """
    def made(keep: Callable[..., float]) -> type[EvictionPolicy]:
        hooks = {"touch": touch, "left": left, "token": token}
        body = {"keep": staticmethod(keep), "columns": columns, "state_size": state_size, "needs": frozenset(needs),
                **{key: hook if hook is None else staticmethod(hook) for key, hook in hooks.items()},
                **declared(parameters, keep.__name__),
                "__doc__": keep.__doc__, "__module__": keep.__module__ or "__main__", "__qualname__": keep.__qualname__}
        return type(keep.__name__, (EvictionPolicy,), body)

    return made if function is None else made(function)
