"""The model card: what it says is what was measured."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch

from moe_lab import errors, pocket
from moe_lab.pocket import card, corpus, export, measure, train
from moe_lab.pocket.figures import Figures, Sample
from moe_lab.pocket.measure import Balance, Locality, Loss, Row
from moe_lab.pocket.page import LICENCES, page


@pytest.fixture
def figures():
    """Invented figures, each of its own."""
    part = {"documents": 5821, "bytes": 98_500_000, "tokens": 30_250_000,
            "sources": {"torch": 32_200_000, "python": 9_700_000}}
    prose = part | {"documents": 3313, "sources": {"git-manual": 3_000_000}}
    rows = [Row("50%", 0, None, 20.0, 0.0, 0.3, 0.14, 0.0), Row("50%", 1, 0.1, 20.06, 0.003, 0.06, 0.14, 0.12)]
    loss = {"model": Loss(1000, 1000 * np.log(19.5), 3000), "ngram": Loss(1000, 1000 * np.log(34.25), 3000)}
    return Figures(
        shape={"parameters": 21_600_000, "active": 5_100_000, "layers": 6, "experts": 64, "top_k": 8, "hidden": 256,
               "expert_hidden": 64, "vocabulary": 4096, "context": 2048, "bytes": 43_300_000},
        training={"step": 14649, "tokens": 60_002_304, "total": 60_000_000, "loss": 2.7, "balance": 1.2},
        sources={"python.train": part, "python.held": part, "prose.train": prose, "prose.held": prose},
        losses={"python": {"excerpt": loss, "all": loss}, "prose": {"excerpt": loss, "all": loss}},
        repeats={"python": {"excerpt": 0.012, "all": 0.058}, "prose": {"excerpt": 0.012, "all": 0.058}},
        balance=[Balance(2.5, 0.25, 0.951, 3)] * 6,
        locality=dict.fromkeys(corpus.WORLDS, Locality(0.221, 0.371, 0.101, 0.261, 0.171)),
        overlap={"between": [0.681] * 6, "within": [0.931] * 6},
        prices=dict.fromkeys(corpus.WORLDS, rows), price_windows=12,
        samples=[Sample("python", "def f(x):\n", 0.0, "    return x\n\n\n"),
                 Sample("prose", "There", 0.8, " was\n```")],
    )


@pytest.mark.parametrize("said", [
    "14,649 steps, 60.0 M tokens (a run of 60 M)",
    "21.6 M parameters, 5.1 M of them active",
    "| python, trained on | 5,821 | 98.5 MB | 30.25 M |",
    "| GPL-2.0: git-manual 3.0 | 3.0 MB |",
    "| PSF-2.0: python 9.7 | 9.7 MB |",
    "| python, the packaged excerpt | 1,000 | 19.50 | 34.25 | 1.428 | 1.699 |",
    "python 1.2% of the excerpt, 5.8% of all held-out text",
    "| 5 | 2.50 | 0.25 | 0.951 | 3 | 68% | 93% |",
    "| prose | 22.1% | 37.1% | 10.1% | 26.1% | 17.1% |",
    "**50% of the 64 experts.** Original routing: python: perplexity 20.00, misses 30.0%, Belady's bound 14.0%",
    "| 1, 0.1 | +0.30% | 6.0% | 80% | +0.30% | 6.0% | 80% |",
    "(12 windows of 1,024 tokens a world)",
    "On 12 windows of 1,024 tokens spread over",
    "    def f(x):\n        return x\n",
    "*prose*, temperature 0.8, after `There`:\n\n    There was\n    ```\n",
])
def test_the_page_says_each_figure(figures, said):
    assert said in page(figures)


def test_an_interim_state_is_called_one(figures):
    figures.training["tokens"] = 4_000_000
    assert "4.0 M tokens (an interim state of a run of 60 M)" in page(figures)


def test_figures_are_the_same_after_writing_and_reading(figures, tmp_path):
    figures.write(tmp_path / "figures.json")
    assert Figures.read(tmp_path / "figures.json") == figures


def test_the_page_can_be_made_again_without_measuring(figures, tmp_path, monkeypatch):
    figures.write(tmp_path / "figures.json")
    monkeypatch.setattr(card, "measure_all", None)
    monkeypatch.setattr(sys, "argv", ["card", "--folder", str(tmp_path), "--again"])
    card.main()
    assert (tmp_path / "README.md").read_text() == page(figures)


def test_every_source_of_text_has_a_licence_and_only_one():
    named = [name for names in LICENCES.values() for name in names]
    sources = {name.split("/")[0] for name in corpus.PACKAGES} | {name for name, *_ in corpus.MANUALS} | {"python"}
    assert len(named) == len(set(named))
    assert set(named) == sources


@pytest.mark.parametrize("file", ["training.json", "sources.json"])
def test_a_checkpoint_without_its_history_says_how_to_write_it(tmp_path, file):
    with pytest.raises(errors.CheckpointError, match=rf"{file} is missing.*moe_lab\.pocket\.export"):
        card._json(tmp_path / file)


def test_a_tiny_checkpoint_is_measured_from_end_to_end(tiny, tmp_path, monkeypatch, rng):
    """Random weights, 4,096 words: neither model knows anything, and the card says so."""
    monkeypatch.setattr(train, "SHAPE", train.SHAPE | {"vocab_size": 4096, "num_experts": 8})
    model = train.new_model(0)
    optimizer = train.new_optimizer(model)
    model(input_ids=torch.arange(9)[None]).logits.sum().backward()
    optimizer.step()
    train.save(tiny / "last", model, optimizer, {"step": 1, "tokens": 9, "total": 100, "loss": 8.3, "balance": 1.0})
    sources = {f"{w}.{p}": {"documents": 1, "bytes": 9, "tokens": 9} for w in corpus.WORLDS for p in ("train", "held")}
    (tiny / "tokens" / "sources.json").write_text(json.dumps(sources))
    for world in corpus.WORLDS:
        np.save(tiny / "tokens" / f"{world}.held.npy", rng.integers(0, 200, 2100).astype(np.uint16))
    export.export(tiny, tmp_path / "model")
    monkeypatch.setattr(measure, "GRID", {"50%": (0.0, 0.5)})
    monkeypatch.setattr(card, "SAMPLE_TOKENS", 3)
    monkeypatch.setattr(pocket, "held_out", lambda world: f"{world} text. " * 110)
    argv = ["card", "--folder", str(tmp_path / "model"), "--run", str(tiny), "--windows", "1"]
    monkeypatch.setattr(sys, "argv", argv)
    card.main()

    figures = Figures.read(tmp_path / "model" / "figures.json")
    assert figures.shape["parameters"] == sum(p.numel() for p in model.parameters())
    assert figures.shape["active"] == figures.shape["parameters"] - 2 * (8 - 2) * 3 * 32 * 16
    assert figures.losses["prose"]["all"]["model"].tokens == 2048
    assert figures.losses["prose"]["all"]["model"].perplexity == pytest.approx(4096, rel=0.2)
    rows = figures.prices["python"]
    assert [(r.cache, r.keep_top, r.penalty) for r in rows] == [
        ("50%", 0, None), ("50%", 1, 0.0), ("50%", 1, 0.5), ("50%", 2, 0.0), ("50%", 2, 0.5)]
    alone = figures.losses["python"]["excerpt"]["model"]
    assert alone.tokens == 1024
    assert rows[0].perplexity == pytest.approx(alone.perplexity, rel=1e-4)       # the engine and plain transformers
    assert rows[1].change == rows[0].change == 0
    assert rows[1].miss_rate == rows[0].miss_rate
    assert rows[2].miss_rate < rows[0].miss_rate
    assert 0 < rows[0].bound < rows[0].miss_rate < 1
    assert len(figures.samples) == 4
    assert (tmp_path / "model" / "README.md").read_text() == page(figures)
