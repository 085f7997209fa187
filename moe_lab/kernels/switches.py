"""The switches of numba: which of them kernels cannot live with, and which of them change their machine code.

Users set them as environment variables (NUMBA_OPT=0), in numba's own file or in ``numba.config``; what counts is the
last. Those for the processor are in numba's own key of a kept kernel.
"""

from __future__ import annotations

import sys

from numba.core import config

from moe_lab.errors import SettingError

SHAPING = ("OPT", "BOUNDSCHECK", "DEBUGINFO_DEFAULT", "EXTEND_VARIABLE_LIFETIMES", "LOOP_VECTORIZE", "SLP_VECTORIZE",
           "LLVM_REFPRUNE_PASS", "LLVM_REFPRUNE_FLAGS", "USING_SVML", "DEBUG_JIT", "DEBUG_NRT", "NRT_STATS",
           "ENABLE_PROFILING", "ENABLE_SYS_MONITORING")
"""Names in ``numba.config`` whose values show in machine code."""


def in_force() -> str:
    """What tells kernels apart that were compiled under different switches, Python's own -O among them."""
    return repr([sys.flags.optimize, *(getattr(config, name) for name in SHAPING)])


def refuse() -> None:
    """Look at switches under which nothing can be compiled.

    Raises:
        SettingError: numba is told to compile nothing, which kernels cannot do without (they work on memory by its
            address), or told of the processor in words that would end the process.
    """
    if config.DISABLE_JIT:
        raise SettingError(
            "NUMBA_DISABLE_JIT is set, and MoE Lab's kernels cannot run uncompiled; unset it and start Python anew. To "
            "debug a policy, call its plain function (MyPolicy.rank, MyPolicy.keep) or set a breakpoint there and run "
            "ml.testing.check_policy(MyPolicy), which runs it beside the compiled one")
    wrong = [name for name in (config.CPU_FEATURES or "").split(",") if name and name[0] not in "+-"]
    if wrong:
        raise SettingError(f"NUMBA_CPU_FEATURES={config.CPU_FEATURES!r}: each feature begins with + or -; type "
                           f"+{wrong[0].strip()}, or unset it")


def unkept() -> str:
    """The switch under which machine code holds addresses of its process and cannot be kept; empty if there is none."""
    return "NUMBA_OPT=0" if config.OPT == 0 else ""
