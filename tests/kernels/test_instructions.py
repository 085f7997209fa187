"""Paths of instructions: which one is taken, and whether its instructions come out, on processors that are not here."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys

import llvmlite.binding as llvm
import numpy as np
import pytest
from llvmlite import ir

from moe_lab.errors import SettingError
from moe_lab.kernels import dots, instructions
from moe_lab.kernels.jit import jit
from moe_lab.kernels.panels import BLOCK, products
from moe_lab.kernels.vectors import INTS

X86 = platform.machine().lower() in ("x86_64", "amd64")
AVX2 = "+avx2,+fma,+f16c,+avx,+sse4.2,+ssse3"
PROCESSORS = {
    "haswell": (AVX2, "avx2", ["vpmaddubsw", "vpmaddwd", "vpsignb", "vcvtph2ps", "vfmadd"], ["zmm", "vpdpbusd"]),
    "alderlake": (AVX2 + ",+avxvnni", "avxvnni", ["{vex}\tvpdpbusd", "vcvtph2ps", "vfmadd"], ["zmm"]),
    "znver4": (AVX2 + ",+avx512f,+avx512bw,+avx512vl,+avx512vnni", "avx512", [r"vpdpbusd\t.*zmm"], []),
    "nehalem": ("+sse4.2,+ssse3", "portable", ["pmaddwd"], ["ymm", "zmm", "pdpbusd"]),
}
"""NUMBA_CPU_NAME: features, the path that follows, what must stand in the machine code of its panels, and what not."""

EMIT = """
from numba import types
from moe_lab.kernels.instructions import chosen
from moe_lab.kernels.jit import jit
from moe_lab.kernels.panels import BLOCK, products
print(chosen())
for bits in (8, 4):
    panel = products(chosen(), bits).panel
    panel.compile((types.int64,) * 6)
    print(*panel.inspect_asm().values())
"""


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300,
                          env=os.environ | environment)


@pytest.mark.skipif(not X86, reason="numba compiles for the architecture it runs on: x86 is checked on x86")
@pytest.mark.parametrize("cpu", PROCESSORS)
def test_a_processor_takes_its_path_and_gets_its_instructions(cpu):
    features, path, wanted, unwanted = PROCESSORS[cpu]
    done = run(EMIT, NUMBA_CPU_NAME=cpu, NUMBA_CPU_FEATURES=features, MOE_LAB_KERNELS="")
    assert done.returncode == 0, done.stderr
    name, machine_code = done.stdout.split("\n", 1)
    assert name == path
    assert [word for word in wanted if not re.search(word, machine_code)] == []
    assert [word for word in unwanted if re.search(word, machine_code)] == []


@pytest.mark.parametrize(("triple", "cpu"), [
    ("aarch64-unknown-linux-gnu", "neoverse-n1"), ("arm64-apple-macosx14.0.0", "apple-m1")])
def test_arm_gets_one_sdot_for_each_quarter_of_a_dot(triple, cpu):
    module = ir.Module()
    address = ir.IntType(64)
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [address] * 3), "four")
    b = ir.IRBuilder(function.append_basic_block())
    places = [b.inttoptr(argument, INTS.as_pointer()) for argument in function.args]
    b.store(dots.emit_neon(b, *(b.load(place) for place in places)), places[0])
    b.ret_void()
    assembly = emitted(str(module), triple, cpu)
    assert len(re.findall(r"\bsdot\b", assembly)) == 4
    assert instructions.makes_sdot(triple, cpu)


def emitted(text: str, triple: str, cpu: str) -> str:
    """Machine code of a module for another processor."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    machine = llvm.Target.from_triple(triple).create_target_machine(cpu=cpu, opt=3)
    module = llvm.parse_assembly(text)
    module.triple, module.data_layout = triple, str(machine.target_data)
    return machine.emit_assembly(module)


def test_arm_processors_without_the_extension_are_known():
    assert not instructions.makes_sdot("aarch64-unknown-linux-gnu", "cortex-a72")
    assert instructions.makes_sdot("aarch64-unknown-linux-gnu", "cortex-a72", "+dotprod")


