"""One MoE layer of one pass: gate → route → fetch → compute → combine. The page to read first.

The model's own router has made the logits; the walk decides which experts are used and who stays; the
cache makes that true; the kernel runs the chosen experts straight from their slots. Nothing here knows a
policy, a format or a family.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import NamedTuple

import numpy as np
import torch

from moe_lab.cache import ExpertCache
from moe_lab.cache.held import Traffic
from moe_lab.engine.grouped import sum_of_experts
from moe_lab.engine.telemetry import Telemetry
from moe_lab.errors import SettingError, UnsupportedModelError
from moe_lab.kernels.activation import activation_number
from moe_lab.kernels.formats import Format
from moe_lab.kernels.job import Job
from moe_lab.kernels.places import find_places
from moe_lab.kernels.route_one import RouteOne
from moe_lab.kernels.walk import forced, walk
from moe_lab.kernels.walked import Walked
from moe_lab.models.rules import RouterRule


class OneToken(NamedTuple):
    """What takes token after token through one layer, sealed over the same memory."""

    route: RouteOne
    finish: Callable[[np.ndarray, np.ndarray], np.ndarray] | None
    """Makes gates of what the walk found; None: they are that already."""
    gates: np.ndarray
    """(K,) float32."""
    experts: Callable[[], None]


class MoEBlocks:
    """The handler that the streamed model calls at each of its MoE layers.

    ``settle`` says whether slots follow the residency (generation) or stay as they are while a score
    keeps a residency of its own.
    """

    def __init__(self, cache: ExpertCache, format: Format, rules: list[RouterRule] | None, telemetry: Telemetry,
                 hidden: int, expert_hidden: int, activation: str) -> None:
        self.cache, self.format, self.rules, self.telemetry = cache, format, rules, telemetry
        self.D, self.F, self.activation = hidden, expert_hidden, activation
        self.settle = True
        self.under_way = False
        """Whether the whole model is being called: a part of it alone has no place in the record."""
        self.real: np.ndarray | None = None
        """(T,) bool of the present pass: which of its rows are text, where the others are padding; None: all."""
        self._routed: tuple[int, torch.Tensor | None] = (-1, None)
        """The layer that has chosen its experts and not computed them yet, and what it chose: a hook of the user's may
        choose others after it."""
        self.touched = 0
        """Experts whose weights the present pass has read."""
        self._ones: list[OneToken] = []
        self._given: tuple[object, ...] | None = None
        self._job = Job(hidden, expert_hidden, cache.states[0].K, activation_number(activation))
        self._x = np.zeros(hidden, dtype=np.float32)
        self._y = np.zeros(hidden, dtype=np.float32)

    def route(self, layer: int, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Choose the experts of (T, E) ``logits``: ids (T, K) int64 and gate weights (T, K) float32.

        Padding is routed by the logits alone: it steers nothing and is not counted.
        """
        self._check_whole()
        began = perf_counter()
        assert self.rules is not None            # else the model's own router chose, see compute
        rule, z = self.rules[layer], logits.detach().float().contiguous()
        weights = rule.weights(z)
        walked = self._walk(layer, self._text(z.numpy()), self._text(weights.numpy()))
        if self.real is None:
            chosen, raw = walked.ids, walked.gates
        else:
            top, places = (part.numpy() for part in weights.topk(walked.ids.shape[1], -1))
            chosen, raw = places.astype(np.int32), top
            chosen[self.real], raw[self.real] = walked.ids, walked.gates
        gates = rule.finish(raw, chosen)
        self.telemetry.routed(layer, perf_counter() - began)
        ids, weight = _tensors(chosen, gates)
        self._routed = layer, ids
        return ids, weight

    def _check_whole(self) -> None:
        if not self.under_way:
            raise SettingError("a part of a streamed model cannot be called alone; call engine.hf(...), or "
                               "engine.hf.model(...) for its hidden states")

    def _text(self, rows: np.ndarray) -> np.ndarray:
        """Those of (T, ...) that are no padding."""
        return rows if self.real is None else rows[self.real]

    def _walk(self, layer: int, logits: np.ndarray, weights: np.ndarray) -> Walked:
        """Route (T, E) ``logits`` and settle the layer's residency, into the telemetry's record."""
        return walk(self.cache.states[layer], logits, weights, self.telemetry.room(layer))

    def compute(self, layer: int, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """The routed sum of expert outputs for ``x`` (T, D), in its own type."""
        self._check_whole()
        x, weights = x.detach(), weights.detach()           # nothing is learned through experts that come from disk
        routed, chosen = self._routed
        self._routed = -1, None
        if routed != layer:
            chosen = None
        kept = chosen is not None and (ids is chosen or torch.equal(ids, chosen))
        if not kept:
            self._check_ids(layer, ids.numpy())
        plain = kept or (chosen is None and self._observe(layer, ids.numpy(), weights.float().numpy()))
        if plain and x.shape[0] == 1 and self.settle and self.real is None:
            return self._one_row(layer, x, ids, weights)
        began, traffic = perf_counter(), Traffic()
        out = self._tokens(layer, x, ids, weights, traffic)
        if self.settle and not kept and chosen is not None:
            self.cache.reconcile_layer(layer)
        elapsed = perf_counter() - began
        self.telemetry.computed(layer, traffic.read_bytes, traffic.wait_s, elapsed - traffic.wait_s)
        return out

    def _one_row(self, layer: int, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """One token that comes through the model's modules."""
        here, chosen = self.cache.layers[layer], ids[0].numpy().astype(np.int32)
        slots, gates = np.empty(chosen.size, np.int32), weights[0].float().numpy()
        self._x[:] = x[0].float().numpy()
        missing = find_places(here.slot_of, chosen, slots)
        y = self._token(layer, self.telemetry.room(layer), slots, missing, lambda: self.format.ffn_token(
            self._x, here.arena, slots, gates, self._y, self.F, self.activation), ids=chosen)
        return torch.from_numpy(y).to(x.dtype, copy=True)[None]

    def over(self, x: np.ndarray, logits: np.ndarray, weights: np.ndarray) -> list[OneToken]:
        """What takes a token through each layer that comes without torch: ``x`` (D,), ``logits`` and raw ``weights``
        (1, E), all float32, are written before ``token`` is called. To be asked for anew at each token."""
        given = x, logits, weights, self.cache.states, self.cache.layers, self.telemetry
        if self._given is None or not all(map(operator.is_, self._given, given)):
            self._ones = [self._one_token(layer, x, logits, weights) for layer in range(len(self.cache.layers))]
            self._given = given
        return self._ones

    def _one_token(self, layer: int, x: np.ndarray, logits: np.ndarray, weights: np.ndarray) -> OneToken:
        assert self.rules is not None            # a model that routes by itself is run by transformers
        here, state, room = self.cache.layers[layer], self.cache.states[layer], self.telemetry.room(layer)
        finish = None if self.rules[layer].plain else self.rules[layer].finish
        gates = np.zeros(state.K, np.float32) if finish else room.gates[0]
        route = RouteOne(state, logits, weights, room, here.slot_of)
        experts = self.format.token_again(self._job, x, here.arena, route.slots, gates, self._y)
        return OneToken(route, finish, gates, experts)

    def let_go(self) -> None:
        """Hold no slots any longer that are the cache's to give back."""
        self._ones, self._given = [], None

    def token(self, layer: int, one: OneToken) -> np.ndarray:
        """Route and compute one token: the sum of its experts' outputs, (D,). The memory is written again."""
        began = perf_counter()
        missing, walked = one.route(), one.route.walked
        if one.finish is not None:
            one.gates[:] = one.finish(walked.gates, walked.ids)[0]
        return self._token(layer, walked, one.route.slots, missing, one.experts, perf_counter() - began)

    def _observe(self, layer: int, ids: np.ndarray, weights: np.ndarray) -> bool:
        """Where no policy has routed: let the residency follow the choice (T, K) of the model's own router.

        Returns whether each token has K experts, none of them twice. Raises ``SettingError`` where a policy should
        have routed.
        """
        began, state = perf_counter(), self.cache.states[layer]
        if state.routing.lossy:
            raise SettingError(f"{state.routing!r} cannot route MoE layer {layer}, whose router was replaced; put the "
                               "router back that was loaded, or set engine.routing = 'original'")
        once, plain = _once(ids), ids.shape[1] == state.K
        self._walk(layer, *forced(self._text(once), self._text(weights), state.E))
        self.telemetry.routed(layer, perf_counter() - began)
        return plain and once is ids

    def _check_ids(self, layer: int, ids: np.ndarray) -> None:
        """Raise ``UnsupportedModelError`` for an expert that there is not."""
        E = self.cache.states[layer].E
        if ids.size and not (ids.min() >= 0 and ids.max() < E):
            raise UnsupportedModelError(f"the router of MoE layer {layer} chose expert {ids.min()} or {ids.max()}, and "
                                        f"the layer has {E}: this model cannot be streamed")

    def _token(self, layer: int, walked: Walked, slots: np.ndarray, missing: int, experts: Callable[[], None],
               route_s: float | None = None, ids: np.ndarray | None = None) -> np.ndarray:
        """One token (D,): what it misses is loaded, then all its ``experts`` in one kernel call, from their slots.
        ``ids`` (K,) where their order is not that of the walk."""
        began, traffic = perf_counter(), Traffic()
        self.touched += slots.size
        if missing:
            chosen = walked.ids[0] if ids is None else ids
            self.cache.fetch(layer, chosen, walked.evicted[0], slots, traffic)
        experts()
        elapsed = perf_counter() - began
        self.telemetry.computed(layer, traffic.read_bytes, traffic.wait_s, elapsed - traffic.wait_s, route_s)
        return self._y

    def _tokens(self, layer: int, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor,
                traffic: Traffic) -> torch.Tensor:
        """Many tokens: grouped by expert, each expert's weights touched once; summed in the order of the gates."""
        def visit(used: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
            return self.cache.visit(layer, used, traffic, self.settle)

        out, touched = sum_of_experts(x, ids, weights, visit, self.format, self.F, self.activation)
        self.touched += touched
        return out


def _once(ids: np.ndarray) -> np.ndarray:
    """``ids`` (T, K) with -1 wherever an expert stands again in its row; ``ids`` itself where none does.

    >>> _once(np.array([[3, 1, 3]])).tolist()
    [[3, 1, -1]]
    """
    order = np.argsort(ids, axis=1, kind="stable")
    ranked = np.take_along_axis(ids, order, 1)
    again = np.zeros(ids.shape, np.bool_)
    again[:, 1:] = ranked[:, 1:] == ranked[:, :-1]
    if not again.any():
        return ids
    once = ids.copy()
    np.put_along_axis(once, order, np.where(again, -1, ranked), 1)
    return once


def _tensors(ids: np.ndarray, gates: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Copies for the model: the arrays are written again at the next token."""
    return torch.from_numpy(ids.astype(np.int64)), torch.from_numpy(gates.copy())
