"""Where the time of one decoded token goes: weights, routing, attention, sampling.

    python benchmarks/profile_token.py                                        the pocket model, as shipped
    python benchmarks/profile_token.py pocket --weights q8 --hf --markdown    and what engine.hf.generate takes
    python benchmarks/make_checkpoint.py --like olmoe --layers 4 work/olmoe-4
    python benchmarks/profile_token.py work/olmoe-4 --weights q8

All experts resident. The calls that ``engine.stream`` makes for a token are put under a stop-watch, each without those
inside it and without what the watch itself takes; "rest" is what is left between them (Python, the step's record, the
text). The first kernel of a layer ends at the router: its matrix products are timed once more by themselves after every
token, and what is left of it is attention and norms. Medians over the tokens of a run, each token's calls
added up. One thread: its processor time; several: the wall's. Left out: loading, a first run (compilation), and the
prompt.
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from time import perf_counter
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from measuring import Table, clock_of, machine, number, use_threads

import moe_lab as ml
from moe_lab.engine import lean
from moe_lab.engine.moe_block import MoEBlocks
from moe_lab.engine.sampling import Sampler
from moe_lab.engine.telemetry import Telemetry
from moe_lab.kernels.dense import gated_ffn, product
from moe_lab.kernels.jit import jit
from moe_lab.kernels.route_one import RouteOne
from moe_lab.kernels.sealed import Sealed

ALL, DENSE = "all", "dense"
EXPERTS, LAYER, HEAD, ROUTE, SAMPLE, RECORD, EMBED, BLOCK = (
    "experts' kernel", "layer", "head", "routing and finding slots", "sampling", "telemetry", "embedding",
    "Python around an MoE block")
CALLS: list[tuple[Any, str, str]] = [
    (lean, "head", HEAD), (lean, "look_up", EMBED),
    (MoEBlocks, "token", BLOCK), (RouteOne, "__call__", ROUTE),
    (Sampler, "__call__", SAMPLE), *((Telemetry, name, RECORD) for name in ("begin", "routed", "computed", "end"))]
"""Where a call stands, its name, and what its time is called."""


class StopWatch:
    """Seconds of each part since it was last read: of a call without those inside it, and without the watch's own."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock, self._inside, self._calls = clock, [0.0], 0
        self._within_s = self._around_s = 0.0
        self._spent: dict[str, float] = defaultdict(float)
        nothing, rounds = self.around(lambda: None, "nothing"), 20_000
        began = clock()
        for _ in range(rounds):
            nothing()
        whole, within = (clock() - began) / rounds, self._spent["nothing"] / rounds
        self._within_s, self._around_s = within, whole - within
        self.read()

    def around(self, call: Callable[..., Any], part: str) -> Callable[..., Any]:
        """The same call, under the watch."""
        clock, inside, spent = self._clock, self._inside, self._spent

        def watched(*args: Any) -> Any:
            inside.append(0.0)
            began = clock()
            try:
                return call(*args)
            finally:
                took = clock() - began
                spent[part] += took - inside.pop() - self._within_s
                inside[-1] += took + self._around_s
                self._calls += 1

        return watched

    def read(self) -> tuple[dict[str, float], float]:
        """The parts, and what the watch itself took; begins afresh."""
        found, own = dict(self._spent), self._calls * (self._within_s + self._around_s)
        self._spent.clear()
        self._inside[:], self._calls = [0.0], 0
        return found, own


@contextmanager
def watching(engine: ml.Engine, watch: StopWatch) -> Iterator[None]:
    """Every call of a token goes through the watch meanwhile."""
    sealed = engine.format.token_again
    with ExitStack() as stack:
        for place, name, part in CALLS:
            stack.enter_context(patch.object(place, name, watch.around(getattr(place, name), part)))
        stack.enter_context(patch.object(lean, "Sealed", lambda *a: watch.around(Sealed(*a), LAYER)))
        stack.enter_context(patch.object(engine.format, "token_again", lambda *a: watch.around(sealed(*a), EXPERTS)))
        yield


@jit(helper=True)
def products_of_a_layer(layer, number):  # type: ignore[no-untyped-def]
    """The matrix products that a ``Layer`` makes of one token, but for its routed experts."""
    a, room = layer.attention, layer.room
    product(a.q, room.h, room.q.reshape(room.q.size))
    product(a.k, room.h, room.k.reshape(room.k.size))
    product(a.v, room.h, room.v.reshape(room.v.size))
    product(a.o, room.mixed.reshape(room.mixed.size), room.out)
    if layer.router.shape[0]:
        product(layer.router, room.h, layer.logits)
    if layer.ffn.gate.shape[0]:
        gated_ffn(room.h, layer.ffn, layer.activation, room.ffn, room.out)


