"""How fast experts are quantised, in bytes of their bfloat16 source. ``python benchmarks/quantise.py``

Experts as a checkpoint has them go into slots one after the other, on one thread and two, of the OLMoE and Qwen1.5-MoE
shapes; 600 MB of source, so that it comes from memory. Both formats take turns; figures are medians. One thread: the
thread's processor time; two: the wall's. Left out: compilation, and one round of warm-up.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
from expert_kernel import SHAPES
from measuring import Contender, Table, machine, number, take_turns, use_threads

from moe_lab.cache.slots import LayerSlots
from moe_lab.kernels.formats import FORMATS
from moe_lab.kernels.formats.bf16 import round_bf16

BYTES = 600 << 20


def contender(name: str, experts: list[list[np.ndarray]], D: int, width: int) -> Contender:
    """All experts into slots of a format."""
    format = FORMATS[name]
    arena = LayerSlots(len(experts), len(experts), format.slot_bytes(D, width)).arena

    def work() -> None:
        for parts, slot in zip(experts, arena, strict=True):
            format.encode(*parts, slot)

    make: Callable[[], Callable[[], None]] = lambda: work  # noqa: E731
    return Contender(name, make, len(experts), 6 * D * width)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, action="append", help="default: 1 and 2")
    parser.add_argument("--markdown", action="store_true", help="print rows of a Markdown table")
    args = parser.parse_args()
    print(machine(), "\n", sep="")
    table = Table(["shape, threads", "format", "ms an expert", "GB/s of source"], [18, 8, 13, 15], args.markdown)
    for shape in ("olmoe", "qwen1.5-moe"):
        D, width, _ = SHAPES[shape]
        rng = np.random.default_rng(0)
        parts = [round_bf16(rng.standard_normal(s).astype(np.float32) / np.float32(s[1] ** 0.5))
                 for s in ((width, D), (width, D), (D, width))]
        experts = [[part.copy() for part in parts] for _ in range(BYTES // (6 * D * width))]
        for threads in args.threads or [1, 2]:
            use_threads(threads)
            found = [contender(name, experts, D, width) for name in ("q8", "q4")]
            take_turns(found, args.rounds, threads)
            for one in found:
                table.row(f"{shape}, {threads}", one.name, number(one.median_s * 1e3),
                          number(one.touched / one.median_s / 1e9))


if __name__ == "__main__":
    main()
