"""Opening: what is read, what is found, and what is refused on a model without its experts."""

from __future__ import annotations

import copy
import json
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from checkpoints import FAMILIES, TorchHandler

from moe_lab.errors import CheckpointError, SettingError, UnsupportedModelError
from moe_lab.kernels.formats import FORMATS
from moe_lab.models import describe, info, open_model, study
from moe_lab.models.decoder import read_decoder
from moe_lab.store import WeightFiles


@pytest.mark.parametrize("family", [*FAMILIES, "granite"])
def test_loading_reads_no_byte_of_an_expert(checkpoint, family, monkeypatch):
    folder, read = checkpoint(family, shard="100KB"), []
    studied, fill = study(folder), WeightFiles.fill

    def counted(files, number, buffers, offset):
        read.append(sum(buffer.nbytes for buffer in buffers))
        fill(files, number, buffers, offset)

    monkeypatch.setattr(WeightFiles, "fill", counted)
    model = open_model(folder, studied=studied)
    assert sum(read) == model.spec.dense_bytes
    assert not any("experts" in name for name, _ in model.hf.named_parameters())


def test_the_experts_files_may_hold_anything_while_the_dense_part_is_loaded(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint("olmoe"), tmp_path / "poisoned")
    plan = open_model(folder).plan
    with plan.files[0].open("r+b") as file:
        for offset in plan.offset.flat:
            file.seek(offset)
            file.write(b"\xff" * plan.part_bytes)
    hf = open_model(folder).hf
    assert all(torch.isfinite(p).all() for p in hf.parameters())


