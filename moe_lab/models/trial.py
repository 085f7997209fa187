"""Whether a configuration makes a model that runs: a pass through two layers of its skeleton, without memory.

Knows shapes and types, no numbers. What a setting of the wrong kind would break at the first token is so found before
the first weight is read.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import DynamicCache

from moe_lab.errors import CheckpointError, first_line
from moe_lab.models.find import experts_modules, loading, skeleton


def check_runs(bones: Any, name: str) -> None:
    """Raise ``CheckpointError`` where the skeleton ``bones`` fails, and one of its class's own settings does not.

    A model that cannot be tried, because its path depends on numbers, passes. The skeleton is cut to two layers by it,
    and its experts are gone.
    """
    fault = _fault(bones)
    if fault is not None and _fault_by_default(bones, name) is None:
        raise CheckpointError(f"the config.json of {name!r} makes a model that does not run: "
                              f"{type(fault).__name__}: {first_line(fault)}") from fault


def _fault_by_default(bones: Any, name: str) -> Exception | None:
    """What is wrong with a skeleton that has the settings its class begins with."""
    try:
        return _fault(skeleton(type(bones.config)(), name))
    except Exception as error:
        return error


def _fault(bones: Any) -> Exception | None:
    """What a pass of three tokens raises, where it does not return their logits; None where it cannot be tried."""
    experts = {module for _, module in experts_modules(bones)}
    for module in experts:
        module.forward = _nothing
    try:
        past = DynamicCache(config=bones.config)        # in memory, as a text begins
        if any(getattr(layer, "sliding_window", 1) < 1 for layer in past.layers):
            return ValueError("its attention looks at a window of no tokens (sliding_window)")
        layers = bones.base_model.layers
        sparse = next((layer for layer in layers if not experts.isdisjoint(layer.modules())), layers[0])
        bones.base_model.layers = nn.ModuleList(dict.fromkeys([layers[0], sparse]))
        with loading(), torch.device("meta"), torch.no_grad():
            ids = torch.zeros(1, 3, dtype=torch.long)
            out = bones(input_ids=ids, past_key_values=DynamicCache(config=bones.config), use_cache=True)
        return None if out.logits.shape[:2] == ids.shape else ValueError("it returns no logits of its tokens")
    except Exception as error:
        return None if "meta tensor" in str(error).lower() else error      # a number was asked for


def _nothing(x: torch.Tensor, *rest: Any, **more: Any) -> torch.Tensor:
    """In the place of experts."""
    return torch.empty_like(x)
