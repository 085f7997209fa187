"""The baseline: a 5-gram model over the same tokens, with interpolated modified Kneser-Ney smoothing.

Knows counting and smoothing; knows neither the pocket model nor where the tokens come from.

With a vocabulary of 4,096 an n-gram is a number of 12 n bits: five fit into a uint64. So a table is
a sorted array, counting is sorting, dropping the first token is a mask and dropping the last one a
shift. 41 M tokens take about 2 GB and a quarter of a minute on one core.

Source: S. F. Chen, J. Goodman, *An Empirical Study of Smoothing Techniques for Language Modeling*,
1998 (TR-10-98), section 3: modified Kneser-Ney, interpolated, three discounts an order.

>>> model = NGram.count(np.array([1, 2, 3, 1, 2, 3, 1, 2], dtype=np.uint16), vocabulary=4)
>>> int(model.distribution([1, 2]).argmax())
3
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

ORDER = 5
_BITS = 12
"""Bits of one token in a packed n-gram."""


def pack(ids: np.ndarray, n: int) -> np.ndarray:
    """All n-grams of ``ids`` (T,) as uint64 (T - n + 1,): the last token in the lowest bits."""
    ids, count = np.asarray(ids).astype(np.uint64), len(ids) - n + 1
    packed = np.zeros(max(count, 0), dtype=np.uint64)
    for start in range(n):
        packed <<= np.uint64(_BITS)
        packed |= ids[start : start + len(packed)]
    return packed


def _counted(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Distinct values, sorted, and how often each occurs (int32). Sorts ``values`` in place."""
    values.sort()
    starts = _starts(values)
    return values[starts], np.diff(starts, append=len(values)).astype(np.int32)


def _starts(values: np.ndarray) -> np.ndarray:
    """Where in sorted ``values`` each run of equal ones begins."""
    new = np.ones(len(values), dtype=bool)
    np.not_equal(values[1:], values[:-1], out=new[1:])
    return np.flatnonzero(new)


def discounts(counts: np.ndarray) -> np.ndarray:
    """What is taken off a count of 0, 1, 2, 3 and more: float64 (4,).

    Chen and Goodman's estimates from how many n-grams occur once to four times. Where a text is too
    short for one, half of the count is taken, never more than the count itself.
    """
    n1, n2, n3, n4 = (float(np.count_nonzero(counts == k)) for k in (1, 2, 3, 4))
    taken = np.array([0.0, 0.5, 1.0, 1.5])
    if n1 and n2:
        y = n1 / (n1 + 2 * n2)
        taken[1] = 1 - 2 * y * n2 / n1
        if n3:
            taken[2] = 2 - 3 * y * n3 / n2
            if n4:
                taken[3] = 3 - 4 * y * n4 / n3
    clipped: np.ndarray = np.clip(taken, [0, 0.01, 0.01, 0.01], [0, 1, 2, 3])
    return clipped


def _find(keys: np.ndarray, wanted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Places of ``wanted`` in sorted ``keys``, and whether each is there at all."""
    if not len(keys):
        return np.zeros(len(wanted), dtype=np.int64), np.zeros(len(wanted), dtype=bool)
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return places, keys[places] == wanted


@dataclass(frozen=True)
class Table:
    """One order: n-grams with their counts, and what each context (the first n - 1 tokens) leaves over."""

    grams: np.ndarray
    """uint64 (N,), sorted."""
    counts: np.ndarray
    """int32 (N,): of the text at the highest order, of distinct left neighbours below (continuations)."""
    contexts: np.ndarray
    """uint64 (M,), sorted."""
    totals: np.ndarray
    """int64 (M,): sum of the counts of a context."""
    left_over: np.ndarray
    """float64 (M,): share of a context's mass that its discounts free for the order below."""
    taken: np.ndarray
    """float64 (4,): see ``discounts``."""

    @classmethod
    def of(cls, grams: np.ndarray, counts: np.ndarray) -> Table:
        """The table of sorted distinct ``grams`` and their ``counts``."""
        taken = discounts(counts)
        contexts = grams >> np.uint64(_BITS)
        starts = _starts(contexts)
        totals = np.add.reduceat(counts, starts, dtype=np.int64)
        freed = np.add.reduceat(taken[np.minimum(counts, 3)], starts)
        return cls(grams, counts, contexts[starts], totals, freed / totals, taken)

    def smooth(self, grams: np.ndarray, below: np.ndarray) -> np.ndarray:
        """Probability of the last token of each of ``grams``, given that of the order ``below``."""
        context, known = _find(self.contexts, grams >> np.uint64(_BITS))
        gram, seen = _find(self.grams, grams)
        count = np.where(seen, self.counts[gram], 0)
        own: np.ndarray = (count - self.taken[np.minimum(count, 3)]) / self.totals[context]
        p: np.ndarray = np.where(known, own + self.left_over[context] * below, below)
        return p


@dataclass(frozen=True)
class NGram:
    """An n-gram model. ``tables[n - 1]`` is order n."""

    tables: tuple[Table, ...]
    vocabulary: int

    @classmethod
    def count(cls, ids: np.ndarray, order: int = ORDER, vocabulary: int = 1 << _BITS) -> NGram:
        """Count ``ids`` (T,) of any integer type, each below ``vocabulary`` (at most 4,096).

        Raises ``ValueError`` when the order, the vocabulary or an id does not fit into 64 bits, or
        the text is shorter than one n-gram.
        """
        if not (1 <= order <= 64 // _BITS and 1 <= vocabulary <= 1 << _BITS):
            raise ValueError(f"order {order} and vocabulary {vocabulary}: at most 5 and 4096 can be packed")
        if len(ids) < order or int(ids.max()) >= vocabulary:
            raise ValueError(f"need at least {order} ids, all below the vocabulary of {vocabulary}")
        grams, counts = _counted(pack(ids, order))
        tables = [Table.of(grams, counts)]
        for n in range(order - 1, 0, -1):
            grams, counts = _counted(grams & np.uint64((1 << _BITS * n) - 1))
            tables.insert(0, Table.of(grams, counts))
        return cls(tuple(tables), vocabulary)

    @property
    def order(self) -> int:
        """Tokens of the longest n-gram."""
        return len(self.tables)

    def log_probs(self, ids: np.ndarray) -> np.ndarray:
        """Natural log of the probability of each of ``ids`` (T,) after those before it: float64 (T,).

        The first tokens have shorter contexts.
        """
        ids = np.asarray(ids)
        p = np.full(len(ids), 1 / self.vocabulary)
        for n, table in enumerate(self.tables, start=1):
            p[n - 1 :] = table.smooth(pack(ids, n), p[n - 1 :])
        logs: np.ndarray = np.log(p)
        return logs

    def distribution(self, context: Sequence[int]) -> np.ndarray:
        """Probabilities of all tokens after ``context``: float64 (V,), sums to one."""
        p = np.full(self.vocabulary, 1 / self.vocabulary)
        for n, table in enumerate(self.tables[: len(context) + 1], start=1):
            before = 0
            for token in context[len(context) - n + 1 :]:
                before = before << _BITS | int(token)
            p = table.smooth(np.uint64(before << _BITS) | np.arange(self.vocabulary, dtype=np.uint64), p)
        return p
