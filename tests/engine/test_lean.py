"""Decoding by kernels: the same logits and tokens as transformers' modules, and the modules where kernels cannot."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from checkpoints import FAMILIES, eager
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import moe_lab as ml
from moe_lab.cache import Free
from moe_lab.engine.lean import LeanDecode
from moe_lab.errors import BudgetError, SettingError

IDS = (np.arange(60) * 37 % 160).tolist()
PROMPT = 30


def decoded(engine, by_kernels: bool) -> torch.Tensor:
    """Logits (60 - PROMPT, V) of a given text after its prompt, token by token."""
    x, past, rows = torch.tensor([IDS]), engine.new_past(), []
    with torch.inference_mode():
        engine.hf(input_ids=x[:, :PROMPT], past_key_values=past, use_cache=True)
        lean = engine.lean_decode(past, len(IDS))
        assert isinstance(lean, LeanDecode)
        for t in range(PROMPT, len(IDS)):
            if by_kernels:
                with engine.one_pass(rows=1, length=1, cached=True):
                    rows.append(torch.from_numpy(lean(IDS[t]).copy()))
            else:
                rows.append(engine.hf(input_ids=x[:, t : t + 1], past_key_values=past, use_cache=True).logits[0, 0])
    return torch.stack(rows).float()


@pytest.mark.parametrize("cache", ["100%", 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_the_eager_model(checkpoint, family, cache):
    folder = checkpoint(family)
    engine = ml.load(str(folder), cache=cache)
    with torch.no_grad():
        truth = eager(folder)(input_ids=torch.tensor([IDS])).logits[0, PROMPT:]
    assert engine.decoding == "kernels"
    assert (decoded(engine, by_kernels=True) - truth).abs().max() <= 1e-5 * truth.abs().max()


@pytest.mark.parametrize("changes", [
    dict(family="olmoe", clip_qkv=0.8),
    dict(family="olmoe", attention_bias=True),
    dict(family="olmoe", num_key_value_heads=4),
    dict(family="mixtral", rope_parameters={"rope_type": "linear", "rope_theta": 5e3, "factor": 2.0}),
    dict(family="qwen3-moe", decoder_sparse_step=2, mlp_only_layers=[]),
    dict(family="qwen3-moe", hidden_act="gelu"),
    dict(family="qwen2-moe", hidden_act="gelu_pytorch_tanh"),
], ids=repr)
def test_variants_of_a_family_are_computed_as_the_configuration_says(tmp_path, changes):
    from checkpoints import make

    changes = dict(changes)
    folder = make(tmp_path, changes.pop("family"), **changes)
    engine = ml.load(str(folder), cache="50%")
    with torch.no_grad():
        truth = eager(folder)(input_ids=torch.tensor([IDS])).logits[0, PROMPT:]
    assert engine.decoding == "kernels"
    assert (decoded(engine, by_kernels=True) - truth).abs().max() <= 1e-5 * truth.abs().max()


def test_in_bfloat16_kernels_are_as_close_to_float32_as_the_modules_are(checkpoint):
    folder = checkpoint("qwen3-moe", dtype=torch.bfloat16)
    with torch.no_grad():
        truth = eager(folder, torch.float32)(input_ids=torch.tensor([IDS])).logits[0, PROMPT:]
    mine, theirs = (float((decoded(ml.load(str(folder), cache="50%"), kernels) - truth).abs().mean())
                    for kernels in (True, False))
    assert 0 < mine <= theirs


def test_kernels_and_modules_route_alike(checkpoint):
    digests = set()
    for by_kernels in (True, False):
        engine = ml.load(str(checkpoint("qwen2-moe")), cache=4, routing="cache-prior", eviction="lfu")
        decoded(engine, by_kernels)
        digests.add(engine.stats.digest)
    assert len(digests) == 1


def test_a_text_up_to_the_last_place_of_the_context_is_decoded(checkpoint):
    engine = ml.load(str(checkpoint("olmoe", max_position_embeddings=40)), cache="50%")
    reply = engine.generate(IDS[:12], max_new_tokens=100, stop_at_end=False)
    assert reply.finish == "context" and len(reply.ids) == 28


def test_a_hook_sees_every_token_so_modules_run(checkpoint):
    engine = ml.load(str(checkpoint("olmoe")), cache="50%")
    plain = engine.generate(IDS[:12], max_new_tokens=8)
    seen = []
    handle = engine.hf.model.layers[1].self_attn.register_forward_hook(lambda *_: seen.append(1))
    assert "has a hook" in engine.decoding and "model.layers.1.self_attn" in repr(engine)
    assert engine.generate(IDS[:12], max_new_tokens=8).ids == plain.ids and len(seen) == 8
    handle.remove()
    assert engine.decoding == "kernels"
    assert engine.generate(IDS[:12], max_new_tokens=8).ids == plain.ids and len(seen) == 8


@pytest.mark.parametrize("asked", ["output_hidden_states", "output_router_logits"])
@pytest.mark.parametrize("where", ["call", "config"])
def test_hooks_that_transformers_leaves_behind_keep_no_token_from_the_kernels(checkpoint, asked, where):
    engine = ml.load(str(checkpoint("olmoe")), cache="50%")
    plain = engine.generate(IDS[:12], max_new_tokens=8)
    if where == "config":
        setattr(engine.hf.config, asked, True)
        engine.hf(torch.tensor([IDS[:3]]))
    else:
        engine.hf(torch.tensor([IDS[:3]]), **{asked: True})
    assert engine.decoding == "kernels"
    again = engine.generate(IDS[:12], max_new_tokens=8)
    assert again.ids == plain.ids and again.stats.digest == plain.stats.digest


def everywhere(engine, seen):
    return torch.nn.modules.module.register_module_forward_hook(lambda *_: seen.append(1))


def in_place_of_a_forward(engine, seen):
    attention = engine.hf.model.layers[1].self_attn
    forward = attention.forward
    attention.forward = lambda *args, **kwargs: seen.append(1) or forward(*args, **kwargs)


def a_class_of_ones_own(engine, seen):
    norm = engine.hf.model.norm

    class Mine(type(norm)):
        def forward(self, x):
            seen.append(1)
            return super().forward(x)

    Mine.__module__ = "notebook"
    norm.__class__ = Mine


@pytest.mark.parametrize("put", [everywhere, in_place_of_a_forward, a_class_of_ones_own])
def test_code_that_somebody_put_into_the_model_runs_at_every_token(checkpoint, put):
    engine, seen = ml.load(str(checkpoint("olmoe")), cache="50%"), []
    handle = put(engine, seen)
    assert engine.decoding.startswith("transformers' modules")
    engine.generate(IDS[:12], max_new_tokens=8)
    assert len(seen) >= 8
    if handle is not None:
        handle.remove()


def test_a_dense_part_with_another_activation_than_the_experts_runs_by_modules(checkpoint):
    engine = ml.load(str(checkpoint("qwen2-moe")), cache="50%")
    engine.hf.model.layers[1].mlp.shared_expert.act_fn = torch.nn.ReLU()
    assert "model.layers.1.mlp.shared_expert has another activation than the experts" in engine.decoding


def a_class_patched(hf, patch):
    norm = type(hf.model.norm)
    forward = norm.forward
    patch.setattr(norm, "forward", lambda self, x: forward(self, x) * 1.7)


def a_function_of_the_family(hf, patch):
    patch.setattr(sys.modules[type(hf).__module__], "apply_rotary_pos_emb", lambda q, k, *args, **kwargs: (q, k))


def an_attention_of_ones_own(hf, patch):
    def half(*args, **kwargs):
        out, weights = sdpa_attention_forward(*args, **kwargs)
        return out * 0.5, weights

    patch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "half", half)
    hf.set_attn_implementation("half")


def another_epsilon(hf, patch):
    for layer in hf.model.layers:
        layer.input_layernorm.variance_epsilon = 50.0


def another_scaling(hf, patch):
    for layer in hf.model.layers:
        layer.self_attn.scaling *= 3


def another_norm(hf, patch):
    hf.model.norm = torch.nn.Identity()


def a_bias_of_the_head(hf, patch):
    hf.lm_head.bias = torch.nn.Parameter(torch.arange(160.0) / 10, requires_grad=False)


def a_bias_of_a_shared_expert(hf, patch):
    hf.model.layers[0].mlp.shared_expert.down_proj.bias = torch.nn.Parameter(torch.arange(64.0), requires_grad=False)


def two_modules_as_head(hf, patch):
    hf.lm_head = torch.nn.Sequential(hf.lm_head, torch.nn.Tanh())


def layers_in_another_order(hf, patch):
    hf.model.layers = torch.nn.ModuleList(reversed(hf.model.layers))


@pytest.mark.parametrize("change", [
    a_class_patched, a_function_of_the_family, an_attention_of_ones_own, another_epsilon, another_scaling, another_norm,
    a_bias_of_the_head, a_bias_of_a_shared_expert, two_modules_as_head, layers_in_another_order,
], ids=lambda change: change.__name__)
def test_what_somebody_changes_in_the_model_is_felt_by_every_token(checkpoint, monkeypatch, change):
    engine = ml.load(str(checkpoint("qwen2-moe")), cache="50%")
    change(engine.hf, monkeypatch)
    x = torch.tensor([IDS[:12]])
    theirs = engine.hf.generate(x, attention_mask=torch.ones_like(x), max_new_tokens=12, do_sample=False)
    assert engine.generate(IDS[:12], max_new_tokens=12).ids == tuple(theirs[0, 12:].tolist())


def a_matrix_wrapped(hf):
    part = hf.model.layers[0].self_attn
    part.o_proj = torch.nn.Sequential(part.o_proj, torch.nn.Identity())


def a_norm_of_the_queries_wrapped(hf):
    part = hf.model.layers[0].self_attn
    part.q_norm = torch.nn.Sequential(part.q_norm, torch.nn.Identity())


def an_embedding_of_short_rows(hf):
    hf.model.embed_tokens.max_norm = 0.1


def a_block_wrapped(hf):
    hf.model.layers[1].mlp = torch.nn.Sequential(hf.model.layers[1].mlp)


def fewer_layers(hf):
    hf.model.layers = hf.model.layers[:2]


@pytest.mark.parametrize("change", [
    a_matrix_wrapped, a_norm_of_the_queries_wrapped, an_embedding_of_short_rows, a_block_wrapped, fewer_layers,
], ids=lambda change: change.__name__)
def test_a_part_that_the_kernels_do_not_find_as_it_was_runs_by_modules_as_in_the_whole_model(checkpoint, change):
    engine, whole = ml.load(str(checkpoint("olmoe")), cache="50%"), eager(checkpoint("olmoe"))
    for hf in (engine.hf, whole):
        change(hf)
    theirs = whole.generate(torch.tensor([IDS[:12]]), max_new_tokens=12, do_sample=False)
    assert engine.generate(IDS[:12], max_new_tokens=12).ids == tuple(theirs[0, 12:].tolist())
    assert engine.decoding.startswith("transformers' modules")


def test_weights_changed_in_place_are_seen(checkpoint):
    folder = checkpoint("olmoe")
    changed, model = ml.load(str(folder), cache="50%"), eager(folder)
    with torch.no_grad():
        for hf in (changed.hf, model):
            hf.model.layers[1].self_attn.o_proj.weight.mul_(-1.5)
            hf.model.norm.weight.mul_(0.7)
        truth = model(input_ids=torch.tensor([IDS])).logits[0, PROMPT:]
    assert (decoded(changed, by_kernels=True) - truth).abs().max() <= 1e-5 * truth.abs().max()


@pytest.mark.parametrize(("family", "changes", "reason"), [
    ("granite", {}, "routes by itself"),
    ("mixtral", dict(sliding_window=16), "window"),
])
def test_a_model_that_the_kernels_do_not_know_runs_by_modules_and_says_why(tmp_path, family, changes, reason):
    from checkpoints import make

    folder = make(tmp_path, family, **changes)
    engine = ml.load(str(folder), cache="50%")
    assert reason in engine.decoding and engine.decoding.startswith("transformers' modules")
    x = torch.tensor([IDS[:20]])
    theirs = eager(folder).generate(input_ids=x, attention_mask=torch.ones_like(x), max_new_tokens=16, do_sample=False)
    assert engine.generate(IDS[:20], max_new_tokens=16).ids == tuple(theirs[0, 20:].tolist())


def test_keys_and_values_grow_with_the_text_and_the_text_stays_the_same(checkpoint, monkeypatch):
    engine = ml.load(str(checkpoint("qwen3-moe")), cache=3)
    plain = engine.generate(IDS[:12], max_new_tokens=80, stop_at_end=False)
    engine._ahead.join()                    # it makes one to compile
    sizes, grow = [], LeanDecode._grow
    monkeypatch.setattr("moe_lab.engine.lean.AHEAD", 1)
    monkeypatch.setattr(LeanDecode, "_grow", lambda self, room: sizes.append(room) or grow(self, room))
    grown = engine.generate(IDS[:12], max_new_tokens=80, stop_at_end=False)
    assert grown.ids == plain.ids and grown.stats.digest == plain.stats.digest
    assert sizes == [13, 26, 52, 92]


def test_an_upper_bound_of_tokens_costs_no_memory_for_tokens_that_do_not_come(checkpoint):
    engine = ml.load(str(checkpoint("olmoe", max_position_embeddings=1 << 40)), cache=3)
    steps = engine.stream(IDS[:12], max_new_tokens=1 << 38)
    assert len([next(steps) for _ in range(5)]) == 5


def test_keys_and_values_beyond_memory_end_the_text_with_the_arithmetic(checkpoint, monkeypatch):
    engine = ml.load(str(checkpoint("olmoe")), cache=3)
    monkeypatch.setattr("moe_lab.engine.lean.AHEAD", 1)
    steps = engine.stream(IDS[:12], max_new_tokens=40, stop_at_end=False)
    assert next(steps).ids
    monkeypatch.setattr("moe_lab.engine.lean.CHECKED", 0)
    monkeypatch.setattr("moe_lab.engine.lean.free_memory", lambda: Free(1000, "of this machine"))
    with pytest.raises(BudgetError, match=r"keys and values of 26 tokens take .* 1000 B are free of this machine"):
        list(steps)
    with pytest.raises(BudgetError, match="keys and values of 12 tokens"):
        engine.stream(IDS[:12])
    monkeypatch.undo()
    assert engine.generate(IDS[:12], max_new_tokens=4).finish == "length"


def test_a_token_without_a_row_in_the_embedding_is_refused_before_memory_is_read(checkpoint):
    engine = ml.load(str(checkpoint("olmoe")), cache=3)
    past = engine.new_past()
    engine.hf(torch.tensor([IDS[:4]]), past_key_values=past, use_cache=True)
    lean = engine.lean_decode(past, 5)
    for token in (-1, 160, 1 << 40):
        with pytest.raises(SettingError, match="no row in the embedding"):
            lean(token)
    with engine.one_pass(1, 1, True):
        lean(3)
    with pytest.raises(SettingError, match="at most 5 tokens"), engine.one_pass(1, 1, True):
        lean(3)


def test_a_head_with_more_rows_than_the_embedding_ends_the_text_with_a_clear_error(checkpoint):
    engine = ml.load(str(checkpoint("olmoe")), cache=3)
    engine.hf.lm_head = torch.nn.Linear(64, 200)
    with torch.no_grad():
        engine.hf.lm_head.bias[190] = 1e6
    with pytest.raises(SettingError, match="token 190 has no row in the embedding, which has 160"):
        engine.generate(IDS[:4], max_new_tokens=4)


def test_an_interrupt_in_the_middle_of_a_token_leaves_the_engine_usable(checkpoint, monkeypatch):
    engine = ml.load(str(checkpoint("olmoe")), cache=3)
    plain = engine.generate(IDS[:12], max_new_tokens=12).ids
    token, calls = engine._core.blocks.token, []

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return token(*args)

    monkeypatch.setattr(engine._core.blocks, "token", interrupted)
    with pytest.raises(KeyboardInterrupt):
        engine.generate(IDS[:12], max_new_tokens=12)
    monkeypatch.undo()
    engine.cache.reset()
    assert engine.generate(IDS[:12], max_new_tokens=12).ids == plain
