"""Train the pocket model: ``python -m moe_lab.pocket.train``.

Knows the model's shape, the schedule and how a run stops and resumes. The text comes from
``corpus``, the two fast operations from ``ops``; the result is an ordinary OLMoE checkpoint.

The learning rate rises, stays, and falls over the last third (a trapezoid). The state before the
fall is kept, so a finished run can be made longer: the same command with more ``--tokens`` goes on
from there, as if the shorter run had never ended. Windows are 256 tokens, in the last third 1,024,
in the last tenth 2,048. A run that is stopped resumes where its last checkpoint was written.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import OlmoeConfig, OlmoeForCausalLM
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from moe_lab.pocket import corpus
from moe_lab.pocket.ops import attention_forward, experts_forward, head_loss

State = dict[str, Any]
"""Where a run is: ``step``, ``tokens``, ``total``, running mean of ``loss`` in nats, ``balance``."""

SHAPE: dict[str, Any] = {
    "vocab_size": corpus.VOCABULARY, "hidden_size": 256, "intermediate_size": 64, "num_hidden_layers": 6,
    "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 2048,
    "num_experts": 64, "num_experts_per_tok": 8, "norm_topk_prob": False, "tie_word_embeddings": True,
    "pad_token_id": None, "bos_token_id": None, "eos_token_id": 0,
}
"""OLMoE architecture, 21.6 M parameters, 5 M of them active."""

BATCH_TOKENS = 4096
PEAK_LR, LAST_LR = 2e-3, 2e-5
WARM_UP = 200
"""Steps over which the learning rate rises."""
FALL = 2 / 3
"""Share of the run after which the learning rate falls and windows grow."""
BALANCE = 0.01
"""Weight of the load-balancing loss: enough that no expert dies, little enough that they differ."""
PYTHON_SHARE = 0.6


def window(progress: float) -> int:
    """Tokens of a training window at ``progress`` (0 to 1) of the run."""
    return 256 if progress < FALL else 1024 if progress < 0.9 else 2048


def learning_rate(step: int, progress: float) -> float:
    """Rises over ``WARM_UP`` steps, stays, falls in a straight line over the last third."""
    fall = max(0.0, (progress - FALL) / (1 - FALL))
    return min(1.0, (step + 1) / WARM_UP) * (PEAK_LR + (LAST_LR - PEAK_LR) * fall)


def batch(tokens: dict[str, np.ndarray], step: int, length: int, seed: int) -> torch.Tensor:
    """(rows, length + 1) int64: windows at random places, drawn from (seed, step) alone."""
    rng = np.random.default_rng((seed, step))
    rows = []
    for _ in range(BATCH_TOKENS // length):
        ids = tokens["python" if rng.random() < PYTHON_SHARE else "prose"]
        start = rng.integers(0, len(ids) - length - 1)
        rows.append(ids[start : start + length + 1].astype(np.int64))
    return torch.from_numpy(np.stack(rows))


def balance_loss(router_logits: tuple[torch.Tensor, ...], K: int) -> torch.Tensor:
    """Mean over layers of E * sum(share of uses * mean probability); 1 is perfect balance."""
    total = torch.zeros((), device=router_logits[0].device)
    for logits in router_logits:
        E = logits.shape[-1]
        probabilities = logits.float().softmax(-1)
        uses = torch.bincount(probabilities.topk(K, -1).indices.flatten(), minlength=E)
        total = total + E * (uses / uses.sum() * probabilities.mean(0)).sum()
    return total / len(router_logits)


def new_model(seed: int = 0) -> OlmoeForCausalLM:
    """A fresh model whose experts and attention run through ``ops``."""
    torch.manual_seed(seed)
    ALL_EXPERTS_FUNCTIONS.register("moe_lab_training", experts_forward)
    ALL_ATTENTION_FUNCTIONS.register("moe_lab_training", attention_forward)
    model = OlmoeForCausalLM(OlmoeConfig(**SHAPE, router_aux_loss_coef=BALANCE))
    model.set_experts_implementation("moe_lab_training")
    model.set_attn_implementation("moe_lab_training")
    return model


def new_optimizer(model: torch.nn.Module) -> torch.optim.AdamW:
    """AdamW; matrices decay, norms do not."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() <= 1]
    return torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}],
        lr=PEAK_LR, betas=(0.9, 0.95), fused=True,
    )


def save(folder: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer, state: State) -> None:
    """Write a resumable state (safetensors and json, nothing pickled); the old one goes when the new is whole."""
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    names = {id(p): n for n, p in model.named_parameters()}
    moments = {
        f"{names[id(p)]}|{key}": value for p, s in optimizer.state.items() for key, value in s.items()
    }
    save_file({n: p.detach().contiguous() for n, p in model.named_parameters()}, part / "model.safetensors")
    save_file({n: t.contiguous() for n, t in moments.items()}, part / "optimizer.safetensors")
    (part / "state.json").write_text(json.dumps(state))
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)


