"""One pass of the model: who owns the engine meanwhile, which residency it runs in, what it leaves if it is cut off.

Knows the order of things around a forward call. What an MoE layer does in it stands in ``moe_block``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from moe_lab.cache import Held
from moe_lab.engine.telemetry import DECODE, PREFILL, Telemetry
from moe_lab.errors import SettingError
from moe_lab.eviction import EvictionPolicy
from moe_lab.kernels.residency import LayerState
from moe_lab.policy import check_layers
from moe_lab.routing import RoutingPolicy

if TYPE_CHECKING:
    from moe_lab.engine.engine import Engine


def watch(engine: Engine) -> None:
    """Make every forward call of ``engine.hf``, whoever makes it, a pass of this engine."""
    forward, generate = engine.hf.forward, engine.hf.generate

    @functools.wraps(forward)
    def one_forward(*args: Any, **kwargs: Any) -> Any:
        with one_pass(engine, *_shape(args, kwargs)):
            return forward(*args, **kwargs)

    @functools.wraps(generate)
    def one_generation(*args: Any, **kwargs: Any) -> Any:
        with engine._owner.held():
            engine._begin_run()
            return generate(*args, **kwargs)

    engine.hf.forward, engine.hf.generate = one_forward, one_generation


@contextmanager
def one_pass(engine: Engine, rows: int, length: int, cached: bool) -> Iterator[None]:
    """Own the engine for one pass over ``rows`` x ``length`` tokens (``cached``: earlier ones are remembered);
    what is cut off leaves cache and map in agreement."""
    if rows > 1 and engine.routing.lossy:
        raise SettingError(
            f"a batch of {rows} rows under {engine.routing!r}: the rows would steer each other's experts, so a "
            "lossy routing takes one row at a time; set engine.routing = 'original' for batches"
        )
    owner, blocks = engine._owner, engine._blocks
    owner.take()
    done = False
    telemetry = blocks.telemetry
    try:
        if blocks.settle:
            owner.between_tokens()
        owner.in_pass = True
        telemetry.begin(rows * length, DECODE if cached and length == 1 else PREFILL)
        blocks.touched = 0
        yield
        counts = telemetry.end()
        touched = engine._touched_dense + blocks.touched * engine.spec.expert_bytes[engine.format.name]
        engine.last_pass = counts, touched
        done = True
    finally:
        owner.in_pass = False
        if not done and blocks.settle:
            change_residents(engine, engine._experts.reconcile)
        owner.drop()


def change_residents(engine: Engine, change: Callable[[], object]) -> None:
    """Make a change of the live cache and show it."""
    engine._blocks.let_go()
    change()
    engine.telemetry.settled()


@contextmanager
def fresh_state(engine: Engine, routing: RoutingPolicy, eviction: EvictionPolicy, slots: int,
                held: Held | None) -> Iterator[Telemetry]:
    """Residency, policy state and telemetry of its own, see ``Engine.fresh_state``."""
    spec, experts, blocks = engine.spec, engine._experts, engine._blocks
    for policy in (routing, eviction):
        check_layers(policy, spec.L)
    states = [LayerState.new(spec.experts, spec.top_k, slots, routing, eviction, layer, engine.seed)
              for layer in range(spec.L)]
    own = Telemetry(states, capacity=64)
    with engine._owner.held():
        before = experts.states, experts.held, blocks.telemetry, blocks.settle
        experts.states, experts.held, blocks.telemetry, blocks.settle = states, held, own, False
        try:
            yield own
        finally:
            experts.states, experts.held, blocks.telemetry, blocks.settle = before


def _shape(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, int, bool]:
    """(rows, length, whether a cache of earlier tokens comes along) of a forward call."""
    x = kwargs.get("input_ids", args[0] if args else None)
    x = kwargs.get("inputs_embeds") if x is None else x
    if x is None:
        raise SettingError("the model needs input_ids or inputs_embeds")
    past = kwargs.get("past_key_values")
    return x.shape[0], x.shape[1], past is not None and past.get_seq_length() > 0
