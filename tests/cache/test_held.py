"""What is kept beside the slots while a text is scored many times."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import moe_lab as ml
from moe_lab.cache import Held

IDS = np.random.default_rng(3).integers(0, 160, 65).tolist()


@pytest.fixture
def engine(checkpoint):
    made = ml.load(str(checkpoint("olmoe")), cache=4)
    yield made
    made.close()


def losses(engine, held):
    from moe_lab.engine.score import loss_of, windows

    with engine.fresh_state(held=held) as telemetry:
        found = [loss_of(logits, targets) for logits, targets in windows(engine, IDS, 16, fresh=True)]
        return found, telemetry.recorder.phases[0].read_bytes


def test_held_experts_are_read_once_and_change_no_result(engine):
    plain, read = losses(engine, None)
    held = Held(1 << 30)
    first, read_first = losses(engine, held)
    again, read_again = losses(engine, held)
    assert plain == first == again
    assert read_again == 0 < read_first <= 3 * 8 * engine.spec.expert_bytes["f32"] < read
    assert held.nbytes == read_first


def test_beyond_its_limit_experts_are_read_again(engine):
    held = Held(5 * engine.spec.expert_bytes["f32"])
    plain, _ = losses(engine, None)
    first, _ = losses(engine, held)
    again, read_again = losses(engine, held)
    assert plain == first == again and read_again > 0
    assert held.nbytes == 5 * engine.spec.expert_bytes["f32"]


def test_a_state_of_its_own_leaves_the_live_one_as_it_was(engine):
    list(engine.stream([3, 4, 5], max_new_tokens=4))
    before, token, policy = engine.cache.resident, engine.telemetry.token, engine.routing
    with engine.fresh_state(ml.routing.CachePrior(), ml.eviction.FIFO(), 2) as outer:
        engine.hf(input_ids=torch.tensor([[1, 2, 3]]))
        assert engine.cache.resident.sum(1).max() <= 2
        with engine.fresh_state():
            engine.hf(input_ids=torch.tensor([[1, 2, 3, 4]]))
        assert outer.token == 3 and outer.routes.ids.shape == (3, 3, 2)
    assert (engine.cache.resident == before).all() and engine.telemetry.token == token and engine.routing == policy
    assert len(list(engine.stream([3, 4], max_new_tokens=2))) == 2