@pytest.mark.parametrize(("family", "layers", "F", "routing"), [
    ("olmoe", (0, 1, 2), 48, "softmax, top-2, not renormalised"),
    ("qwen2-moe", (0, 1, 2), 32, "softmax, top-2, not renormalised"),
    ("qwen3-moe", (0, 2), 32, "softmax, top-2, renormalised"),
    ("mixtral", (0, 1, 2), 48, "softmax, top-2, renormalised"),
])
def test_describe_tells_shape_bytes_and_rule(checkpoint, family, layers, F, routing):
    folder = checkpoint(family)
    spec = describe(folder)
    assert (spec.layers, spec.experts, spec.top_k, spec.hidden, spec.expert_hidden) == (layers, 8, 2, 64, F)
    filled = {32: 3 * 64 * 32, 48: 2 * 64 * 48 + 64 * 64}[F]             # columns come in groups of 32
    assert spec.expert_bytes == {"f32": 12 * 64 * F, "bf16": 6 * 64 * F,
                                 "q8": filled * 17 // 16, "q4": filled * 9 // 16}
    assert (spec.dtype, spec.context, spec.routing) == ("f32", 256, routing)
    weights = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    headers = weights - spec.dense_bytes - len(layers) * 8 * spec.expert_bytes["f32"]
    assert 0 < headers < 20_000


def test_info_knows_the_packaged_model():
    spec = info("pocket")
    assert (spec.family, spec.L, spec.experts, spec.top_k) == ("olmoe", 6, 64, 8)
    assert (spec.hidden, spec.expert_hidden, spec.dtype) == (256, 64, "bf16")


def test_the_plan_points_at_the_very_bytes_of_each_expert(checkpoint):
    from safetensors import safe_open

    plan = open_model(checkpoint("mixtral")).plan
    with safe_open(plan.files[0], "pt") as whole:
        for layer in range(plan.L):
            for expert in range(plan.E):
                for part, tensor in enumerate(plan.tensors[layer][expert]):
                    stem = f"model.layers.{layer}.block_sparse_moe.experts.{expert}"
                    assert tensor == f"{stem}.{('w1', 'w3', 'w2')[part]}.weight"
                    raw = plan.files[0].read_bytes()[plan.offset[layer, expert, part] :][: plan.part_bytes]
                    assert raw == whole.get_tensor(tensor).numpy().tobytes()


def test_experts_are_in_the_order_of_their_numbers_not_of_the_alphabet(checkpoint):
    plan = open_model(checkpoint("olmoe", num_experts=12)).plan
    stem = "model.layers.0.mlp.experts"
    assert [names[2] for names in plan.tensors[0]] == [f"{stem}.{e}.down_proj.weight" for e in range(12)]


def test_a_checkpoint_without_a_tokenizer_opens_without_one(checkpoint):
    assert open_model(checkpoint("olmoe")).tokenizer is None
    assert open_model("pocket").tokenizer.decode(open_model("pocket").tokenizer("def f(x):").input_ids) == "def f(x):"


def test_a_broken_tokenizer_is_named(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint("olmoe"), tmp_path / "broken")
    (folder / "tokenizer.json").write_text("{")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with pytest.raises(CheckpointError, match="tokenizer"):
        open_model(folder)


def test_the_class_keeps_its_name_and_is_a_model_of_transformers(checkpoint):
    import transformers

    hf = open_model(checkpoint("olmoe")).hf
    assert isinstance(hf, transformers.OlmoeForCausalLM)
    assert (type(hf).__name__, type(hf).__module__) == ("OlmoeForCausalLM", "transformers.models.olmoe.modeling_olmoe")
    assert not hf.training
    assert not any(p.requires_grad for p in hf.parameters())


def test_a_model_without_a_handler_says_where_models_come_from(checkpoint):
    with pytest.raises(SettingError, match=r"ml\.load"):
        open_model(checkpoint("olmoe")).hf(input_ids=torch.tensor([[1, 2]]))


FORBIDDEN = {
    "save_pretrained": lambda hf, folder: hf.save_pretrained(folder),
    "push_to_hub": lambda hf, folder: hf.push_to_hub("someone/something"),
    "train": lambda hf, folder: hf.train(),
    "requires_grad_": lambda hf, folder: hf.requires_grad_(),
    "to another type": lambda hf, folder: hf.to(torch.float16),
    "to another device": lambda hf, folder: hf.to("cuda"),
    "to another device by name": lambda hf, folder: hf.to(device="meta"),
    "cuda": lambda hf, folder: hf.cuda(),
    "half": lambda hf, folder: hf.half(),
    "double": lambda hf, folder: hf.double(),
    "bfloat16": lambda hf, folder: hf.bfloat16(),
    "to_empty": lambda hf, folder: hf.to_empty(device="cpu"),
    "deepcopy": lambda hf, folder: copy.deepcopy(hf),
}


@pytest.mark.parametrize("what", FORBIDDEN)
def test_what_cannot_work_says_so_and_does_nothing(checkpoint, tmp_path, what):
    hf = open_model(checkpoint("olmoe")).hf
    with pytest.raises(SettingError, match="streamed model"):
        FORBIDDEN[what](hf, tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    assert (hf.dtype, hf.device.type, hf.training) == (torch.float32, "cpu", False)


def test_what_changes_nothing_is_allowed(checkpoint):
    hf = open_model(checkpoint("olmoe")).hf
    assert hf.to("cpu") is hf
    assert hf.to(torch.float32) is hf
    assert hf.float() is hf
    assert hf.eval() is hf
    assert hf.train(False) is hf
    assert hf.requires_grad_(False) is hf


def test_it_runs_in_a_pipeline(checkpoint):
    from transformers import pipeline

    model = open_model("pocket")
    model.connect(TorchHandler(model, FORMATS["bf16"]))
    run = pipeline("text-generation", model=model.hf, tokenizer=model.tokenizer)
    text = run("def add(a, b):", max_new_tokens=5, do_sample=False)[0]["generated_text"]
    assert text.startswith("def add(a, b):")
    assert len(text) > 15


def test_a_loaded_model_does_not_change_with_its_file(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint("olmoe-tied", dtype=torch.bfloat16), tmp_path / "changing")
    hf = open_model(folder).hf
    before = {name: p.clone() for name, p in hf.named_parameters()}
    size = (folder / "model.safetensors").stat().st_size
    with (folder / "model.safetensors").open("r+b") as file:
        file.write(bytes(size))
    assert all(torch.equal(p, before[name]) for name, p in hf.named_parameters())
    assert hf.lm_head.weight is hf.model.embed_tokens.weight


def test_the_dense_part_is_loaded_in_the_precision_asked_for(checkpoint):
    folder = checkpoint("olmoe", dtype=torch.bfloat16)
    assert open_model(folder).hf.dtype == torch.bfloat16
    assert open_model(folder, torch.float32).hf.dtype == torch.float32
    with pytest.raises(SettingError, match=r"torch\.float32"):
        open_model(folder, torch.float64)


def test_a_dense_model_is_refused_by_its_family(checkpoint):
    with pytest.raises(UnsupportedModelError, match=r"llama.*no experts.*dense"):
        open_model(checkpoint("llama"))


def test_experts_of_another_form_are_refused_with_what_differs(checkpoint):
    with pytest.raises(UnsupportedModelError, match=r"gpt_oss.*biases, transposed matrices, gate and up interleaved"):
        open_model(checkpoint("gpt-oss"))


def test_an_unknown_conversion_is_refused_by_its_operations(checkpoint, monkeypatch):
    from transformers.core_model_loading import Concatenate, MergeModulelist, Transpose, WeightConverter

    from moe_lab.models import plan

    odd = [
        WeightConverter(["mlp.experts.*.gate_proj.weight", "mlp.experts.*.up_proj.weight"], "mlp.experts.gate_up_proj",
                        operations=[MergeModulelist(dim=0), Concatenate(dim=1), Transpose(1, 2)]),
        WeightConverter("mlp.experts.*.down_proj.weight", "mlp.experts.down_proj", operations=[MergeModulelist(dim=0)]),
    ]
    monkeypatch.setattr(plan, "get_model_conversion_mapping", lambda model: odd)
    with pytest.raises(UnsupportedModelError, match=r"MergeModulelist.*Concatenate.*Transpose"):
        describe(checkpoint("olmoe"))


def edited(folder, tmp_path, **changes):
    """A copy with another config.json."""
    copied = shutil.copytree(folder, tmp_path / "edited")
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | changes))
    return copied


