"""Our own decode loop: one pass a token over the model that ``engine.hf`` is, a ``Step`` each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch

from moe_lab.engine.records import Phase, Step
from moe_lab.engine.sampling import Sampler
from moe_lab.engine.text import TextStream

if TYPE_CHECKING:
    from moe_lab.engine.engine import Engine


def decode(engine: Engine, prompt: list[int], max_new_tokens: int, sampler: Sampler, stops: tuple[str, ...],
           stop_at_end: bool) -> Iterator[Step]:
    """Yield a step for each new token until a reason to stop; the engine is owned while this runs."""
    text = TextStream(engine.tokenizer, stops)
    ids, passed, past = list(prompt), prompt, engine.new_past()
    for index in range(max_new_tokens):
        with torch.inference_mode():
            logits = engine.hf(
                input_ids=torch.tensor([passed]), past_key_values=past, use_cache=True, logits_to_keep=1
            ).logits[0, -1]
        counts, touched = engine.last_pass
        token = sampler(logits.clone(), ids)
        ids.append(token)
        ended = stop_at_end and token in engine.end_ids
        piece = "" if ended else text.push(token)
        finish = ("end" if ended else "stop" if text.stopped else "context" if len(ids) >= engine.spec.context
                  else "length" if index + 1 == max_new_tokens else "")
        if finish and finish != "stop":
            piece += text.flush()
        yield _step(index, engine.telemetry.token - 1, piece, token, counts, touched, finish)
        if finish:
            return
        passed = [token]


def _step(index: int, position: int, text: str, token: int, counts: Phase, touched: int, finish: str) -> Step:
    return Step(index, position, text, (token,), counts.hits, counts.misses, counts.swapped, counts.read_bytes,
                touched, counts.times, finish)
