"""Our own decode loop: one pass a token over the weights of ``engine.hf``, a ``Step`` each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch

from moe_lab.engine.lean import LeanDecode, check_row
from moe_lab.engine.recorder import times_of
from moe_lab.engine.records import Step
from moe_lab.engine.sampling import Sampler
from moe_lab.engine.text import TextStream
from moe_lab.kernels.record import Counts

if TYPE_CHECKING:
    from moe_lab.engine.engine import Engine


def decode(engine: Engine, prompt: list[int], max_new_tokens: int, sampler: Sampler, stops: tuple[str, ...],
           stop_at_end: bool) -> Iterator[Step]:
    """Yield a step for each new token until a reason to stop; the engine is owned while this runs."""
    text, end_ids = TextStream(engine.tokenizer, stops), engine.end_ids
    model = _Model(engine, min(engine.spec.context, len(prompt) + max_new_tokens))
    ids, passed, written = list(prompt), prompt, engine.telemetry.recorder.written
    for index in range(max_new_tokens):
        logits = model(passed)
        counts, touched = engine._core.last_pass
        token = sampler(logits, ids)
        ids.append(token)
        written.append(token)
        ended = stop_at_end and token in end_ids
        piece = "" if ended else text.push(token)
        finish = ("end" if ended else "stop" if text.stopped else "context" if len(ids) >= engine.spec.context
                  else "length" if index + 1 == max_new_tokens else "")
        if finish and finish != "stop":
            piece += text.flush()
            finish = "stop" if text.stopped else finish
        yield _step(index, engine.telemetry.token - 1, piece, token, counts, touched, finish)
        if finish:
            return
        passed = [token]


class _Model:
    """The model as the loop sees it. The prompt goes through transformers' modules, the text that follows through
    kernels where they know the family, else through the modules too."""

    def __init__(self, engine: Engine, room: int) -> None:
        self._engine, self._room, self._past = engine, room, engine.new_past()
        self._lean: LeanDecode | None = None

    def __call__(self, ids: list[int]) -> np.ndarray:
        """Logits (V,) float32 after ``ids``, which follow what came before."""
        if self._lean is not None:
            with self._engine.one_pass(rows=1, length=1, cached=True):
                return self._lean(ids[0])
        check_row(ids[-1], self._engine.vocabulary)
        begins = self._past.get_seq_length() == 0
        with torch.inference_mode():
            logits = self._engine.hf(
                input_ids=torch.tensor([ids]), past_key_values=self._past, use_cache=True, logits_to_keep=1
            ).logits[0, -1]
        if begins:
            self._lean = self._engine.lean_decode(self._past, self._room)
            if self._lean is not None:
                self._past = None               # the kernels have keys and values of their own now
        array: np.ndarray = logits.float().numpy()
        return array


def _step(index: int, position: int, text: str, token: int, counts: Counts, touched: int, finish: str) -> Step:
    return Step(index, position, text, (token,), counts.hits, counts.misses, counts.swapped, counts.read_bytes,
                touched, times_of(counts), finish)
