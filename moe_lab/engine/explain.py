"""What just happened, in sentences: which expert a layer wanted, which one took its place, what was read."""

from __future__ import annotations

import numpy as np

from moe_lab.kernels.record import Ring
from moe_lab.units import format_bytes


def sentences(ring: Ring, position: int, newest: int, K: int, miss_bytes: int, layers: tuple[int, ...]) -> list[str]:
    """Sentences on the token at ``position``, layer by layer, then a line of summary.

    Ranks are counted from 1. ``newest`` is the number of tokens routed so far.
    """
    if not newest - ring.capacity <= position < newest:
        return [f"token {position} is no longer kept: the record holds the last {ring.capacity:,} tokens"]
    row = position % ring.capacity
    kept = len(ring.logits)
    lines: list[str] = []
    for place, layer in enumerate(layers):
        ids, hits = ring.ids[row, place], ring.hits[row, place]
        rank, evicted = ring.rank[row, place], ring.evicted[row, place]
        if newest - kept <= position:
            lines += _swaps(layer, ring.logits[position % kept, place], ring.resident[position % kept, place], ids,
                            rank, K, miss_bytes)
        for k in np.nonzero((ids >= 0) & ~hits)[0]:
            left = f" and expert {evicted[k]} left for it" if evicted[k] >= 0 else ""
            lines.append(f"layer {layer} used expert {ids[k]}, rank {rank[k] + 1}; it was not resident: "
                         f"one read of {format_bytes(miss_bytes)}{left}")
    ids, hits = ring.ids[row], ring.hits[row]
    uses = int((ids >= 0).sum())
    swapped = int(((ring.rank[row] >= K) & (ids >= 0)).sum())
    summary = f"{uses} expert uses in {len(layers)} layers: {int(hits.sum())} resident, {uses - int(hits.sum())} read"
    lines.append(summary + (f", {swapped} in place of better ranked ones" if swapped else ""))
    return lines


def _swaps(layer: int, logits: np.ndarray, resident: np.ndarray, ids: np.ndarray, rank: np.ndarray, K: int,
           miss_bytes: int) -> list[str]:
    """The experts that the router wanted and did not get, each with the one that took its place."""
    order = np.argsort(-logits, kind="stable")
    used = ids[ids >= 0]
    wanted = [(place, e) for place, e in enumerate(order[:K]) if e not in used]
    instead = sorted((int(rank[k]), int(ids[k])) for k in range(ids.size) if ids[k] >= 0 and rank[k] >= K)
    lines = []
    for (place, expert), (other_rank, other) in zip(wanted, instead, strict=False):
        was = "was resident" if resident[other] else "was not resident either"
        saved = f"; one read of {format_bytes(miss_bytes)} saved" if resident[other] and not resident[expert] else ""
        lines.append(f"layer {layer} wanted expert {expert}, rank {place + 1}; "
                     f"expert {other} {was}, rank {other_rank + 1}, and took its place{saved}")
    for place, expert in wanted[len(instead):]:
        lines.append(f"layer {layer} wanted expert {expert}, rank {place + 1}, and left it out")
    return lines
