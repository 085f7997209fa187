"""The card's measurements, each against a case that can be worked out by hand or slowly."""

from __future__ import annotations

from collections import OrderedDict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tokenizers import ByteLevelBPETokenizer
from torch.nn import functional as F
from transformers import OlmoeConfig, OlmoeForCausalLM, PreTrainedTokenizerFast

from moe_lab.pocket import measure
from moe_lab.pocket.measure import Balance, Locality, Loss


def test_perplexity_and_bits_per_byte_follow_from_the_sums():
    loss = Loss(tokens=10, nats=10 * np.log(8), bytes=30)
    assert loss.perplexity == pytest.approx(8)
    assert loss.bits_per_byte == pytest.approx(1)


def test_the_bytes_of_tokens_add_up_to_the_bytes_of_the_text():
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(["naïve 日本語 text, text, text"] * 5, vocab_size=300, special_tokens=["<|end|>"],
                            show_progress=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, eos_token="<|end|>")
    sizes = measure.token_bytes(tokenizer)
    text = "naïve – text\t日本 🎉\r\n"
    assert sizes[tokenizer(text).input_ids].sum() == len(text.encode())
    assert sizes[tokenizer.eos_token_id] == 0


def test_windows_are_whole_and_evenly_spaced():
    assert measure.windows(1024) == []
    assert measure.windows(1025) == [0]
    assert measure.windows(10_000, 1000) == [0, 1000, 2000, 3000, 4000, 5000, 6000, 7000, 8000]
    assert measure.windows(10_000, 1000, most=3) == [0, 4000, 8000]
    assert measure.windows(10_000, 1000, most=99) == measure.windows(10_000, 1000)


def test_model_losses_are_those_of_each_window_read_alone(seed, rng):
    torch.manual_seed(seed)
    model = OlmoeForCausalLM(OlmoeConfig(
        vocab_size=64, hidden_size=32, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, num_experts=4, num_experts_per_tok=2, pad_token_id=None, eos_token_id=0)).eval()
    ids = rng.integers(0, 64, 50).astype(np.uint16)
    losses = measure.model_losses(model, ids, [0, 30], length=16)
    assert losses.shape == (2, 16)
    part = torch.from_numpy(ids[30:47].astype(np.int64))[None]
    with torch.no_grad():
        wanted = F.cross_entropy(model(part).logits[0, :-1], part[0, 1:])
    assert losses[1].mean() == pytest.approx(wanted.item(), rel=1e-5)
    summed = measure.loss_of(losses, ids, [0, 30], np.arange(64))
    assert summed.bytes == ids[1:17].sum(dtype=int) + ids[31:47].sum(dtype=int)
    assert summed.tokens == 32


def test_both_models_are_judged_on_the_same_tokens():
    log_probs = -np.arange(50.0)                          # the loss of token i is i
    assert measure.ngram_losses(log_probs, [0, 30], length=4).tolist() == [[1, 2, 3, 4], [31, 32, 33, 34]]


def test_repeats_count_runs_that_stand_in_the_training_text(rng):
    train = rng.integers(0, 4096, 5000).astype(np.uint16)
    copied, new = train[100:163], rng.integers(0, 4096, 80).astype(np.uint16)
    mixed = np.concatenate([train[100:132], new])         # one of 81 runs
    assert measure.repeats(train, [copied, new, mixed, new[:5]]) == [1.0, 0.0, pytest.approx(1 / 81), 0.0]


def test_balance_of_even_lopsided_and_dead_experts():
    assert Balance.of(np.full(8, 1 / 8)) == Balance(1.0, 1.0, pytest.approx(1.0), 0)
    b = Balance.of(np.array([0.75, 0.25, 0, 0]))
    assert (b.most, b.least, b.dead) == (3.0, 0.0, 2)
    assert b.entropy == pytest.approx(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25)) / np.log(4))


def test_usage_counts_each_layer_and_leaves_unused_places_out():
    ids = np.array([[[0, 1], [2, -1]], [[0, 3], [2, 1]]])
    assert measure.usage(ids, 4).tolist() == [[0.5, 0.25, 0, 0.25], [0, 1 / 3, 2 / 3, 0]]


