"""A linear layer at batch 1: ours over torch's own bfloat16, and in 8 and 4 bits, against torch's products.

    python benchmarks/dense_linear.py                       attention, shared expert and heads of OLMoE and Qwen1.5-MoE
    python benchmarks/dense_linear.py --shape attention --rounds 15 --markdown

One thread. Each contender goes through copies of the matrix of 400 MB together, so that weights come from memory.
Ours in bfloat16 reads the memory of the torch parameter where it lies; activations stay float32. The error is that of
the output against float32 weights and activations, relative RMS. Contenders take turns in random order, round by
round; ratios are medians of the rounds' ratios; times are the thread's processor time. Left out: compilation, and one
round of warm-up. Weights are random; the cost does not depend on them.
"""

from __future__ import annotations

import argparse
import gc
import itertools
from collections.abc import Callable

import numpy as np
import torch
import torch_side
from measuring import Contender, Table, error_of, machine, number, take_turns, use_threads

from moe_lab.kernels.dense import product
from moe_lab.kernels.formats.matrix import quantised_matrix
from moe_lab.kernels.jit import jit

SHAPES = {"attention": (2048, 2048), "shared expert": (5632, 2048), "head, OLMoE": (50304, 2048),
          "head, Qwen1.5-MoE": (151936, 2048)}
"""Rows, columns."""
BYTES = 400 << 20


@jit
def linear(w, x, y):  # type: ignore[no-untyped-def]
    """y (R,) = w (R, C) @ x (C,), as the decode kernels compute it."""
    product(w, x, y)


def turning(calls: list[Callable[[], object]]) -> tuple[Callable[[], Callable[[], None]], int]:
    """Work that goes through all copies once, and how many there are."""
    def work() -> None:
        for call in calls:
            call()

    return lambda: work, len(calls)


def ours(label: str, copies: list[object], x: np.ndarray, exact: np.ndarray, touched: int) -> Contender:
    """Our kernel over matrices of any kind it takes."""
    y = np.empty(exact.size, np.float32)
    linear(copies[0], x, y)
    make, units = turning([lambda w=w: linear(w, x, y) for w in copies])  # type: ignore[misc]
    return Contender(label, make, units, touched, error=error_of(y, exact))


def torchs(name: str, w: torch.Tensor, x: torch.Tensor, exact: np.ndarray) -> Contender:
    """torch's product of a kind."""
    label, dtype, pack, times = torch_side.WAYS[name]
    made, v = pack(w), x.to(dtype)[None]
    touched = torch_side.nbytes(made)
    copies = torch_side.clones(made, max(1, BYTES // touched))
    make, units = turning([lambda part=part: times(v, part) for part in copies])  # type: ignore[misc]
    return Contender(label, make, units, touched, error=error_of(times(v, made).float().numpy(), exact))


def contenders(rows: int, columns: int) -> list[Contender]:
    """Everybody, ours first."""
    rng = np.random.default_rng(0)
    pool = rng.standard_normal(1 << 22).astype(np.float32) * np.float32(columns ** -0.5)
    w = np.resize(pool, (rows, columns))
    x = rng.standard_normal(columns).astype(np.float32)
    exact = w.astype(np.float64) @ x
    wide = torch.from_numpy(w)
    parameters = torch_side.clones((wide.bfloat16(),), max(1, BYTES // (2 * w.size)))
    found = [ours("ours bf16", [part.view(torch.uint16).numpy() for part, in parameters], x, exact, 2 * w.size)]
    for name in ("q8", "q4"):
        matrix = quantised_matrix(w, name)
        touched = matrix.blocks.nbytes
        copies = [matrix._replace(blocks=matrix.blocks.copy()) for _ in range(max(1, BYTES // touched))]
        found.append(ours(f"ours {name}", list(copies), x, exact, touched))
    return found + [torchs(name, wide, torch.from_numpy(x), exact) for name in ("bf16", "q8", "q4")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--shape", choices=SHAPES, action="append", help="default: all")
    parser.add_argument("--markdown", action="store_true", help="print rows of a Markdown table")
    args = parser.parse_args()
    use_threads(1)
    print(machine(), "\n", sep="")
    table = Table(["matrix", "who", "µs", "GB/s", "x torch bf16", "x torch, equal bits", "error"],
                  [32, 10, 9, 6, 12, 19, 8], args.markdown)
    with torch.inference_mode():
        for shape in args.shape or SHAPES:
            rows, columns = SHAPES[shape]
            found = contenders(rows, columns)
            take_turns(found, args.rounds, 1)
            by_name = {one.name: one for one in found}
            for one, equal in itertools.zip_longest(found, ["torch bf16", "torch int8", "torch int4"]):
                table.row(f"{shape}, {rows} x {columns}", one.name, number(one.median_s * 1e6, 0),
                          number(one.touched / one.median_s / 1e9, 1),
                          number(one.faster_than(by_name["torch bf16"])),
                          number(one.faster_than(by_name[equal])) if equal else "", number(one.error, 4))
            del found, by_name
            gc.collect()


if __name__ == "__main__":
    main()
