"""How policies are written in tables, and which may stand side by side.

Knows policies. Knows no engine: replays come without one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from moe_lab.errors import PolicyError
from moe_lab.kernels.policy_code import code_of
from moe_lab.policy import Policy


def label(policy: Policy) -> str:
    """The name, with the parameters where they are not the defaults; a learned table as how many and a mark.

    >>> from moe_lab.routing import CachePrior
    >>> label(CachePrior()), label(CachePrior(penalty=0.3))
    ('cache-prior', 'cache-prior(penalty=0.3)')
    """
    values = policy.values()
    shown = [f"{key}={one.shown(values[key])}" for key, one in policy.parameters().items()
             if values[key] != one.default]
    shown += [f"{key}={table.shown(getattr(policy, key))}" for key, table in policy.tables().items()
              if getattr(policy, key) != table.default]
    return f"{policy.name}({', '.join(shown)})" if shown else policy.name


def one_name_one_policy(policies: Sequence[Policy]) -> None:
    """Refuse two different policies of one name; one with different parameters is the normal case.

    Raises:
        PolicyError: their rows could not be told apart.
    """
    known: dict[str, type[Policy]] = {}
    for policy in policies:
        other = known.setdefault(policy.name, type(policy))
        if other is not type(policy) and code_of(other) != code_of(type(policy)):
            raise PolicyError(f"two different {policy.kind} policies are called {policy.name!r} ({other.__module__} "
                              f"and {type(policy).__module__}); their rows could not be told apart: rename one")


def listed(one_or_more: Any) -> list[Any]:
    """A list of what may be one thing or several.

    >>> listed("lru"), listed(("lru", "fifo"))
    (['lru'], ['lru', 'fifo'])
    """
    several = (list, tuple, set, range)
    if isinstance(one_or_more, np.ndarray):
        one_or_more = one_or_more.tolist()          # of no axes: the number in it
    return list(one_or_more) if isinstance(one_or_more, several) else [one_or_more]
