"""The 5-gram baseline equals its slow twin, and its probabilities are probabilities."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from moe_lab.pocket.ngram import NGram, discounts, pack

V = 7


def slow(text: list[int], order: int):
    """The textbook's recursion over dictionaries: a function (context, word) -> probability."""
    levels = [Counter(tuple(text[i : i + order]) for i in range(len(text) - order + 1))]
    while len(levels) < order:
        levels.append(Counter(gram[1:] for gram in levels[-1]))       # distinct left neighbours
    levels = levels[::-1]                                              # levels[n - 1] is order n
    taken = [discounts(np.array(list(level.values()))) for level in levels]

    def probability(context: tuple[int, ...], word: int) -> float:
        n = len(context) + 1
        below = probability(context[1:], word) if context else 1 / V
        inside = {gram[-1]: count for gram, count in levels[n - 1].items() if gram[:-1] == context}
        if not inside:
            return below
        d, total = taken[n - 1], sum(inside.values())
        freed = sum(d[min(count, 3)] for count in inside.values())
        count = inside.get(word, 0)
        return (count - d[min(count, 3)] + freed * below) / total

    return probability


@pytest.fixture
def text(rng) -> np.ndarray:
    """A skewed text of 400 words in which the last of seven never occurs."""
    ids = np.minimum(rng.geometric(0.4, 400) - 1, V - 2)
    ids[100:140] = ids[:40]
    return ids.astype(np.uint16)


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_log_probs_equal_the_slow_twin(text, rng, order):
    model, probability = NGram.count(text, order, V), slow(text.tolist(), order)
    other = rng.integers(0, V, 60).astype(np.uint16)
    for ids in (other, text[:50]):
        words = ids.tolist()
        wanted = [probability(tuple(words[max(0, i - order + 1) : i]), words[i]) for i in range(len(words))]
        assert np.allclose(np.exp(model.log_probs(ids)), wanted, rtol=1e-12)


@pytest.mark.parametrize("context", [[], [0], [6], [0, 1, 0, 0], [6, 6, 6, 6], [0, 0, 1, 0, 0, 0, 1]])
def test_probabilities_after_any_context_sum_to_one_and_none_is_zero(text, context):
    p = NGram.count(text, vocabulary=V).distribution(context)
    assert p.sum() == pytest.approx(1, abs=1e-12)
    assert (p > 0).all()


def test_the_distribution_is_what_log_probs_says(text):
    model = NGram.count(text, vocabulary=V)
    p = model.distribution(text[:9].tolist())
    for word in range(V):
        assert np.exp(model.log_probs(np.append(text[:9], word))[-1]) == pytest.approx(p[word], rel=1e-12)


def test_a_longer_context_predicts_a_repeating_text_better(rng):
    text = np.tile(rng.permutation(50), 40)
    losses = [-NGram.count(text, order, 64).log_probs(text).mean() for order in (1, 2, 5)]
    assert losses[0] > 3 > losses[1] and losses[1] < 0.1 and losses[2] < 0.1


def test_the_largest_id_fits_into_a_packed_five_gram():
    ids = np.array([4095, 0, 4095, 4095, 4095], dtype=np.uint16)
    assert [int(pack(ids, 5)[0]) >> 12 * k & 4095 for k in range(4, -1, -1)] == ids.tolist()
    assert len(pack(ids[:3], 5)) == 0


def test_discounts_never_exceed_a_count_and_short_texts_get_some():
    assert discounts(np.array([], dtype=np.int32)).tolist() == [0, 0.5, 1, 1.5]
    taken = discounts(np.repeat([1, 2, 3, 4, 5], [10, 90, 10, 80, 1]))
    assert (taken <= [0, 1, 2, 3]).all() and (taken[1:] > 0).all()


@pytest.mark.parametrize(("ids", "order", "vocabulary"), [
    ([1, 2, 3], 5, 7), ([1, 2, 3, 4, 5, 7], 5, 7), ([1, 2, 3, 4, 5, 6], 6, 7), ([1, 2, 3, 4, 5, 6], 5, 4097),
])
def test_what_cannot_be_counted_is_refused(ids, order, vocabulary):
    with pytest.raises(ValueError, match=r"at most|at least"):
        NGram.count(np.array(ids), order, vocabulary)
