"""Text in and out: prompts to ids, ids to text piece by piece, stop strings. Knows a tokenizer, no model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from moe_lab.errors import SettingError


def to_ids(text: str | Sequence[int] | np.ndarray, tokenizer: Any, vocabulary: int, what: str) -> list[int]:
    """Token ids of a string, or a checked copy of ids. ``what`` names the argument in errors."""
    if isinstance(text, str):
        if tokenizer is None:
            raise SettingError(f"this checkpoint has no tokenizer; give {what} as a list of token ids")
        ids = list(tokenizer(text, verbose=False)["input_ids"])
    else:
        try:
            ids = [int(i) for i in text]
        except (TypeError, ValueError):
            raise SettingError(f"{what} must be a string or a list of token ids, not {type(text).__name__}") from None
        if bad := [i for i in ids if not 0 <= i < vocabulary]:
            raise SettingError(f"{what} holds the id {bad[0]}; this model knows ids from 0 to {vocabulary - 1}")
    if not ids:
        raise SettingError(f"{what} is empty; type at least one word")
    return ids


def window_of(window: int | None, context: int) -> int:
    """Tokens of a window in a model of ``context`` tokens: 1,024, or the context where that is shorter, unless told.

    Raises:
        SettingError: a window that is no whole number from 1 to the context.

    Example:
        >>> window_of(None, context=4096), window_of(None, context=512), window_of(2048, context=4096)
        (1024, 512, 2048)
    """
    if window is None:
        return min(1024, context)
    if isinstance(window, bool) or not isinstance(window, int) or not 1 <= window <= context:
        raise SettingError(f"window={window!r} must lie between 1 and this model's context of {context:,} tokens")
    return window


def stop_strings(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    """The stop strings as a tuple; an empty one is refused."""
    stops = () if stop is None else (stop,) if isinstance(stop, str) else tuple(stop)
    if any(not isinstance(s, str) or not s for s in stops):
        raise SettingError(f"stop={stop!r} must be a string or a list of strings, none of them empty")
    return stops


class TextStream:
    """Turns ids into text as they come.

    An unfinished character is held back until its bytes are there, and so is whatever might become a stop
    string. Joined, the pieces are the text up to the first stop string.
    """

    def __init__(self, tokenizer: Any, stops: tuple[str, ...] = ()) -> None:
        self._tokenizer, self._stops = tokenizer, stops
        self._ids: list[int] = []
        self._start, self._read = 0, 0
        self._held = ""
        self.stopped = False

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def push(self, id: int) -> str:
        """Add one id; returns what can be shown now."""
        if self._tokenizer is None:
            return ""
        self._ids.append(id)
        known = self._decode(self._ids[self._start : self._read])
        whole = self._decode(self._ids[self._start :])
        if whole.endswith("\ufffd") or len(whole) <= len(known):
            return ""
        self._start, self._read = self._read, len(self._ids)
        return self._release(whole[len(known) :])

    def _release(self, text: str) -> str:
        self._held += text
        places = [at for s in self._stops if (at := self._held.find(s)) >= 0]
        if places:
            self.stopped = True
            out, self._held = self._held[: min(places)], ""
            return out
        keep = max((n for s in self._stops for n in range(1, len(s)) if self._held.endswith(s[:n])), default=0)
        out, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return out

    def flush(self) -> str:
        """What was held back, at the end of a run that no stop string ended."""
        if self._tokenizer is None or self.stopped:
            return ""
        known = self._decode(self._ids[self._start : self._read])
        rest = self._decode(self._ids[self._start :])[len(known) :]
        self._start = self._read = len(self._ids)
        out = self._release(rest) + self._held
        self._held = ""
        return out
