"""Finding the mixture-of-experts blocks of a transformers model, whatever its family.

Knows the marks that transformers leaves on every experts module. Knows no family by name and no weight:
it looks at a skeleton without memory (the meta device). What it cannot run it refuses with the reason.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AutoConfig, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from moe_lab.errors import CheckpointError, SettingError, UnsupportedModelError, foreign
from moe_lab.kernels.activation import TWINS
from moe_lab.store.look import require, unfinished


@dataclass(frozen=True)
class Block:
    """One MoE block: where its experts and its router hang in the model, and their sizes."""

    layer: int
    """Its place among all layers of the model."""
    experts: str
    """Name of the experts module."""
    router: str | None
    """Name of the router module, None where none was found."""
    E: int
    D: int
    F: int
    activation: str


def read_config(folder: Path, name: str) -> PreTrainedConfig:
    """The configuration in ``folder``; ``CheckpointError`` or ``UnsupportedModelError`` says what is wrong with it."""
    path = folder / "config.json"
    if os.path.isfile(folder / "adapter_config.json"):
        raise UnsupportedModelError(
            f"{name!r} holds an adapter (adapter_config.json), which transformers would apply where peft is installed; "
            f"merge it first: peft.AutoPeftModelForCausalLM.from_pretrained({str(folder)!r}).merge_and_unload()"
            f".save_pretrained({f'{folder}-merged'!r})"
        )
    if not os.path.lexists(path):
        raise CheckpointError(f"{name!r} has no config.json: {folder} is no checkpoint folder of transformers"
                              f"{unfinished(folder)}")
    require(path)
    with foreign(f"{path} cannot be read"):
        _check_counts(json.loads(path.read_text("utf-8")), path)
        try:
            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except (ValueError, KeyError) as error:
            if "does not recognize this architecture" not in str(error) and "trust_remote_code" not in str(error):
                raise
            raise UnsupportedModelError(
                f"{name!r} is of a family that transformers {transformers.__version__} does not know; MoE Lab runs the "
                f"families of that release and never code that comes with a checkpoint"
            ) from error
    _check_unquantised(config, name)
    return config


def _check_counts(raw: Any, path: Path) -> None:
    """Refuse numbers that transformers would count to for ever."""
    if not isinstance(raw, dict):
        raise CheckpointError(f"{path} is no configuration: it holds no table of settings")
    for key, value in raw.items():
        if isinstance(value, dict):
            _check_counts(value, path)
        elif _COUNTED.search(key) and isinstance(value, int | float) and value > _MOST_COUNTED:
            raise CheckpointError(f"{path} says {key} = {value:.4g}, and no model has so many")


def _check_unquantised(config: PreTrainedConfig, name: str) -> None:
    quantised = getattr(config, "quantization_config", None)
    if quantised is not None:
        settings = quantised if isinstance(quantised, dict) else getattr(quantised, "__dict__", {})
        method = settings.get("quant_method", "method unknown")
        raise UnsupportedModelError(f"{name!r} is quantised ({method}); MoE Lab reads float32, float16 and bfloat16 "
                                    f"checkpoints: take the unquantised one")


_COUNTED = re.compile(r"(^|_)(layers?|labels)$")
"""Names of settings that transformers makes a list from, one element for each number."""
_MOST_COUNTED = 1 << 16


def model_class(config: PreTrainedConfig, name: str) -> type[Any]:
    """The language model class of a configuration."""
    if sys.flags.optimize > 1:
        raise SettingError("Python runs without docstrings (-OO, PYTHONOPTIMIZE=2), and transformers makes its models "
                           "with them; take -O, or neither")
    found: Any = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    classes = found if isinstance(found, tuple) else (found,)
    if classes[0] is None:
        raise UnsupportedModelError(f"{name!r} ({config.model_type}) is no causal language model of transformers")
    return classes[0]


def skeleton(config: PreTrainedConfig, name: str) -> Any:
    """The whole model on the meta device: names and shapes, no memory."""
    base = model_class(config, name)
    with foreign(f"the config.json of {name!r} does not make a {base.__name__}"), torch.device("meta"), loading():
        return base(config)


_LOADING = threading.RLock()
if hasattr(os, "register_at_fork"):
    # A fork waits for a load to end: what transformers changes for its length would stay changed in the child.
    os.register_at_fork(before=_LOADING.acquire, after_in_parent=_LOADING.release, after_in_child=_LOADING.release)


@contextlib.contextmanager
def loading() -> Iterator[None]:
    """Let transformers build and load: one thread at a time, since it changes what all of them see meanwhile; its log
    kept to errors, its progress bars away."""
    with _LOADING:
        log = logging.getLogger("transformers")
        level, bars = log.level, transformers.logging.is_progress_bar_enabled()
        log.setLevel(logging.ERROR)
        transformers.logging.disable_progress_bar()
        try:
            yield
        finally:
            log.setLevel(level)
            if bars:
                transformers.logging.enable_progress_bar()


def past_numbers(config: Any) -> int:
    """Numbers that one token leaves in the cache of keys and values, as far as the configuration tells."""
    heads = int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
    width = int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
    return 2 * int(config.num_hidden_layers) * heads * width


def experts_modules(model: Any) -> list[tuple[str, Any]]:
    """(name, module) of everything that transformers has marked as experts."""
    return [(name, module) for name, module in model.named_modules()
            if hasattr(module, "is_concatenated") and hasattr(module, "_is_expert_parallel")]


def find_blocks(model: Any, name: str) -> list[Block]:
    """All MoE blocks in the order of their layers.

    Raises ``UnsupportedModelError`` for a dense model and for experts of a form that the kernels do not have.
    """
    found = experts_modules(model)
    family = model.config.model_type
    if not found:
        raise UnsupportedModelError(
            f"{name!r} ({family}) has no experts: it is a dense model, all of which is needed for every token; MoE Lab "
            f"streams mixtures of experts such as OLMoE, Qwen-MoE and Mixtral"
        )
    for path, module in found:
        if odd := _unlike(module):
            raise UnsupportedModelError(f"{name!r} ({family}) has experts that MoE Lab cannot run yet: "
                                        f"{', '.join(odd)} ({path}, {type(module).__name__})")
    blocks = [_block(model, path, module) for path, module in found]
    if len({(b.E, b.D, b.F, b.activation) for b in blocks}) > 1:
        raise UnsupportedModelError(f"{name!r} ({family}) has layers with experts of different sizes or activations, "
                                    f"which MoE Lab cannot run yet")
    return blocks


def find_routers(model: Any, name: str) -> list[tuple[int, Any]]:
    """(layer, router module) of every MoE block of a whole model, whatever the form of its experts.

    Raises ``UnsupportedModelError`` for a dense model, and where no module of a block can be told to be its router.
    """
    found = []
    for path, _ in experts_modules(model):
        parent = path.rpartition(".")[0]
        router = _router(model, parent)
        if router is None:
            raise UnsupportedModelError(f"{name!r} ({model.config.model_type}) has no router that can be told from the "
                                        f"rest in {parent}; its routes cannot be recorded")
        found.append((_layer(path), model.get_submodule(router)))
    if not found:
        raise UnsupportedModelError(f"{name!r} ({model.config.model_type}) has no experts: it is a dense model, and "
                                    "routes nothing")
    return found


def _unlike(module: Any) -> list[str]:
    """In words, what distinguishes these experts from down(act(gate x) * up x)."""
    odd = {
        "no gate": not module.has_gate, "biases": module.has_bias, "transposed matrices": module.is_transposed,
        "gate and up interleaved": not module.is_concatenated, "a norm after each expert": module.has_post_expert_norm,
        "a gate function of their own": type(module)._apply_gate.__name__ != "_default_apply_gate",
        "an unknown activation": activation_of(module) is None,
    }
    return [words for words, true in odd.items() if true]


def activation_of(module: Any) -> str | None:
    """The kernels' name of the activation, recognised by its values; None for one they do not have."""
    function = getattr(module, "act_fn", None)
    if function is None:
        return None
    x = np.linspace(-6, 6, 97)
    try:
        y = function(torch.from_numpy(x)).numpy()
    except Exception:                                   # one of more arguments, say
        return None
    return next((name for name, twin in TWINS.items() if np.abs(twin(x) - y).max() < 1e-6), None)


def _block(model: Any, path: str, module: Any) -> Block:
    parent = path.rpartition(".")[0]
    E, twice_F, D = module.gate_up_proj.shape
    activation = activation_of(module)
    assert activation is not None
    return Block(_layer(path), path, _router(model, parent), E, D, twice_F // 2, activation)


def _layer(path: str) -> int:
    """The number of the layer in a module's name."""
    numbers = re.findall(r"\.(\d+)\.", f".{path}.")
    return int(numbers[0]) if numbers else 0


def _router(model: Any, parent: str) -> str | None:
    """The router beside the experts: the class that transformers records as such, else one that is called so."""
    recorded = (getattr(model, "_can_record_outputs", None) or {}).get("router_logits")
    recorded = recorded[0] if isinstance(recorded, list | tuple) else recorded
    target = getattr(recorded, "target_class", recorded)
    children = list(model.get_submodule(parent).named_children())
    named = [n for n, child in children if re.search("Router|Gate", type(child).__name__)]
    exact = [n for n, child in children if isinstance(target, type) and isinstance(child, target)]
    candidates = exact if len(exact) == 1 else named
    return f"{parent}.{candidates[0]}" if len(candidates) == 1 else None
