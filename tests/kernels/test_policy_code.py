"""A policy's digest is that of the code that runs: of all that its functions read, as it was when it was compiled."""

from __future__ import annotations

import enum
import functools
import os
import subprocess
import sys
import types
from collections import namedtuple

import numba
import numpy as np
import pytest

import moe_lab as ml
from moe_lab.digests import digest
from moe_lab.kernels.plugin import addresses
from moe_lab.kernels.policy_code import code_of, freeze, policy_key

VALUE = 1.0


def reading(value, name="VALUE"):
    """A policy class whose keep reads a global of this value."""
    def keep(expert, stats, state, params, now):
        return VALUE

    globals_ = {"VALUE": value, "__name__": "elsewhere", "__builtins__": __builtins__}
    return ml.eviction.policy(types.FunctionType(keep.__code__, globals_, "keep"))


def enclosing(value):
    """A policy class whose keep closes over this value."""
    def keep(expert, stats, state, params, now):
        return value

    return ml.eviction.policy(keep)


Pair = namedtuple("Pair", "a b")
Colour = enum.IntEnum("Colour", "RED GREEN")


def helper(value):
    return value + 1


def other_helper(value):
    return value + 2


def with_default(value, more=1):
    return value + more


def with_other_default(value, more=2):
    return value + more


def module_of(number):
    made = types.ModuleType("helpers")
    made.VALUE = number
    return made


PAIRS = {
    "numbers": (1.0, 2.0), "types of numbers": (1, 1.0), "numpy's numbers": (np.float32(1), np.float64(1)),
    "texts": ("a", "b"), "arrays": (np.arange(4.0), np.arange(4.0) + 1),
    "types of arrays": (np.zeros(2), np.zeros(2, np.int64)),
    "shapes": (np.zeros((2, 3)), np.zeros((3, 2))), "lists": ([1, 2], [1, 3]), "dictionaries": ({"a": 1}, {"a": 2}),
    "tuples": ((1, 2), (2, 1)), "sets": ({"a", "b"}, {"a", "c"}), "named tuples": (Pair(1, 2), Pair(2, 1)),
    "enumerations": (Colour.RED, Colour.GREEN), "helpers": (helper, other_helper),
    "defaults": (with_default, with_other_default), "compiled helpers": (numba.njit(helper), numba.njit(other_helper)),
    "options of helpers": (numba.njit(helper), numba.njit(fastmath=True)(helper)),
    "signatures of helpers": (numba.njit("f8(f8)")(helper), numba.njit("f4(f4)")(helper)),
    "partial functions": (functools.partial(helper, 1), functools.partial(helper, 2)),
    "functions of numpy": (np.exp, np.log),
}


@pytest.mark.parametrize("made", [reading, enclosing])
@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS)
def test_what_a_function_reads_is_part_of_its_digest(pair, made):
    one, other = (code_of(made(value)) for value in pair)
    assert one == code_of(made(pair[0])) != other
    assert not one.strange and not other.strange


def test_a_helper_in_another_module_is_part_of_the_digest():
    def of(module):
        def keep(expert, stats, state, params, now):
            return module.VALUE

        return code_of(ml.eviction.policy(keep))

    assert of(module_of(1.0)) == of(module_of(1.0)) != of(module_of(2.0))
    assert not of(module_of(1.0)).strange


def test_an_attribute_that_is_called_like_a_global_reads_no_global(monkeypatch):
    def made():
        def keep(expert, stats, state, params, now):
            return stats.last_use[expert]

        return code_of(ml.eviction.policy(keep))

    before = made()
    monkeypatch.setitem(globals(), "last_use", object())
    assert made() == before and not before.strange


def test_a_class_of_a_file_named_as_one_of_python_is_not_told_by_its_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "statistics", types.ModuleType("statistics"))
    assert code_of(enclosing(type("Mean", (), {"__module__": "statistics"}))).strange


@pytest.mark.parametrize("thing", [object(), type("Own", (), {}), functools.partial(helper, object()), [object()],
                                   np.array([object()])], ids=lambda thing: type(thing).__name__)
