"""A plain model of transformers, recorded: the engine's own trace, without an engine."""

from __future__ import annotations

import numpy as np
import pytest

import moe_lab as ml
from moe_lab.errors import SettingError, TraceError, UnsupportedModelError
from moe_lab.evaluation.record import _routes, record


@pytest.fixture
def ids(rng):
    return rng.integers(0, 160, 71).tolist()


@pytest.mark.parametrize("family", ["olmoe", "qwen2-moe", "qwen3-moe", "mixtral", "granite"])
def test_a_record_is_the_engines_trace_of_the_original_routing(checkpoint, ids, family):
    from checkpoints import eager

    folder = checkpoint(family)
    trace = record(eager(folder), ids[:-1], window=32)
    engine = ml.load(str(folder), cache=4)
    own = engine.score(ids, window=32).trace
    engine.close()
    assert trace.digest() == own.digest() and trace.experts == own.experts == 8
    assert np.allclose(trace.weights, own.weights, atol=1e-6)
    assert (trace.phase == own.phase).all() and trace.tokens.tolist() == ids[:-1]
    assert trace.meta["layers"] == list(engine.spec.layers) and trace.logits is None


def test_logits_come_along_on_demand_and_survive_a_file(checkpoint, ids, tmp_path):
    from checkpoints import eager

    trace = record(eager(checkpoint("olmoe")), ids, logits=True)
    assert trace.logits.shape == (71, 3, 8) and trace.logits.dtype == np.float16
    best = np.sort(np.argsort(-trace.logits, axis=2, kind="stable")[..., :2], axis=2)
    assert (best == np.sort(trace.ids, axis=2)).mean() > 0.99
    trace.write(tmp_path / "with.npz")
    again = ml.Trace.read(tmp_path / "with.npz")
    assert (again.logits == trace.logits).all() and again.digest() == trace.digest() and "float16" in repr(again)
    assert again.prefill.logits.shape == (71, 3, 8) and len(again.decode.logits) == 0
    with pytest.raises(TraceError, match="logits must be"):
        ml.Trace(ids=trace.ids, experts=8, logits=trace.logits[:, :, :5])


def test_a_family_whose_experts_cannot_be_streamed_can_be_recorded(checkpoint, ids):
    from checkpoints import eager

    trace = record(eager(checkpoint("gpt-oss")), ids, window=32)
    assert (len(trace), trace.L, trace.K, trace.experts) == (71, 3, 2, 8)
    assert (np.diff(trace.weights, axis=2) <= 0).all()
    assert ml.replay(trace, cache=4).rows[0].hit_rate > 0


def test_the_model_is_left_as_it_was(checkpoint, ids):
    import torch
    from checkpoints import eager

    model = eager(checkpoint("olmoe"))
    model.train()
    before = model(input_ids=torch.tensor([ids[:8]])).logits
    record(model, ids)
    assert model.training and not any(m._forward_hooks for m in model.modules() if "Router" in type(m).__name__)
    assert torch.equal(model(input_ids=torch.tensor([ids[:8]])).logits, before)


def test_a_string_goes_through_the_tokenizer(checkpoint, ids):
    from checkpoints import eager

    def tokenizer(text, verbose):
        return {"input_ids": [ord(c) for c in text]}

    model = eager(checkpoint("olmoe"))
    assert record(model, "Hello", tokenizer).digest() == record(model, [ord(c) for c in "Hello"]).digest()
    with pytest.raises(SettingError, match=r"needs the model's tokenizer: ml.record\(model, text, tokenizer\)"):
        record(model, "Hello")


def test_what_cannot_be_recorded_is_refused(checkpoint, ids):
    from checkpoints import eager

    engine = ml.load(str(checkpoint("olmoe")), cache=4)
    for streamed in (engine, engine.hf):
        with pytest.raises(SettingError, match=r"engine.score\(text\).trace"):
            record(streamed, ids)
    engine.close()
    with pytest.raises(UnsupportedModelError, match="dense model"):
        record(eager(checkpoint("llama")), ids)
    with pytest.raises(SettingError, match="takes a model of transformers, not str"):
        record("olmoe", ids)
    with pytest.raises(SettingError, match="context of 256"):
        record(eager(checkpoint("olmoe")), ids, window=257)
    with pytest.raises(SettingError, match="text is empty"):
        record(eager(checkpoint("olmoe")), [])


def test_a_router_of_another_form_is_refused_in_words():
    import torch

    z = torch.randn(4, 8)
    for out in (z, (z, z[:, :2]), (z, z[:, :2], z[:, :2]), (z[:3], z[:3, :2], torch.zeros(3, 2, dtype=torch.int64))):
        with pytest.raises(UnsupportedModelError, match=r"where \(logits, weights, ids\) is wanted"):
            _routes(out, 4, None)


def test_a_model_whose_router_gives_nan_is_told_at_the_first_window(checkpoint, ids):
    from checkpoints import eager

    model = eager(checkpoint("olmoe"))
    model.model.layers[1].mlp.gate.weight.data[3] = float("nan")
    passes = []
    model.register_forward_pre_hook(lambda *_: passes.append(1))
    with pytest.raises(TraceError, match="the model, not the recording, is broken"):
        record(model, ids, window=32)
    assert len(passes) == 1


def test_a_pass_that_fails_leaves_no_hook_behind(checkpoint, ids):
    from checkpoints import eager

    model = eager(checkpoint("olmoe"))
    forward, calls = model.forward, []

    def failing(input_ids, **options):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        return forward(input_ids=input_ids, **options)

    model.forward = failing
    with pytest.raises(RuntimeError, match="out of memory"):
        record(model, ids, window=32)
    assert not any(m._forward_hooks for m in model.modules() if "Router" in type(m).__name__)
