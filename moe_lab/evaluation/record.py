"""The routes of any mixture-of-experts model of transformers, as a trace: no engine, on whatever device it lies.

Knows forward hooks on routers. Changes nothing: the model routes by itself, its experts compute as they do.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from moe_lab.engine.text import to_ids, window_of
from moe_lab.errors import SettingError, TraceError, UnsupportedModelError
from moe_lab.models import RouterRule, find_routers, find_rules
from moe_lab.trace import Trace


def record(model: Any, text: str | Sequence[int], tokenizer: Any = None, *, logits: bool = False,
           window: int | None = None) -> Trace:
    """Record which experts ``model`` uses for a text, in windows of their own context, all of it as prefill.

    Args:
        model: a causal language model of transformers, whole, on any device. For an engine of MoE Lab take
            ``engine.score(text).trace``.
        text: a string (with ``tokenizer``) or token ids.
        tokenizer: the model's.
        logits: keep the router's logits too, as float16: tokens x layers x experts x 2 bytes.
        window: tokens in one pass; 1,024, or the model's context where that is shorter.

    Returns:
        A trace as the engine's own: experts in falling gate weight, weights as they come from the router's score,
        before any renormalising, where the family's rule is known; else the router's own weights.

    Raises:
        UnsupportedModelError: a dense model, or a router that does not return logits, weights and ids.
        TraceError: a router that gives NaN or infinity.
        SettingError: an engine, a string without a tokenizer, an empty text, or a window beyond the context.

    Example:
        >>> import moe_lab as ml
        >>> from transformers import AutoModelForCausalLM, AutoTokenizer                    # doctest: +SKIP
        >>> model = AutoModelForCausalLM.from_pretrained("allenai/OLMoE-1B-7B-0924")        # doctest: +SKIP
        >>> ml.record(model, "A text", AutoTokenizer.from_pretrained("allenai/OLMoE-1B-7B-0924"))  # doctest: +SKIP
    """
    _check(model, text, tokenizer)
    config = model.config.get_text_config()
    ids = to_ids(text, tokenizer, int(model.get_input_embeddings().weight.shape[0]), "text")
    context = int(getattr(config, "max_position_embeddings", None) or 1024)
    size = window_of(window, context)
    name = str(getattr(model, "name_or_path", "") or type(model).__name__)
    layers, routers = zip(*find_routers(model, name), strict=True)
    K = int(getattr(config, "num_experts_per_tok", 0) or 0)
    rules, words = find_rules(config, list(routers), K)
    parts = _passes(model, ids, size, routers, rules, logits)
    experts = parts[0][2]
    meta = {"model": name, "family": config.model_type, "layers": list(layers), "window": size,
            "routing": words if rules is not None else "the model's own; weights as its router gives them"}
    return Trace(ids=np.concatenate([part[0] for part in parts]), weights=np.concatenate([part[1] for part in parts]),
                 phase=np.zeros(len(ids), np.uint8), experts=experts, tokens=np.array(ids, np.int64), meta=meta,
                 logits=np.concatenate([part[3] for part in parts]) if logits else None)


def _check(model: Any, text: Any, tokenizer: Any) -> None:
    """Refuse what is no plain model of transformers."""
    if hasattr(model, "hf") or hasattr(model, "moe_lab_socket"):
        raise SettingError("ml.record is for plain models of transformers; an engine records itself: take "
                           "engine.score(text).trace or reply.trace")
    if not isinstance(model, torch.nn.Module) or not hasattr(model, "config"):
        raise SettingError(f"ml.record takes a model of transformers, not {type(model).__name__}; type "
                           "ml.record(AutoModelForCausalLM.from_pretrained(...), text, tokenizer)")
    if isinstance(text, str) and tokenizer is None:
        raise SettingError("a text as a string needs the model's tokenizer: ml.record(model, text, tokenizer); or give "
                           "token ids")


_Part = tuple[np.ndarray, np.ndarray, int, Any]


def _passes(model: Any, ids: list[int], size: int, routers: Sequence[Any], rules: list[RouterRule] | None,
            logits: bool) -> list[_Part]:
    """One pass a window: ids, weights (n, L, K), E and, if asked for, logits (n, L, E) of each."""
    heard: dict[int, Any] = {}
    hooks = [router.register_forward_hook(lambda _, __, out, layer=layer: heard.__setitem__(layer, out))
             for layer, router in enumerate(routers)]
    options: dict[str, Any] = {"use_cache": False}
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        options["logits_to_keep"] = 1
    training, parts = model.training, []
    model.eval()
    try:
        with torch.inference_mode(), tqdm(total=len(ids), unit="tokens", desc="record", delay=2, leave=False) as bar:
            for start in range(0, len(ids), size):
                rows = torch.tensor([ids[start : start + size]], device=model.device)
                heard.clear()
                model(input_ids=rows, **options)
                found = [_routes(heard.get(layer), rows.shape[1], rules[layer] if rules else None)
                         for layer in range(len(routers))]
                z = np.stack([one[2] for one in found], 1) if logits else None
                parts.append((np.stack([one[0] for one in found], 1), np.stack([one[1] for one in found], 1),
                              found[0][2].shape[1], z))
                bar.update(rows.shape[1])
    finally:
        for hook in hooks:
            hook.remove()
        model.train(training)
    return parts


def _routes(out: Any, n: int, rule: RouterRule | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """ids (n, K) int32 and weights (n, K) float32 in falling weight (ties: lower id), logits (n, E) float16, from what
    a router returned."""
    whole = (isinstance(out, tuple) and len(out) == 3 and all(isinstance(part, torch.Tensor) for part in out))
    if not whole or out[0].shape[0] != n or out[1].shape != out[2].shape or out[2].is_floating_point():
        form = [tuple(part.shape) for part in out if hasattr(part, "shape")] if isinstance(out, tuple) else type(out)
        raise UnsupportedModelError(f"a router returned {form} for {n} tokens, where (logits, weights, ids) is wanted; "
                                    "the routes of this family cannot be recorded")
    z, gates, chosen = (part.detach().cpu() for part in out)
    z = z.float()
    gates = gates.float() if rule is None else rule.weights(z).gather(-1, chosen.long())
    if z.isnan().any() or not gates.isfinite().all():
        raise TraceError("a router of this model gives NaN or infinity: the model, not the recording, is broken")
    ids, weights = chosen.numpy().astype(np.int32), gates.numpy()
    order = np.lexsort((ids, -weights))
    with np.errstate(under="ignore"):
        half = z.clamp(-65504, 65504).numpy().astype(np.float16)
    return np.take_along_axis(ids, order, 1), np.take_along_axis(weights, order, 1), half
