"""Padding beside a text: computed as the model would, and otherwise as if it were not there."""

from __future__ import annotations

import pytest
import torch
from checkpoints import eager

import moe_lab as ml

TEXT, OTHER = [5, 17, 3, 90, 41, 7, 120], [9, 33, 2, 77]
PAD = 1


def padded(*texts: list[int], left: bool = True) -> dict[str, torch.Tensor]:
    """A batch of ``texts`` with padding to one length."""
    longest = max(map(len, texts))
    def row(text: list[int], fill: int, value: int | None = None) -> list[int]:
        more = [fill] * (longest - len(text))
        here = text if value is None else [value] * len(text)
        return more + here if left else here + more

    return {"input_ids": torch.tensor([row(t, PAD) for t in texts]),
            "attention_mask": torch.tensor([row(t, 0, 1) for t in texts])}


@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("family", ["olmoe", "qwen2-moe", "granite"])
def test_a_padded_batch_equals_the_eager_model_at_every_place(checkpoint, family, left):
    folder = checkpoint(family)
    engine, batch = ml.load(str(folder), cache=3), padded(TEXT, OTHER, left=left)
    with torch.no_grad():
        truth, mine = eager(folder)(**batch).logits, engine.hf(**batch).logits
    real = batch["attention_mask"].bool()
    assert (mine[real] - truth[real]).abs().max() <= 1e-5 * truth[real].abs().max()
    assert (mine - truth).abs().max() <= 1e-4 * truth.abs().max()


@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("routing", ["cache-prior", "max-rank", "swap"])
def test_padding_steers_no_lossy_routing_and_is_not_counted(checkpoint, routing, left):
    plain, with_padding = (ml.load(str(checkpoint("olmoe")), cache=3, routing=routing) for _ in range(2))
    row = padded(TEXT, [PAD] * 12, left=left)
    ids, mask = row["input_ids"][:1], row["attention_mask"][:1]
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        for _ in range(2):              # the second time residents and range are those of the first
            alone = plain.hf(torch.tensor([TEXT])).logits[0]
            among = with_padding.hf(ids, attention_mask=mask, position_ids=positions).logits[0][mask[0].bool()]
            assert (among - alone).abs().max() <= 1e-4 * alone.abs().max()
    assert with_padding.telemetry.token == plain.telemetry.token == 2 * len(TEXT)
    assert (with_padding.cache.resident == plain.cache.resident).all()
    mine, theirs = with_padding._core.experts, plain._core.experts
    for a, b in zip(mine.states, theirs.states, strict=True):
        assert a.stats.uses.tolist() == b.stats.uses.tolist()
        assert a.route_state.tolist() == pytest.approx(b.route_state.tolist(), rel=1e-4)


@pytest.mark.parametrize("more", [{}, {"cache_implementation": "static"}], ids=["usual cache", "static cache"])
def test_padding_before_a_prompt_changes_nothing_that_is_generated(checkpoint, more):
    row = padded(TEXT, [PAD] * 12)
    batch = {"input_ids": row["input_ids"][:1], "attention_mask": row["attention_mask"][:1]}
    plain, with_padding = (ml.load(str(checkpoint("olmoe")), cache=4, routing="cache-prior") for _ in range(2))
    alone = plain.hf.generate(torch.tensor([TEXT]), max_new_tokens=8, do_sample=False)[0, len(TEXT):]
    made = with_padding.hf.generate(**batch, max_new_tokens=8, do_sample=False, pad_token_id=PAD, **more)[0, 12:]
    assert made.tolist() == alone.tolist() and with_padding.telemetry.token == plain.telemetry.token


@pytest.mark.parametrize("blocked", [float("-inf"), torch.finfo(torch.float32).min])
def test_padding_is_found_in_a_mask_of_tokens_by_tokens(checkpoint, blocked):
    engine, n = ml.load(str(checkpoint("olmoe")), cache=4), len(TEXT)
    mask = torch.full((1, 1, n + 3, n + 3), blocked).triu(1)
    mask[..., n:] = blocked
    engine.hf(torch.tensor([TEXT + [PAD] * 3]), attention_mask=mask)
    assert engine.telemetry.token == n


def test_generation_from_a_padded_batch_counts_its_text_alone(checkpoint):
    engine, batch = ml.load(str(checkpoint("olmoe")), cache=4), padded(TEXT, OTHER)
    made = engine.hf.generate(**batch, max_new_tokens=5, do_sample=False, pad_token_id=PAD)
    theirs = eager(checkpoint("olmoe")).generate(**batch, max_new_tokens=5, do_sample=False, pad_token_id=PAD)
    assert made.tolist() == theirs.tolist()
    assert engine.stats.prefill.tokens == len(TEXT) + len(OTHER) and engine.stats.decode.tokens == 2 * 4


def test_a_pass_of_padding_alone_counts_nothing(checkpoint):
    engine = ml.load(str(checkpoint("olmoe")), cache=4)
    engine.generate(TEXT, max_new_tokens=2)
    before, now = engine.telemetry.snapshot(), engine.cache.resident
    engine.hf(torch.full((1, 3), PAD), attention_mask=torch.zeros(1, 3, dtype=torch.long))
    after = engine.telemetry.snapshot()
    assert after.token == before.token and (after.uses == before.uses).all() and (engine.cache.resident == now).all()