class Products:
    """The products of all layers for one token, by themselves; between layers the experts of a token are read."""

    def __init__(self, engine: ml.Engine, clock: Callable[[], float]) -> None:
        self._engine, self._clock = engine, clock
        lean = engine.lean_decode(engine.new_past(), 1)
        self._layers = [(Sealed(products_of_a_layer, layer._argument), moe) for layer, moe in lean._layers]

    def __call__(self) -> float:
        """Seconds."""
        took, clock = 0.0, self._clock
        for layer, moe in self._layers:
            began = clock()
            layer._kernel(layer._address, 0)        # not through the watch
            took += clock() - began
            if moe is not None:
                self._engine._core.blocks.cache.layers[moe].arena[: self._engine.spec.top_k].max()
        return took


def tokens_of(engine: ml.Engine, prompt: int, tokens: int,
              clock: Callable[[], float]) -> tuple[list[dict[str, float]], int]:
    """Seconds of the parts (and ALL, and DENSE) of each decoded token; and the weight bytes that one reads."""
    ids = np.random.default_rng(0).integers(10, engine.hf.config.vocab_size - 10, prompt).tolist()
    watch, products, touched = StopWatch(clock), Products(engine, clock), 0
    found: list[dict[str, float]] = []
    with watching(engine, watch):
        began = clock()
        for step in engine.stream(ids, max_new_tokens=tokens + 1, stop_at_end=False):
            ended, (spent, own) = clock(), watch.read()
            if step.index:
                found.append({**spent, ALL: ended - began - own, DENSE: products()})
                touched = step.touched_bytes
            began = clock()
    return found, touched


def by_transformers_s(engine: ml.Engine, prompt: int, tokens: int) -> float:
    """Seconds a token of ``engine.hf.generate``: those of a long run less those of a run of one token."""
    ids = torch.from_numpy(np.random.default_rng(0).integers(10, engine.hf.config.vocab_size - 10, (1, prompt)))

    def run(count: int) -> float:
        began = perf_counter()
        engine.hf.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, min_new_tokens=count,
                           do_sample=False)
        return perf_counter() - began

    run(2)
    return statistics.median((run(tokens + 1) - run(1)) / tokens for _ in range(3))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="pocket")
    parser.add_argument("--weights", default=None, help="the checkpoint's own by default")
    parser.add_argument("--dense", default=None)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--prompt", type=int, default=128, help="tokens before the first (%(default)s)")
    parser.add_argument("--tokens", type=int, default=128, help="tokens that are timed (%(default)s)")
    parser.add_argument("--hf", action="store_true", help="time engine.hf.generate too")
    parser.add_argument("--markdown", action="store_true", help="print rows of a Markdown table")
    args = parser.parse_args()
    use_threads(args.threads)
    print(machine())
    engine = ml.load(args.model, cache="100%", weights=args.weights, dense=args.dense)
    print(engine, "\n")
    if engine.decoding != "kernels":
        parser.error(f"this model is decoded by transformers' modules: {engine.decoding}")
    engine._ahead.join()            # what compiles in the background would pass through the watch
    clock = clock_of(args.threads)
    tokens_of(engine, args.prompt, 4, clock)
    found, touched = tokens_of(engine, args.prompt, args.tokens, clock)
    part = {name: statistics.median(one[name] for one in found) for name in found[0]}
    L, total = engine.hf.config.num_hidden_layers, part[ALL]
    rows = [("weights: experts", part[EXPERTS]), ("weights: dense", part[DENSE]), ("weights: head", part[HEAD]),
            ("attention and norms", statistics.median(one[LAYER] - one[DENSE] for one in found)),
            *((name, part[name]) for name in (ROUTE, BLOCK, RECORD, EMBED, SAMPLE))]
    rows.append(("rest", total - sum(seconds for _, seconds in rows)))
    label = f"{args.model.rstrip('/').rpartition('/')[2]}, {engine.precision}"
    table = Table([label, "µs a token", "µs a layer", "share"], [34, 12, 12, 8], args.markdown)
    for name, seconds in [*rows, (ALL, total)]:
        table.row(name, number(seconds * 1e6, 1), number(seconds * 1e6 / L, 1), f"{seconds / total:.1%}")
    weights = sum(seconds for _, seconds in rows[:3])
    print(f"\noutside the weights {(total - weights) * 1e6 / L:.0f} µs a layer; {touched / 2**20:,.1f} MiB of weights "
          f"a token, {touched / weights / 1e9:.1f} GB/s; after {args.prompt} tokens, {args.tokens} timed, "
          f"{args.threads} thread(s)")
    if args.hf:
        took = by_transformers_s(engine, args.prompt, min(32, args.tokens))
        print(f"engine.hf.generate: {took * 1e3:.2f} ms a token")


if __name__ == "__main__":
    main()
