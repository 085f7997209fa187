"""How the pocket model is trained: schedule, windows, and that a run stops and goes on as if it had not."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from moe_lab.pocket import train


def go(monkeypatch, run, tokens: int, *more: str) -> None:
    """``python -m moe_lab.pocket.train`` in this process."""
    threads = torch.get_num_threads()
    argv = ["train", "--out", str(run), "--tokens", str(tokens), "--device", "cpu", "--threads", "1", *more]
    monkeypatch.setattr(sys, "argv", argv)
    try:
        train.main()
    finally:
        torch.set_num_threads(threads)


def weights(run, state: str = "last") -> dict[str, torch.Tensor]:
    return load_file(run / state / "model.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_windows_grow_in_the_last_third_and_again_in_the_last_tenth():
    assert [train.window(p) for p in (0, 0.66, 0.67, 0.89, 0.9, 1)] == [256, 256, 1024, 1024, 2048, 2048]
    assert all(train.BATCH_TOKENS % train.window(p) == 0 for p in (0, 0.7, 1))


def test_the_learning_rate_rises_stays_and_falls():
    rise = [train.learning_rate(step, 0.0) for step in range(train.WARM_UP + 2)]
    assert rise[0] < rise[1] < rise[train.WARM_UP - 2] < rise[train.WARM_UP - 1] == rise[-1] == train.PEAK_LR
    fall = [train.learning_rate(10_000, p) for p in (0.3, train.FALL, 0.75, 0.9, 1)]
    assert fall[0] == fall[1] == train.PEAK_LR > fall[2] > fall[3] > fall[4]
    assert fall[4] == pytest.approx(train.LAST_LR)


def test_a_batch_depends_on_seed_and_step_alone_and_its_rows_are_pieces_of_one_world():
    tokens = {"python": np.arange(5000, dtype=np.uint16), "prose": np.arange(50_000, 55_000).astype(np.uint16)}
    x = train.batch(tokens, 3, 256, seed=1)
    assert x.shape == (16, 257)
    assert x.dtype == torch.int64
    assert torch.equal(x, train.batch(tokens, 3, 256, seed=1))
    assert not torch.equal(x, train.batch(tokens, 4, 256, seed=1))
    assert not torch.equal(x, train.batch(tokens, 3, 256, seed=2))
    assert (x.diff(dim=1) == 1).all()
    share = np.mean([(train.batch(tokens, s, 256, seed=0)[:, 0] < 5000).float().mean() for s in range(100)])
    assert share == pytest.approx(train.PYTHON_SHARE, abs=0.04)


def test_the_balance_loss_is_one_for_an_even_router_and_larger_for_a_lopsided_one(seed):
    torch.manual_seed(seed)
    even = torch.eye(8).repeat(50, 1) * 20
    assert train.balance_loss((even,), 1).item() == pytest.approx(1, abs=1e-5)
    lopsided = torch.zeros(400, 8) + torch.tensor([20.0] + [0.0] * 7)
    assert train.balance_loss((lopsided, lopsided), 1).item() == pytest.approx(8, rel=1e-4)


def test_a_stopped_run_goes_on_bit_for_bit(tiny, monkeypatch, tmp_path):
    tokens = {w: np.load(tiny / "tokens" / f"{w}.train.npy") for w in ("python", "prose")}
    begin = {"step": 0, "tokens": 0, "loss": None, "total": 2048}

    def fresh():
        model = train.new_model(0).train()
        return model, train.new_optimizer(model)

    model, optimizer = fresh()
    for state in train.steps(model, optimizer, tokens, begin, 2048, 0, "cpu"):
        if state["step"] == 3:
            train.save(tmp_path / "half", model, optimizer, state)
    train.save(tmp_path / "whole", model, optimizer, state)
    assert state["step"] == 8
    assert state["tokens"] == 2048

    model, optimizer = fresh()
    half = train.resume(tmp_path / "half", model, optimizer)
    assert half["step"] == 3
    *_, state = train.steps(model, optimizer, tokens, half, 2048, 0, "cpu")
    train.save(tmp_path / "again", model, optimizer, state)
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert same(load_file(tmp_path / "whole" / name), load_file(tmp_path / "again" / name))
    assert (tmp_path / "whole" / "state.json").read_text() == (tmp_path / "again" / "state.json").read_text()


def test_training_lowers_the_loss(tiny, monkeypatch):
    tokens = {w: np.load(tiny / "tokens" / f"{w}.train.npy") for w in ("python", "prose")}
    model = train.new_model(0).train()
    state = {"step": 0, "tokens": 0, "loss": None, "total": 16_384}
    losses = [s["loss"] for s in train.steps(model, train.new_optimizer(model), tokens, state, 16_384, 0, "cpu")]
    assert losses[0] == pytest.approx(np.log(64), abs=0.3)
    assert losses[-1] < losses[0] - 0.2


def test_a_longer_run_goes_on_from_before_the_fall_as_if_the_shorter_had_never_ended(tiny, monkeypatch, capsys):
    go(monkeypatch, tiny, 3072)
    go(monkeypatch, tiny, 6144)
    assert f"resumed from {tiny / 'stable'} at 0.00 M tokens" in capsys.readouterr().out
    grown = weights(tiny)
    for name in ("stable", "last"):
        (tiny / name).rename(tiny / f"old-{name}")
    go(monkeypatch, tiny, 6144)
    assert "resumed" not in capsys.readouterr().out
    assert same(grown, weights(tiny))


def test_a_finished_run_is_not_trained_further_by_the_same_command(tiny, monkeypatch, capsys):
    go(monkeypatch, tiny, 2048)
    before = weights(tiny)
    go(monkeypatch, tiny, 2048)
    assert f"resumed from {tiny / 'last'}" in capsys.readouterr().out
    assert same(before, weights(tiny))


@pytest.mark.parametrize(("last", "stable", "tokens", "wanted"), [
    ((60, 60), (40, 60), 60, "last"),         # the same command
    ((60, 60), (40, 60), 120, "stable"),      # longer: the fall has spoilt the last
    ((30, 60), None, 120, "last"),            # stopped before the fall, then made longer
    ((50, 60), (40, 60), 60, "last"),
    ((30, 60), None, 33, None),               # shorter: 30 lies in its fall
    (None, None, 60, None),
])
def test_a_run_starts_from_the_newest_state_it_would_itself_have_passed(tmp_path, last, stable, tokens, wanted):
    for name, pair in (("last", last), ("stable", stable)):
        if pair:
            (tmp_path / name).mkdir()
            (tmp_path / name / "state.json").write_text(f'{{"tokens": {pair[0]}, "total": {pair[1]}}}')
    assert train.starting_point(tmp_path, tokens) == (tmp_path / wanted if wanted else None)


def test_nothing_is_pickled(tiny, monkeypatch):
    go(monkeypatch, tiny, 1024)
    files = [f for folder in ("last", "stable", "model") for f in (tiny / folder).iterdir()]
    assert {f.suffix for f in files} == {".safetensors", ".json"}
    for f in files:
        head = f.read_bytes()[:9]
        assert head[:1] == b"{" or head[8:9] == b"{", f       # json, or a safetensors header behind its length


def test_a_diverged_run_stops_and_says_where(tiny, monkeypatch):
    monkeypatch.setattr(train, "head_loss", lambda h, weight, targets: h.sum() * float("nan"))
    with pytest.raises(SystemExit, match="diverged at step 0"):
        go(monkeypatch, tiny, 1024)


def test_without_tokens_a_run_prepares_them_first(tiny, monkeypatch):
    (tiny / "tokens" / "sources.json").unlink()
    asked = []

    def prepare(folder, prose):
        asked.append((folder, prose))
        (folder / "sources.json").write_text("{}")

    monkeypatch.setattr(train.corpus, "prepare", prepare)
    go(monkeypatch, tiny, 256, "--prose", "my/texts")
    assert [str(a) for a in asked[0]] == [str(tiny / "tokens"), "my/texts"]
