"""Budgets as people type them."""

import pytest

from moe_lab.cache import slots_for
from moe_lab.errors import BudgetError, SettingError
from moe_lab.spec import ModelSpec

SPEC = ModelSpec(name="tiny", family="olmoe", layers=(0, 1, 2), experts=64, top_k=8, hidden=256, expert_hidden=64,
                 expert_bytes={"f32": 196_608, "bf16": 98_304}, dense_bytes=1, dtype="bf16", context=2048,
                 routing="softmax")


@pytest.mark.parametrize(("budget", "slots"), [
    (16, 16), ("16 slots", 16), ("50%", 32), ("12.5 %", 8), ("100%", 64), (1000, 64), ("3 MiB", 10), ("9 GB", 64),
])
def test_a_budget_becomes_slots(budget: int | str, slots: int) -> None:
    assert slots_for(budget, SPEC, "bf16") == slots


def test_without_a_budget_everything_is_resident_if_it_fits() -> None:
    assert slots_for(None, SPEC, "bf16") == 64


def test_bytes_are_those_of_the_format() -> None:
    assert slots_for("6 MiB", SPEC, "f32") == 10 and slots_for("6 MiB", SPEC, "bf16") == 21


@pytest.mark.parametrize("budget", [7, 0, "10%", "1 MiB", "3 slots"])
def test_a_budget_under_the_floor_shows_the_arithmetic(budget: int | str) -> None:
    with pytest.raises(BudgetError, match=r"8 x 3 x 98,304 bytes = 2\.25 MiB"):
        slots_for(budget, SPEC, "bf16")


@pytest.mark.parametrize("budget", ["many", "-3", "5 parsecs", 2.5, True])
def test_a_budget_that_is_none_says_what_to_type(budget: object) -> None:
    with pytest.raises(SettingError, match="16 slots"):
        slots_for(budget, SPEC, "bf16")  # type: ignore[arg-type]
