"""One pass of the model: who owns the engine meanwhile, which residency it runs in, what it leaves if it is cut off.

Knows the order of things around a forward call. What an MoE layer does in it stands in ``moe_block``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import numpy as np
import torch

from moe_lab.cache import Held
from moe_lab.engine.core import Core
from moe_lab.engine.recorder import NOTHING
from moe_lab.engine.telemetry import DECODE, PREFILL, Telemetry
from moe_lab.errors import BusyError, SettingError
from moe_lab.eviction import EvictionPolicy
from moe_lab.interrupts import uninterrupted
from moe_lab.kernels.residency import LayerState
from moe_lab.policy import check_layers
from moe_lab.routing import RoutingPolicy


class Watch:
    """Makes every forward call of a streamed model, whoever makes it, a pass, and every ``generate`` a run."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> AbstractContextManager[None]:
        """What stands around ``hf.forward(*args, **kwargs)``."""
        ids, rows, length, cached, real = _shape(args, kwargs)
        if rows == length == 1 and cached and ids is not None and self._core.sampler is None:
            self._core.telemetry.recorder.written.append(int(ids[0, 0]))        # hf.generate's; a stream notes its own
        return one_pass(self._core, rows, length, cached, real)

    @contextmanager
    def generation(self) -> Iterator[None]:
        """What stands around ``hf.generate``."""
        self._core.check_open()
        with self._core.owner.held(run=True):
            self._core.begin_run()
            yield


@contextmanager
def one_pass(core: Core, rows: int, length: int, cached: bool, real: np.ndarray | None = None) -> Iterator[None]:
    """Own the engine for one pass over ``rows`` x ``length`` tokens (``cached``: earlier ones are remembered), of
    which ``real`` (rows * length,) bool are text and the others padding; what is cut off leaves cache and map in
    agreement."""
    routing = core.experts.states[0].routing
    if rows > 1 and routing.lossy:
        raise SettingError(
            f"a batch of {rows} rows under {routing!r}: the rows would steer each other's experts, so a "
            "lossy routing takes one row at a time; set engine.routing = 'original' for batches"
        )
    core.check_open()
    owner, blocks = core.owner, core.blocks
    claim = owner.take()
    if owner.in_pass:
        raise BusyError("a hook inside the model's own pass cannot run the model again; let the pass end")
    telemetry, live = blocks.telemetry, blocks.settle
    tokens = rows * length if real is None else int(np.count_nonzero(real))
    done = False
    try:
        if live:
            owner.between_tokens()
            core.settle()
            core.notice_disk()
        owner.in_pass = blocks.under_way = True
        telemetry.begin(tokens, DECODE if cached and length == 1 else PREFILL)
        blocks.touched, blocks.real = 0, real
        core.cut_off |= live
        yield
        counts = telemetry.end() if tokens else NOTHING
        core.last_pass = counts, core.dense_bytes + blocks.touched * core.spec.expert_bytes[core.format.name]
        core.cut_off &= not live
        done = True
    finally:
        owner.in_pass = blocks.under_way = False
        blocks.real = None
        if not done and live:
            core.settle()
        owner.drop(claim)


@contextmanager
def fresh_state(core: Core, routing: RoutingPolicy, eviction: EvictionPolicy, slots: int,
                held: Held | None) -> Iterator[Telemetry]:
    """Residency, policy state and telemetry of its own, see ``Engine.fresh_state``."""
    spec, experts, blocks = core.spec, core.experts, core.blocks
    core.check_open()
    for policy in (routing, eviction):
        check_layers(policy, spec.L)
    states = [LayerState.new(spec.experts, spec.top_k, slots, routing, eviction, layer, core.seed)
              for layer in range(spec.L)]
    own = Telemetry(states, capacity=64)
    with core.owner.held():
        before, aside = (experts.states, experts.held, blocks.telemetry, blocks.settle), core.owner.aside
        try:
            with uninterrupted():
                experts.states, experts.held, blocks.telemetry, blocks.settle = states, held, own, False
                core.owner.aside = True
            yield own
        finally:
            with uninterrupted():
                experts.states, experts.held, blocks.telemetry, blocks.settle = before
                core.owner.aside = aside


def _shape(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, int, int, bool, np.ndarray | None]:
    """(ids or None, rows, length, whether a cache of earlier tokens comes along, which tokens are text) of a forward
    call."""
    ids = kwargs.get("input_ids", args[0] if args else None)
    x = kwargs.get("inputs_embeds") if ids is None else ids
    if x is None:
        raise SettingError("the model needs input_ids or inputs_embeds")
    past = kwargs.get("past_key_values")
    mask = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
    rows, length = x.shape[:2]
    before = 0 if past is None else int(past.get_seq_length())
    return ids, rows, length, before > 0, _text(_seen(mask, before, length), rows, length)


def _seen(mask: Any, before: int, length: int) -> Any:
    """Of a mask (rows, heads, new tokens, all tokens), as ``generate`` makes for a static cache, the (rows, new tokens)
    that some token looks at: all but padding. A mask of another form as it is."""
    if not isinstance(mask, torch.Tensor) or mask.dim() != 4:
        return mask
    looks = mask > torch.finfo(mask.dtype).min if mask.is_floating_point() else mask != 0
    return looks[..., before : before + length].any(dim=(1, 2))


def _text(mask: Any, rows: int, length: int) -> np.ndarray | None:
    """(rows * length,) bool of the new tokens that an attention mask (rows, earlier and new tokens) keeps; None where
    it keeps all, or is of another form."""
    if not isinstance(mask, torch.Tensor) or mask.dim() != 2 or mask.shape[0] != rows or mask.shape[1] < length:
        return None
    kept: np.ndarray = (mask[:, mask.shape[1] - length :] != 0).reshape(-1).numpy()
    return None if kept.all() else kept
