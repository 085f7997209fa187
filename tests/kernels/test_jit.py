"""The jit decorator: what machine code is called where several processes keep theirs on disk."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SIBLINGS = """
import sys
import numpy as np
from moe_lab.kernels.jit import jit

def kernel(n):
    @jit(helper=True)
    def step(x):                    # called from several places, and too long to be put into each
        for i in range(x.size):
            for j in range(i):
                if x[j] > x[i] - n:
                    x[i], x[j] = x[j], x[i] + n

    @jit(name=f"kernel {n}")
    def steps(x):
        step(x)
        step(x[1:])
        step(x[2:])
        return x.sum()

    return steps

print([int(kernel(int(n))(np.arange(4))) for n in sys.argv[1:]])
"""


def test_siblings_that_several_processes_kept_on_disk_are_not_taken_for_each_other(tmp_path: Path) -> None:
    script = tmp_path / "siblings.py"
    script.write_text(SIBLINGS)

    def run(*numbers: str) -> list[int]:
        said = subprocess.run([sys.executable, str(script), *numbers], capture_output=True, text=True, check=True,
                              env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path / "kept")}).stdout
        return [int(word) for word in said.strip("[]\n").split(",")]

    alone = run("1") + run("100")
    assert alone[0] != alone[1]
    assert run("1", "100") == alone
