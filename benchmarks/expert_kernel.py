"""What the experts of one layer cost for one token, as a share of a plain read of the same bytes.

    python benchmarks/expert_kernel.py                     every shape, format and path of instructions, cold and hot
    python benchmarks/expert_kernel.py --shape olmoe --format q4 --segments 15
    python benchmarks/expert_kernel.py --tokens 64         many tokens of one expert instead (a prompt's)

K experts of one layer, batch 1, one thread, picked at random from an arena that is either far larger than the
last-level cache (cold) or has as many experts as fit into 12 MiB, K at most, used again and again (hot). Contenders
take turns in random order within one process. Each segment stands between two plain reads (64-byte loads, front to
back) of experts of the same arena; its share is its bytes a second over theirs, and it is dropped where the two reads
lie more than 25 % apart. With --tokens arithmetic is the limit: no segment is dropped, the figure is products a
second, and torch's bfloat16 over resident weights stands beside the quantised formats. Times are the thread's
processor time, so that other programs cost a segment nothing but cache and memory bandwidth. Figures are medians.
Left out: compilation, and one segment of warm-up. Weights are random; the cost does not depend on them.
"""

from __future__ import annotations

import argparse
import platform
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.nn import functional as F

from moe_lab.cache.slots import LayerSlots
from moe_lab.kernels.formats import FORMATS, Format, Quantised, q4, q8
from moe_lab.kernels.instructions import possible
from moe_lab.kernels.jit import jit
from moe_lab.kernels.vectors import add, load_bytes, no_ints, total

SHAPES = {"pocket": (256, 64, 8), "olmoe": (2048, 1024, 8), "qwen1.5-moe": (2048, 1408, 4), "qwen3-30b": (2048, 768, 8)}
"""D, F, K."""
COLD_BYTES, HOT_BYTES = 600 << 20, 12 << 20
SEGMENT_BYTES = 60 << 20
APART = 0.25
Layer = Callable[[np.ndarray], object]


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


@dataclass
class Contender:
    """Somebody who computes a layer from ``touched`` bytes of weights, and what was measured of it."""

    name: str
    run: Layer
    touched: int
    seconds: list[float] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)


def random_expert(D: int, width: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal(s).astype(np.float32) / np.float32(s[1] ** 0.5) for s in
            ((width, D), (width, D), (D, width))]


def ours(format: Format, arena: np.ndarray, D: int, width: int, K: int, rows: int) -> Layer:
    rng = np.random.default_rng(1)
    x, out = rng.standard_normal((rows, D)).astype(np.float32), np.empty((rows, D), np.float32)
    gates = rng.random(K).astype(np.float32)

    def token(chosen: np.ndarray) -> None:
        format.ffn_token(x[0], arena, chosen, gates, out[0], width, "silu")

    def many(chosen: np.ndarray) -> None:
        for slot in chosen:
            format.ffn_rows(x, arena[slot], out, width, "silu")

    return token if rows == 1 else many