def test_overlap_is_one_for_equal_shares_and_zero_for_disjoint_ones():
    a, b = np.array([[0.5, 0.5, 0, 0]]), np.array([[0, 0, 1.0, 0]])
    assert measure.overlap(a, a).tolist() == [1]
    assert measure.overlap(a, b).tolist() == [0]
    assert measure.overlap(a, np.array([[0.25, 0.25, 0.25, 0.25]])).tolist() == [0.5]


def test_reuse_counts_experts_of_the_token_before_in_the_same_layer():
    ids = np.array([[[0, 1], [2, 3]], [[1, 2], [0, 1]], [[1, 2], [1, -1]]])
    assert measure.reuse(ids) == pytest.approx((1 + 0 + 2 + 1) / 7)


def slow_lru(ids: np.ndarray, C: int, length: int) -> float:
    """LRU by ordered dictionary, layer by layer and window by window."""
    misses = 0
    for layer in range(ids.shape[1]):
        for start in range(0, len(ids), length):
            cache: OrderedDict[int, None] = OrderedDict()
            for row in ids[start : start + length, layer]:
                misses += sum(int(e) not in cache for e in row)
                for e in row:
                    cache[int(e)] = None
                    cache.move_to_end(int(e))
                while len(cache) > C:
                    cache.popitem(last=False)
    return misses / ids.size


def routes(rng, T: int, L: int, E: int, K: int) -> np.ndarray:
    return np.argsort(rng.random((T, L, E)), axis=2)[:, :, :K].astype(np.int32)


def test_lru_misses_equal_an_ordered_dictionary_and_start_again_at_each_window(rng):
    ids = routes(rng, 90, 2, 8, 2)
    for length in (30, 1000):
        assert measure.lru_miss_rate(ids, 8, 4, length) == pytest.approx(slow_lru(ids, 4, length))
    assert measure.lru_miss_rate(ids, 8, 8, 1000) == pytest.approx(8 * 2 / ids.size)


def test_beladys_bound_lies_under_lru(rng):
    ids = routes(rng, 200, 2, 8, 2)
    assert 16 / ids.size < measure.belady_miss_rate(ids, 8, 4) < measure.lru_miss_rate(ids, 8, 4)


def test_shuffling_takes_locality_away_where_there_is_some(rng):
    slow = np.repeat(routes(rng, 60, 2, 8, 2), 8, axis=0)         # every token eight times
    x = Locality.of(slow, 8)
    assert x.lru < 0.5 * x.shuffled_lru
    assert x.reuse > 0.9 > 2 * x.shuffled_reuse
    y = Locality.of(routes(rng, 480, 2, 8, 2), 8)
    assert y.lru == pytest.approx(y.shuffled_lru, abs=0.05)


def test_prices_are_relative_to_the_original_routing_of_the_same_size():
    """An engine that loses by its penalty and misses by its slots."""

    class Cache:
        slots = 0

        def resize(self, size):
            self.slots = int(size[:-1]) * 8 // 100

    class Engine:
        spec, cache, routing = SimpleNamespace(experts=8), Cache(), None

        def score(self, ids, window):
            penalty = getattr(self.routing, "penalty", 0)
            ids = np.array([[[0, 1]], [[2, 3]], [[4, 5]], [[0, 1]]])
            return SimpleNamespace(perplexity=20 * (1 + penalty / 10), miss_rate=(1 - penalty) / self.cache.slots,
                                   stats=SimpleNamespace(swapped_share=penalty), trace=SimpleNamespace(ids=ids))

    rows = measure.prices(Engine(), [1, 2], {"50%": (0.0, 0.5), "25%": (0.1,)}, lambda line: None)
    assert [(r.cache, r.keep_top, r.penalty) for r in rows] == [
        ("50%", 0, None), ("50%", 1, 0.0), ("50%", 1, 0.5), ("50%", 2, 0.0), ("50%", 2, 0.5),
        ("25%", 0, None), ("25%", 1, 0.1), ("25%", 2, 0.1)]
    assert [r.change for r in rows[:3]] == [0, 0, pytest.approx(0.05)]
    assert rows[2].miss_rate == pytest.approx(0.125)
    assert rows[0].bound == 6 / 8
    assert rows[5].bound == 1
