"""A cache budget in the words people use, turned into slots a layer.

Knows sizes; knows neither slots nor models beyond their ``ModelSpec``.
"""

from __future__ import annotations

import re

from moe_lab.cache.memory import free_memory
from moe_lab.errors import BudgetError, SettingError
from moe_lab.spec import ModelSpec
from moe_lab.units import format_bytes, parse_bytes, whole_number

HEADROOM = 0.8
"""Share of the free memory that an engine without a stated budget may take."""
PAST_TOKENS = 4096
"""Tokens whose keys and values are counted beside the slots; a longer text asks for more when it comes to it."""

_SLOTS = re.compile(r"\s*(\d+)\s*slots?\s*", re.IGNORECASE)
_SHARE = re.compile(r"\s*(\d*\.?\d+)\s*%\s*")


def slots_for(budget: int | str | None, spec: ModelSpec, format: str, beside: int = 0) -> int:
    """Slots a layer for a ``budget``: ``16``, ``"16 slots"``, ``"25%"`` of the experts, or bytes like ``"6 GiB"``.

    None means all experts if they fit into the free memory with all that stands ``beside`` them (bytes), else as many
    as fit. More slots than experts are cut to E. A budget under the floor raises ``BudgetError`` with the arithmetic.
    """
    E, size = spec.experts, spec.expert_bytes[format]
    if budget is None:
        slots = max(0, int(free_memory().nbytes * HEADROOM) - beside) // (spec.L * size)
    elif (whole := whole_number(budget)) is not None:
        slots = whole
    elif not isinstance(budget, str):
        raise SettingError(f"cache={budget!r} is not a budget; type 16, '16 slots', '25%' or '6 GiB'")
    elif match := _SLOTS.fullmatch(budget):
        slots = int(match.group(1))
    elif match := _SHARE.fullmatch(budget):
        slots = round(min(float(match.group(1)), 100) / 100 * E)
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


def beside_slots(spec: ModelSpec, dense: str, experts: int, format: str) -> int:
    """Bytes that an engine needs beside its slots: the dense part as it is loaded, in ``"f32"`` or ``"bf16"``, keys and
    values of ``PAST_TOKENS`` tokens, and room for ``experts`` that pass through."""
    share = _NUMBER_BYTES[dense] / _NUMBER_BYTES[spec.dtype]
    past = min(PAST_TOKENS, spec.context) * spec.past_bytes
    return round((spec.dense_bytes + past) * share) + experts * spec.expert_bytes[format]


def check_memory(slots: int, spec: ModelSpec, format: str, beside: int, held: int = 0) -> None:
    """Raise ``BudgetError`` unless ``slots`` a layer, and what stands ``beside`` them, fit into what is free and what
    is ``held`` already (bytes)."""
    layer, free = spec.L * spec.expert_bytes[format], free_memory()
    room = free.nbytes + held
    if slots * layer + beside <= room:
        return
    fit = (room - beside) // layer
    what = (f"type cache={min(fit, spec.experts)} or less" if fit >= spec.top_k else
            "not even the floor fits: end other programs, or take smaller weights, such as weights='q4'")
    others = f" and {format_bytes(beside)} for the dense part, keys and values" if beside else ""
    present = ", the present slots included" if held else ""
    raise BudgetError(f"{slots} slots in each of {spec.L} layers take {format_bytes(slots * layer)} ({format})"
                      f"{others}, and {format_bytes(room)} are free {free.of}{present}; {what}")


_NUMBER_BYTES = {"f32": 4, "bf16": 2}
