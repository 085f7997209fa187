"""Measurements of a checkpoint like the pocket model: losses, its routes' balance and locality, Cache-Prior's price.

Knows how each figure of the model card is defined; knows nothing of how the card looks. Losses are
measured with plain transformers, so they do not depend on this project's engine; everything about
caches with the engine.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from moe_lab.kernels.belady import belady
from moe_lab.kernels.reuse import ReuseDistances

if TYPE_CHECKING:
    from moe_lab.engine import Engine

WINDOW = 1024
"""Tokens of a window; residents are reset between two."""


# --- losses -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Loss:
    """A loss over some tokens: ``nats`` and ``bytes`` are sums."""

    tokens: int
    nats: float
    bytes: int

    @property
    def perplexity(self) -> float:
        """exp of the mean loss a token."""
        return float(np.exp(self.nats / self.tokens))

    @property
    def bits_per_byte(self) -> float:
        """Bits over the bytes of the text."""
        return float(self.nats / np.log(2) / self.bytes)


def token_bytes(tokenizer: Any) -> np.ndarray:
    """Bytes of each token of a byte-level tokenizer: int64 (V,); special tokens have none."""
    sizes = np.zeros(len(tokenizer), dtype=np.int64)
    for token, place in tokenizer.get_vocab().items():
        if place not in tokenizer.all_special_ids:
            sizes[place] = len(token)            # a byte-level token is written with one character a byte
    return sizes


def windows(tokens: int, length: int = WINDOW, most: int | None = None) -> list[int]:
    """Starts of whole windows of ``length`` tokens and one to predict; ``most`` of them, evenly spaced.

    >>> windows(5000, 1024), windows(5000, 1024, most=2)
    ([0, 1024, 2048, 3072], [0, 3072])
    """
    starts = list(range(0, tokens - length, length))
    if most is None or most >= len(starts):
        return starts
    return [starts[i] for i in np.linspace(0, len(starts) - 1, most).round().astype(int)]


def model_losses(model: Any, ids: np.ndarray, starts: Sequence[int], length: int = WINDOW) -> np.ndarray:
    """Loss in nats of every token but the first of each window: float64 (windows, length).

    ``model`` is a transformers causal model, ``ids`` (T,); each window is read without what came before it.
    """
    import torch
    from torch.nn import functional as F

    losses = np.empty((len(starts), length))
    with torch.inference_mode():
        for row, start in enumerate(starts):
            part = torch.from_numpy(ids[start : start + length + 1].astype(np.int64))
            logits = model(input_ids=part[None, :-1], use_cache=False).logits[0].float()
            losses[row] = F.cross_entropy(logits, part[1:], reduction="none").numpy()
    return losses


def ngram_losses(log_probs: np.ndarray, starts: Sequence[int], length: int = WINDOW) -> np.ndarray:
    """The same tokens' losses from ``NGram.log_probs`` of the whole text: (windows, length).

    Its context is never cut at a window's start, which favours it a little.
    """
    return np.stack([-log_probs[start + 1 : start + length + 1] for start in starts])


def repeats(train: np.ndarray, held: Sequence[np.ndarray], run: int = 32) -> list[float]:
    """For each text of ``held`` the share of its runs of ``run`` tokens that occur somewhere in ``train``.

    >>> repeats(np.arange(9), [np.array([3, 4, 5, 7])], run=3)
    [0.5]
    """
    def hashes(ids: np.ndarray) -> np.ndarray:
        values = np.zeros(max(len(ids) - run + 1, 0), dtype=np.uint64)
        for k in range(run):
            values *= np.uint64(0x9E3779B97F4A7C15)
            values += ids[k : k + len(values)].astype(np.uint64) + np.uint64(1)
            values ^= values >> np.uint64(29)
        return values

    known = hashes(train)
    known.sort()
    shares = []
    for ids in held:
        mine = hashes(ids)
        found = known[np.minimum(np.searchsorted(known, mine), len(known) - 1)] == mine
        shares.append(float(found.mean()) if len(found) else 0.0)
    return shares


def loss_of(losses: np.ndarray, ids: np.ndarray, starts: Sequence[int], sizes: np.ndarray) -> Loss:
    """``losses`` (windows, length) summed, with the bytes of the tokens they are of."""
    length = losses.shape[1]
    size = sum(int(sizes[ids[start + 1 : start + length + 1]].sum()) for start in starts)
    return Loss(losses.size, float(losses.sum()), size)


# --- routes -------------------------------------------------------------------------------------------


def usage(ids: np.ndarray, E: int) -> np.ndarray:
    """Share of a layer's uses that each expert gets: float64 (L, E); ``ids`` (T, L, K), -1 is nobody."""
    counts = np.stack([np.bincount(layer[layer >= 0], minlength=E) for layer in ids.transpose(1, 0, 2)])
    shares: np.ndarray = counts / counts.sum(axis=1, keepdims=True)
    return shares


