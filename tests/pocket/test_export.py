"""A training state becomes an ordinary checkpoint."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from moe_lab import errors, pocket
from moe_lab.pocket import export, train


@pytest.fixture
def run(tiny):
    """A run with a state of three steps."""
    tokens = {w: np.load(tiny / "tokens" / f"{w}.train.npy") for w in ("python", "prose")}
    model = train.new_model(0).train()
    optimizer = train.new_optimizer(model)
    begin = {"step": 0, "tokens": 0, "loss": None, "total": 768}
    *_, state = train.steps(model, optimizer, tokens, begin, 768, 0, "cpu")
    train.save(tiny / "last", model, optimizer, state)
    return tiny, model.eval()


def test_the_checkpoint_loads_with_plain_transformers_and_gives_the_models_logits(run, tmp_path):
    folder, model = run
    figures = export.export(folder, tmp_path / "model")
    assert figures["step"] == 3
    assert json.loads((tmp_path / "model" / "training.json").read_text()) == figures
    read = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert read.dtype == torch.bfloat16
    assert read.config.model_type == "olmoe"
    assert read.lm_head.weight is read.model.embed_tokens.weight
    model.set_experts_implementation("eager")
    x = torch.arange(20)[None] % 64
    with torch.no_grad():
        wanted, logits = model(x).logits, read.float()(x).logits
    assert (logits - wanted).abs().max() < 0.02 * wanted.abs().max()


def test_the_tokenizer_works_offline_and_gives_any_text_back(run, tmp_path):
    export.export(run[0], tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert tokenizer.eos_token_id == 0
    text = "def f(x):\n\treturn x\r\n  naïve – “ü” 日本語 🎉🏽\u200d \x00\x7f , 's n't  \n\n"
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_exporting_again_replaces_the_files_and_leaves_others(run, tmp_path):
    to = tmp_path / "model"
    export.export(run[0], to)
    (to / "README.md").write_text("card")
    (to / "model.safetensors").write_bytes(b"old")
    export.export(run[0], to, state="last")
    assert (to / "model.safetensors").stat().st_size > 1000
    assert (to / "README.md").read_text() == "card"
    assert not list(tmp_path.glob(".export-*"))


def test_the_newest_state_is_taken(tmp_path):
    for name, tokens in (("stable", 10), ("last", 30)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "state.json").write_text(json.dumps({"tokens": tokens}))
    assert export.newest(tmp_path).name == "last"
    (tmp_path / "stable" / "state.json").write_text('{"tokens": 40}')
    assert export.newest(tmp_path).name == "stable"


def test_a_run_without_a_state_says_how_to_start_one(tmp_path):
    with pytest.raises(errors.CheckpointError, match=r"python -m moe_lab\.pocket\.train"):
        export.export(tmp_path, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_state_that_is_missing_is_named(tiny, tmp_path):
    with pytest.raises(errors.CheckpointError, match=r"stable is no whole training state"):
        export.export(tiny, tmp_path / "model", state="stable", patience=1)


def test_the_command_says_what_it_wrote(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["export", "--run", str(run[0]), "--to", str(tmp_path / "model")])
    export.main()
    assert "step 3, 0.0 M tokens, loss 4." in capsys.readouterr().out


@pytest.mark.skipif(not (pocket.folder() / "model.safetensors").exists(), reason="no packaged checkpoint")
def test_the_packaged_checkpoint_is_small_whole_and_round_trips():
    folder = pocket.folder()
    assert sum(f.stat().st_size for f in folder.iterdir()) <= 48e6
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) == 4096
    for world in ("python", "prose"):
        text = pocket.held_out(world)[:20_000] + "\tnaïve 日本語\r\n"
        assert tokenizer.decode(tokenizer(text[:1500]).input_ids) == text[:1500]
