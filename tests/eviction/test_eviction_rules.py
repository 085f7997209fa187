"""The rules themselves, against other ways to write them."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given, settings
from layers import layers, new_layer, random_ids

from moe_lab.eviction import FIFO, LFU, LRU, AgedLFU, Random
from moe_lab.kernels.noise import noise
from moe_lab.kernels.replay import replay_layer
from moe_lab.kernels.walk import walk


def ordered_dict_lru(ids: np.ndarray, C: int) -> list[list[bool]]:
    """LRU by an OrderedDict, the least recent first, experts of the present token stepped over."""
    held: OrderedDict[int, None] = OrderedDict()
    hits = []
    for row in ids.tolist():
        hits.append([e in held for e in row])
        for e in row:
            if e not in held and len(held) >= C:
                held.pop(next(old for old in held if old not in row))
            held[e] = None
            held.move_to_end(e)
    return hits


@settings(max_examples=60)
@given(layers())
def test_lru_is_an_ordered_dict(sizes: tuple[int, int, int, int]) -> None:
    E, K, C, seed = sizes
    ids = random_ids(np.random.default_rng(seed), 80, K, E)
    assert replay_layer(ids, None, new_layer(E, K, C)).tolist() == ordered_dict_lru(ids, C)


def walked_out(eviction: object, tokens: list[list[int]], E: int, C: int) -> list[int]:
    """Who leaves, in order, while ``tokens`` are used in the order given."""
    state = new_layer(E, len(tokens[0]), C, None, eviction)
    gone = []
    for row in tokens:
        logits = np.full((1, E), -np.inf, dtype=np.float32)
        logits[0, row] = -np.arange(len(row))
        gone += [int(e) for e in walk(state, logits, np.exp(logits)).evicted[0] if e >= 0]
    return gone


def test_lru_evicts_the_least_recently_used() -> None:
    assert walked_out(LRU(), [[0], [1], [2], [0], [3], [4]], E=5, C=3) == [1, 2]


def test_of_one_tokens_experts_the_heaviest_is_the_oldest() -> None:
    assert walked_out(LRU(), [[0, 1], [2, 3], [4, 5]], E=6, C=4) == [0, 1]


def test_fifo_evicts_the_first_that_came_however_much_it_is_used() -> None:
    assert walked_out(FIFO(), [[0], [1], [2], [0], [0], [3], [4]], E=5, C=3) == [0, 1]


def test_lfu_evicts_the_least_used_and_ties_go_to_the_least_recently_used() -> None:
    assert walked_out(LFU(), [[0], [1], [0], [1], [2], [3], [4]], E=5, C=3) == [2, 3]
    assert walked_out(LFU(), [[0], [1], [1], [0], [2], [2], [3]], E=5, C=3) == [1]


def test_lfu_remembers_uses_of_experts_that_left() -> None:
    """Expert 0 leaves with three uses; back with a fourth it is worth as much as 1 and 2, and stays: 1 is older."""
    tokens = [[0], [0], [0], *[[1]] * 4, *[[2]] * 4, [0], [3]]
    assert walked_out(LFU(), tokens, E=4, C=2) == [0, 1, 2]


@pytest.mark.parametrize("half_life", [1, 5, 64, 1000])
def test_aged_lfu_keeps_the_sum_of_halved_uses(half_life: float, rng: np.random.Generator) -> None:
    ids = random_ids(rng, 60, 2, 8)
    state = new_layer(8, 2, 4, None, AgedLFU(half_life=half_life))
    replay_layer(ids, None, state)
    ticks = ids.ravel()
    now = len(ticks)
    for e in np.nonzero(state.stats.uses)[0]:
        mass = sum(0.5 ** ((now - tick) / half_life) for tick, used in enumerate(ticks, 1) if used == e)
        keep = AgedLFU.keep(e, state.stats, state.evict_state, np.array([half_life]), now)
        assert keep == pytest.approx(np.log2(mass), rel=1e-9, abs=1e-9)


def test_a_long_half_life_counts_and_a_short_one_is_recency(rng: np.random.Generator) -> None:
    ids = random_ids(rng, 40, 2, 10)
    short = replay_layer(ids, None, new_layer(10, 2, 5, None, AgedLFU(half_life=1)))
    np.testing.assert_array_equal(short, replay_layer(ids, None, new_layer(10, 2, 5, None, LRU())))
    frequent = [[0], [0], [0], [1], [2]]
    assert walked_out(AgedLFU(half_life=4096), frequent, E=3, C=2) == [1]
    assert walked_out(AgedLFU(half_life=1), frequent, E=3, C=2) == [0]


def test_random_eviction_is_the_same_for_the_same_seed_and_layer(rng: np.random.Generator) -> None:
    ids = random_ids(rng, 200, 2, 16)

    def hits(layer: int, seed: int) -> bytes:
        return replay_layer(ids, None, new_layer(16, 2, 8, None, Random(), layer, seed)).tobytes()

    assert hits(0, 1) == hits(0, 1)
    assert len({hits(0, 1), hits(1, 1), hits(0, 2), hits(1, 2)}) == 4


def test_random_eviction_prefers_nobody() -> None:
    """Of 8 residents each leaves about as often: within five standard deviations."""
    state = new_layer(9, 1, 8, None, Random())
    state.fill(range(8))
    counts = np.zeros(9)
    for draw in range(4000):
        state.clock[0] = draw
        twin_resident = state.resident.copy()
        counts[state.resize(7)[0]] += 1
        state.resize(8)
        state.resident[:] = twin_resident
    assert (np.abs(counts[:8] - 500) < 5 * np.sqrt(500 * 7 / 8)).all()


def test_noise_is_spread_evenly_and_equals_its_plain_python() -> None:
    values = np.array([noise(seed, layer, draw, item) for seed in (0, 1, 2**40) for layer in range(4)
                       for draw in range(40) for item in range(8)])
    assert len(np.unique(values)) > 0.999 * values.size
    assert np.histogram(values, 4, (0, 1))[0] / values.size == pytest.approx(0.25, abs=0.03)
    assert noise(7, 2, 5, 3) == noise.py_func(7, 2, 5, 3)
