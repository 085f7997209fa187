"""What the experts of one token cost in one layer: ours, torch's and ggml's, as a share of a plain read of the bytes.

    python benchmarks/expert_kernel.py --ggml FOLDER        OLMoE, Qwen1.5-MoE and pocket shapes, all formats, cold and
                                                            hot, one thread and two; `ggml.py` says how to get FOLDER
    python benchmarks/expert_kernel.py --shape olmoe --format q4 --threads 1 --rounds 15 --markdown

K experts of one layer, batch 1, picked at random among experts of over 2 GB (cold; the pocket shape too) or from 12 MB
of them, K at most, used again and again (hot). Contenders take turns in random order in one process, round by round;
a round is as many layers as have 200 MB of weights, 64 at most. Around each stand two plain reads (64-byte loads,
front to back, by as many threads) of experts of the same arena: the share is bytes a second over theirs, and a round
is dropped where the two lie more than 25 % apart. Figures are medians; a ratio is the median of the rounds' ratios.
One thread: the thread's processor time; two: the wall's. Left out: compilation, and one round of warm-up. Weights are
random; the cost does not depend on them. ggml computes all layers of a round as one graph, as llama.cpp does.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import ggml
import numpy as np
import torch
import torch_side
from measuring import (
    Contender,
    Table,
    clock_of,
    error_of,
    machine,
    median,
    number,
    take_turns,
    use_threads,
)
from torch.nn import functional as F

from moe_lab.cache.slots import LayerSlots
from moe_lab.kernels.formats import FORMATS, Format, Quantised, q4, q8
from moe_lab.kernels.instructions import possible
from moe_lab.kernels.jit import jit
from moe_lab.kernels.vectors import add, load_bytes, no_ints, total

SHAPES = {"olmoe": (2048, 1024, 8), "qwen1.5-moe": (2048, 1408, 4), "pocket": (256, 64, 8), "qwen3-30b": (2048, 768, 8)}
"""D, F, K."""
HOT_BYTES, ROUND_BYTES, MOST_LAYERS = 12 << 20, 200 << 20, 64
GGML = {"bf16": [("bf16", False)], "q8": [("q8_0", False)], "q4": [("q4_0", False), ("q4_0", True)]}
"""ggml's types of as many bits; True: in its repacked layout."""
Pick = Callable[[int], list[np.ndarray]]


@jit
def plain_read(arena: np.ndarray, slots: np.ndarray) -> int:
    """Every byte of the slots, once, in vectors."""
    size = arena.shape[1] // 256 * 256
    a, b, c, d = no_ints(), no_ints(), no_ints(), no_ints()
    for slot in slots:
        at = arena[slot].ctypes.data
        for i in range(0, size, 256):
            a, b = add(a, load_bytes(at + i)), add(b, load_bytes(at + i + 64))
            c, d = add(c, load_bytes(at + i + 128)), add(d, load_bytes(at + i + 192))
    return total(add(add(a, b), add(c, d)))


def one_round(form: Format, arena: np.ndarray, x: np.ndarray, out: np.ndarray, F: int,
              chosen: list[np.ndarray]) -> Callable[[], None]:
    """Work over the experts in ``arena`` (slots, slot_bytes) that ``chosen`` (K,) int32 names for each layer."""
    gates = np.full(len(chosen[0]), 1 / len(chosen[0]), np.float32)

    def work() -> None:
        for experts in chosen:
            form.ffn_token(x, arena, experts, gates, out, F, "silu")

    return work


