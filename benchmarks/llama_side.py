"""The other side of ``whole_model.py``: llama.cpp on a model of the same shape and bits, in an environment of its own.

    python -m venv work/llama && work/llama/bin/pip install xllamacpp gguf
    work/llama/bin/python benchmarks/llama_side.py write CHECKPOINT q8_0 FILE.gguf
    work/llama/bin/python benchmarks/llama_side.py write CHECKPOINT q4_0 FILE.gguf q8_0     experts q4_0, the rest q8_0
    work/llama/bin/python benchmarks/llama_side.py serve FILE.gguf THREADS [PLACE]

``write`` makes a GGUF with random weights from the configuration of a checkpoint of ``make_checkpoint.py``. ``serve``
reads lines such as ``{"prompt": 512, "tokens": 64}`` and answers each with seconds. Without PLACE the xllamacpp wheel
runs the model and counts them itself; it is built for AVX2 alone. PLACE is a folder of llama.cpp's libraries for every
kind of processor, or one file, see ``ggml.py``: the stronger opponent; seconds are then those of its C calls with the
choice of the likeliest token. Knows nothing of moe_lab: it runs where only llama.cpp is installed.
"""

from __future__ import annotations

import ctypes as C
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

ARCHITECTURES = {"olmoe": "olmoe", "qwen2_moe": "qwen2moe", "qwen3_moe": "qwen3moe"}