@dataclass(frozen=True)
class Balance:
    """How evenly one layer uses its experts. 1 is an even share."""

    most: float
    """Uses of the busiest expert over an even share."""
    least: float
    entropy: float
    """Entropy of the shares over that of even ones, 0 to 1."""
    dead: int
    """Experts that are never used."""

    @classmethod
    def of(cls, shares: np.ndarray) -> Balance:
        """The balance of one layer's ``shares`` (E,).

        >>> Balance.of(np.array([0.5, 0.5, 0.0, 0.0]))
        Balance(most=2.0, least=0.0, entropy=0.5, dead=2)
        """
        used = shares[shares > 0]
        entropy = -(used * np.log(used)).sum() / np.log(len(shares))
        return cls(float(shares.max() * len(shares)), float(shares.min() * len(shares)), float(entropy),
                   int((shares == 0).sum()))


def overlap(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """How much of two worlds' expert use is common, per layer: float64 (L,), 1 for equal shares, 0 for none."""
    return np.minimum(a, b).sum(axis=1)


def reuse(ids: np.ndarray) -> float:
    """Share of the uses whose expert the token before used too, over all layers of ``ids`` (T, L, K)."""
    now, before = ids[1:], ids[:-1]
    same = (now[..., :, None] == before[..., None, :]) & (now[..., :, None] >= 0)
    return float(same.any(-1).sum() / (now >= 0).sum())


def lru_miss_rate(ids: np.ndarray, E: int, C: int, length: int = WINDOW) -> float:
    """Miss rate of LRU with ``C`` slots a layer, residents empty at each window of ``ids`` (T, L, K)."""
    hits = 0
    for part in _parts(ids, length):
        distances = ReuseDistances(E)
        distances.add(part)
        hits += int(distances.hits()[C])
    return 1 - hits / int((ids >= 0).sum())


def belady_miss_rate(ids: np.ndarray, E: int, C: int, length: int = WINDOW) -> float:
    """The least miss rate that any eviction can reach on these routes; arguments as ``lru_miss_rate``."""
    return sum(belady(part, E, C) for part in _parts(ids, length)) / int((ids >= 0).sum())


def _parts(ids: np.ndarray, length: int) -> Iterator[np.ndarray]:
    """Each layer's ids (T, K) of each window."""
    for layer in range(ids.shape[1]):
        for start in range(0, len(ids), length):
            yield np.ascontiguousarray(ids[start : start + length, layer], dtype=np.int32)


@dataclass(frozen=True)
class Locality:
    """How local routing is in time, at half of the experts; ``shuffled``: the same tokens in random order."""

    lru: float
    shuffled_lru: float
    belady: float
    reuse: float
    shuffled_reuse: float

    @classmethod
    def of(cls, ids: np.ndarray, E: int, seed: int = 0) -> Locality:
        """The locality of original routes ``ids`` (T, L, K).

        Shuffled tokens keep how often each expert is used and which go together, and lose only the order:
        what is better than shuffled is locality.
        """
        shuffled = ids[np.random.default_rng(seed).permutation(len(ids))]
        C = E // 2
        return cls(lru_miss_rate(ids, E, C), lru_miss_rate(shuffled, E, C), belady_miss_rate(ids, E, C),
                   reuse(ids), reuse(shuffled))


# --- the price of Cache-Prior -------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """One setting on one text. ``penalty`` None is the original routing."""

    cache: str
    keep_top: int
    penalty: float | None
    perplexity: float
    change: float
    """Perplexity over that of the original routing, minus 1."""
    miss_rate: float
    bound: float
    """Belady's miss rate on the original routes."""
    swapped_share: float


GRID = {
    "50%": (0.0, 0.05, 0.1, 0.15, 0.2, 0.5, 1.0),
    "25%": (0.1, 0.15, 0.2),
    "75%": (0.1, 0.15, 0.2),
}
"""Penalties tried at each size of the cache, with ``keep_top`` 1 and 2."""


def prices(engine: Engine, ids: Sequence[int], grid: dict[str, tuple[float, ...]],
           say: Callable[[str], None]) -> list[Row]:
    """Score ``ids`` under every setting of ``grid`` (size of the cache -> penalties); ``say`` is told each row."""
    from moe_lab.routing import CachePrior, Original

    rows: list[Row] = []
    for cache, penalties in grid.items():
        engine.cache.resize(cache)
        engine.routing = Original()
        base = engine.score(ids, window=WINDOW)
        bound = belady_miss_rate(base.trace.ids, engine.spec.experts, engine.cache.slots)
        for top, penalty in [(0, None), *((top, penalty) for top in (1, 2) for penalty in penalties)]:
            score = base
            if penalty is not None:
                engine.routing = CachePrior(penalty=penalty, keep_top=top)
                score = engine.score(ids, window=WINDOW)
            rows.append(Row(cache, top, penalty, score.perplexity, score.perplexity / base.perplexity - 1,
                            score.miss_rate, bound, score.stats.swapped_share))
            say(f"  {cache}, {engine.routing!r}: perplexity {score.perplexity:.3f} ({rows[-1].change:+.2%}), "
                f"misses {score.miss_rate:.2%}, bound {bound:.2%}")
    return rows


def original_routes(engine: Engine, ids: np.ndarray, most: int) -> np.ndarray:
    """Original routes of ``most`` windows spread over ``ids`` (T,): int32 (most * WINDOW, L, K)."""
    from moe_lab.routing import Original

    engine.routing = Original()
    parts = [ids[start : start + WINDOW] for start in windows(len(ids), WINDOW, most)]
    routes: np.ndarray = engine.score([*np.concatenate(parts).tolist(), 0], window=WINDOW).trace.ids
    return routes
