"""ggml's own kernels in this process: the experts of one layer as llama.cpp computes them, through its C interface.

    npm install --prefix work/ggml @node-llama-cpp/linux-x64

unpacks prebuilt libraries for every kind of processor, of which ggml takes the best for this one; the folder is
``work/ggml/node_modules/@node-llama-cpp/linux-x64/bins/linux-x64``. The one file of the xllamacpp wheel
(``site-packages/xllamacpp/xllamacpp.abi3.so``) works as well, but is built for AVX2 alone: an easier opponent.
Knows the libraries and how a graph is put together; measures nothing.
"""

from __future__ import annotations

import ctypes as C
from pathlib import Path
from typing import Any

import numpy as np

TYPES = {"f32": 0, "q4_0": 2, "q8_0": 8, "bf16": 30}
"""ggml's numbers for types of weights."""
_I32, _F32 = 26, 0
NODES = 64
"""Nodes of a layer at most."""


class _Params(C.Structure):
    _fields_ = [("mem_size", C.c_size_t), ("mem_buffer", C.c_void_p), ("no_alloc", C.c_bool)]


class _Pool(C.Structure):
    _fields_ = [("cpumask", C.c_bool * 512), ("n_threads", C.c_int), ("prio", C.c_int), ("poll", C.c_uint32),
                ("strict_cpu", C.c_bool), ("paused", C.c_bool)]


_P, _L, _Z, _I = C.c_void_p, C.c_int64, C.c_size_t, C.c_int
_FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "ggml_init": (_P, _Params), "ggml_free": (None, _P), "ggml_tensor_overhead": (_Z,),
    "ggml_new_tensor_2d": (_P, _P, _I, _L, _L), "ggml_new_tensor_3d": (_P, _P, _I, _L, _L, _L),
    "ggml_mul_mat_id": (_P, _P, _P, _P, _P), "ggml_swiglu_split": (_P, _P, _P, _P), "ggml_mul": (_P, _P, _P, _P),
    "ggml_add": (_P, _P, _P, _P), "ggml_view_2d": (_P, _P, _P, _L, _L, _Z, _Z),
    "ggml_new_graph_custom": (_P, _P, _Z, C.c_bool), "ggml_build_forward_expand": (None, _P, _P),
    "ggml_set_output": (None, _P), "ggml_nbytes": (_Z, _P), "ggml_row_size": (_Z, _I, _L),
    "ggml_quantize_chunk": (_Z, _I, _P, _P, _L, _L, _L, _P),
    "ggml_backend_alloc_ctx_tensors_from_buft": (_P, _P, _P), "ggml_backend_buffer_free": (None, _P),
    "ggml_backend_buft_name": (C.c_char_p, _P), "ggml_backend_cpu_buffer_type": (_P,),
    "ggml_backend_tensor_set": (None, _P, _P, _Z, _Z), "ggml_backend_tensor_get": (None, _P, _P, _Z, _Z),
    "ggml_backend_graph_compute": (_I, _P, _P), "ggml_gallocr_new": (_P, _P),
    "ggml_gallocr_alloc_graph": (C.c_bool, _P, _P), "ggml_gallocr_free": (None, _P),
    "ggml_backend_reg_get_proc_address": (_P, _P, C.c_char_p), "ggml_backend_reg_dev_get": (_P, _P, _Z),
    "ggml_backend_cpu_init": (_P,), "ggml_backend_cpu_reg": (_P,), "ggml_backend_cpu_set_n_threads": (None, _P, _I),
    "ggml_backend_cpu_set_threadpool": (None, _P, _P), "ggml_threadpool_new": (_P, C.POINTER(_Pool)),
    "ggml_threadpool_pause": (None, _P), "ggml_threadpool_resume": (None, _P),
}


@C.CFUNCTYPE(None, _I, C.c_char_p, _P)
def _silent(level: int, text: bytes, data: int) -> None:
    """What ggml says while it works."""


def _log_set(library: C.CDLL) -> None:
    library.ggml_log_set.argtypes = (_P, _P)
    library.ggml_log_set(C.cast(_silent, _P), None)