def test_the_fastest_path_that_the_processor_has_is_taken(monkeypatch):
    monkeypatch.delenv(instructions.VARIABLE, raising=False)
    assert instructions.chosen() == instructions.possible()[0]
    monkeypatch.setenv(instructions.VARIABLE, "portable")
    assert instructions.chosen() == "portable"


def test_a_path_that_does_not_exist_is_refused_with_those_that_do(monkeypatch):
    monkeypatch.setenv(instructions.VARIABLE, "sse9")
    with pytest.raises(SettingError, match=r"MOE_LAB_KERNELS='sse9' is no path.*portable"):
        instructions.chosen()


@pytest.mark.skipif(not X86, reason="features of x86")
@pytest.mark.parametrize(("asked", "lacking"), [("avx512", "avx512bw, avx512f, avx512vl, avx512vnni"),
                                                ("avxvnni", "avxvnni"), ("neon", "dotprod")])
def test_asking_for_what_the_processor_lacks_is_an_error_and_not_the_end_of_the_process(asked, lacking):
    code = ("from moe_lab.kernels.instructions import chosen\nfrom moe_lab.errors import SettingError\n"
            "try:\n    chosen()\nexcept SettingError as error:\n    print(error)")
    done = run(code, NUMBA_CPU_NAME="haswell", NUMBA_CPU_FEATURES=AVX2, MOE_LAB_KERNELS=asked)
    assert done.returncode == 0, done.stderr
    assert f"this processor has no {lacking}; it can run avx2, portable" in done.stdout


def test_paths_do_not_take_one_anothers_machine_code_from_the_disk(tmp_path):
    """numba tells kernels on disk apart by file, signature and processor, not by what they close over."""
    code = ("from moe_lab.kernels.formats import Quantised, q8\nimport numpy as np\n"
            "f, x = Quantised(q8.CODE), np.ones(64, 'f4')\n"
            "arena, out = np.zeros((1, f.slot_bytes(64, 64)), 'u1'), np.empty(64, 'f4')\n"
            "f.ffn_token(x, arena, np.zeros(1, 'i4'), np.ones(1, 'f4'), out, 64, 'silu')\n"
            "print(f.path, sum(f._token.alone.stats.cache_hits.values()))")
    seen = [run(code, NUMBA_CACHE_DIR=str(tmp_path), MOE_LAB_KERNELS=path).stdout.split()
            for path in (*instructions.possible()[:2], instructions.possible()[0])]
    first, second = instructions.possible()[:2]
    assert seen == [[first, "0"], [second, "0"], [first, "1"]]


@pytest.mark.parametrize("path", [path for path in instructions.possible() if path != "portable"])
@pytest.mark.parametrize("bits", [8, 4])
def test_a_dot_adds_four_products_to_each_lane(rng, path, bits):
    """Extremes too: no path may saturate."""
    w = rng.integers(-127, 128, (8, 64)) if bits == 8 else rng.integers(0, 16, (8, 64))
    x = rng.integers(-127, 128, (8, 4))
    w[:2], x[:2] = (127 if bits == 8 else 15), [[127] * 4, [-127] * 4]
    w[2], x[2] = (-127 if bits == 8 else 15), -127
    exact = (w.reshape(8, 16, 4) * x[:, None]).sum(-1)
    multiply, above = products(path, bits)

    @jit(cache=False)
    def panel(*addresses):
        multiply(*addresses)

    out, one = np.empty(16, np.float32), np.ones(1, np.float32)
    for row in range(8):
        block, bytes = np.zeros(BLOCK[bits], np.uint8), np.zeros(32, np.int8)
        block[:32] = np.ones(16, np.float16).view(np.uint8)
        block[32:96] = w[row].astype(np.int8).view(np.uint8)
        bytes[:4] = x[row]
        sums = np.array([-above * bytes.sum(dtype=np.int32) if bits == 8 else 0], np.int32)
        panel(block.ctypes.data, 1, bytes.ctypes.data, one.ctypes.data, sums.ctypes.data, out.ctypes.data)
        np.testing.assert_array_equal(out, exact[row])
