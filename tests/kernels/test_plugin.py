"""Users' policies: compiled once, and told in words when they break their contract; nothing is changed then."""

from __future__ import annotations

import inspect
import math
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
from layers import changing, new_layer, random_ids, random_logits, softmax
from numba.core.sigutils import normalize_signature

import moe_lab as ml
from moe_lab.errors import PolicyError
from moe_lab.kernels.plugin import addresses
from moe_lab.kernels.replay import replay_layer
from moe_lab.kernels.residency import LayerState
from moe_lab.kernels.walk import walk
from moe_lab.routing import CachePrior

# --- what breaks when it is compiled -----------------------------------------------------------------


def rank_of_an_unknown_type(logits, weights, K, resident, state, params, scores):
    table = {"a": object()}
    scores[:] = table["a"]


def rank_that_returns(logits, weights, K, resident, state, params, scores):
    scores[:] = logits
    return logits


def rank_of_an_unknown_name(logits, weights, K, resident, state, params, scores):
    scores[:] = no_such_name  # noqa: F821


def keep_of_text(expert, stats, state, params, now):
    return "much"


def keep_of_nothing(expert, stats, state, params, now):
    stats.last_use[expert]


def keep_of_an_array(expert, stats, state, params, now):
    return stats.last_use


def keep_of_an_unknown_column(expert, stats, state, params, now):
    return stats.last_seen[expert]


def routing(rank: Callable) -> ml.routing.RoutingPolicy:
    return ml.routing.policy(rank)()


def eviction(keep: Callable, **hooks: object) -> ml.eviction.EvictionPolicy:
    return ml.eviction.policy(**hooks)(keep)()


@pytest.mark.parametrize("rank", [rank_of_an_unknown_type, rank_that_returns, rank_of_an_unknown_name])
def test_a_rank_that_does_not_compile_is_a_policy_error_with_its_place(rank: Callable) -> None:
    with pytest.raises(PolicyError) as caught:
        new_layer(8, 2, 4, routing(rank))
    said = str(caught.value)
    assert rank.__name__.replace("_", "-") in said
    assert "test_plugin.py, line" in said
    assert "must return nothing" in said
    assert "frozen" in said
    assert "\x1b" not in said


@pytest.mark.parametrize("keep", [keep_of_text, keep_of_nothing, keep_of_an_array, keep_of_an_unknown_column])
def test_a_keep_of_the_wrong_type_is_a_policy_error_with_its_line(keep: Callable) -> None:
    with pytest.raises(PolicyError) as caught:
        new_layer(8, 2, 4, None, eviction(keep))
    said = str(caught.value)
    assert keep.__name__.replace("_", "-") in said
    assert "must return a float" in said
    assert f"line {inspect.getsourcelines(keep)[1] + 1}" in said


def test_a_policy_that_does_not_compile_leaves_the_layer_with_the_one_it_had() -> None:
    state = new_layer(8, 2, 4)
    with pytest.raises(PolicyError):
        state.set_eviction(eviction(keep_of_text))
    assert repr(state.eviction) == "LRU()"
    walk(state, np.ones((1, 8), dtype=np.float32), np.ones((1, 8), dtype=np.float32))


def test_a_whole_number_is_a_keep() -> None:
    def keep(expert, stats, state, params, now):
        return 3

    ids = np.array([[0], [1], [2]], dtype=np.int32)
    assert not replay_layer(ids, None, new_layer(3, 1, 2, None, eviction(keep))).any()


# --- what breaks when it runs ------------------------------------------------------------------------


def rank_nan(logits, weights, K, resident, state, params, scores):
    scores[:] = logits
    if resident.sum() > 3:
        scores[5] = np.nan


def rank_nothing(logits, weights, K, resident, state, params, scores):
    scores[:] = logits
    if resident.sum() > 3:
        scores[:] = -np.inf


def rank_beyond_the_end(logits, weights, K, resident, state, params, scores):
    scores[:] = logits
    if resident.sum() > 3:
        scores[len(logits)] = 1.0                                                       # here


def rank_that_raises(logits, weights, K, resident, state, params, scores):
    scores[:] = logits
    if resident.sum() > 3:
        raise ValueError("enough")                                                      # here


