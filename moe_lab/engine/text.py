"""Text in and out: prompts to ids, ids to text piece by piece, stop strings. Knows a tokenizer, no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from moe_lab.errors import SettingError
from moe_lab.units import whole_number


def to_ids(text: str | Sequence[int] | np.ndarray, tokenizer: Any, vocabulary: int, what: str) -> list[int]:
    """Token ids of a string, or a checked copy of ids: whole numbers below ``vocabulary``, the rows of the embedding.

    ``what`` names the argument in errors. Raises ``SettingError``.
    """
    if isinstance(text, str):
        ids = _tokenised(text, tokenizer, what)
        if bad := [i for i in ids if not 0 <= i < vocabulary]:
            name = tokenizer.convert_ids_to_tokens(bad[0]) if hasattr(tokenizer, "convert_ids_to_tokens") else ""
            raise SettingError(f"{what} holds the token {name!r}, whose id is {bad[0]}, and this model's embedding has "
                               f"rows for the ids 0 to {vocabulary - 1}: its tokenizer belongs to another model; leave "
                               "that token out, or give ids")
    else:
        ids = _typed(text, what)
        if bad := [i for i in ids if not 0 <= i < vocabulary]:
            raise SettingError(f"{what} holds the id {bad[0]}; this model knows ids from 0 to {vocabulary - 1}")
    if not ids:
        raise SettingError(f"{what} is empty; type at least one word")
    return ids


def _tokenised(text: str, tokenizer: Any, what: str) -> list[int]:
    if tokenizer is None:
        raise SettingError(f"this checkpoint has no tokenizer; give {what} as a list of token ids")
    try:
        return list(tokenizer(text, verbose=False)["input_ids"])
    except Exception as error:          # a lone surrogate, or whatever else a tokenizer cannot take
        raise SettingError(f"{what} cannot be cut into tokens: {type(error).__name__}: {error}") from error


def _typed(ids: Any, what: str) -> list[int]:
    """Ids as somebody gives them: a list, an array or a tensor of whole numbers."""
    kind = f"{what} must be a string or a list of token ids"
    if isinstance(ids, (bytes, bytearray, memoryview, Mapping)):
        raise SettingError(f"{kind}, not {type(ids).__name__}; type bytes({what}).decode() for the text in bytes, "
                           f"{what}['input_ids'] for what a tokenizer returns")
    if isinstance(ids, (set, frozenset)):
        raise SettingError(f"{kind}, not a {type(ids).__name__}, which has no order")
    try:
        values = list(ids.tolist() if hasattr(ids, "tolist") else ids)
    except TypeError:
        raise SettingError(f"{kind}, not {type(ids).__name__}") from None
    for value in values:
        if whole_number(value) is None:
            row = f"; a batch has several rows: type {what}[0]" if isinstance(value, list) else ""
            raise SettingError(f"{kind}, and {value!r} is no whole number{row}")
    return [int(value) for value in values]


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
    tokens = whole_number(window)
    if tokens is None or not 1 <= tokens <= context:
        raise SettingError(f"window={window!r} must lie between 1 and this model's context of {context:,} tokens")
    return tokens


def stop_strings(stop: str | Sequence[str] | None, tokenizer: Any) -> tuple[str, ...]:
    """The stop strings as a tuple; an empty one is refused, and one that no tokenizer could find."""
    given: Any = () if stop is None else (stop,) if isinstance(stop, str) else stop
    try:
        stops = tuple(given)
    except TypeError:
        stops = (given,)        # no list: refused below
    if any(not isinstance(s, str) or not s for s in stops):
        raise SettingError(f"stop={stop!r} must be a string or a list of strings, none of them empty")
    if stops and tokenizer is None:
        raise SettingError(f"stop={stop!r} is text, and this model has no tokenizer to write text with; leave stop out")
    return stops


class TextStream:
    """Turns ids into text as they come.

    An unfinished character is held back until its bytes are there, and so is whatever might become a stop
    string. Joined, the pieces are the text up to the first stop string. Special tokens are not shown; a stop string
    that names one (``"<|end|>"``) ends the text all the same.
    """

    def __init__(self, tokenizer: Any, stops: tuple[str, ...] = ()) -> None:
        self._tokenizer, self._stops = tokenizer, stops
        special = _special_tokens(tokenizer)
        self._named = special if any(token in stop for token in special.values() for stop in stops) else {}
        self._ids: list[int] = []
        self._start, self._read = 0, 0
        self._held, self._shown = "", ""
        self.stopped = False

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def push(self, id: int) -> str:
        """Add one id; returns what can be shown now."""
        if self._tokenizer is None:
            return ""
        if id in self._named:
            return self._release(self._rest()) + self._release(self._named[id], shown=False)
        self._ids.append(id)
        known = self._decode(self._ids[self._start : self._read])
        whole = self._decode(self._ids[self._start :])
        if whole.endswith("\ufffd") or len(whole) <= len(known):
            return ""
        self._start, self._read = self._read, len(self._ids)
        return self._release(whole[len(known) :])

    def _rest(self) -> str:
        """What was not decoded yet because a character was unfinished."""
        known = self._decode(self._ids[self._start : self._read])
        rest = self._decode(self._ids[self._start :])[len(known) :]
        self._start = self._read = len(self._ids)
        return rest

    def _release(self, text: str, shown: bool = True) -> str:
        """Add ``text`` to what is held; returns what can be shown of it now. ``_shown`` marks each held letter."""
        if self.stopped:
            return ""
        self._held, self._shown = self._held + text, self._shown + "01"[shown] * len(text)
        places = [at for s in self._stops if (at := self._held.find(s)) >= 0]
        if places:
            self.stopped = True
            return self._let_go(min(places))
        keep = max((n for s in self._stops for n in range(1, len(s)) if self._held.endswith(s[:n])), default=0)
        return self._let_go(len(self._held) - keep)

    def _let_go(self, n: int) -> str:
        """The first ``n`` letters that are held, but for those of special tokens."""
        text, marks = self._held[:n], self._shown[:n]
        self._held, self._shown = self._held[n:], self._shown[n:]
        return text if "0" not in marks else "".join(c for c, mark in zip(text, marks, strict=True) if mark == "1")

    def flush(self) -> str:
        """What was held back, at the end of a run that no stop string ended."""
        if self._tokenizer is None or self.stopped:
            return ""
        out = self._release(self._rest())
        return out if self.stopped else out + self._let_go(len(self._held))


def _special_tokens(tokenizer: Any) -> dict[int, str]:
    """Ids and texts of the tokens that decoding leaves out."""
    added = getattr(tokenizer, "added_tokens_decoder", None) or {}
    return {int(id): token.content for id, token in added.items() if token.special and token.content}
