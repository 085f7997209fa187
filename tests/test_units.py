"""Numbers as people give them: which things are numbers, and which sizes, rates and times can be."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from moe_lab.errors import SettingError
from moe_lab.units import parse_bytes, parse_rate, parse_seconds, real_number, whole_number


@pytest.mark.parametrize("kind", [int, np.int8, np.uint8, np.int64, np.uint64])
def test_whole_numbers_of_any_kind_are_taken(kind: type) -> None:
    found = whole_number(kind(5))
    assert found == 5 and type(found) is int


@pytest.mark.parametrize("value", [True, np.True_, 5.0, np.float64(5), "5", b"5", None, [5], np.array([5]), 5j])
def test_what_is_no_whole_number_is_none(value: object) -> None:
    assert whole_number(value) is None


@pytest.mark.parametrize("value", [0.5, np.float16(0.5), np.float32(0.5), np.float64(0.5), Fraction(1, 2)])
def test_numbers_of_any_kind_are_taken(value: object) -> None:
    found = real_number(value)
    assert found == 0.5 and type(found) is float


@pytest.mark.parametrize("value", [True, np.True_, "0.5", None, float("nan"), np.float32("inf"), 10**400, 1j, [0.5]])
def test_what_is_no_finite_number_is_none(value: object) -> None:
    assert real_number(value) is None


def test_sizes_rates_and_times_may_be_numbers_of_numpy() -> None:
    assert parse_bytes(np.int64(512)) == 512
    assert parse_rate(np.float32(2e8)) == 2e8
    assert parse_seconds(np.float16(0.5)) == 0.5


@pytest.mark.parametrize("size", [True, None, -1, float("inf"), np.nan, "-1", "1e300 TiB", "6 bananas", 10**400])
def test_a_size_that_cannot_be_is_refused(size: object) -> None:
    with pytest.raises(SettingError, match="size"):
        parse_bytes(size)