def keep_nan(expert, stats, state, params, now):
    return math.nan if stats.uses[expert] > 1 else 1.0


def keep_beyond_the_end(expert, stats, state, params, now):
    return stats.last_use[expert + 5]                                                   # here


def keep_that_raises(expert, stats, state, params, now):
    if now > 20:
        raise RuntimeError("too late")                                                  # here
    return 1.0


def keep_that_divides(expert, stats, state, params, now):
    return 1.0 / (stats.uses[expert] - 2)                                               # here


def touch_beyond_the_columns(expert, weight, hit, stats, state, params, now):
    if now > 9:
        stats.own[1, expert] = now                                                      # here


def left_that_raises(expert, stats, state, params, now):
    raise ValueError("gone")                                                            # here


def token_that_raises(logits, stats, state, params, now):
    if now > 9:
        raise ValueError("seen")                                                        # here


def constant(expert, stats, state, params, now):
    return 0.0


ROUTINGS = [(rank_nan, "gave expert 5 the score NaN"), (rank_nothing, "left no expert to use"),
            (rank_beyond_the_end, "raised IndexError"), (rank_that_raises, "raised ValueError: enough")]
EVICTIONS = [(keep_nan, {}, "returned NaN"), (keep_beyond_the_end, {}, "raised IndexError"),
             (keep_that_raises, {}, "raised RuntimeError: too late"),
             (keep_that_divides, {}, "raised ZeroDivisionError"),
             (constant, {"touch": touch_beyond_the_columns, "columns": 1}, "raised IndexError"),
             (constant, {"left": left_that_raises}, "raised ValueError: gone"),
             (constant, {"token": token_that_raises}, "raised ValueError: seen")]


def line_of(function: Callable) -> int:
    """The line that is to blame: marked, or else the first."""
    lines, first = inspect.getsourcelines(function)
    return first + next((i for i, text in enumerate(lines) if "# here" in text), 0)


def fails_undone(state: LayerState, rng: np.random.Generator, said: str, name: str, line: int) -> None:
    logits = random_logits(rng, 30, 8, skew=1)
    before = changing(state)
    with pytest.raises(PolicyError) as caught:
        walk(state, logits, softmax(logits))
    assert changing(state) == before
    message = str(caught.value)
    assert said in message
    assert f"policy {name!r}" in message
    assert f"test_plugin.py, line {line}" in message
    assert "Nothing was changed" in message


@pytest.mark.parametrize(("rank", "said"), ROUTINGS, ids=lambda x: getattr(x, "__name__", ""))
def test_a_routing_that_fails_is_named_with_its_line_and_undone(rank: Callable, said: str,
                                                                rng: np.random.Generator) -> None:
    policy = ml.routing.policy(rank)()
    fails_undone(new_layer(8, 2, 4, policy), rng, said, policy.name, line_of(rank))


@pytest.mark.parametrize(("keep", "hooks", "said"), EVICTIONS, ids=lambda x: getattr(x, "__name__", ""))
def test_an_eviction_that_fails_is_named_with_its_line_and_undone(keep: Callable, hooks: dict, said: str,
                                                                  rng: np.random.Generator) -> None:
    policy = eviction(keep, **hooks)
    guilty = next((hook for hook in hooks.values() if callable(hook)), keep)
    fails_undone(new_layer(8, 2, 4, CachePrior(penalty=0.1), policy), rng, said, policy.name, line_of(guilty))


def test_a_layer_works_on_after_a_failure(rng: np.random.Generator) -> None:
    logits = random_logits(rng, 30, 8, skew=1)
    state = new_layer(8, 2, 4, CachePrior(penalty=0.05))
    walk(state, logits[:10], softmax(logits[:10]))
    state.set_eviction(eviction(keep_that_raises))
    with pytest.raises(PolicyError):
        walk(state, logits[10:], softmax(logits[10:]))
    state.set_eviction(ml.eviction.LRU())
    after = walk(state, logits[10:], softmax(logits[10:]))
    whole = walk(new_layer(8, 2, 4, CachePrior(penalty=0.05)), logits, softmax(logits))
    np.testing.assert_array_equal(after.ids, whole.ids[10:])
    np.testing.assert_array_equal(after.hits, whole.hits[10:])


