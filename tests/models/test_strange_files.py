"""A stranger's files: whatever stands in them, a model loads and runs, or an error of the family says what is wrong."""

from __future__ import annotations

import json
import shutil

import pytest
from checkpoints import FAMILIES, STRANGERS

import moe_lab as ml
from moe_lab.errors import CheckpointError, MoELabError, UnsupportedModelError, foreign
from moe_lab.models import info, open_model, resolve_model

STRANGE = {"null": None, "no letters": "", "a number in letters": "8", "a fraction": 1.5, "minus one": -1, "zero": 0,
           "far too much": 10**30, "a list": [], "a table": {}, "true": True, "no number": float("nan")}
MORE_FIELDS = ("transformers_weights", "num_labels", "return_dict", "output_hidden_states", "output_attentions",
               "sliding_window", "rope_scaling", "quantization_config", "torch_dtype", "head_dim", "layer_types",
               "mlp_only_layers", "fusion_config", "auto_map", "attn_implementation", "is_encoder_decoder")
"""Fields that a saved configuration leaves out and transformers looks at."""


def survives(folder):
    """Whether the model in ``folder`` gives a token; False where an error of the family says why not."""
    try:
        ml.info(str(folder))
        engine = ml.load(str(folder), cache="100%")
        engine.generate([3, 5, 7], max_new_tokens=1)
        engine.close()
    except MoELabError:
        return False
    return True


def changed(checkpoint, tmp_path, family, path, value):
    """A copy whose config.json says something else at ``path``; the weights are linked."""
    original, folder = checkpoint(family), tmp_path / "changed"
    config = json.loads((original / "config.json").read_text())
    table = config
    for key in path[:-1]:
        table = table[key]
    table[path[-1]] = value
    folder.mkdir(exist_ok=True)
    for file in original.iterdir():
        if file.name != "config.json" and not (folder / file.name).exists():
            (folder / file.name).symlink_to(file)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def fields(checkpoint, family):
    config = json.loads((checkpoint(family) / "config.json").read_text())
    return [*((key,) for key in dict.fromkeys([*config, *MORE_FIELDS])),
            *(("rope_parameters", key) for key in config.get("rope_parameters") or ())]


SAMPLE = [
    ("vocab_size", 160.0), ("vocab_size", 10**9), ("num_experts", "8"), ("rms_norm_eps", "1e-5"), ("hidden_size", 0),
    ("num_hidden_layers", 10**30), ("num_hidden_layers", 50_000), ("num_labels", 10**30), ("layer_types", ["nonsense"]),
    ("hidden_act", ""), ("model_type", []), ("architectures", 5), ("rope_parameters", {"rope_type": 5}), ("dtype", "x"),
    ("num_key_value_heads", 0), ("return_dict", False), ("output_hidden_states", "8"), ("sliding_window", "8"),
    ("sliding_window", 0), ("sliding_window", 10**30), ("quantization_config", 5), ("auto_map", 5),
]


@pytest.mark.filterwarnings("ignore::UserWarning:torch")        # of tensors of no elements
@pytest.mark.parametrize(("field", "value"), SAMPLE)
def test_a_strange_setting_runs_or_gives_an_error_of_the_family(checkpoint, tmp_path, field, value):
    survives(changed(checkpoint, tmp_path, "olmoe", (field,), value))


def test_a_setting_that_is_no_number_is_refused_at_loading_in_a_family_that_looks_at_it_later(checkpoint, tmp_path):
    folder = changed(checkpoint, tmp_path, "granite", ("residual_multiplier",), None)
    with pytest.raises(CheckpointError, match=r"config\.json .*makes a model that does not run: TypeError"):
        info(folder)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning:torch")
@pytest.mark.parametrize("family", [*FAMILIES, *STRANGERS])
def test_any_strange_setting_runs_or_gives_an_error_of_the_family(checkpoint, tmp_path, family):
    for path in fields(checkpoint, family):
        for what, value in STRANGE.items():
            folder = changed(checkpoint, tmp_path, family, path, value)
            try:
                survives(folder)
            except Exception as error:
                pytest.fail(f"{path} is {what}: {type(error).__name__}: {error}")