class Library:
    """ggml's functions, from a folder of libraries or from one file that holds them all."""

    def __init__(self, place: str | Path) -> None:
        place = Path(place)
        if not place.exists():
            raise SystemExit(f"{place} does not exist; the head of benchmarks/ggml.py says how to get ggml")
        self._parts = [C.CDLL(str(place))] if place.is_file() else self._folder(place)
        for name, (result, *arguments) in _FUNCTIONS.items():
            function = self.find(name)
            function.restype, function.argtypes = result, arguments
            setattr(self, name.removeprefix("ggml_"), function)
        _log_set(self._parts[-2 if len(self._parts) > 1 else 0])

    def _folder(self, place: Path) -> list[C.CDLL]:
        found = sorted(place.glob("libggml.*so*"))
        if not found:
            raise SystemExit(f"{place} has no libggml.*.so; the head of benchmarks/ggml.py says how to get ggml")
        front = C.CDLL(str(found[0]))
        _log_set(C.CDLL(str(place / "libggml-base.so")))
        front.ggml_backend_load_all_from_path(C.c_char_p(str(place.resolve()).encode()))
        maps = Path("/proc/self/maps").read_text().splitlines()
        chosen = {line.split()[-1] for line in maps if "libggml-cpu" in line}
        if not chosen:
            raise SystemExit(f"{place} has no libggml-cpu-*.so that this processor can run")
        self.name = Path(chosen.pop()).name
        return [C.CDLL(str(place / self.name)), C.CDLL(str(place / "libggml-base.so")), front]

    name = "ggml, one file"
    """The library that computes."""

    def find(self, name: str) -> Any:
        """A function by its C name."""
        for part in self._parts:
            if hasattr(part, name):
                return getattr(part, name)
        raise SystemExit(f"this ggml has no {name}; try @node-llama-cpp/linux-x64 3.22")

    def repacked(self) -> Any:
        """The type of memory in which ggml lays weights out anew for its fastest products; None if there is none."""
        registry = self.backend_cpu_reg()
        asked = self.backend_reg_get_proc_address(registry, b"ggml_backend_dev_get_extra_bufts")
        found = C.CFUNCTYPE(C.POINTER(_P), _P)(asked)(self.backend_reg_dev_get(registry, 0))
        i = 0
        while found[i]:
            if b"REPACK" in self.backend_buft_name(found[i]).upper():
                return found[i]
            i += 1
        return None


def pool(library: Library, threads: int) -> Any:
    """Threads that wait for work awake, as llama.cpp's own do; None for one."""
    asked = _Pool(n_threads=threads, prio=0, poll=50)
    return None if threads == 1 else library.threadpool_new(C.byref(asked))