def test_what_no_digest_can_stand_for_is_told_and_never_found_again(thing):
    one, other = enclosing(thing), enclosing(thing)
    assert "keep reads value: it" in code_of(one).strange
    assert code_of(one) == code_of(one) != code_of(other)


def test_texts_steer_and_docstrings_do_not():
    def made(source):
        space = {"__name__": "elsewhere"}
        exec(f"def keep(expert, stats, state, params, now):\n{source}", space)
        return code_of(ml.eviction.policy(space["keep"]))

    assert made("    'one'\n    return 1.0") == made("    'another'\n    return 1.0")
    assert made("    x = 'one'\n    return len(x)") != made("    x = 'two2'\n    return len(x)")


def test_what_is_compiled_keeps_its_digest_when_a_global_changes(monkeypatch):
    def made():
        @ml.eviction.policy
        def of_now(expert, stats, state, params, now):
            return VALUE

        return of_now

    compiled = made()
    freeze(compiled)
    before = code_of(compiled)
    monkeypatch.setitem(globals(), "VALUE", 2.0)
    assert code_of(compiled) == before != code_of(made())


def test_a_class_is_frozen_when_its_functions_are_compiled():
    class Mine(ml.eviction.LRU):
        """Its functions are compiled already."""

    addresses(Mine)
    before = code_of(Mine)
    Mine.keep = staticmethod(ml.eviction.FIFO.keep)         # too late
    assert code_of(Mine) == before


def test_a_compiled_helper_keeps_its_digest_for_policies_that_come_later(monkeypatch):
    @numba.njit
    def helped(value):
        return VALUE * value

    def made():
        @ml.eviction.policy
        def of_helper(expert, stats, state, params, now):
            return helped(1.0)

        return of_helper

    first = made()
    freeze(first)
    monkeypatch.setitem(globals(), "VALUE", 3.0)
    assert code_of(made()) == code_of(first)         # numba has frozen the helper with 1.0


def test_a_helper_that_numba_keeps_on_disk_has_no_digest():
    assert "without cache=True" in code_of(reading(numba.njit(cache=True)(helper))).strange


def test_what_is_not_compiled_is_looked_at_each_time():
    made = reading(1.0)
    freeze(made)
    before = code_of(made)
    made.vector = lambda self: np.zeros(3)
    made.columns = 2
    assert code_of(made) != before and not code_of(made).strange


def test_a_method_that_a_policy_has_of_its_own_is_part_of_its_digest():
    def made(bias):
        class Biased(ml.eviction.LRU):
            def vector(self):
                return super().vector() + bias

        return Biased

    assert code_of(made(1)) == code_of(made(1)) != code_of(made(2)) and not code_of(made(1)).strange


def test_tables_lists_by_layer_and_schedules_are_part_of_what_a_policy_is():
    learned = ml.eviction.LearnedEviction
    other = learned(weights=[*learned().weights[:-1], 0.5])
    keys = [policy_key(learned()), policy_key(other), policy_key(ml.routing.CachePrior(penalty=[0.1, 0.2])),
            policy_key(ml.routing.CachePrior(penalty=ml.routing.Schedule({0: 0.1, 9: 0.2})))]
    assert len({digest(key) for key in keys}) == 4


def test_every_shipped_policy_has_a_digest_of_its_own():
    codes = [code_of(cls) for cls in [*ml.ROUTING.values(), *ml.EVICTION.values()]]
    assert len({code.digest for code in codes}) == len(codes) and not any(code.strange for code in codes)


def test_the_digest_is_the_same_in_every_process():
    line = ("import moe_lab as ml; from moe_lab.kernels.policy_code import code_of; "
            "print(code_of(ml.EVICTION['arc']).digest)")
    found = subprocess.run([sys.executable, "-c", line], capture_output=True, text=True, check=True,
                           env={**os.environ, "PYTHONHASHSEED": "7"})
    assert found.stdout.strip() == code_of(ml.EVICTION["arc"]).digest
