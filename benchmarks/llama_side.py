"""The other side of ``whole_model.py``: llama.cpp on a model of the same shape and bits, in an environment of its own.

    python -m venv work/llama && work/llama/bin/pip install xllamacpp gguf
    work/llama/bin/python benchmarks/llama_side.py write CHECKPOINT q8_0 FILE.gguf
    work/llama/bin/python benchmarks/llama_side.py serve FILE.gguf THREADS

``write`` makes a GGUF with random weights from the configuration of a checkpoint of ``make_checkpoint.py``. ``serve``
reads lines such as ``{"prompt": 512, "tokens": 64}`` and answers each with the seconds that llama.cpp counted itself.
Knows nothing of moe_lab: it runs where only llama.cpp is installed.
"""

from __future__ import annotations

import json
import sys
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


def write(checkpoint: Path, kind: str, target: Path) -> None:
    """Write the GGUF; one tensor in memory at a time, made of one pool of random rows."""
    import gguf
    from gguf.quants import quantize

    c = json.loads((checkpoint / "config.json").read_text())
    quant = gguf.GGMLQuantizationType[kind.upper()]
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
        used = quant if len(shape) > 1 and "gate_inp" not in name else plain
        stored = shape if used is plain else gguf.quant_shape_to_byte_shape(shape, used)
        kind_of_item = np.dtype(np.float32 if used is plain else np.uint8)
        out.add_tensor_info(name, stored, kind_of_item, kind_of_item.itemsize * int(np.prod(stored)), raw_dtype=used)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_ti_data_to_file()
    draw = np.random.default_rng(0)
    pools: dict[int, np.ndarray] = {}
    for name, shape in listed.items():
        if len(shape) == 1 or "gate_inp" in name:
            scale = shape[-1] ** -0.5
            out.write_tensor_data((np.ones(shape) if "norm" in name else draw.normal(size=shape) * scale).astype("f4"))
            continue
        width = shape[-1]
        if width not in pools:
            rows = (draw.normal(size=(4096, width)) * width**-0.5).astype(np.float32)
            pools[width] = quantize(rows, quant)
        count = int(np.prod(shape[:-1]))
        picked = pools[width][draw.integers(4096, size=count)]
        out.write_tensor_data(np.ascontiguousarray(picked.reshape(*shape[:-1], -1)))
        print(name, shape, file=sys.stderr, end="\r")
    out.close()


def serve(path: str, threads: int) -> None:
    """Answer requests until the input ends."""
    import xllamacpp

    p = xllamacpp.CommonParams()
    p.model.path = path
    p.n_ctx, p.n_batch, p.n_ubatch, p.n_parallel, p.verbosity = 2048, 512, 512, 1, -1
    p.cpuparams.n_threads = p.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(p)
    draw = np.random.default_rng(1)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        ids = draw.integers(10, 30_000, size=asked["prompt"]).tolist()
        reply = server.handle_completions({"prompt": ids, "n_predict": asked["tokens"], "temperature": 0.0,
                                           "cache_prompt": False, "ignore_eos": True})
        if isinstance(reply, (str, bytes)):
            reply = json.loads(reply)
        t = reply["timings"]
        print(json.dumps({"prompt_s": t["prompt_ms"] / 1e3, "prompt": t["prompt_n"],
                          "decode_s": t["predicted_ms"] / 1e3, "tokens": t["predicted_n"]}), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write(Path(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
    else:
        serve(sys.argv[2], int(sys.argv[3]))
