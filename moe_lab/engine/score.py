"""A teacher-forced evaluation: perplexity of a text under the present routing, exact in one pass a window.

With a budget per layer the residents of a layer depend on that layer's tokens alone, so the walk routes a
whole window as token-by-token generation would have (PAPER section 5).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch.nn import functional as F
from tqdm.auto import tqdm

from moe_lab.engine import report
from moe_lab.engine.recorder import Recorder
from moe_lab.engine.records import Score
from moe_lab.errors import NotFiniteError

if TYPE_CHECKING:
    from moe_lab.engine.engine import Engine


def windows(engine: Engine, ids: list[int], window: int, fresh: bool) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Logits (n, V) and targets (n,) int64 of each window of ``ids``, one pass each; residents are reset before it
    if ``fresh``."""
    for start in range(0, len(ids) - 1, window):
        part = torch.tensor([ids[start : start + window + 1]])
        if fresh:
            engine.reset_residents()
        with torch.inference_mode():
            logits = engine.hf(input_ids=part[:, :-1], use_cache=False).logits[0]
        yield logits, part[0, 1:]


def loss_of(logits: torch.Tensor, targets: torch.Tensor) -> float:
    """Summed negative log-likelihood, in nats, of ``targets`` (n,) under ``logits`` (n, V)."""
    return F.cross_entropy(logits.float(), targets, reduction="sum").item()


def check_loss(loss: float, window: int) -> None:
    """Raise ``NotFiniteError`` for a loss that is no number; an infinite one is: the text was ruled out."""
    if math.isnan(loss):
        raise NotFiniteError(f"the loss of window {window + 1} is NaN: the model's logits hold NaN or infinity, so its "
                             "weights are damaged, or were changed")


def evaluate(engine: Engine, ids: list[int], window: int, recorder: Recorder, fresh: bool) -> Score:
    """Mean loss of each token given those before it in its window; residents are reset per window if ``fresh``."""
    losses: list[float] = []
    counts: list[int] = []
    with torch.inference_mode(), tqdm(total=len(ids) - 1, unit="tokens", desc="score", delay=2, leave=False) as bar:
        for number, (logits, targets) in enumerate(windows(engine, ids, window, fresh)):
            n = len(targets)
            losses.append(loss_of(logits, targets) / n)
            check_loss(losses[-1], number)
            counts.append(n)
            bar.update(n)
    total = sum(loss * n for loss, n in zip(losses, counts, strict=True))
    tokens = sum(counts)
    mean = total / tokens
    size = _bytes(engine, ids[1:])
    return Score(
        perplexity=math.exp(mean) if mean < 700 else math.inf,
        bits_per_byte=total / math.log(2) / size if size else math.nan,
        loss=mean, tokens=tokens, window_losses=tuple(losses),
        stats=report.stats_of(engine, recorder), trace=report.trace_of(engine, recorder),
    )


def _bytes(engine: Engine, ids: list[int]) -> int:
    """Bytes of the scored text, 0 without a tokenizer."""
    if engine.tokenizer is None:
        return 0
    return len(engine.tokenizer.decode(ids, clean_up_tokenization_spaces=False).encode())
