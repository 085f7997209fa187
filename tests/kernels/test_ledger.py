"""The ledger against its slow twin."""

from __future__ import annotations

import numpy as np
import pytest
from layers import new_layer, random_logits, softmax

from moe_lab.eviction import LFU
from moe_lab.kernels.ledger import book_of, enter, page_of, rows_of
from moe_lab.kernels.ledger_slow import enter_slow
from moe_lab.kernels.record import Log, Ring, Spent, Totals
from moe_lab.kernels.walk import walk
from moe_lab.kernels.walked import Walked
from moe_lab.routing import CachePrior, DropCold, Original

L, E, K = 3, 12, 4


@pytest.mark.parametrize("routing", [Original(), CachePrior(penalty=0.5), DropCold()])
def test_a_pass_is_entered_as_by_the_slow_twin(rng: np.random.Generator, routing) -> None:
    """Passes of one token and of many, longer than the ring too, and at any place of its circle."""
    states = [new_layer(E, K, 6, routing, LFU(), layer) for layer in range(L)]
    fast, slow = ((Ring.empty(16, 5, L, E, K), Totals.empty(L, E), Log.empty(100, L, K)) for _ in range(2))
    book, rows = book_of(*fast[:2], [state.block for state in states]), rows_of(fast[2])
    token = fewer = 0
    for T in (1, 7, 1, 1, 16, 1, 40, 3, 1):
        logits = random_logits(rng, L * T, E, skew=1).reshape(L, T, E)
        walked = [walk(state, z, softmax(z)) for state, z in zip(states, logits, strict=True)]
        routes = Walked(*(np.stack(parts) for parts in zip(*walked, strict=True)))
        spent = Spent(rng.integers(0, 2**40, L), *rng.random((3, L)))
        more = token, token, int(T == 1), 0.25 * T
        found = enter(book, page_of(routes, spent), rows, *more)
        assert found == pytest.approx(enter_slow(*slow, routes, spent, states, *more), rel=1e-12)
        assert found[1] + found[2] == np.count_nonzero(routes.ids >= 0)
        token, fewer = token + T, fewer + np.count_nonzero(routes.ids < 0)
        for one, twin in zip(fast, slow, strict=True):
            for name, mine, other in zip(one._fields, one, twin, strict=True):
                filled = slice(0, token) if isinstance(one, Log) and len(mine) > 2 else slice(None)
                exact = 1e-12 if name == "other" else 0
                np.testing.assert_allclose(mine[filled], other[filled], rtol=exact, err_msg=name)
    assert bool(fewer) is isinstance(routing, DropCold)
    assert fast[1].uses.sum() == token * L * K - fewer


def test_one_kernel_serves_every_pass(rng: np.random.Generator) -> None:
    before = len(enter.signatures)
    test_a_pass_is_entered_as_by_the_slow_twin(rng, Original())
    assert len(enter.signatures) == max(before, 1) == 1
