"""What the kind of memory behind the slots costs: the same kernels on private memory with huge pages, as the cache has
it, and on a shared mapping, which gets huge pages only where the system has them for shared memory.

    python benchmarks/mapping.py [--shape olmoe --rounds 15 --markdown]

The experts of a token, batch 1, picked at random among experts of over 2 GB in each memory. Both take turns in random
order, round by round (64 layers or 200 MB of weights a round); a ratio is the median of the rounds' ratios. One thread:
its processor time; two: the wall's. Left out: filling the memory, and a first round. Weights are all alike.
"""

from __future__ import annotations

import argparse
import mmap
from collections.abc import Callable

import numpy as np
from expert_kernel import MOST_LAYERS, ROUND_BYTES, SHAPES, one_round
from measuring import Contender, Table, machine, number, take_turns, use_threads

from moe_lab.cache.slots import LayerSlots
from moe_lab.kernels.formats import FORMATS


def shared(slots: int, slot_bytes: int) -> np.ndarray:
    """(slots, slot_bytes) uint8 in a shared mapping, as ``mmap.mmap(-1, size)`` makes it."""
    return np.frombuffer(mmap.mmap(-1, slots * slot_bytes), np.uint8).reshape(slots, slot_bytes)


class Side:
    """The kernels of one format on one kind of memory."""

    def __init__(self, name: str, arena: np.ndarray, shape: str, format_name: str) -> None:
        self.arena, (self.D, self.F, self.K) = arena, SHAPES[shape]
        self.format, rng = FORMATS[format_name], np.random.default_rng(0)
        parts = [rng.standard_normal(s).astype(np.float32) for s in ((self.F, self.D), (self.F, self.D),
                                                                     (self.D, self.F))]
        self.format.encode(*parts, arena[0])
        arena[1:] = arena[0]
        self._x, self._out = rng.standard_normal(self.D).astype(np.float32), np.empty(self.D, np.float32)
        self._rng = np.random.default_rng(2)
        touched = self.K * arena.shape[1]
        self.layers = max(1, min(MOST_LAYERS, ROUND_BYTES // touched))
        self.contender = Contender(name, self.make, self.layers, touched)

    def make(self) -> Callable[[], None]:
        """A round: K experts, drawn anew, in each of its layers."""
        chosen = [self._rng.permutation(len(self.arena))[: self.K].astype(np.int32) for _ in range(self.layers)]
        return one_round(self.format, self.arena, self._x, self._out, self.F, chosen)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="olmoe")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--cold-gb", type=float, default=2.1, help="GB of experts in each memory (%(default)g)")
    parser.add_argument("--markdown", action="store_true")
    args = parser.parse_args()
    print(machine())
    huge = "/sys/kernel/mm/transparent_hugepage/"
    for name in ("enabled", "shmem_enabled"):
        try:
            with open(huge + name, encoding="ascii") as file:
                print(f"{name}: {file.read().strip()}")
        except OSError:
            print(f"{name}: unknown")
    table = Table(["format", "threads", "shared GB/s", "private GB/s", "shared / private time"], [8, 8, 12, 12, 22],
                  args.markdown)
    D, F, _ = SHAPES[args.shape]
    for name in ("f32", "bf16", "q8", "q4"):
        size = FORMATS[name].slot_bytes(D, F)
        slots = int(args.cold_gb * 1e9) // size
        sides = [Side("shared", shared(slots, size), args.shape, name),
                 Side("private", LayerSlots(slots, slots, size).arena, args.shape, name)]
        for threads in (1, 2):
            use_threads(threads)
            old, new = found = [side.contender for side in sides]
            take_turns(found, args.rounds, threads)
            table.row(name, threads, number(old.touched / old.median_s / 1e9, 1),
                      number(new.touched / new.median_s / 1e9, 1), number(new.faster_than(old)))


if __name__ == "__main__":
    main()
