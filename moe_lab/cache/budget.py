"""A cache budget in the words people use, turned into slots a layer.

Knows sizes; knows neither slots nor models beyond their ``ModelSpec``.
"""

from __future__ import annotations

import re

import psutil

from moe_lab.errors import BudgetError, SettingError
from moe_lab.spec import ModelSpec
from moe_lab.units import format_bytes, parse_bytes

HEADROOM = 0.8
"""Share of the free memory that a cache without a stated budget may take."""

_SLOTS = re.compile(r"\s*(\d+)\s*slots?\s*", re.IGNORECASE)
_SHARE = re.compile(r"\s*(\d*\.?\d+)\s*%\s*")


def slots_for(budget: int | str | None, spec: ModelSpec, format: str) -> int:
    """Slots a layer for a ``budget``: ``16``, ``"16 slots"``, ``"25%"`` of the experts, or bytes like ``"6 GiB"``.

    None means all experts if they fit into the free memory, else as many as fit. More slots than
    experts are cut to E. A budget under the floor raises ``BudgetError`` with the arithmetic.
    """
    E, size = spec.experts, spec.expert_bytes[format]
    if budget is None:
        slots = int(psutil.virtual_memory().available * HEADROOM) // (spec.L * size)
    elif isinstance(budget, bool) or not isinstance(budget, (int, str)):
        raise SettingError(f"cache={budget!r} is not a budget; type 16, '16 slots', '25%' or '6 GiB'")
    elif isinstance(budget, int):
        slots = budget
    elif match := _SLOTS.fullmatch(budget):
        slots = int(match.group(1))
    elif match := _SHARE.fullmatch(budget):
        slots = round(float(match.group(1)) / 100 * E)
    else:
        try:
            slots = parse_bytes(budget) // (spec.L * size)
        except SettingError:
            raise SettingError(
                f"cache={budget!r} is not a budget; type 16, '16 slots', '25%' of the experts, or bytes like '6 GiB'"
            ) from None
    if slots < spec.top_k:
        what = "the free memory" if budget is None else f"cache={budget!r}"
        raise BudgetError(
            f"{what} gives {slots} slots a layer, under the floor: one token needs {spec.top_k} experts in each of "
            f"{spec.L} layers at once, {spec.top_k} x {spec.L} x {size:,} bytes = "
            f"{format_bytes(spec.floor_bytes(format))} ({format}); type cache={spec.top_k} or more"
        )
    return min(slots, E)
