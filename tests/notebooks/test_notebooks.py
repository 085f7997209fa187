"""Every notebook runs from top to bottom, in a kernel of this environment.

Errors in a cell are the test's errors. How long it took is printed (two minutes on two idle cores is the aim), not
asserted: a busy machine is no fault of the notebook. Nothing is written back: committed notebooks stay without outputs.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "notebooks").glob("*.ipynb"))
PATIENCE_S = 600
"""For one cell."""


def test_there_are_notebooks() -> None:
    assert [path.name for path in NOTEBOOKS][:1] == ["00_welcome.ipynb"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_valid_and_numbered(path: Path) -> None:
    nbformat.validate(nbformat.read(path, as_version=4))
    assert path.stem[:2].isdigit()


@pytest.mark.notebook
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_from_top_to_bottom(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    client = nbclient.NotebookClient(notebook, timeout=PATIENCE_S, kernel_name="python3",
                                     resources={"metadata": {"path": str(path.parent)}})
    began = time.monotonic()
    client.execute()
    print(f"{path.name}: {time.monotonic() - began:.0f} s")
    complaints = [out.text for cell in notebook.cells for out in cell.get("outputs", []) if out.get("name") == "stderr"
                  and ("Warning" in out.text or "Error" in out.text)]
    assert complaints == []
