"""Instruction sets: which of the kernels' paths this processor can run, and which one is taken.

Knows features by LLVM's names. Asking LLVM for an instruction that the processor lacks ends the process, so
nothing that names one is compiled before this has looked.
"""

from __future__ import annotations

import functools
import os
import platform

import llvmlite.binding as llvm
from numba.core import config
from numba.core.codegen import get_host_cpu_features

from moe_lab.errors import SettingError

VARIABLE = "MOE_LAB_KERNELS"
"""Environment variable that forces a path."""

_AVX2 = frozenset({"avx2", "fma", "f16c"})
NEEDS: dict[str, tuple[frozenset[str], ...]] = {
    "avx512": (_AVX2 | {"avx512f", "avx512bw", "avx512vl", "avx512vnni"},),
    "avxvnni": (_AVX2 | {"avxvnni"}, _AVX2 | {"avx512vl", "avx512vnni"}),
    "avx2": (_AVX2,),
    "neon": (frozenset({"dotprod"}),),
    "portable": (frozenset(),),
}
"""Paths from the fastest on, and the sets of features of which each needs one. ``portable`` is plain loops."""

_DOT = """
declare <4 x i32> @llvm.vector.partial.reduce.add.v4i32.v16i32(<4 x i32>, <16 x i32>)
declare i32 @llvm.vector.reduce.add.v4i32(<4 x i32>)
define i32 @dot(<16 x i8> %w, <16 x i8> %x) {
  %v = sext <16 x i8> %w to <16 x i32>
  %y = sext <16 x i8> %x to <16 x i32>
  %m = mul <16 x i32> %v, %y
  %s = call <4 x i32> @llvm.vector.partial.reduce.add.v4i32.v16i32(<4 x i32> zeroinitializer, <16 x i32> %m)
  %r = call i32 @llvm.vector.reduce.add.v4i32(<4 x i32> %s)
  ret i32 %r
}
"""


def features() -> frozenset[str]:
    """What numba may use: the processor's features, or those of NUMBA_CPU_FEATURES where that is set."""
    listed = get_host_cpu_features() if config.CPU_FEATURES is None else config.CPU_FEATURES
    found = set(_plus(listed))
    if platform.machine().lower() in ("aarch64", "arm64"):
        cpu = config.CPU_NAME or llvm.get_host_cpu_name()
        found -= {"dotprod"}
        found |= {"dotprod"} if makes_sdot(llvm.get_process_triple(), cpu, listed) else set()
    return frozenset(found)


def makes_sdot(triple: str, cpu: str, listed: str = "") -> bool:
    """Whether LLVM knows that this ARM processor multiplies bytes with sdot: it uses it for a plain product of bytes.

    Some systems list no features; there LLVM goes by the processor's name, as it will for the kernels.
    """
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    machine = llvm.Target.from_triple(triple).create_target_machine(cpu=cpu, features=listed, opt=2)
    module = llvm.parse_assembly(_DOT)
    module.triple, module.data_layout = triple, str(machine.target_data)
    return "sdot" in machine.emit_assembly(module)


def possible() -> tuple[str, ...]:
    """The paths that can run here, the fastest first; ``portable`` is always among them.

    >>> possible()[-1]
    'portable'
    """
    here = features()
    return tuple(path for path, sets in NEEDS.items() if any(needed <= here for needed in sets))


def check() -> None:
    """Look at what the environment asks of the processor, before anything is compiled for it.

    Raises ``SettingError`` where MOE_LAB_KERNELS or NUMBA_CPU_FEATURES names what it lacks. Some systems do not list
    what a processor has; there numba's user is believed.
    """
    chosen()
    here = _plus(get_host_cpu_features())
    lacking = _plus(config.CPU_FEATURES or "") - here
    if here and lacking:
        raise SettingError(f"NUMBA_CPU_FEATURES asks for {', '.join(sorted(lacking))}, which this processor does not "
                           "have; leave that out, or unset it")


def _plus(listed: str) -> frozenset[str]:
    """The features that a list in LLVM's manner has.

    >>> sorted(_plus("+avx2,-avx512f,+fma"))
    ['avx2', 'fma']
    """
    return frozenset(name[1:] for name in listed.split(",") if name.startswith("+"))


def chosen() -> str:
    """The path taken: the one that MOE_LAB_KERNELS names, else the fastest.

    Raises ``SettingError`` for a name that is none, and for a path that this processor does not have.
    """
    return _chosen(os.environ.get(VARIABLE, ""))


@functools.cache
def _chosen(asked: str) -> str:
    here = possible()
    if not asked:
        return here[0]
    if asked not in NEEDS:
        raise SettingError(f"{VARIABLE}={asked!r} is no path of the kernels; this processor has {', '.join(here)}")
    if asked not in here:
        lacking = min((sorted(needed - features()) for needed in NEEDS[asked]), key=len)
        raise SettingError(f"{VARIABLE}={asked!r}: this processor has no {', '.join(lacking)}; it can run "
                           f"{', '.join(here)}")
    return asked