def theirs(kind: str, parts: list[np.ndarray], slots: int, rows: int) -> tuple[Layer, int]:
    """torch's way over weights of a kind, and the bytes of an expert."""
    gate, up, down = (torch.from_numpy(part) for part in parts)
    both = torch.cat([gate, up])
    x = torch.randn(rows, both.shape[1], dtype=torch.float32 if kind == "f32" else torch.bfloat16)
    if kind in ("f32", "bf16"):
        dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[kind]
        made = both.to(dtype), down.to(dtype)

        def product(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
            return F.linear(x, w)
    else:
        make, product = {"q8": (_int8, _times_int8), "q4": (_int4, _times_int4)}[kind]
        made = make(both), make(down)
    experts = [tuple(_clone(w) for w in made) for _ in range(slots)]

    def layer(chosen: np.ndarray) -> torch.Tensor:
        y = torch.zeros(rows, down.shape[0])
        for slot in chosen.tolist():
            w, d = experts[slot]
            g, u = product(x, w).chunk(2, -1)
            y += 0.125 * product((F.silu(g) * u).contiguous(), d).float()
        return y

    return layer, sum(t.nbytes for w in made for t in (w if isinstance(w, tuple) else (w,)))


def _clone(w: object) -> object:
    return tuple(t.clone() for t in w) if isinstance(w, tuple) else w.clone()  # type: ignore[attr-defined]


def _int8(w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    scale = w.abs().amax(1) / 127
    return (w / scale[:, None]).round().to(torch.int8), scale.bfloat16()


def _times_int8(x: torch.Tensor, w: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return torch._weight_int8pack_mm(x, *w)


def _int4(w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    rows, columns = w.shape
    groups = w.view(rows, columns // 32, 32)
    low, high = groups.amin(-1), groups.amax(-1)
    scale = (high - low) / 15
    numbers = ((groups - low[..., None]) / scale[..., None]).round().clamp(0, 15).to(torch.int32).view(rows, columns)
    packed = torch._convert_weight_to_int4pack_for_cpu(numbers, 1)
    return packed, torch.stack([scale.t(), (low + 8 * scale).t()], -1).bfloat16().contiguous()


def _times_int4(x: torch.Tensor, w: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    return torch._weight_int4pack_mm_for_cpu(x, w[0], 32, w[1])


def contenders(shape: str, name: str, cold: bool, rows: int) -> tuple[list[Contender], np.ndarray]:
    """Everybody who computes a format, and the arena that plain reads go over."""
    D, width, K = SHAPES[shape]
    format, parts = FORMATS[name], random_expert(D, width)
    size = format.slot_bytes(D, width)
    slots = max(2 * K, COLD_BYTES // size) if cold else max(1, min(K, HOT_BYTES // size))
    arena = LayerSlots(slots, slots, size).arena
    format.encode(*parts, arena[0])
    arena[1:] = arena[0]
    code = {"q8": q8.CODE, "q4": q4.CODE}.get(name)
    forms = {"": format} if code is None else {path: Quantised(code, path) for path in possible()}
    found = [Contender(f"{name} {path}".strip(), ours(form, arena, D, width, K, rows), K * size)
             for path, form in forms.items()]
    try:
        layer, bytes = theirs(name, parts, slots, rows)
        layer(np.zeros(K, np.int32))
        label = {"q8": "torch int8 rows", "q4": "torch int4 groups"}.get(name, f"torch {name}")
        found.append(Contender(label, layer, K * bytes))
    except (RuntimeError, NotImplementedError) as error:
        print(f"  left out: torch {name}: {str(error).splitlines()[0][:90]}")
    if rows > 1 and name in ("q8", "q4"):
        held = min(slots, K)
        layer, bytes = theirs("bf16", parts, held, rows)
        found.append(Contender("torch bf16, resident", lambda chosen: layer(chosen % held), K * bytes))
    return found, arena


def measure(shape: str, name: str, cold: bool, segments: int, rows: int) -> None:
    """Time everybody in turn, and print a line each."""
    (_, _, K), (found, arena) = SHAPES[shape], contenders(shape, name, cold, rows)
    rng, slots = np.random.default_rng(2), arena.shape[0]

    def picks(touched: int) -> list[np.ndarray]:
        count = max(1, SEGMENT_BYTES // touched // rows)
        return [np.resize(rng.permutation(slots)[:K], K).astype(np.int32) for _ in range(count)]

    def read() -> float:
        """Bytes a second."""
        chosen = picks(K * arena.shape[1] * rows)
        began = time.thread_time()
        for one in chosen:
            plain_read(arena, one)
        return len(chosen) * K * arena.shape[1] / max(1e-9, time.thread_time() - began)

    everything = np.arange(slots, dtype=np.int32)
    for start in range(0, slots - K + 1, K):                # fresh memory of a virtual machine reads slowly at first
        plain_read(arena, everything[start : start + K])
    reads: list[float] = []
    for segment in range(segments + 1):
        for one in random.sample(found, len(found)):
            chosen, before = picks(one.touched), read()
            began = time.thread_time()
            for experts in chosen:
                one.run(experts)
            took, after = (time.thread_time() - began) / len(chosen), read()
            if segment and (rows > 1 or abs(before - after) <= APART * max(before, after)):
                reads += [before, after]
                one.seconds.append(took)
                one.shares.append(one.touched / took / ((before + after) / 2))
    if reads:
        print(f"{shape} {name} {'cold' if cold else 'hot'}: plain read {statistics.median(reads) / 1e9:.1f} GB/s")
    first = statistics.median(found[0].seconds) if found[0].seconds else float("nan")
    for one in found:
        if not one.seconds:
            print(f"  {one.name:20} no segment was quiet enough")
            continue
        middle, kept = statistics.median(one.seconds), f"{len(one.seconds)} of {segments}"
        share = (f"share of read {statistics.median(one.shares):.2f} (best {max(one.shares):.2f})" if rows == 1 else
                 f"{rows * K * 3 * SHAPES[shape][0] * SHAPES[shape][1] / middle / 1e9:6.1f} GMAC/s")
        print(f"  {one.name:20}{middle * 1e6:10,.1f} µs a layer{one.touched / middle / 1e9:7.1f} GB/s  {share}  "
              f"x{middle / first:.2f}  {kept}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--segments", type=int, default=9)
    parser.add_argument("--shape", choices=SHAPES, action="append", help="default: all")
    parser.add_argument("--format", choices=FORMATS, action="append", help="default: all")
    parser.add_argument("--tokens", type=int, default=1, help="tokens of each expert; above 1 it is a prompt's product")
    parser.add_argument("--cold", action="store_true", help="only cold")
    parser.add_argument("--hot", action="store_true", help="only hot")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{platform.machine()}, torch {torch.__version__}, one thread, processor time; "
          "xN: time over that of the first")
    for shape in args.shape or SHAPES:
        for name in args.format or FORMATS:
            for cold in [True] * (not args.hot) + [False] * (not args.cold):
                with torch.inference_mode():
                    measure(shape, name, cold, args.segments, args.tokens)


if __name__ == "__main__":
    main()
