"""A model's digest follows everything in memory that steers its answers, and code from outside is told."""

from __future__ import annotations

import functools
import sys
import types
import unittest.mock

import pytest
import torch
from checkpoints import FAMILIES
from torch import nn
from torch.nn.modules.module import register_module_forward_hook
from transformers.models.olmoe import modeling_olmoe as olmoe

import moe_lab as ml
from moe_lab.models import open_model
from moe_lab.models.identity import in_memory


@pytest.fixture
def hf(checkpoint):
    return open_model(checkpoint("olmoe")).hf


def test_a_model_opened_twice_is_one_model(checkpoint, hf):
    other = open_model(checkpoint("olmoe")).hf
    assert in_memory(hf) == in_memory(other) and not in_memory(hf).strange
    assert in_memory(open_model(checkpoint("olmoe", seed=1)).hf).digest != in_memory(hf).digest


def in_place(hf):
    with torch.no_grad():
        hf.model.layers[1].mlp.gate.weight.mul_(-1)


def by_data(hf):
    hf.model.layers[0].self_attn.q_proj.weight.data[3, 5] += 1e-3


def by_state_dict(hf):
    state = {key: value.clone() for key, value in hf.state_dict().items()}
    state["model.norm.weight"] *= 1.001
    hf.load_state_dict(state, strict=False)


def a_buffer(hf):
    hf.model.rotary_emb.inv_freq[2] *= 0.5


def another_module(hf):
    hf.model.layers[2].self_attn.o_proj = nn.Identity()


def swapped_layers(hf):
    layers = hf.model.layers
    layers[0], layers[1] = layers[1], layers[0]


def a_number_of_a_module(hf):
    hf.model.norm.variance_epsilon *= 2


def a_flag_of_a_module(hf):
    hf.model.layers[0].mlp.gate.norm_topk_prob ^= True


def the_configuration(hf):
    hf.config.rms_norm_eps = 1e-3


def the_experts_of_a_token(hf):
    hf.config.num_experts_per_tok = 3


def the_attention(hf):
    hf.set_attn_implementation("eager")


def training_of_one_part(hf):
    nn.Module.train(hf.model.layers[0].self_attn)


def a_tensor_that_is_no_parameter(hf):
    hf.model.layers[0].extra = torch.ones(2)


def no_router_hook(hf):
    hf.model.layers[0].mlp.gate._forward_hooks.clear()


CHANGES = [in_place, by_data, by_state_dict, a_buffer, another_module, swapped_layers, a_number_of_a_module,
           a_flag_of_a_module, the_configuration, the_experts_of_a_token, the_attention, training_of_one_part,
           a_tensor_that_is_no_parameter, no_router_hook]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_what_steers_the_answers_changes_the_digest(hf, change):
    before = in_memory(hf)
    change(hf)
    after = in_memory(hf)
    assert after.digest != before.digest and not after.strange


def test_a_quantised_matrix_is_part_of_the_digest_and_its_scratch_memory_is_not(checkpoint):
    hf = open_model(checkpoint("olmoe"), quantise="q8").hf
    before, layer = in_memory(hf), hf.model.layers[0].self_attn.q_proj
    others = [in_memory(open_model(checkpoint("olmoe"), quantise=format).hf) for format in (None, "q4")]
    assert before not in others and not before.strange
    layer.matrix.y[:] = 7
    assert in_memory(hf) == before
    layer.matrix.blocks[0, 0, 0] ^= 1
    assert in_memory(hf).digest != before.digest


class Mine(nn.Linear):
    """A layer of one's own."""


def a_hook(hf, patch):
    hf.model.layers[0].register_forward_hook(lambda module, args, out: out)


def a_hook_before(hf, patch):
    hf.lm_head.register_forward_pre_hook(lambda module, args: None)


def a_hook_in_a_partial(hf, patch):
    hf.lm_head.register_forward_hook(functools.partial(print))


def a_hook_of_all_modules(hf, patch):
    return register_module_forward_hook(lambda module, args, out: out).remove


def a_replaced_forward(hf, patch):
    hf.forward = lambda *args, **kwargs: None


def a_replaced_method(hf, patch):
    norm = hf.model.norm
    norm.forward = types.MethodType(lambda self, x: x, norm)


def a_class_of_ones_own(hf, patch):
    hf.lm_head = Mine(64, 160)


def a_patched_class(hf, patch):
    patch.setattr(olmoe.OlmoeRMSNorm, "forward", lambda self, x: x)


def a_patched_class_behind_a_decorator(hf, patch):
    patch.setattr(olmoe.OlmoeAttention, "forward", torch.no_grad()(lambda self, *args, **kwargs: None))


def a_patched_function(hf, patch):
    patch.setattr(olmoe, "apply_rotary_pos_emb", lambda q, k, *args, **kwargs: (q, k))