class Experts:
    """The experts of a layer in one of ggml's types; a graph of ``layers`` times N tokens of K experts each.

    ``repack``: in ggml's own layout for fast products. Every expert has the same weights, as with all contenders.
    """

    def __init__(self, library: Library, kind: str, parts: list[np.ndarray], experts: int, K: int, x: np.ndarray,
                 layers: int, repack: bool = False) -> None:
        self._g, self.kind, self.K, (self.N, self.D) = library, TYPES[kind], K, x.shape
        self._backend = library.backend_cpu_init()
        self._pools: dict[int, Any] = {}
        place = library.repacked() if repack else library.backend_cpu_buffer_type()
        if place is None:
            raise RuntimeError("this ggml has no repacked layout")
        self._weights_context = library.init(_Params(1 << 16, None, True))
        self.weights = [library.new_tensor_3d(self._weights_context, self.kind, part.shape[1], part.shape[0], experts)
                        for part in parts]
        self._memory = library.backend_alloc_ctx_tensors_from_buft(self._weights_context, place)
        if not self._memory:
            raise RuntimeError("no memory for ggml's weights")
        self.expert_bytes = sum(self._fill(tensor, part, experts) for tensor, part in zip(self.weights, parts,
                                                                                          strict=True))
        self._build(layers, x)

    def _fill(self, tensor: Any, part: np.ndarray, experts: int) -> int:
        g, (rows, columns) = self._g, part.shape
        part = np.ascontiguousarray(part, np.float32)
        one = np.empty(g.row_size(self.kind, columns) * rows, np.uint8)
        if self.kind == _F32:
            one[:] = part.view(np.uint8).reshape(-1)
        else:
            g.quantize_chunk(self.kind, part.ctypes.data, one.ctypes.data, 0, rows, columns, None)
        every = np.tile(one, experts)
        assert g.nbytes(tensor) == every.nbytes
        g.backend_tensor_set(tensor, every.ctypes.data, 0, every.nbytes)
        return int(one.nbytes)

    def _build(self, layers: int, x: np.ndarray) -> None:
        g, K, N, D = self._g, self.K, self.N, self.D
        nodes = layers * (NODES + 2 * K)
        self._context = context = g.init(_Params((nodes + 16) * (g.tensor_overhead() + 64) + 48 * nodes, None, True))
        self._graph = g.new_graph_custom(context, nodes, False)
        self._inputs_context = inputs = g.init(_Params((layers + 16) * (g.tensor_overhead() + 64), None, True))
        source = g.new_tensor_3d(inputs, _F32, D, 1, N)             # in memory that the graph does not use again
        shares = g.new_tensor_3d(inputs, _F32, 1, K, N)
        self._ids = [g.new_tensor_2d(inputs, _I32, K, N) for _ in range(layers)]
        self._inputs = g.backend_alloc_ctx_tensors_from_buft(inputs, g.backend_cpu_buffer_type())
        gate, up, down = self.weights
        for ids in self._ids:
            hidden = g.swiglu_split(context, g.mul_mat_id(context, gate, source, ids),
                                    g.mul_mat_id(context, up, source, ids))
            y = g.mul(context, g.mul_mat_id(context, down, hidden, ids), shares)
            total, *rest = (g.view_2d(context, y, D, N, 4 * K * D, 4 * k * D) for k in range(K))
            for view in rest:
                total = g.add(context, total, view)
            self._out = total
            if ids is self._ids[-1]:
                g.set_output(total)
            g.build_forward_expand(self._graph, total)
        self._allocator = g.gallocr_new(g.backend_cpu_buffer_type())
        if not g.gallocr_alloc_graph(self._allocator, self._graph):
            raise RuntimeError("no memory for ggml's graph")
        x, gates = np.ascontiguousarray(x, np.float32), np.full(K * N, 1 / K, np.float32)
        g.backend_tensor_set(source, x.ctypes.data, 0, x.nbytes)
        g.backend_tensor_set(shares, gates.ctypes.data, 0, gates.nbytes)

    def prepare(self, picks: list[np.ndarray], threads: int) -> None:
        """Say which experts (N * K,) int32 each layer of the graph takes, and how many threads there are."""
        assert len(picks) == len(self._ids)
        for tensor, chosen in zip(self._ids, picks, strict=True):
            chosen = np.ascontiguousarray(chosen, np.int32)
            self._g.backend_tensor_set(tensor, chosen.ctypes.data, 0, chosen.nbytes)
        self._pool = self._pool_of(threads)
        self._g.backend_cpu_set_threadpool(self._backend, self._pool)
        self._g.backend_cpu_set_n_threads(self._backend, threads)
        if self._pool:
            self._g.threadpool_resume(self._pool)

    def _pool_of(self, threads: int) -> Any:
        """One lasting pool for each number of threads, as llama.cpp keeps it; none for one."""
        if threads not in self._pools:
            self._pools[threads] = pool(self._g, threads)
        return self._pools[threads]

    def run(self) -> None:
        """Compute the graph."""
        if self._g.backend_graph_compute(self._backend, self._graph):
            raise RuntimeError("ggml's graph failed")

    def rest(self) -> None:
        """Put the pool to sleep: its threads would spin beside whoever is measured next."""
        if self._pool:
            self._g.threadpool_pause(self._pool)

    def output(self) -> np.ndarray:
        """(N, D) float32 of the last layer."""
        out = np.empty((self.N, self.D), np.float32)
        self._g.backend_tensor_get(self._out, out.ctypes.data, 0, out.nbytes)
        return out

    def close(self) -> None:
        """Give the memory back."""
        self._g.gallocr_free(self._allocator)
        for memory in (self._memory, self._inputs):
            self._g.backend_buffer_free(memory)
        for context in (self._context, self._inputs_context, self._weights_context):
            self._g.free(context)
