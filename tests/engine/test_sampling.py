"""Drawing the next token."""

import numpy as np
import pytest
import torch
from transformers.generation import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from moe_lab.engine.sampling import Sampler, Sampling, _tail
from moe_lab.errors import NotFiniteError, SettingError


def draws(logits: torch.Tensor, n: int = 4000, **rule: float) -> torch.Tensor:
    sampler = Sampler(Sampling(**rule))  # type: ignore[arg-type]
    drawn = torch.tensor([sampler(logits.numpy(), [0, 3]) for _ in range(n)])
    return torch.bincount(drawn, minlength=logits.numel()) / n


def test_greedy_takes_the_largest_and_ties_go_to_the_lowest_id() -> None:
    assert Sampler(Sampling())(np.array([0.0, 2.0, 2.0, 1.0], np.float32), []) == 1


def test_the_same_seed_draws_the_same_tokens() -> None:
    logits = torch.randn(50, generator=torch.Generator().manual_seed(1)).numpy()
    one, two, other = (Sampler(Sampling(temperature=1.0, seed=s)) for s in (7, 7, 8))
    first = [one(logits, []) for _ in range(20)]
    assert first == [two(logits, []) for _ in range(20)]
    assert first != [other(logits, []) for _ in range(20)]


def test_another_rule_goes_on_with_the_same_random_numbers_and_another_seed_begins_them_anew() -> None:
    logits = torch.randn(50, generator=torch.Generator().manual_seed(1)).numpy()
    plain, changed = Sampler(Sampling(temperature=1.0, seed=7)), Sampler(Sampling(temperature=1.0, seed=7))
    first = [plain(logits, []) for _ in range(30)]
    assert [changed(logits, []) for _ in range(10)] == first[:10]
    changed.change(Sampling(temperature=1.0, top_k=50, seed=7))
    assert [changed(logits, []) for _ in range(10)] == first[10:20]
    changed.change(Sampling(temperature=1.0, seed=8))
    assert [changed(logits, []) for _ in range(10)] != first[20:]
    changed.change(Sampling(temperature=1.0, seed=7))
    assert [changed(logits, []) for _ in range(30)] == first


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


def test_a_rule_leaves_the_logits_as_they_were() -> None:
    logits = np.linspace(-2, 2, 9, dtype=np.float32)
    before = logits.copy()
    Sampler(Sampling(temperature=0.7, top_k=4, top_p=0.5, repetition_penalty=1.4))(logits, [1, 8])
    np.testing.assert_array_equal(logits, before)


@pytest.mark.parametrize("top_p", [1e-6, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("spread", [0.01, 1.0, 6.0])
def test_top_p_keeps_the_tokens_that_transformers_keeps(top_p: float, spread: float) -> None:
    logits = torch.randn(3000, generator=torch.Generator().manual_seed(4)).double() * spread
    kept = torch.isfinite(TopPLogitsWarper(top_p)(None, logits[None])[0]).numpy()
    shares = np.exp(logits.numpy() - logits.max().item())
    mine = np.ones(3000, bool)
    mine[_tail(shares, top_p)] = False
    assert np.count_nonzero(mine != kept) <= 1       # at the edge sums differ in the last bit


def test_a_logit_that_is_far_larger_than_all_others_is_drawn() -> None:
    logits = np.full(40, -200, np.float32)
    logits[17] = 300
    for rule in (dict(temperature=0.01), dict(temperature=1.0, top_p=0.01), dict(temperature=1.0, top_k=1)):
        assert Sampler(Sampling(**rule))(logits, []) == 17  # type: ignore[arg-type]


@pytest.mark.parametrize("temperature", [1e-37, 1e-38, 1e-45, 1e-46, 5e-324])
def test_a_temperature_next_to_nothing_is_greedy(temperature: float) -> None:
    logits = np.linspace(-80, 30, 500, dtype=np.float32)
    sampler = Sampler(Sampling(temperature=temperature))
    assert [sampler(logits, []) for _ in range(20)] == [499] * 20


@pytest.mark.parametrize("rule", [{}, dict(temperature=1.0), dict(temperature=1.0, repetition_penalty=2.0)], ids=str)
@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_logits_that_are_no_numbers_draw_no_token(rule: dict[str, float], broken: float) -> None:
    logits = np.zeros(9, np.float32)
    logits[4] = broken
    with pytest.raises(NotFiniteError, match="at token 4"):
        Sampler(Sampling(**rule))(logits, [0, 4])  # type: ignore[arg-type]
    with pytest.raises(NotFiniteError):
        Sampler(Sampling(**rule))(np.full(9, -np.inf, np.float32), [0])  # type: ignore[arg-type]


def test_tokens_that_are_ruled_out_are_never_drawn() -> None:
    logits = np.array([-np.inf, 1.0, -np.inf, 1.0, -np.inf], np.float32)
    sampler = Sampler(Sampling(temperature=1.0, top_p=0.99))
    assert {sampler(logits, [1]) for _ in range(200)} == {1, 3}


def test_the_largest_random_number_there_is_draws_a_token_of_the_vocabulary() -> None:
    sampler = Sampler(Sampling(temperature=1.0))
    sampler._random = type("Last", (), {"random": lambda self: np.nextafter(1.0, 0.0)})()
    for size in range(1, 300):
        logits = np.zeros(size, np.float32)
        logits[size // 2 + 1 :] = -np.inf
        assert sampler(logits, []) <= size // 2


def test_sampling_is_the_same_where_numpy_raises_at_every_underflow() -> None:
    logits = np.linspace(-300, 30, 500, dtype=np.float32)
    rule = Sampling(temperature=0.01, top_p=0.9, top_k=40, repetition_penalty=1e9)
    expected = [Sampler(rule)(logits, [3, 499]) for _ in range(5)]
    with np.errstate(all="raise"):
        assert [Sampler(rule)(logits, [3, 499]) for _ in range(5)] == expected


@pytest.mark.parametrize("penalty", [1e-50, 1e-10, 1e10, 1e39, 1e308])
def test_a_penalty_beyond_what_float32_holds_is_refused(penalty: float) -> None:
    with pytest.raises(SettingError, match="repetition_penalty"):
        Sampling(repetition_penalty=penalty)