def test_a_replay_that_fails_is_undone(rng: np.random.Generator) -> None:
    for keep, said in ((keep_nan, "returned NaN"), (keep_that_raises, "too late"), (keep_beyond_the_end, "IndexError")):
        state = new_layer(8, 2, 4, None, eviction(keep))
        before = changing(state)
        with pytest.raises(PolicyError, match=said):
            replay_layer(random_ids(rng, 60, 2, 8), None, state)
        assert changing(state) == before


def out_of_memory(*given: object) -> None:
    raise MemoryError


def damaged_disk(*given: object) -> None:
    raise OSError("read error")


def wrong_within_numba(*given: object) -> None:
    normalize_signature(3)


@pytest.mark.parametrize(("failing", "kind"), [(out_of_memory, MemoryError), (damaged_disk, OSError),
                                               (wrong_within_numba, TypeError)])
def test_what_no_policy_can_have_caused_is_told_as_it_is(failing: Callable, kind: type[Exception],
                                                         monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moe_lab.kernels.walk.walk_kernel", failing)
    row = np.ones((1, 8), dtype=np.float32)
    with pytest.raises(kind) as caught:
        walk(new_layer(8, 2, 4), row, row)
    assert not isinstance(caught.value, PolicyError)


def rank_that_finds_no_file(logits, weights, K, resident, state, params, scores):
    raise OSError("no such file")                                                       # here


def test_a_policy_that_raises_an_error_of_the_system_itself_is_named(rng: np.random.Generator) -> None:
    policy = routing(rank_that_finds_no_file)
    fails_undone(new_layer(8, 2, 4, policy), rng, "raised OSError: no such file", policy.name,
                 line_of(rank_that_finds_no_file))


# --- how it is compiled ------------------------------------------------------------------------------


def test_two_policies_of_one_class_share_their_code() -> None:
    first = new_layer(8, 2, 4, CachePrior(penalty=0.1))
    again = new_layer(8, 2, 4, CachePrior(penalty=0.9))
    assert first.block[-5:].tolist() == again.block[-5:].tolist()
    assert addresses(CachePrior) is addresses(CachePrior)


def test_globals_are_frozen_when_a_policy_is_compiled() -> None:
    global LIMIT
    LIMIT = 1.0

    def rank(logits, weights, K, resident, state, params, scores):
        scores[:] = logits * LIMIT

    state = new_layer(4, 1, 1, routing(rank))
    LIMIT = -1.0
    logits = np.array([[1, 2, 3, 4]], dtype=np.float32)
    assert walk(state, logits, softmax(logits)).ids.tolist() == [[3]]


LIMIT = 1.0


def test_a_policy_from_a_notebook_cell_compiles() -> None:
    """Source without a file, as in a cell or at a prompt."""
    space: dict = {"ml": ml}
    cell = "@ml.eviction.policy\ndef mine(expert, stats, state, params, now):\n    return stats.arrived[expert]\n"
    exec(compile(cell, "<cell 3>", "exec"), space)
    ids = np.array([[0], [1], [0], [2], [0]], dtype=np.int32)
    assert replay_layer(ids, None, new_layer(3, 1, 2, None, space["mine"]()))[:, 0].tolist() == [0, 0, 1, 0, 0]


def test_a_second_process_finds_the_machine_code_of_the_first() -> None:
    code = """
import numpy as np
from moe_lab.eviction import LRU
from moe_lab.routing import CachePrior
from moe_lab.kernels import plugin
from moe_lab.kernels.residency import LayerState
from moe_lab.kernels.walk import walk, walk_kernel
state = LayerState.new(8, 2, 4, CachePrior(), LRU())
walk(state, np.ones((1, 8), np.float32), np.ones((1, 8), np.float32))
print([sum(d.stats.cache_misses.values()) for d in (walk_kernel, *plugin._alive)])
"""
    for _ in range(2):
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    assert found.stdout.strip() == "[0, 0, 0]"
