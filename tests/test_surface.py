"""The shop window: what ``import moe_lab`` promises, and what it must not cost."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import moe_lab as ml

HEAVY = ("torch", "transformers", "numba", "llvmlite", "IPython", "ipywidgets", "anywidget", "traitlets", "pandas",
         "plotly", "numpy", "tokenizers", "huggingface_hub")

PUBLIC = {"load", "info", "Engine", "Disk", "DiskModel", "Trace", "record", "replay", "sweep", "tune", "Parameter",
          "Sampling", "routing", "eviction", "ROUTING", "EVICTION", "pocket", "errors", "MoELabError", "__version__",
          "Schedule", "Table", "testing"}


def fresh(code: str) -> str:
    """What ``code`` prints in a new interpreter."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120).stdout


def test_import_loads_nothing_heavy() -> None:
    loaded = json.loads(fresh("import json, sys, moe_lab; print(json.dumps(sorted(sys.modules)))"))
    assert "moe_lab" in loaded
    assert sorted(set(loaded) & set(HEAVY)) == []


def test_import_takes_under_a_third_of_a_second() -> None:
    code = "import time; t = time.perf_counter(); import moe_lab; print(time.perf_counter() - t)"
    assert min(float(fresh(code)) for _ in range(5)) < 0.3


def test_the_public_names_are_the_documented_ones() -> None:
    assert set(ml.__all__) == PUBLIC


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_every_public_name_resolves_and_is_documented(name: str) -> None:
    value = getattr(ml, name)
    if callable(value) or hasattr(value, "__file__"):
        assert value.__doc__, f"ml.{name} has no docstring"
    assert name in dir(ml)


@pytest.mark.parametrize("name", ["load", "Trace", "Parameter", "ROUTING", "eviction", "pocket", "testing"])
def test_a_public_name_resolves_when_it_is_the_first_one_asked_for(name: str) -> None:
    assert fresh(f"import moe_lab; print(moe_lab.{name} is moe_lab.{name})").strip() == "True"


def test_what_a_policy_is_set_to_is_typed_from_the_shop_window() -> None:
    later = ml.routing.CachePrior(penalty=ml.Schedule({0: 0.1, 256: 0.5}))
    assert repr(later) == "CachePrior(penalty=Schedule({0: 0.1, 256: 0.5}), keep_top=1)"
    assert ml.testing.check_policy("clock").policy == ml.eviction.Clock()
    assert ml.Table([0.0, 1.0]).default == (0.0, 1.0)


def test_an_unknown_name_is_refused_with_the_known_ones() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'laod'.*load"):
        ml.laod  # noqa: B018


def test_star_import_brings_every_name() -> None:
    code = "from moe_lab import *; import moe_lab; print(all(name in globals() for name in moe_lab.__all__))"
    assert fresh(code).strip() == "True"


@pytest.mark.parametrize("own", [None, "active"])
def test_waiting_threads_sleep_unless_the_user_said_otherwise(own: str | None) -> None:
    code = f"""
import os
os.environ.pop("OMP_WAIT_POLICY", None)
if {own!r}: os.environ["OMP_WAIT_POLICY"] = {own!r}
import moe_lab
print(os.environ["OMP_WAIT_POLICY"])"""
    assert fresh(code).strip() == (own or "passive")
