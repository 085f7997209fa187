"""Routes that the recorded logits explain, and those that they do not: a selection bias, groups of experts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import eager

import moe_lab as ml
from moe_lab.errors import PolicyError
from moe_lab.evaluation import ranked
from moe_lab.evaluation.ranked import disagreeing
from moe_lab.evaluation.record import record

Checkpoint = Callable[..., Path]
TYPES = [torch.float32, torch.bfloat16]


def recorded(checkpoint: Checkpoint, family: str, dtype: torch.dtype, rng: np.random.Generator, bias: float = 0.0,
             **options: Any) -> ml.Trace:
    """What a tiny model with a random selection bias of that size does with 71 random tokens."""
    model = eager(checkpoint(family, dtype=dtype, **options), dtype)
    for name, tensor in [*model.named_buffers(), *model.named_parameters()]:
        if "correction_bias" in name:
            tensor.data.copy_(torch.from_numpy(bias * rng.standard_normal(tensor.shape)))
    return record(model, rng.integers(0, 160, 71).tolist(), logits=True)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("family", ["olmoe", "qwen3-moe", "mixtral", "granite", "gpt-oss", "deepseek-v3", "ernie"])
def test_routers_that_rank_by_their_logits_can_be_routed_again(family: str, dtype: torch.dtype, checkpoint: Checkpoint,
                                                              rng: np.random.Generator) -> None:
    for seed in range(3):
        trace = recorded(checkpoint, family, dtype, rng, seed=seed)
        assert disagreeing(trace) == 0
    assert not ml.replay(trace, routing="cache-prior", cache=4).rows[0].skipped


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize(("family", "bias", "options"), [
    ("deepseek-v3", 0.15, {}), ("deepseek-v3", 0.02, {}), ("deepseek-v3", 0.0, {"n_group": 4, "topk_group": 2}),
    ("ernie", 0.15, {}), ("ernie", 0.02, {})])
def test_routers_that_rank_by_something_else_are_not_routed_again(family: str, bias: float, options: dict[str, int],
                                                                 dtype: torch.dtype, checkpoint: Checkpoint,
                                                                 rng: np.random.Generator) -> None:
    trace = recorded(checkpoint, family, dtype, rng, bias, **options)
    share = disagreeing(trace)
    assert 0 < share < 1
    plain, again = ml.replay(trace, routing=["original", "cache-prior"], cache=4).rows
    assert not plain.skipped and plain.hit_rate > 0
    assert f"in {share:.2%} of {71 * trace.L} places (a token in a layer) the 2 best logits are not" in again.skipped
    assert "a selection bias or groups of experts" in again.skipped and "leave routing= out" in again.skipped
    with pytest.raises(PolicyError, match="would rank by the recorded logits, and this model ranked by something else"):
        ml.replay(trace, routing="max-rank", cache=4)


def test_an_expert_may_lie_behind_by_what_rounding_explains() -> None:
    def behind(*logits: float, ids: tuple[int, ...] = (1, 2)) -> bool:
        return disagreeing(ml.Trace(ids=[[ids]], logits=[[logits]], experts=3)) > 0

    assert not behind(0.1, 0.3, 2.0)
    assert not behind(0.3, 0.3, 2.0)            # a tie
    assert not behind(0.3 + 2**-7, 0.3, 2.0)    # softmax in bfloat16
    assert not behind(40.03, 40.0, 50.0)        # neighbours in float16
    assert behind(0.33, 0.31, 2.1) and behind(2.1, 0.3, 2.0)
    assert not behind(-np.inf, -np.inf, 2.0) and behind(0.0, -np.inf, 2.0)
    assert behind(0.0, 1.0, 2.0, ids=(0, 1)) and not behind(0.0, 1.0, 2.0, ids=(1, 2))


def test_the_sigmoid_of_a_bfloat16_model_ties_further_up_than_that_of_others() -> None:
    brain = ml.Trace(ids=[[[0]]], logits=[[[4.0625, 4.25]]], experts=2)     # both are 0.984375 in bfloat16
    assert torch.sigmoid(torch.tensor([4.0625, 4.25], dtype=torch.bfloat16)).unique().numel() == 1
    assert disagreeing(brain) == 0
    assert disagreeing(ml.Trace(ids=[[[0]]], logits=[[[4.0625, 4.254]]], experts=2)) == 1   # no number of bfloat16
    full = ml.Trace(ids=[[[0]]], logits=[[[6.25, 40.0]]], experts=2)        # 1 in bfloat16
    assert disagreeing(full) == 0


def test_a_place_that_used_fewer_experts_may_have_left_out_any(rng: np.random.Generator) -> None:
    logits = rng.permuted(np.arange(8.0), axis=0) + np.zeros((40, 2, 1))
    best = np.argsort(-logits, axis=2)[:, :, :3]
    fewer = np.where(rng.random(best.shape) < 0.4, -1, best)
    assert disagreeing(ml.Trace(ids=fewer, logits=logits, experts=8)) == 0
    worse = fewer.copy()
    worse[7, 1] = np.argsort(logits[7, 1])[0], -1, -1
    assert disagreeing(ml.Trace(ids=worse, logits=logits, experts=8)) == 1 / 80


def test_a_long_trace_is_looked_at_in_parts(monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator) -> None:
    logits = rng.standard_normal((50, 2, 8))
    trace = ml.Trace(ids=np.argsort(rng.random(logits.shape), axis=2)[:, :, :2], logits=logits, experts=8)
    whole, parts = disagreeing(trace), []
    count = ranked._count
    monkeypatch.setattr(ranked, "_AT_ONCE", 7 * 16 + 3)
    monkeypatch.setattr(ranked, "_count", lambda ids, z: parts.append(len(z)) or count(ids, z))
    assert disagreeing(trace) == whole and parts == [7] * 7 + [1]
