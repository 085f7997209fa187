"""What several tests of measurements begin with."""

from __future__ import annotations

import pytest

import moe_lab as ml


@pytest.fixture
def engine(checkpoint):
    """A small engine with half of its experts resident."""
    made = ml.load(str(checkpoint("olmoe")), cache=4)
    yield made
    made.close()
