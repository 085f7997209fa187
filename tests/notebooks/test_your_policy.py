"""The policies of the notebook ``20_your_policy`` do everywhere what it says, and the broken one is told why.

The cells marked ``policy`` and ``broken`` are taken from the notebook as they stand: what is tested is what a student
reads.
"""

from __future__ import annotations

import linecache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import moe_lab as ml
from moe_lab.testing import check_policy

nbformat = pytest.importorskip("nbformat")

PATH = Path(__file__).resolve().parents[2] / "notebooks" / "20_your_policy.ipynb"
POLICIES = {"fading": "eviction", "loyal": "routing", "two_queues": "eviction", "by_age": "eviction"}


def cells(tag: str) -> list[str]:
    return [cell.source for cell in nbformat.read(PATH, as_version=4).cells
            if tag in cell.metadata.get("tags", []) and cell.cell_type == "code"]


def run(tag: str) -> dict[str, Any]:
    """The names that the cells with a tag leave behind; their lines can be looked up, as in a kernel."""
    names: dict[str, Any] = {"__name__": "__main__", "ml": ml, "np": np, "check_policy": check_policy}
    for number, source in enumerate(cells(tag)):
        file = f"<{tag} {number}>"
        linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
        exec(compile(source, file, "exec"), names)
    return names


@pytest.fixture(scope="module")
def notebook() -> dict[str, Any]:
    """The notebook's policies by the names that they have there."""
    return run("policy")


@pytest.fixture
def engine(checkpoint):
    made = ml.load(str(checkpoint("olmoe")), cache=4)
    yield made
    made.close()


def test_the_notebook_has_the_policies_that_are_tested_here(notebook):
    found = {name: value.kind for name, value in notebook.items() if isinstance(value, type) and hasattr(value, "kind")}
    assert found == POLICIES


@pytest.mark.parametrize("name", ["fading", "loyal", "two_queues"])
def test_a_policy_takes_ten_lines(name):
    source = next(s for s in cells("policy") if f"def {name}(" in s)
    body = [line for line in source.splitlines() if line.strip() and not line.startswith("check_policy")]
    assert len(body) <= 10, source


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_keeps_the_contract_and_documents_its_controls(notebook, name):
    checked = check_policy(notebook[name])
    assert len(checked.checks) >= 9
    for parameter in notebook[name].parameters().values():
        assert parameter.doc and parameter.unit and parameter.low < parameter.default < parameter.high


def test_the_broken_policy_is_told_its_line_in_words(capsys):
    run("broken")
    said = capsys.readouterr().out
    assert "policy 'broken' breaks its contract" in said and "average = total / count" in said and "line 8" in said


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_runs_in_the_engine_and_the_slow_twin_agrees(notebook, engine, name, rng):
    from moe_lab.kernels.walk import walk
    from moe_lab.kernels.walk_slow import walk_slow

    setattr(engine, POLICIES[name], notebook[name])
    reply = engine.generate(rng.integers(0, 160, 9).tolist(), max_new_tokens=12, stop_at_end=False)
    assert reply.stats.decode.tokens == 11 and reply.stats.decode.misses > 0
    assert reply.stats.exact == (POLICIES[name] == "eviction")
    from layers import new_layer, random_logits, softmax

    logits = random_logits(rng, 60, 16)
    states = [new_layer(16, 4, 8, **{POLICIES[name]: notebook[name]()}) for _ in range(2)]
    fast, slow = (step(state, logits, softmax(logits)) for step, state in zip((walk, walk_slow), states, strict=True))
    assert (fast.ids == slow.ids).all() and (fast.evicted == slow.evicted).all()


def test_the_policies_run_in_replay_and_in_a_sweep(notebook, engine, rng, tmp_path):
    ids = rng.integers(0, 160, 121).tolist()
    trace = engine.score(ids, window=40).trace
    own = [notebook[name] for name, kind in POLICIES.items() if kind == "eviction"]
    replayed = ml.replay(trace, eviction=["lru", *own, notebook["learn"](trace)], cache=[3, 4]).to_frame()
    assert len(replayed) == 10 and (replayed["miss_rate"] >= 1 - replayed["bound_hit_rate"]).all()
    routing = [notebook["loyal"](bonus=b) for b in (0, 2)]
    sweep = ml.sweep(engine, ids, routing=["original", *routing], eviction=["lru", notebook["fading"]], cache=4,
                     window=40, store=tmp_path)
    rows = sweep.to_frame().set_index(["routing", "eviction"])
    assert len(rows) == 6
    assert rows.loc[("loyal(bonus=0)", "lru"), "miss_rate"] == rows.loc[("original", "lru"), "miss_rate"]
    assert rows.loc[("loyal(bonus=2)", "lru"), "miss_rate"] < rows.loc[("original", "lru"), "miss_rate"]


def test_the_dashboard_offers_them_with_a_control_for_each_parameter(notebook, engine):
    lab_of = pytest.importorskip("moe_lab_widgets").Lab
    lab = lab_of(engine, policies=[notebook["fading"], notebook["loyal"]])
    offered = {policy["name"]: policy for kind in ("routing", "eviction") for policy in lab.offered[kind]}
    assert [p["name"] for p in offered["loyal"]["parameters"]] == ["bonus"]
    assert [p["name"] for p in offered["fading"]["parameters"]] == ["half_life"]
    lab.routing, lab.eviction = "loyal", "fading"
    lab.bonus, lab.half_life = 2.0, 64
    assert engine.routing == notebook["loyal"](bonus=2) and engine.eviction == notebook["fading"](half_life=64)


def test_a_table_learned_from_a_loop_serves_the_rest_of_it(notebook):
    """Seven experts in turn and four slots: LRU and the untaught table never hit, the taught one does."""
    loop = ml.Trace(ids=np.tile(np.arange(7), 60)[:, None, None], experts=7)
    taught = notebook["learn"](loop[:210])
    rates = [row.hit_rate for row in ml.replay(loop[210:], eviction=["lru", notebook["by_age"], taught], cache=4)]
    assert rates[0] == rates[1] == 0 and rates[2] > 0.3
