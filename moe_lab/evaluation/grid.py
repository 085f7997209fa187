"""From what a user types to the settings of a grid; all that can be refused is refused here, before any work.

Knows policies and sizes. Runs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from moe_lab.cache import slots_for
from moe_lab.engine.text import to_ids, window_of
from moe_lab.errors import BudgetError, SettingError
from moe_lab.evaluation.measure import Setting
from moe_lab.evaluation.naming import listed, one_name_one_policy
from moe_lab.eviction import EVICTION, LRU
from moe_lab.kernels.residency import LayerState
from moe_lab.policy import check_layers, resolve
from moe_lab.routing import ROUTING, Original

if TYPE_CHECKING:
    from moe_lab.engine import Engine


def grid(engine: Engine, routing: Any, eviction: Any, cache: Any) -> tuple[list[Setting], list[tuple[str, str]]]:
    """Settings in the order routing, eviction, cache, each once; and what is skipped, in words, with its reason.

    Raises:
        PolicyError: an unknown policy, one that does not compile, or two different ones under one name.
        SettingError: a lossy routing where routing policies are off, or an empty list.
        BudgetError: no size that reaches the floor.
    """
    spec = engine.spec
    routings = [resolve(one, ROUTING, "routing") for one in listed(routing)]
    evictions = [resolve(one, EVICTION, "eviction") for one in listed(eviction)]
    if not routings or not evictions or not listed(cache):
        raise SettingError("nothing to sweep: give at least one routing policy, one eviction policy and one cache size")
    for policies in (routings, evictions):
        one_name_one_policy(policies)
        for one in policies:
            check_layers(one, spec.L)
    for policy in routings:
        if policy.lossy and not engine.routes:
            raise SettingError(f"routing={policy!r}: routing policies are off for this model: {spec.routing}")
        LayerState.new(spec.experts, spec.top_k, spec.top_k, policy, LRU())      # compile, and refuse, now
    for rule in evictions:
        LayerState.new(spec.experts, spec.top_k, spec.top_k, Original(), rule)
    sizes: list[int] = []
    skipped: list[tuple[str, str]] = []
    for size in listed(cache):
        try:
            sizes.append(slots_for(size, spec, engine.format.name))
        except BudgetError as error:
            skipped.append((f"cache={size!r}", str(error)))
    if not sizes:
        raise BudgetError(skipped[0][1])
    settings = [Setting(r, e, size) for r in routings for e in evictions for size in sizes]
    return list(dict.fromkeys(settings)), skipped


def text_ids(engine: Engine, text: Any, window: int | None) -> tuple[list[int], int]:
    """Token ids and the window in force; a text must fill at least one window.

    Raises:
        SettingError: a window beyond the context, or a text that is shorter than a window.
    """
    ids = to_ids(text, engine.tokenizer, engine.vocabulary, "text")
    size = window_of(window, engine.spec.context)
    if len(ids) < size + 1:
        raise SettingError(f"the text has {len(ids):,} tokens and a window of {size:,} needs {size + 1:,} (the last "
                           f"one is only predicted); give a longer text, or type window={max(1, (len(ids) - 1) // 4)}")
    return ids, size