def resume(folder: Path, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> State:
    """Fill model and optimizer from ``folder``; returns its state."""
    weights = load_file(folder / "model.safetensors")
    moments = load_file(folder / "optimizer.safetensors")
    for name, parameter in model.named_parameters():
        parameter.data.copy_(weights[name])
        optimizer.state[parameter] = {
            key: moments[f"{name}|{key}"].clone() for key in ("step", "exp_avg", "exp_avg_sq")
        }
    state: State = json.loads((folder / "state.json").read_text())
    return state


def starting_point(out: Path, tokens: int) -> Path | None:
    """The checkpoint to go on from: the newest one that a run of ``tokens`` would also have passed.

    The state before the fall fits every longer run; a state inside a fall fits only its own.
    """
    found = [f for f in (out / "stable", out / "last") if (f / "state.json").exists()]
    states = [(json.loads((f / "state.json").read_text()), f) for f in found]
    fits = {f: s["tokens"] for s, f in states
            if s["total"] == tokens or s["tokens"] <= FALL * min(s["total"], tokens)}
    return max(fits, key=lambda f: fits[f], default=None)


def steps(
    model: OlmoeForCausalLM, optimizer: torch.optim.Optimizer, tokens: dict[str, np.ndarray], state: State, total: int,
    seed: int, device: str,
) -> Iterator[State]:
    """Train until ``total`` tokens; yields the state after each step.

    ``tokens`` are each world's ids (uint16). Raises ``SystemExit`` when the loss is no longer finite.
    """
    K = model.config.num_experts_per_tok
    while state["tokens"] < total:
        progress = state["tokens"] / total
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(state["step"], progress)
        x = batch(tokens, state["step"], window(progress), seed).to(device)
        with torch.autocast(device, torch.bfloat16):
            out = model.model(input_ids=x[:, :-1], output_router_logits=True, use_cache=False)
            aux = balance_loss(out.router_logits, K)
        hidden = out.last_hidden_state.reshape(-1, model.config.hidden_size)
        loss = head_loss(hidden.float(), model.lm_head.weight, x[:, 1:].reshape(-1))
        (loss + BALANCE * aux).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        value = loss.item()
        if not math.isfinite(value):
            raise SystemExit(f"training diverged at step {state['step']}: the loss is {value}")
        state = state | {
            "step": state["step"] + 1, "tokens": state["tokens"] + x[:, 1:].numel(), "total": total,
            "loss": value if state["loss"] is None else 0.98 * state["loss"] + 0.02 * value, "balance": aux.item(),
        }
        yield state


def export(model: OlmoeForCausalLM, tokens: Path, folder: Path, state: State) -> None:
    """Write the model as plain bfloat16 safetensors with its tokenizer: an ordinary checkpoint.

    Beside it stand ``training.json`` (``state``) and ``sources.json`` (what the text was), for the card.
    """
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    model.bfloat16().save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "sources.json"):
        shutil.copy(tokens / name, folder / name)
    (folder / "training.json").write_text(json.dumps(state, indent=2) + "\n")
    model.float()
    for name, parameter in model.named_parameters():
        parameter.data.copy_(weights[name])


def main() -> None:
    """Prepare the text if needed, train, write checkpoints, export."""
    parser = argparse.ArgumentParser(prog="python -m moe_lab.pocket.train", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("work/pocket"), help="folder of the run (%(default)s)")
    parser.add_argument("--tokens", type=float, default=60e6, help="length of the run in tokens (%(default).0f)")
    parser.add_argument("--prose", type=Path, help="a folder of your own English texts")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--every", type=float, default=300, help="seconds between checkpoints (%(default).0f)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    text = args.out / "tokens"
    if not (text / "sources.json").exists():
        corpus.prepare(text, args.prose)
    tokens = {w: np.load(text / f"{w}.train.npy", mmap_mode="r") for w in corpus.WORLDS}
    model = new_model(args.seed).to(args.device).train()
    optimizer = new_optimizer(model)
    total = int(args.tokens)
    state: State = {"step": 0, "tokens": 0, "loss": None, "total": total}
    if start := starting_point(args.out, total):
        state = resume(start, model, optimizer)
        print(f"resumed from {start} at {state['tokens'] / 1e6:.2f} M tokens", flush=True)
    began, first, saved = time.monotonic(), state["tokens"], time.monotonic()
    for state in steps(model, optimizer, tokens, dict(state), total, args.seed, args.device):  # noqa: B020
        now = time.monotonic()
        if state["step"] % 20 == 0:
            speed = (state["tokens"] - first) / (now - began)
            print(f"step {state['step']:6d}  {state['tokens'] / 1e6:7.2f} of {total / 1e6:.0f} M tokens  "
                  f"loss {state['loss']:.3f}  balance {state['balance']:.2f}  {speed:,.0f} tokens/s  "
                  f"{(total - state['tokens']) / speed / 3600:.1f} h left", flush=True)
        before = state["tokens"] <= total * FALL < state["tokens"] + BATCH_TOKENS
        if before or now - saved > args.every:
            save(args.out / ("stable" if before else "last"), model, optimizer, state)
            saved = now
    save(args.out / "last", model, optimizer, state)
    export(model, text, args.out / "model", state)
    print(f"wrote {args.out / 'model'}", flush=True)


if __name__ == "__main__":
    main()