class Case:
    """One shape and format: weights for everybody, and a way to pick experts that cold and hot share."""

    def __init__(self, shape: str, name: str, cold_bytes: float, library: ggml.Library | None) -> None:
        self.D, self.F, self.K = SHAPES[shape]
        rng = np.random.default_rng(0)
        self.parts = [rng.standard_normal(s).astype(np.float32) / np.float32(s[1] ** 0.5) for s in
                      ((self.F, self.D), (self.F, self.D), (self.D, self.F))]
        self.x = rng.standard_normal(self.D).astype(np.float32)
        self.exact = _exact(self.parts, self.x)
        self.format = FORMATS[name]
        size = self.format.slot_bytes(self.D, self.F)
        self.slots = max(2 * self.K, int(cold_bytes) // size)
        self.hot = max(1, min(self.K, HOT_BYTES // size))
        self.among, self.threads = self.slots, 1
        self._rng, self._readers = np.random.default_rng(2), ThreadPoolExecutor(8)
        self.arena = LayerSlots(self.slots, self.slots, size).arena
        self.format.encode(*self.parts, self.arena[0])
        self.arena[1:] = self.arena[0]
        everything = np.arange(self.slots, dtype=np.int32)
        plain_read(self.arena, everything)              # fresh memory of a virtual machine reads slowly at first
        self._closing: list[ggml.Experts] = []
        self.ours = self._ours(name)
        self.theirs = [one for one in (self._torch(name), *self._ggml(name, library)) if one]

    def picks(self, layers: int) -> list[np.ndarray]:
        """K slots (K,) int32 for each layer."""
        return [np.resize(self._rng.permutation(self.among)[: self.K], self.K).astype(np.int32) for _ in range(layers)]

    def layers(self, expert_bytes: int) -> int:
        """How many make a round."""
        return max(1, min(MOST_LAYERS, ROUND_BYTES // (self.K * expert_bytes)))

    def read(self) -> float:
        """Bytes a second of a plain read of a round's experts."""
        chosen = np.concatenate(self.picks(self.layers(self.arena.shape[1])))
        clock = clock_of(self.threads)
        began = clock()
        if self.threads == 1:
            plain_read(self.arena, chosen)
        else:
            list(self._readers.map(lambda part: plain_read(self.arena, part), np.array_split(chosen, self.threads)))
        return chosen.size * self.arena.shape[1] / (clock() - began)

    def close(self) -> None:
        """Give back what Python does not."""
        self._readers.shutdown()
        for one in self._closing:
            one.close()

    def _ours(self, name: str) -> list[Contender]:
        code = {"q8": q8.CODE, "q4": q4.CODE}.get(name)
        forms: dict[str, Format] = ({f"ours {name}": self.format} if code is None else
                                    {f"ours {name} {path}": Quantised(code, path) for path in possible()})
        return [self._one_of_ours(label, form) for label, form in forms.items()]

    def _one_of_ours(self, label: str, form: Format) -> Contender:
        size, out = self.arena.shape[1], np.empty(self.D, np.float32)

        def make(layers: int = self.layers(size)) -> Callable[[], None]:
            return one_round(form, self.arena, self.x, out, self.F, self.picks(layers))

        make(1)()
        return Contender(label, make, self.layers(size), self.K * size, error=error_of(out, self.exact))

    def _torch(self, name: str) -> Contender | None:
        label, dtype, pack, product = torch_side.WAYS[name]
        gate, up, down = (torch.from_numpy(part) for part in self.parts)
        x = torch.from_numpy(self.x)[None].to(dtype)
        try:
            made = pack(torch.cat([gate, up])), pack(down)
            product(x, made[0])
        except (RuntimeError, NotImplementedError) as error:
            print(f"left out: {label}: {str(error).splitlines()[0][:90]}")
            return None
        experts = list(zip(*(torch_side.clones(part, self.slots) for part in made), strict=True))
        size = sum(map(torch_side.nbytes, made))

        def layer(chosen: np.ndarray) -> torch.Tensor:
            y = torch.zeros(1, self.D)
            for slot in chosen.tolist():
                both, last = experts[slot]
                g, u = product(x, both).chunk(2, -1)
                y += product((F.silu(g) * u).contiguous(), last).float() / self.K
            return y

        def make(layers: int = self.layers(size)) -> Callable[[], None]:
            chosen = self.picks(layers)
            return lambda: [layer(experts) for experts in chosen] and None

        error = error_of(layer(self.picks(1)[0]).numpy(), self.exact)
        return Contender(label, make, self.layers(size), self.K * size, error=error)

    def _ggml(self, name: str, library: ggml.Library | None) -> list[Contender]:
        return [] if library is None else [self._one_of_ggml(library, kind, repack) for kind, repack in
                                           GGML.get(name, [])]

    def _one_of_ggml(self, library: ggml.Library, kind: str, repack: bool) -> Contender:
        layers = self.layers(self.arena.shape[1])
        experts = ggml.Experts(library, kind, self.parts, self.slots, self.K, self.x[None], layers, repack)
        self._closing.append(experts)

        def make() -> Callable[[], None]:
            experts.prepare(self.picks(layers), self.threads)
            return experts.run

        make()()
        label = f"ggml {kind}{' repacked' if repack else ''}"
        return Contender(label, make, layers, self.K * experts.expert_bytes, experts.rest,
                         error_of(experts.output(), self.exact))


def _exact(parts: list[np.ndarray], x: np.ndarray) -> np.ndarray:
    gate, up, down = (part.astype(np.float64) for part in parts)
    a = gate @ x
    return down @ (a / (1 + np.exp(-a)) * (up @ x))


def measure(case: Case, label: str, cold: bool, threads: int, rounds: int, table: Table) -> None:
    """Time everybody in turn, and print a line each."""
    case.among, case.threads = case.slots if cold else case.hot, threads
    use_threads(threads)
    found = (case.ours if threads == 1 else case.ours[:1]) + case.theirs
    reads = take_turns(found, rounds, threads, case.read)
    where = f"{label}, {'cold' if cold else 'hot'}, {threads}"
    table.row(where, "plain read", number(median(reads) / 1e9, 1), "1", "", "", "", f"{len(reads) // 2}")
    for one in found:
        kept = len(one.shares)
        table.row(where, one.name, number(one.touched / one.median_s / 1e9, 1), number(median(one.shares)),
                  number(one.median_s * 1e6, 1), "" if one is found[0] else number(found[0].faster_than(one)),
                  number(one.error, 4), f"{kept} of {rounds}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--shape", choices=SHAPES, action="append", help="default: olmoe, qwen1.5-moe, pocket")
    parser.add_argument("--format", choices=FORMATS, action="append", help="default: all")
    parser.add_argument("--threads", type=int, action="append", help="default: 1 and 2")
    parser.add_argument("--ggml", metavar="PLACE", help="folder of ggml's libraries, or one file; see ggml.py")
    parser.add_argument("--cold-gb", type=float, default=2.1, help="GB of experts of each contender (%(default)g)")
    parser.add_argument("--cold", action="store_true", help="only cold")
    parser.add_argument("--hot", action="store_true", help="only hot")
    parser.add_argument("--markdown", action="store_true", help="print rows of a Markdown table")
    args = parser.parse_args()
    library = ggml.Library(args.ggml) if args.ggml else None
    print(machine(), f"; {library.name}" if library else "", "\n", sep="")
    table = Table(["shape, memory, threads", "who", "GB/s", "of a read", "µs a layer", "ours is x as fast", "error",
                   "quiet rounds"], [30, 20, 6, 9, 11, 17, 7, 12], args.markdown)
    with torch.inference_mode():
        for shape in args.shape or ["olmoe", "qwen1.5-moe", "pocket"]:
            for name in args.format or FORMATS:
                case = Case(shape, name, args.cold_gb * 1e9, library)
                for threads in args.threads or [1, 2]:
                    for cold in [True] * (not args.hot) + [False] * (not args.cold):
                        measure(case, f"{shape} {name}", cold, threads, args.rounds, table)
                case.close()
                del case
                gc.collect()


if __name__ == "__main__":
    main()
