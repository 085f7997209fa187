"""Switches of the libraries below, which a user may have set: figures are the same, and nothing complains."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import eager

import moe_lab as ml
from moe_lab.errors import PolicyError
from moe_lab.evaluation.record import record

FAR = 200.0
"""Logits so far apart that their softmax is 0 in float32."""


@pytest.fixture(params=["NumPy raises", "torch makes float64"])
def switched(request: pytest.FixtureRequest) -> Iterator[None]:
    before = torch.get_default_dtype()
    try:
        if request.param == "NumPy raises":
            with np.errstate(all="raise"):
                yield
        else:
            torch.set_default_dtype(torch.float64)
            yield
    finally:
        torch.set_default_dtype(before)


@pytest.fixture
def trace(rng: np.random.Generator) -> ml.Trace:
    logits = FAR * rng.standard_normal((120, 2, 12)).astype(np.float16).astype(np.float32)
    logits[:, :, 11] = -np.inf
    ids = np.argsort(-logits, axis=2)[:, :, :3]
    return ml.Trace(ids=ids, logits=logits, weights=np.full(ids.shape, 1e-30), experts=12)


def replayed(trace: ml.Trace) -> list[tuple[float, ...]]:
    rows = ml.replay(trace, routing=list(ml.ROUTING), eviction=["lru", "mrs", "learned", "aged-lfu"], cache=[4, "75%"],
                     train=0.5).rows
    return [(row.miss_rate, row.miss_low, row.mass_kept, row.over_lru_high) for row in rows]


def test_a_replay_is_the_same(trace: ml.Trace, switched: None) -> None:
    with np.errstate(all="ignore"):
        expected = replayed(trace)
    assert replayed(trace) == expected


def test_a_recorded_model_and_its_files_are_the_same(checkpoint: Callable[..., Path], tmp_path: Path,
                                                     switched: None) -> None:
    model = eager(checkpoint("olmoe"))
    model.model.layers[0].mlp.gate.weight.data.mul_(1e-9)      # logits that are nothing in float16
    trace = record(model, list(range(70)), logits=True)
    assert np.count_nonzero(trace.logits[:, 0]) < trace.logits[:, 0].size / 2
    for suffix in (".npz", ".jsonl", ".csv"):
        trace.write(tmp_path / f"a{suffix}")
        assert ml.Trace.read(tmp_path / f"a{suffix}").digest() == trace.digest()


def test_scores_sweeps_and_snapshots_are_the_same(checkpoint: Callable[..., Path], rng: np.random.Generator,
                                                  switched: None) -> None:
    ids = rng.integers(0, 160, 130).tolist()

    def figures() -> tuple:
        with contextlib.closing(ml.load(str(checkpoint("olmoe")), cache=4)) as engine:
            score = engine.score(ids, window=64)
            points = ml.sweep(engine, ids, routing=["original", "cache-prior"], cache=[4, 6], window=64,
                              store=False).finish().points
            shot = engine.telemetry.snapshot()
            return score.perplexity, [point.perplexity for point in points], shot.uses.tolist()

    with np.errstate(all="ignore"):
        expected = figures()
    assert figures() == expected


def test_the_line_that_a_policy_fails_at_is_found_behind_numbers_that_vanish(trace: ml.Trace) -> None:
    @ml.routing.policy
    def late(logits, weights, K, resident, state, params, scores):
        """Something vanishes at every token, and the ninth divides by 0."""
        for e in range(len(logits)):
            scores[e] = np.exp(-np.abs(logits[e]) - 100.0)
        scores[0] += 1 // int(state[1] != 9.0)

    with np.errstate(all="raise"), pytest.raises(PolicyError, match=r"1 // int\(state.* raised ZeroDivisionError"):
        ml.replay(trace, routing=late, cache=4)
