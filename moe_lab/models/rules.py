"""Router rules: how logits become gate weights, a row for each family, checked against the model's own router.

Knows the rules; knows no experts and no cache. A rule is a claim. Before it is used it is compared with
what the family's router computes from random logits; where it disagrees, where the family has no row, or
where the router hides its logits, routing policies are off and the model routes by itself.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch

from moe_lab.errors import first_line

Score = Literal["softmax", "sigmoid"]


@dataclass(frozen=True)
class RouterRule:
    """Gate weight of expert e: ``score`` of its logit among all E; the K used ones divided by their sum if
    ``renormalise``; times ``scale``. (Softmax over the K best alone is softmax over all, renormalised.)

    >>> rule = RouterRule("softmax", renormalise=True)
    >>> w = rule.weights(torch.tensor([[0.0, 1.0986123]])); w
    tensor([[0.2500, 0.7500]])
    >>> rule.finish(w.numpy()[:, 1:], np.array([[1]]))
    array([[1.]], dtype=float32)
    """

    score: Score
    renormalise: bool
    scale: float = 1.0

    def weights(self, logits: torch.Tensor) -> torch.Tensor:
        """Raw weights (T, E) float32 of ``logits`` (T, E)."""
        if self.score == "softmax":
            return torch.softmax(logits, -1, dtype=torch.float32)
        return torch.sigmoid(logits.float())

    @property
    def plain(self) -> bool:
        """Whether ``finish`` changes nothing."""
        return not self.renormalise and self.scale == 1.0

    def finish(self, gates: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """Final weights (T, K) float32 from the raw ones ``gates`` (T, K) of ``ids`` (T, K); 0 where an id is -1."""
        if self.renormalise:
            used = gates if ids.min(initial=0) >= 0 else np.where(ids >= 0, gates, np.float32(0))
            gates = used / used.sum(-1, keepdims=True)
        return gates if self.scale == 1.0 else gates * np.float32(self.scale)

    def words(self, K: int) -> str:
        """The rule in one line."""
        scale = "" if self.scale == 1.0 else f", times {self.scale:g}"
        return f"{self.score}, top-{K}, {'renormalised' if self.renormalise else 'not renormalised'}{scale}"


def _softmax(config: Any) -> RouterRule:
    """Softmax over all experts; the configuration says whether the K best are made to sum to 1."""
    return RouterRule("softmax", renormalise=bool(config.norm_topk_prob))


RULES: dict[str, Callable[[Any], RouterRule]] = {
    "olmoe": _softmax,
    "qwen2_moe": _softmax,
    "qwen3_moe": _softmax,
    "mixtral": lambda config: RouterRule("softmax", renormalise=True),
}
"""transformers' model type to the rule that its configuration asks for."""


def find_rules(config: Any, routers: list[Any], K: int) -> tuple[list[RouterRule] | None, str]:
    """The verified rule of each router, and the rule in words; or None and why routing policies are off.

    ``routers`` are modules, on the meta device or not; None stands for one that was not found.
    """
    row = RULES.get(config.model_type)
    if row is None:
        family = config.model_type
        return None, f"the model's own; routing policies are off, because no rule is known for {family!r} yet"
    rule = row(config)
    for router in routers:
        reason = disagreement(rule, router, K) if router is not None else "its router was not found"
        if reason:
            return None, f"the model's own; routing policies are off, because {reason}"
    return [rule] * len(routers), rule.words(K)


def disagreement(rule: RouterRule, router: Any, K: int, T: int = 32, seed: int = 0) -> str | None:
    """What ``router``, run on random inputs with random weights, computes otherwise than ``rule``; None if nothing."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        trial = _random_copy(router, draw)
        D = max((p.shape[-1] for p in trial.parameters() if p.dim() == 2), default=0)
        try:
            out = trial(torch.randn(T, D, generator=draw, dtype=torch.float32))
        except Exception as error:
            return f"its router could not be tried ({type(error).__name__}: {first_line(error)})"
    if not _is_triple(out, T, K):
        return "its router does not return logits, weights and ids"
    logits, gates, ids = out
    if not torch.equal(ids.sort(-1).values, logits.topk(K, -1).indices.sort(-1).values):
        return "its router does not choose by the largest logits"
    mine = rule.finish(rule.weights(logits).gather(-1, ids).numpy(), ids.numpy())
    far = float(np.abs(mine - gates.float().numpy()).max())
    return None if far <= 1e-5 * max(1.0, rule.scale) else f"its router's weights differ from the rule's by {far:.2g}"


def _random_copy(router: Any, draw: torch.Generator) -> Any:
    """A float32 copy in memory whose parameters are random enough that logits differ by several units."""
    trial = copy.deepcopy(router).to_empty(device="cpu").float().eval()
    for tensor in [*trial.parameters(), *trial.buffers()]:
        tensor.data.normal_(std=2 * tensor.shape[-1] ** -0.5 if tensor.dim() == 2 else 0.1, generator=draw)
    return trial


def _is_triple(out: Any, T: int, K: int) -> bool:
    """(logits (T, E), weights (T, K), ids (T, K))."""
    return (isinstance(out, tuple) and len(out) == 3 and all(isinstance(t, torch.Tensor) and t.dim() == 2 for t in out)
            and out[0].shape[0] == T and out[1].shape == out[2].shape == (T, K) and not out[2].is_floating_point())
