"""Switches of numba and Python that users set in the environment: heard, or refused in one line."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import numba
import numpy as np
import pytest

import moe_lab as ml
from moe_lab.errors import SettingError
from moe_lab.kernels import instructions, plugin
from moe_lab.kernels.jit import jit


def terminal(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=120,
                          env=os.environ | environment)


def test_without_compilation_one_line_says_what_helps_instead() -> None:
    done = terminal("-m", "moe_lab", "generate", "def", NUMBA_DISABLE_JIT="1")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("moe_lab: NUMBA_DISABLE_JIT is set")
    assert "ml.testing.check_policy(MyPolicy)" in done.stderr


def test_without_compilation_importing_the_package_alone_is_no_error() -> None:
    assert terminal("-c", "import moe_lab", NUMBA_DISABLE_JIT="1").returncode == 0


def test_compilation_switched_off_by_a_program_is_refused_too(monkeypatch: pytest.MonkeyPatch) -> None:
    class Mine(ml.eviction.LRU):
        pass

    monkeypatch.setattr(numba.config, "DISABLE_JIT", 1)
    for use in (lambda: jit(lambda x: x), lambda: plugin.addresses(Mine)):
        with pytest.raises(SettingError, match="NUMBA_DISABLE_JIT"):
            use()


def test_features_in_words_that_would_end_the_process_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numba.config, "CPU_FEATURES", "+fma,avx2")
    with pytest.raises(SettingError, match=r"begins with \+ or -; type \+avx2"):
        jit(lambda x: x)


def test_features_that_the_processor_lacks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(instructions, "get_host_cpu_features", lambda: "+fma,-avx512f")
    monkeypatch.setattr(numba.config, "CPU_FEATURES", "+fma,+avx512f")
    monkeypatch.setattr(instructions, "chosen", lambda: "portable")
    with pytest.raises(SettingError, match="asks for avx512f, which this processor does not have"):
        instructions.check()
    monkeypatch.setattr(instructions, "get_host_cpu_features", lambda: "")      # a system that lists none
    instructions.check()


def only_words(x):
    """Where numba looks for the line after the docstring, there is none."""


def test_a_kernel_without_a_line_compiles_while_users_ask_for_debug_information(
        monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numba.config, "DEBUGINFO_DEFAULT", 1)
    assert jit(cache=False)(only_words)(1) is None


def test_bounds_checks_for_all_of_numba_reach_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numba.config, "BOUNDSCHECK", 1)
    with pytest.raises(IndexError):
        jit(cache=False)(lambda x: x[3])(np.zeros(3))


def test_python_without_docstrings_is_refused_before_transformers_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    from moe_lab.models import find

    monkeypatch.setattr(find, "sys", SimpleNamespace(flags=SimpleNamespace(optimize=2)))
    with pytest.raises(SettingError, match="PYTHONOPTIMIZE=2"):
        ml.info("pocket")
