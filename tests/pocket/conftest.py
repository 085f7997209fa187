"""A run so small that it trains in a second: two layers of four experts over a text of 64 ids."""

from __future__ import annotations

import json

import numpy as np
import pytest


@pytest.fixture
def tiny(monkeypatch, tmp_path, rng):
    """Folder of a run with tokens and tokenizer; the training's shape, batch and windows shrunk to it."""
    from moe_lab.pocket import corpus, train

    small = train.SHAPE | {
        "vocab_size": 64, "hidden_size": 32, "intermediate_size": 16, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2, "num_experts": 4, "num_experts_per_tok": 2,
    }
    monkeypatch.setattr(train, "SHAPE", small)
    monkeypatch.setattr(train, "BATCH_TOKENS", 256)
    monkeypatch.setattr(train, "WARM_UP", 4)
    monkeypatch.setattr(train, "window", lambda progress: 32 if progress < train.FALL else 64)
    text = tmp_path / "run" / "tokens"
    text.mkdir(parents=True)
    for world in corpus.WORLDS:
        np.save(text / f"{world}.train.npy", np.minimum(rng.geometric(0.1, 5000), 63).astype(np.uint16))
    corpus.train_tokenizer(["def f(x):\n    return x + 1\n"] * 3, text)
    (text / "sources.json").write_text(json.dumps({"python.train": {"documents": 1, "bytes": 9, "tokens": 5000}}))
    return tmp_path / "run"
