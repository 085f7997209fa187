"""What the experts of one layer cost for one token: our kernels against torch. ``python benchmarks/expert_kernel.py``

K experts of one layer, batch 1, one thread, weights picked at random from an arena that is either larger
than the last-level cache (cold) or holds just K experts (hot). Contenders take turns in random order within
one process; a segment is many calls, the figure the median of the segments. "read" is a plain sum over the
same bytes: what memory allows. Left out: compilation and one segment of warm-up. Weights are random; the
cost does not depend on them.
"""

from __future__ import annotations

import argparse
import platform
import random
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from numba import njit
from torch.nn import functional as F

from moe_lab.kernels.formats import FORMATS

SHAPES = {"pocket": (256, 64, 8), "olmoe": (2048, 1024, 8)}
"""D, F, K."""
COLD_BYTES = 400 << 20


@njit(nogil=True, fastmath={"reassoc"})
def plain_read(arena, slots):  # type: ignore[no-untyped-def]
    total = np.uint64(0)
    for s in slots:
        words = arena[s].view(np.uint64)
        for i in range(words.size):
            total += words[i]
    return total


def contenders(shape: str, name: str, slots: int) -> tuple[dict[str, Callable[[np.ndarray], object]], int]:
    """Calls that take the slots (K,) of one layer, by name; and the bytes they touch."""
    (D, width, K), format = SHAPES[shape], FORMATS[name]
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 1 << 15, slots * format.slot_bytes(D, width) // 2, dtype=np.uint16)
    arena = (bits % 1024 + 0x3C00 if name == "bf16" else bits).view(np.uint8).reshape(slots, -1)
    if name == "f32":
        arena.view(np.float32)[:] = 0.02
    x, gates, out = rng.standard_normal(D).astype(np.float32), rng.random(K).astype(np.float32), np.empty(D, np.float32)
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[name]
    flat = torch.from_numpy(arena).view(dtype).view(slots, 3, width * D)
    row = torch.from_numpy(x)[None].to(dtype)

    def ours(chosen: np.ndarray) -> None:
        format.ffn_token(x, arena, chosen, gates, out, width, "silu")

    def theirs(chosen: np.ndarray) -> torch.Tensor:
        y = torch.zeros(1, D)
        for expert, gate in zip(chosen.tolist(), gates.tolist(), strict=True):
            g, u, d = flat[expert]
            h = F.silu(F.linear(row, g.view(width, D))) * F.linear(row, u.view(width, D))
            y += gate * F.linear(h, d.view(D, width)).float()
        return y

    calls = {"numba": ours, "torch": theirs, "read": lambda chosen: plain_read(arena, chosen)}
    return calls, K * format.slot_bytes(D, width)


def measure(shape: str, name: str, cold: bool, segments: int) -> tuple[dict[str, list[float]], int]:
    """Seconds a layer in each segment, by contender; and the bytes of a layer."""
    K = SHAPES[shape][2]
    size = FORMATS[name].slot_bytes(*SHAPES[shape][:2])
    slots = max(2 * K, COLD_BYTES // size) if cold else K
    calls, touched = contenders(shape, name, slots)
    rng = np.random.default_rng(1)
    times: dict[str, list[float]] = {who: [] for who in calls}
    count = max(2, (80 << 20) // touched)
    for segment in range(segments + 1):
        for who in random.sample(list(calls), len(calls)):
            picks = [rng.permutation(slots)[:K].astype(np.int32) for _ in range(count)]
            began = time.perf_counter()
            for chosen in picks:
                calls[who](chosen)
            if segment:
                times[who].append((time.perf_counter() - began) / count)
    return times, touched


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--segments", type=int, default=9)
    parser.add_argument("--shape", choices=SHAPES, action="append", help="default: all")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{platform.machine()}, torch {torch.__version__}, one thread: µs a layer, median (best) of {args.segments}")
    print(f"{'':18}{'numba':>20}{'torch':>20}{'ratio':>7}{'GB/s':>7}{'of read':>9}")
    for shape in args.shape or SHAPES:
        for name in FORMATS:
            for cold in (True, False):
                times, touched = measure(shape, name, cold, args.segments)
                mid = {who: statistics.median(t) for who, t in times.items()}
                cells = [f"{mid[who] * 1e6:,.1f} ({min(times[who]) * 1e6:,.1f})" for who in ("numba", "torch")]
                label = f"{shape} {name} {'cold' if cold else 'hot'}"
                print(f"{label:18}{cells[0]:>20}{cells[1]:>20}{mid['torch'] / mid['numba']:7.1f}"
                      f"{touched / mid['numba'] / 1e9:7.1f}{mid['read'] / mid['numba']:9.2f}")


if __name__ == "__main__":
    main()