def a_patched_function_of_torch(hf, patch):
    patch.setattr(nn.functional, "silu", lambda x: x)


def a_patched_function_beside_it(hf, patch):
    patch.setattr(torch, "rsqrt", lambda x: x)


def a_patched_method_of_tensors(hf, patch):
    patch.setattr(torch.Tensor, "pow", lambda x, exponent: x)


def a_function_of_a_file_named_as_one_of_python(hf, patch):
    exec("def silu(x):\n    return x\n", module := vars(types.ModuleType("statistics")))
    patch.setitem(sys.modules, "statistics", types.ModuleType("statistics"))
    patch.setattr(nn.functional, "silu", module["silu"])


def an_attention_of_ones_own(hf, patch):
    patch.setitem(olmoe.ALL_ATTENTION_FUNCTIONS._global_mapping, "sdpa", lambda *args, **kwargs: None)


class Silent:
    """Can be called, and makes a method."""

    def __call__(self, x, *args, **kwargs):
        return x

    def __get__(self, owner, cls=None):
        return self


class Rounding(torch.overrides.TorchFunctionMode):
    """Gives what torch gives."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def an_object_in_place_of_a_function(hf, patch):
    patch.setattr(nn.functional, "silu", Silent())


def a_mock(hf, patch):
    patch.setattr(nn.functional, "silu", unittest.mock.Mock())


def a_partial_in_place_of_a_function(hf, patch):
    patch.setattr(olmoe, "apply_rotary_pos_emb", functools.partial(lambda q, k, *args, **kwargs: (q, k)))


def a_descriptor_in_place_of_a_method(hf, patch):
    patch.setattr(olmoe.OlmoeRMSNorm, "forward", Silent())


def a_partial_method(hf, patch):
    patch.setattr(olmoe.OlmoeRMSNorm, "forward", functools.partialmethod(lambda self, x: x))


def a_mode(hf, patch):
    mode = Rounding()
    mode.__enter__()
    return lambda: mode.__exit__(None, None, None)


def an_object(hf, patch):
    hf.model.layers[0].helper = object()


STRANGE = [a_hook, a_hook_before, a_hook_in_a_partial, a_hook_of_all_modules, a_replaced_forward, a_replaced_method,
           a_class_of_ones_own, a_patched_class, a_patched_class_behind_a_decorator, a_patched_function,
           a_patched_function_of_torch, a_patched_function_beside_it, a_patched_method_of_tensors,
           a_function_of_a_file_named_as_one_of_python, an_attention_of_ones_own, an_object_in_place_of_a_function,
           a_mock, a_partial_in_place_of_a_function, a_descriptor_in_place_of_a_method, a_partial_method, a_mode,
           an_object]


@pytest.mark.parametrize("change", STRANGE, ids=lambda change: change.__name__)
def test_code_from_outside_is_told(hf, monkeypatch, change):
    undo = change(hf, monkeypatch)
    try:
        assert in_memory(hf).strange
    finally:
        undo and undo()


def test_a_function_of_the_libraries_in_the_place_of_another_changes_the_digest(hf, monkeypatch):
    before = in_memory(hf)
    monkeypatch.setattr(nn.functional, "silu", nn.functional.gelu)
    after = in_memory(hf)
    assert after.digest != before.digest and not after.strange


def test_the_part_that_is_strange_is_named(hf):
    hf.model.layers[2].mlp.register_forward_hook(test_code_from_outside_is_told)
    assert "model.layers.2.mlp has the hook" in in_memory(hf).strange
    assert "test_code_from_outside_is_told" in in_memory(hf).strange


@pytest.mark.parametrize("family", [*FAMILIES, "granite"])
def test_using_a_model_changes_nothing_of_what_it_is(checkpoint, family):
    with_weights = ml.load(str(checkpoint(family)), cache=4)
    hf = with_weights.hf
    before = in_memory(hf)
    list(with_weights.stream([3, 4, 5], max_new_tokens=2))
    hf.generate(torch.tensor([[3, 4, 5]]), max_new_tokens=2)
    hf(input_ids=torch.tensor([[3, 4, 5]]), output_hidden_states=True)
    assert in_memory(hf) == before and not before.strange
    with_weights.close()


def test_frequencies_that_each_pass_makes_anew_are_not_part_of_it(tmp_path):
    from checkpoints import make

    factors = dict(long_factor=[2.0] * 8, short_factor=[1.0] * 8)
    rope = dict(rope_type="longrope", rope_theta=10_000.0, original_max_position_embeddings=16, **factors)
    engine = ml.load(str(make(tmp_path / "model", "olmoe", rope_parameters=rope)), cache=4)
    before = in_memory(engine.hf)
    engine.score(list(range(40)), window=40)
    assert in_memory(engine.hf) == before
    engine.close()