def shapes(c: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """GGUF's tensor names and their shapes, from a configuration of transformers."""
    D, E, V, H = c["hidden_size"], c["num_experts"], c["vocab_size"], c["num_attention_heads"]
    S = c.get("head_dim") or D // H
    F = c.get("moe_intermediate_size") or c["intermediate_size"]
    G = c["num_key_value_heads"]
    found: dict[str, tuple[int, ...]] = {"token_embd.weight": (V, D), "output_norm.weight": (D,),
                                         "output.weight": (V, D)}
    for i in range(c["num_hidden_layers"]):
        layer = {
            "attn_norm.weight": (D,), "attn_q.weight": (H * S, D), "attn_k.weight": (G * S, D),
            "attn_v.weight": (G * S, D), "attn_output.weight": (D, H * S), "ffn_norm.weight": (D,),
            "ffn_gate_inp.weight": (E, D), "ffn_gate_exps.weight": (E, F, D), "ffn_up_exps.weight": (E, F, D),
            "ffn_down_exps.weight": (E, D, F),
        }
        if c["model_type"] == "olmoe":
            layer |= {"attn_q_norm.weight": (H * S,), "attn_k_norm.weight": (G * S,)}
        elif c["model_type"] == "qwen3_moe":
            layer |= {"attn_q_norm.weight": (S,), "attn_k_norm.weight": (S,)}
        else:
            shared = c["shared_expert_intermediate_size"]
            layer |= {"attn_q.bias": (H * S,), "attn_k.bias": (G * S,), "attn_v.bias": (G * S,),
                      "ffn_gate_inp_shexp.weight": (D,), "ffn_gate_shexp.weight": (shared, D),
                      "ffn_up_shexp.weight": (shared, D), "ffn_down_shexp.weight": (D, shared)}
        found |= {f"blk.{i}.{name}": shape for name, shape in layer.items()}
    return found


def write(checkpoint: Path, kind: str, target: Path, dense: str) -> None:
    """Write the GGUF, experts in ``kind`` and other matrices in ``dense``; one tensor in memory at a time, made of one
    pool of random rows."""
    import gguf
    from gguf.quants import quantize

    c = json.loads((checkpoint / "config.json").read_text())
    experts, others = (gguf.GGMLQuantizationType[name.upper()] for name in (kind, dense))
    out = gguf.GGUFWriter(target, ARCHITECTURES[c["model_type"]], use_temp_file=False)
    S = c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"]
    out.add_context_length(c["max_position_embeddings"])
    out.add_embedding_length(c["hidden_size"])
    out.add_block_count(c["num_hidden_layers"])
    out.add_feed_forward_length(c["intermediate_size"])
    out.add_expert_feed_forward_length(c.get("moe_intermediate_size") or c["intermediate_size"])
    if "shared_expert_intermediate_size" in c:
        out.add_expert_shared_feed_forward_length(c["shared_expert_intermediate_size"])
    out.add_head_count(c["num_attention_heads"])
    out.add_head_count_kv(c["num_key_value_heads"])
    out.add_key_length(S)
    out.add_value_length(S)
    out.add_rope_dimension_count(S)
    out.add_layer_norm_rms_eps(c["rms_norm_eps"])
    out.add_rope_freq_base((c.get("rope_parameters") or {}).get("rope_theta", 1e4))
    out.add_expert_count(c["num_experts"])
    out.add_expert_used_count(c["num_experts_per_tok"])
    out.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    V = c["vocab_size"]
    out.add_tokenizer_model("gpt2")
    out.add_token_list([f"<{i}>" for i in range(V)])
    out.add_token_types([gguf.TokenType.NORMAL] * V)
    out.add_token_merges(["< 0"])
    out.add_eos_token_id(V - 1)
    out.add_vocab_size(V)
    listed = shapes(c)
    plain = gguf.GGMLQuantizationType.F32
    for name, shape in listed.items():
        used = plain if len(shape) == 1 or "gate_inp" in name else experts if "_exps" in name else others
        stored = shape if used is plain else gguf.quant_shape_to_byte_shape(shape, used)
        kind_of_item = np.dtype(np.float32 if used is plain else np.uint8)
        out.add_tensor_info(name, stored, kind_of_item, kind_of_item.itemsize * int(np.prod(stored)), raw_dtype=used)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_ti_data_to_file()
    draw = np.random.default_rng(0)
    pools: dict[tuple[int, bool], np.ndarray] = {}
    for name, shape in listed.items():
        if len(shape) == 1 or "gate_inp" in name:
            scale = shape[-1] ** -0.5
            out.write_tensor_data((np.ones(shape) if "norm" in name else draw.normal(size=shape) * scale).astype("f4"))
            continue
        key = shape[-1], "_exps" in name
        if key not in pools:
            rows = (draw.normal(size=(4096, shape[-1])) * shape[-1]**-0.5).astype(np.float32)
            pools[key] = quantize(rows, experts if key[1] else others)
        count = int(np.prod(shape[:-1]))
        picked = pools[key][draw.integers(4096, size=count)]
        out.write_tensor_data(np.ascontiguousarray(picked.reshape(*shape[:-1], -1)))
        print(name, shape, file=sys.stderr, end="\r")
    out.close()


BATCH, CONTEXT = 512, 2048
Answer = Callable[[list[int], int], dict[str, float]]


def by_wheel(path: str, threads: int) -> Answer:
    """The xllamacpp wheel's server, in this process."""
    import xllamacpp

    p = xllamacpp.CommonParams()
    p.model.path = path
    p.n_ctx, p.n_batch, p.n_ubatch, p.n_parallel, p.verbosity = CONTEXT, BATCH, BATCH, 1, -1
    p.cpuparams.n_threads = p.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(p)

    def answer(ids: list[int], tokens: int) -> dict[str, float]:
        reply = server.handle_completions({"prompt": ids, "n_predict": tokens, "temperature": 0.0,
                                           "cache_prompt": False, "ignore_eos": True})
        if isinstance(reply, (str, bytes)):
            reply = json.loads(reply)
        t = reply["timings"]
        return {"prompt_s": t["prompt_ms"] / 1e3, "prompt": t["prompt_n"], "decode_s": t["predicted_ms"] / 1e3,
                "tokens": t["predicted_n"]}

    return answer


class _Words(C.Structure):
    """A structure of llama.cpp that is passed by value, as words; longer than it is, which does no harm."""

    _fields_ = [("words", C.c_uint32 * 256)]


def by_library(path: str, threads: int, place: str) -> Answer:
    """llama.cpp's C interface."""
    import ggml

    library = ggml.Library(place)
    llama = C.CDLL(place if Path(place).is_file() else str(next(Path(place).glob("libllama.*so*"))))
    llama.llama_log_set(C.cast(ggml._silent, C.c_void_p), None)
    for name, result in {"model_default_params": _Words, "context_default_params": _Words, "batch_get_one": _Words,
                         "model_load_from_file": C.c_void_p, "init_from_model": C.c_void_p,
                         "get_memory": C.c_void_p, "get_logits_ith": C.POINTER(C.c_float),
                         "print_system_info": C.c_char_p}.items():
        getattr(llama, f"llama_{name}").restype = result
    llama.llama_backend_init()
    model = C.c_void_p(llama.llama_model_load_from_file(path.encode(), llama.llama_model_default_params()))
    asked = llama.llama_context_default_params()
    counts = next(i for i in range(8) if tuple(asked.words[i : i + 2]) == (4, 4))       # threads, by their default
    asked.words[:3] = CONTEXT, BATCH, BATCH
    asked.words[counts : counts + 2] = threads, threads
    context = C.c_void_p(llama.llama_init_from_model(model, asked))
    found = [getattr(llama, f"llama_{name}")(context) for name in ("n_ctx", "n_batch", "n_ubatch", "n_threads",
                                                                   "n_threads_batch")]
    if found != [CONTEXT, BATCH, BATCH, threads, threads]:
        raise SystemExit(f"this llama.cpp lays its settings out otherwise: asked for {threads} threads, got {found}")
    print(f"{library.name}: {llama.llama_print_system_info().decode().strip()}", file=sys.stderr)
    pool = ggml.pool(library, threads)
    if pool:
        llama.llama_attach_threadpool(context, C.c_void_p(pool), C.c_void_p(pool))
    llama.llama_model_get_vocab.restype = C.c_void_p
    width = llama.llama_vocab_n_tokens(C.c_void_p(llama.llama_model_get_vocab(model)))

    def likeliest(ids: list[int]) -> int:
        tokens = (C.c_int32 * len(ids))(*ids)
        for start in range(0, len(ids), BATCH):
            count = min(BATCH, len(ids) - start)
            part = C.cast(C.addressof(tokens) + 4 * start, C.POINTER(C.c_int32))
            if llama.llama_decode(context, llama.llama_batch_get_one(part, count)):
                raise SystemExit("llama.cpp could not decode")
        return int(np.ctypeslib.as_array(llama.llama_get_logits_ith(context, -1), (width,)).argmax())

    def answer(ids: list[int], tokens: int) -> dict[str, float]:
        if pool:
            library.threadpool_resume(pool)
        llama.llama_memory_clear(C.c_void_p(llama.llama_get_memory(context)), True)
        began = time.perf_counter()
        token = likeliest(ids)
        middle = time.perf_counter()
        for _ in range(tokens):
            token = likeliest([token])
        ended = time.perf_counter()
        if pool:                                        # its threads would spin beside the other side
            library.threadpool_pause(pool)
        return {"prompt_s": middle - began, "prompt": len(ids), "decode_s": ended - middle, "tokens": tokens}

    return answer


def serve(answer: Answer) -> None:
    """Answer requests until the input ends."""
    draw = np.random.default_rng(1)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        ids = draw.integers(10, 30_000, size=asked["prompt"]).tolist()
        print(json.dumps(answer(ids, asked["tokens"])), flush=True)


if __name__ == "__main__":
    _, command, first, second, *more = sys.argv
    if command == "write":
        write(Path(first), second, Path(more[0]), (more + [second])[1])
    else:
        serve(by_library(first, int(second), more[0]) if more else by_wheel(first, int(second)))
