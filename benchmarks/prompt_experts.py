"""What the experts of one layer cost for a prompt: ours, ggml's, and torch's over weights that are dequantised or not.

    python benchmarks/prompt_experts.py --ggml FOLDER       OLMoE and Qwen1.5-MoE shapes, 64 and 512 tokens, one thread
                                                            and two; `ggml.py` says how to get FOLDER
    python benchmarks/prompt_experts.py --shape olmoe --tokens 512 --threads 1 --rounds 7 --markdown

All E experts of a layer lie in memory; each of T tokens takes K of them at random, so that an expert has T * K / E
tokens. Ours is what the engine calls (rows gathered, products, weighted sum); ggml computes the same as one graph;
torch gathers an expert's rows, and has all weights in bfloat16, or dequantises one expert after the other to bfloat16
(a compiled loop over bytes or nibbles with a scale for each group of 32). Contenders take turns in random order, round
by round; ratios are medians of the rounds' ratios. One thread: the thread's processor time; two: the wall's. Left out:
compilation, and one round of warm-up. Weights are random; the cost does not depend on them.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable, Iterator

import ggml
import numpy as np
import torch
from expert_kernel import SHAPES
from measuring import Contender, Table, error_of, machine, number, take_turns, use_threads
from torch.nn import functional as F

from moe_lab.cache.slots import LayerSlots
from moe_lab.engine.grouped import sum_of_experts
from moe_lab.kernels.formats import FORMATS
from moe_lab.kernels.halves import nearest_bf16
from moe_lab.kernels.jit import jit

EXPERTS = {"olmoe": 64, "qwen1.5-moe": 60, "pocket": 64, "qwen3-30b": 128}
GGML = {"bf16": [("bf16", False)], "q8": [("q8_0", False)], "q4": [("q4_0", False), ("q4_0", True)]}


@jit
def _dequantise_q8(numbers: np.ndarray, scales: np.ndarray, out: np.ndarray) -> None:
    """out (R, C) bfloat16 bits = numbers (R, C) int8 times scales (R, C / 32) float32."""
    for r in range(out.shape[0]):
        for g in range(scales.shape[1]):
            row, target, scale = numbers[r, 32 * g : 32 * g + 32], out[r, 32 * g : 32 * g + 32], scales[r, g]
            for k in range(row.size):
                target[k] = nearest_bf16(np.float32(row[k]) * scale)


@jit
def _dequantise_q4(pairs: np.ndarray, scales: np.ndarray, out: np.ndarray) -> None:
    """The same of pairs (R, C / 2) uint8: in each group the low nibbles come first, all plus 8."""
    for r in range(out.shape[0]):
        for g in range(scales.shape[1]):
            row, scale = pairs[r, 16 * g : 16 * g + 16], scales[r, g]
            low, high = out[r, 32 * g : 32 * g + 16], out[r, 32 * g + 16 : 32 * g + 32]
            for k in range(row.size):
                low[k] = nearest_bf16(np.float32(np.int32(row[k] & 15) - 8) * scale)
                high[k] = nearest_bf16(np.float32(np.int32(row[k] >> 4) - 8) * scale)


class Case:
    """One shape and number of tokens: weights, rows and choices for everybody."""

    def __init__(self, shape: str, tokens: int) -> None:
        (self.D, self.F, self.K), self.E, self.T = SHAPES[shape], EXPERTS[shape], tokens
        rng = np.random.default_rng(0)
        self.parts = [rng.standard_normal(s).astype(np.float32) / np.float32(s[1] ** 0.5) for s in
                      ((self.F, self.D), (self.F, self.D), (self.D, self.F))]
        self.x = rng.standard_normal((tokens, self.D)).astype(np.float32)
        gate, up, down = self.parts
        a = self.x @ gate.T
        self.exact = (a / (1 + np.exp(-a)) * (self.x @ up.T)) @ down.T       # every expert has the same weights
        self.ids = np.stack([rng.permutation(self.E)[: self.K] for _ in range(tokens)])
        self.products = 3 * self.D * self.F * tokens * self.K
        self.closing: list[ggml.Experts] = []

    def ours(self, name: str) -> Contender:
        """The engine's way."""
        format = FORMATS[name]
        arena = LayerSlots(self.E, self.E, format.slot_bytes(self.D, self.F)).arena
        format.encode(*self.parts, arena[0])
        arena[1:] = arena[0]
        x, ids = torch.from_numpy(self.x), torch.from_numpy(self.ids)
        shares = torch.full(ids.shape, 1 / self.K)

        def visit(used: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
            for expert in used.tolist():
                yield expert, arena[expert]

        def work() -> torch.Tensor:
            return sum_of_experts(x, ids, shares, visit, format, self.F, "silu")[0]

        return Contender(f"ours {name}", lambda: work, error=error_of(work().numpy(), self.exact))

    def torch_resident(self) -> Contender:
        """torch, an expert after the other, over bfloat16 weights that are all in memory."""
        gate, up, down = (torch.from_numpy(part).bfloat16() for part in self.parts)
        experts = [(torch.cat([gate, up]), down.clone()) for _ in range(self.E)]
        return self._by_torch("torch bf16", lambda expert: experts[expert])

    def torch_dequantised(self, name: str) -> Contender:
        """torch over one expert's bfloat16 weights at a time, made of quantised ones."""
        wide = [np.concatenate(self.parts[:2]), self.parts[2]]
        made = [_groups(part, {"q8": 127, "q4": 7}[name]) for part in wide]
        if name == "q4":
            made = [(_pairs(numbers), scales) for numbers, scales in made]
        kernel = {"q8": _dequantise_q8, "q4": _dequantise_q4}[name]
        experts = [[(numbers.copy(), scales.copy()) for numbers, scales in made] for _ in range(self.E)]
        room = [torch.empty(part.shape, dtype=torch.bfloat16) for part in wide]
        bits = [part.view(torch.uint16).numpy() for part in room]

        def weights(expert: int) -> tuple[torch.Tensor, torch.Tensor]:
            for (numbers, scales), out in zip(experts[expert], bits, strict=True):
                kernel(numbers, scales, out)
            return room[0], room[1]

        return self._by_torch(f"torch dequantised {name}", weights)

    def _by_torch(self, label: str, weights: Callable[[int], tuple[torch.Tensor, torch.Tensor]]) -> Contender:
        x = torch.from_numpy(self.x).bfloat16()
        tokens = [torch.from_numpy(np.nonzero((self.ids == expert).any(1))[0]) for expert in range(self.E)]

        def work() -> torch.Tensor:
            out = torch.zeros(self.T, self.D)
            for expert, rows in enumerate(tokens):
                if rows.numel():
                    both, down = weights(expert)
                    g, u = F.linear(x.index_select(0, rows), both).chunk(2, -1)
                    out.index_add_(0, rows, F.linear(F.silu(g) * u, down).float(), alpha=1 / self.K)
            return out

        return Contender(label, lambda: work, error=error_of(work().numpy(), self.exact))

    def ggml(self, library: ggml.Library, kind: str, repack: bool, threads: int) -> Contender:
        """A graph of one layer."""
        experts = ggml.Experts(library, kind, self.parts, self.E, self.K, self.x, 1, repack)
        self.closing.append(experts)
        ids = np.ascontiguousarray(self.ids.reshape(-1), np.int32)

        def make() -> Callable[[], None]:
            experts.prepare([ids], threads)
            return experts.run

        make()()
        experts.rest()
        return Contender(f"ggml {kind}{' repacked' if repack else ''}", make, after=experts.rest,
                         error=error_of(experts.output(), self.exact))


def _groups(w: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """(R, C) float32 to int8 up to ``most``, with scales (R, C / 32) float32."""
    groups = w.reshape(w.shape[0], -1, 32)
    scales = np.abs(groups).max(-1) / np.float32(most)
    return np.rint(groups / scales[..., None]).astype(np.int8).reshape(w.shape), scales


def _pairs(numbers: np.ndarray) -> np.ndarray:
    """(R, C) int8 of 4 bits to (R, C / 2) uint8."""
    groups = (numbers + 8).astype(np.uint8).reshape(numbers.shape[0], -1, 2, 16)
    pairs: np.ndarray = (groups[:, :, 0] | groups[:, :, 1] << 4).reshape(numbers.shape[0], -1)
    return pairs


def measure(case: Case, label: str, name: str, library: ggml.Library | None, threads: int, rounds: int,
            table: Table) -> None:
    """One format's contenders in turn, a line each."""
    use_threads(threads)
    found = [case.ours(name)]
    found += [case.torch_dequantised(name)] if name in ("q8", "q4") else []
    found += [case.torch_resident()]
    found += [case.ggml(library, kind, repack, threads) for kind, repack in GGML.get(name, [])] if library else []
    take_turns(found, rounds, threads)
    for one in found:
        table.row(f"{label}, {threads}", one.name, number(one.median_s * 1e3, 1),
                  number(case.products / one.median_s / 1e9, 0),
                  "" if one is found[0] else number(found[0].faster_than(one)), number(one.error, 4))
    for experts in case.closing:
        experts.close()
    case.closing.clear()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shape", choices=SHAPES, action="append", help="default: olmoe and qwen1.5-moe")
    parser.add_argument("--format", choices=["bf16", "q8", "q4"], action="append", help="default: q8 and q4")
    parser.add_argument("--tokens", type=int, action="append", help="default: 64 and 512")
    parser.add_argument("--threads", type=int, action="append", help="default: 1 and 2")
    parser.add_argument("--ggml", metavar="PLACE", help="folder of ggml's libraries, or one file; see ggml.py")
    parser.add_argument("--markdown", action="store_true", help="print rows of a Markdown table")
    args = parser.parse_args()
    library = ggml.Library(args.ggml) if args.ggml else None
    print(machine(), f"; {library.name}" if library else "", "\n", sep="")
    table = Table(["shape, tokens, threads", "who", "ms a layer", "GMAC/s", "ours is x as fast", "error"],
                  [26, 22, 10, 7, 17, 7], args.markdown)
    with torch.inference_mode():
        for shape in args.shape or ["olmoe", "qwen1.5-moe"]:
            for tokens in args.tokens or [64, 512]:
                case = Case(shape, tokens)
                for name in args.format or ["q8", "q4"]:
                    for threads in args.threads or [1, 2]:
                        measure(case, f"{shape} {name}, {tokens}", name, library, threads, args.rounds, table)
                        gc.collect()


if __name__ == "__main__":
    main()