NAMED = {
    "a fraction": (dict(vocab_size=160.0), r"config\.json .*vocab_size.*expected int, got float"),
    "letters": (dict(num_experts="8"), r"config\.json .*num_experts.*expected int, got str"),
    "too few kinds of layers": (dict(layer_types=["full_attention"]), r"config\.json .*num_hidden_layers"),
    "no experts a token": (dict(num_experts_per_tok=0), r"config\.json .*num_experts_per_tok = 0.*from 1 to 8"),
    "minus one": (dict(num_experts_per_tok=-1), r"config\.json .*num_experts_per_tok = -1.*from 1 to 8"),
    "more experts than there are": (dict(num_experts_per_tok=9), r"num_experts_per_tok = 9, and a layer has 8"),
    "no context": (dict(max_position_embeddings=0), r"config\.json .*max_position_embeddings = 0"),
    "endless layers": (dict(num_hidden_layers=10**9), r"config\.json says num_hidden_layers = 1e\+09"),
    "more layers than tensors": (dict(num_hidden_layers=1000), r"num_hidden_layers = 1,000, and its files hold"),
    "another vocabulary": (dict(vocab_size=161), r"embed_tokens.*\[160, 64\].*\[161, 64\]"),
    "one layer more": (dict(num_hidden_layers=4), r"layer 3"),
}


@pytest.mark.parametrize("what", NAMED)
def test_a_wrong_setting_is_named_with_its_file(checkpoint, tmp_path, what):
    changes, words = NAMED[what]
    (field, value), = changes.items()
    with pytest.raises(CheckpointError, match=words):
        info(changed(checkpoint, tmp_path, "olmoe", (field,), value))


@pytest.mark.parametrize("text", ["", "{", "[]", "5", "null", '"x"', "\x00", "[" * 100_000, '{"a":' * 5000, "\xff"])
@pytest.mark.parametrize("file", ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"])
def test_a_damaged_file_is_named(tmp_path, file, text):
    folder = shutil.copytree(resolve_model("pocket"), tmp_path / "damaged")
    (folder / file).write_text(text, "latin-1")
    with pytest.raises(CheckpointError, match=file.replace(".", r"\.")):
        open_model(folder)


@pytest.mark.parametrize("length", ["8", [], {}, [None]])
def test_a_tokenizer_that_would_fail_at_the_first_text_is_refused(tmp_path, length):
    folder = shutil.copytree(resolve_model("pocket"), tmp_path / "odd")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "model_max_length": length}))
    with pytest.raises(CheckpointError, match="the tokenizer of"):
        open_model(folder)


def test_experts_of_mixed_types_are_refused_with_layers_and_a_line_that_helps(checkpoint, tmp_path, monkeypatch):
    import re

    import torch
    from checkpoints import eager
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(checkpoint("olmoe", dtype=torch.bfloat16), tmp_path / "mixed")
    tensors = load_file(folder / "model.safetensors")
    mixed = {name: x.float() if "layers.1.mlp.experts" in name else x for name, x in tensors.items()}
    save_file(mixed, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UnsupportedModelError, match=r"mixed types \(BF16 in layers 0, 2; F32 in layer 1\)") as e:
        info(folder)
    monkeypatch.chdir(tmp_path)
    exec(re.search('python -c "(.*)"', str(e.value))[1])        # as a shell would
    whole = next(path for path in tmp_path.iterdir() if path.name.startswith("mixed-"))
    assert torch.equal(open_model(whole).hf.lm_head.weight, eager(folder, torch.bfloat16).lm_head.weight)


def test_experts_of_a_type_that_is_no_plain_number_are_sent_to_the_unquantised_checkpoint(checkpoint, tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(checkpoint("olmoe"), tmp_path / "small")
    tensors = load_file(folder / "model.safetensors")
    small = {name: x.to(torch.float8_e4m3fn) if ".experts." in name else x for name, x in tensors.items()}
    save_file(small, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UnsupportedModelError, match=r"F8_E4M3; .*take the unquantised checkpoint"):
        info(folder)


class Panic(BaseException):
    """As libraries written in Rust raise it."""


Panic.__name__ = "PanicException"


@pytest.mark.parametrize("error", [KeyError("a"), RecursionError("deep"), AssertionError(), Panic("gave up")])
def test_one_door_turns_whatever_a_library_raises_into_an_error_of_the_family(error):
    with pytest.raises(CheckpointError, match=r"^the file: ") as e, foreign("the file"):
        raise error
    assert e.value.__cause__ is error


@pytest.mark.parametrize("error", [MemoryError("no room"), KeyboardInterrupt(), UnsupportedModelError("dense")])
def test_one_door_lets_pass_what_is_not_the_files_fault(error):
    with pytest.raises(type(error)) as e, foreign("the file"):
        raise error
    assert e.value is error


def test_a_model_that_cannot_be_tried_without_memory_is_not_refused_for_it(checkpoint, monkeypatch):
    from moe_lab.models import trial

    def fail(**more):
        raise ValueError("this family has a cache of its own")

    monkeypatch.setattr(trial, "DynamicCache", fail)
    assert info(checkpoint("olmoe")).family == "olmoe"
