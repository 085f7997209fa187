"""Drawing the next token."""

import pytest
import torch
from transformers.generation import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from moe_lab.engine.sampling import Sampler, Sampling
from moe_lab.errors import SettingError


def draws(logits: torch.Tensor, n: int = 4000, **rule: float) -> torch.Tensor:
    sampler = Sampler(Sampling(**rule))  # type: ignore[arg-type]
    drawn = torch.tensor([sampler(logits.clone(), [0, 3]) for _ in range(n)])
    return torch.bincount(drawn, minlength=logits.numel()) / n


def test_greedy_takes_the_largest_and_ties_go_to_the_lowest_id() -> None:
    assert Sampler(Sampling())(torch.tensor([0.0, 2.0, 2.0, 1.0]), []) == 1


def test_the_same_seed_draws_the_same_tokens() -> None:
    logits = torch.randn(50, generator=torch.Generator().manual_seed(1))
    one, two, other = (Sampler(Sampling(temperature=1.0, seed=s)) for s in (7, 7, 8))
    first = [one(logits.clone(), []) for _ in range(20)]
    assert first == [two(logits.clone(), []) for _ in range(20)]
    assert first != [other(logits.clone(), []) for _ in range(20)]


def test_another_rule_goes_on_with_the_same_random_numbers_and_another_seed_begins_them_anew() -> None:
    logits = torch.randn(50, generator=torch.Generator().manual_seed(1))
    plain, changed = Sampler(Sampling(temperature=1.0, seed=7)), Sampler(Sampling(temperature=1.0, seed=7))
    first = [plain(logits.clone(), []) for _ in range(30)]
    assert [changed(logits.clone(), []) for _ in range(10)] == first[:10]
    changed.change(Sampling(temperature=1.0, top_k=50, seed=7))
    assert [changed(logits.clone(), []) for _ in range(10)] == first[10:20]
    changed.change(Sampling(temperature=1.0, seed=8))
    assert [changed(logits.clone(), []) for _ in range(10)] != first[20:]
    changed.change(Sampling(temperature=1.0, seed=7))
    assert [changed(logits.clone(), []) for _ in range(30)] == first


@pytest.mark.parametrize("rule", [
    dict(temperature=0.7), dict(temperature=1.0, top_k=3), dict(temperature=1.3, top_p=0.6),
    dict(temperature=1.0, repetition_penalty=1.5), dict(temperature=0.9, top_k=5, top_p=0.8),
])
def test_draws_follow_the_distribution_that_transformers_makes(rule: dict[str, float]) -> None:
    logits = torch.randn(8, generator=torch.Generator().manual_seed(2))
    warpers = LogitsProcessorList()
    if "repetition_penalty" in rule:
        warpers.append(RepetitionPenaltyLogitsProcessor(rule["repetition_penalty"]))
    warpers.append(TemperatureLogitsWarper(rule["temperature"]))
    if "top_k" in rule:
        warpers.append(TopKLogitsWarper(int(rule["top_k"])))
    if "top_p" in rule:
        warpers.append(TopPLogitsWarper(rule["top_p"]))
    expected = warpers(torch.tensor([[0, 3]]), logits[None].clone())[0].softmax(-1)
    assert torch.allclose(draws(logits, **rule), expected, atol=0.035)


@pytest.mark.parametrize("rule", [
    dict(temperature=-1), dict(temperature=float("nan")), dict(top_k=0), dict(top_p=0.0), dict(top_p=1.5),
    dict(repetition_penalty=0.0), dict(temperature="hot"), dict(top_k=2.5), dict(top_p=True), dict(seed=1.5),
    dict(seed=2**64),
])
def test_a_rule_that_cannot_be_followed_is_refused(rule: dict[str, float]) -> None:
    with pytest.raises(SettingError, match=next(iter(rule))):
        Sampling(**rule)  # type: ignore[arg-type]