def test_a_family_that_transformers_does_not_know_is_refused(checkpoint, tmp_path):
    with pytest.raises(UnsupportedModelError, match="does not know"):
        open_model(edited(checkpoint("olmoe"), tmp_path, model_type="surely_not_a_family", architectures=["None"]))


def test_code_that_comes_with_a_checkpoint_is_not_run(checkpoint, tmp_path):
    folder = edited(checkpoint("olmoe"), tmp_path, model_type="surely_not_a_family",
                    auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"})
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Config: pass\n")
    with pytest.raises(UnsupportedModelError, match="never code"):
        open_model(folder)
    assert not (tmp_path / "ran").exists()


def test_a_quantised_checkpoint_is_refused(checkpoint, tmp_path):
    with pytest.raises(UnsupportedModelError, match="quantised"):
        open_model(edited(checkpoint("olmoe"), tmp_path, quantization_config={"quant_method": "fp8"}))


def test_a_config_of_another_model_is_noticed(checkpoint, tmp_path):
    with pytest.raises(CheckpointError, match="do not belong together"):
        open_model(edited(checkpoint("olmoe"), tmp_path, intermediate_size=56))


def test_too_few_experts_are_noticed(checkpoint, tmp_path):
    with pytest.raises(CheckpointError, match=r"8 tensors.*9 experts"):
        open_model(edited(checkpoint("olmoe"), tmp_path, num_experts=9))


def test_a_missing_dense_tensor_is_named(checkpoint, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(checkpoint("olmoe"), tmp_path / "lacking")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.self_attn.q_proj.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"model\.layers\.1\.self_attn\.q_proj\.weight"):
        open_model(folder)


def test_missing_experts_are_named_by_their_layer(checkpoint, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(checkpoint("olmoe"), tmp_path / "lacking")
    tensors = {k: v for k, v in load_file(folder / "model.safetensors").items() if "layers.2.mlp.experts" not in k}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="layer 2"):
        open_model(folder)


def test_experts_that_are_there_twice_are_refused(checkpoint, tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(checkpoint("olmoe"), tmp_path / "twice")
    tensors = load_file(folder / "model.safetensors")
    layer = "model.layers.1.mlp.experts"
    down = torch.stack([tensors[f"{layer}.{e}.down_proj.weight"] for e in range(8)])
    save_file({**tensors, f"{layer}.down_proj": down}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="holds the experts of layer 1 more than once"):
        open_model(folder)


def test_a_folder_without_a_configuration_is_no_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        open_model(tmp_path)


def test_a_damaged_configuration_is_named(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint("olmoe"), tmp_path / "damaged")
    (folder / "config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"config\.json"):
        open_model(folder)


def test_threads_may_open_models_at_the_same_time():
    with ThreadPoolExecutor(4) as pool:
        opened = [one.result() for one in [pool.submit(open_model, "pocket") for _ in range(4)]]
    assert all(model.hf.lm_head.weight.shape == (4096, 256) for model in opened)


def test_angles_are_what_they_are_while_another_thread_loads():
    model = open_model("pocket")
    decoder = read_decoder(model.hf, model.blocks)
    expected = decoder.angles(5)
    torch.set_default_dtype(torch.bfloat16)             # as transformers does, for all threads
    try:
        for mine, before in zip(decoder.angles(5), expected, strict=True):
            np.testing.assert_array_equal(mine, before)
    finally:
        torch.set_default_dtype(torch.float32)
