"""The training's three operations equal the plain formulas, in value and in gradient."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from moe_lab.pocket.ops import PAD, _HeadLoss, _sorted_rows, attention_forward, head_loss, routed_ffn

E, D, HIDDEN, K = 5, 32, 16, 2


def plain_ffn(x, ids, weights, gate_up, down):
    """The formula, one token and expert at a time, under autograd."""
    rows = []
    for t in range(x.shape[0]):
        total = torch.zeros(x.shape[1])
        for k in range(ids.shape[1]):
            gate, up = (gate_up[ids[t, k]] @ x[t]).chunk(2)
            total = total + weights[t, k] * (down[ids[t, k]] @ (F.silu(gate) * up))
        rows.append(total)
    return torch.stack(rows)


def routes(kind: str, T: int) -> torch.Tensor:
    """Chosen experts (T, K) of one kind of routing."""
    if kind == "all tokens on the same experts":
        return torch.tensor([[3, 1]]).expand(T, K).contiguous()
    if kind == "one expert unused":
        return torch.stack([torch.randperm(E - 1)[:K] for _ in range(T)])
    return torch.stack([torch.randperm(E)[:K] for _ in range(T)])


def inputs(ids: torch.Tensor) -> list[torch.Tensor]:
    """x, weights, gate_up, down, each with a gradient."""
    T = ids.shape[0]
    values = [torch.randn(T, D), torch.rand(T, K), torch.randn(E, 2 * HIDDEN, D) / D**0.5,
              torch.randn(E, D, HIDDEN) / HIDDEN**0.5]
    return [v.bfloat16().float().requires_grad_() for v in values]     # what bfloat16 can hold, so only sums differ


def near(value: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Equal to 2 % of the largest entry: bfloat16 keeps eight bits, and several products follow each other."""
    return bool((value - wanted).abs().max() <= 0.02 * wanted.abs().max())


@pytest.mark.parametrize("kind", ["mixed", "one expert unused", "all tokens on the same experts"])
@pytest.mark.parametrize("T", [1, 37, PAD * 2])
def test_routed_ffn_equals_the_plain_formula_in_value_and_gradient(kind, T, seed):
    torch.manual_seed(seed)
    ids = routes(kind, T)
    mine = inputs(ids)
    theirs = [v.detach().clone().requires_grad_() for v in mine]
    dy = torch.randn(T, D)
    y, wanted = routed_ffn(mine[0], ids, *mine[1:]), plain_ffn(theirs[0], ids, *theirs[1:])
    assert near(y, wanted)
    y.backward(dy)
    wanted.backward(dy)
    for name, a, b in zip(("x", "weights", "gate_up", "down"), mine, theirs, strict=True):
        assert near(a.grad, b.grad), name


def test_an_unused_expert_gets_no_gradient(seed):
    torch.manual_seed(seed)
    ids = routes("one expert unused", 40)
    x, weights, gate_up, down = inputs(ids)
    routed_ffn(x, ids, weights, gate_up, down).square().sum().backward()
    assert not gate_up.grad[E - 1].any() and not down.grad[E - 1].any()
    assert gate_up.grad[0].any()


def test_padded_rows_carry_no_weight_and_every_use_has_its_own_row(seed):
    torch.manual_seed(seed)
    ids, T = routes("mixed", 45), 45
    weights = torch.rand(T, K)
    rows, back, ends, w = _sorted_rows(ids, weights, E)
    assert (ends % PAD == 0).all() and int(ends[-1]) == len(rows)
    assert len(set(back.tolist())) == T * K
    assert torch.equal(w[back], weights.flatten())
    assert torch.equal(rows[back], torch.arange(T).repeat_interleave(K))
    padding = torch.ones(len(rows), dtype=torch.bool)
    padding[back] = False
    assert padding.any() and not w[padding].any()
    starts = torch.cat([torch.zeros(1, dtype=ends.dtype), ends[:-1]])
    expert = ids.flatten()
    assert ((back >= starts[expert]) & (back < ends[expert])).all()


@pytest.mark.parametrize("T", [1, _HeadLoss.CHUNK, _HeadLoss.CHUNK + 3])
def test_head_loss_equals_cross_entropy_in_value_and_gradient(T, seed):
    torch.manual_seed(seed)
    h = torch.randn(T, D).bfloat16().float().requires_grad_()
    weight = (torch.randn(50, D) / 4).bfloat16().float().requires_grad_()
    targets = torch.randint(50, (T,))
    loss = head_loss(h, weight, targets)
    (3 * loss).backward()
    h2, weight2 = h.detach().clone().requires_grad_(), weight.detach().clone().requires_grad_()
    wanted = F.cross_entropy(h2 @ weight2.T, targets)
    (3 * wanted).backward()
    assert loss.item() == pytest.approx(wanted.item(), rel=0.005)
    assert near(h.grad, h2.grad)
    assert near(weight.grad, weight2.grad)


@pytest.mark.parametrize("T", [1, 7, 128, 129, 600])      # inside one piece, at its edge, over it, and longer pieces
def test_attention_equals_the_causal_formula_in_value_and_gradient(T):
    torch.manual_seed(T)
    q, k, v = (torch.randn(2, 3, T, 8, dtype=torch.float64, requires_grad=True) for _ in range(3))
    want = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
    got, _ = attention_forward(None, q, k, v)
    torch.testing.assert_close(got, want)
    toward = torch.randn_like(want)
    for mine, theirs in zip(torch.autograd.grad(got, (q, k, v), toward), torch.autograd.grad(want, (q, k, v), toward),
                            strict=True):
        torch.testing.assert_close(mine, theirs)


def test_attention_works_in_the_type_of_the_values():
    q, k, v = (torch.randn(1, 2, 5, 8) for _ in range(3))
    assert attention_forward(None, q, k, v.bfloat16())[0].dtype == torch.bfloat16
