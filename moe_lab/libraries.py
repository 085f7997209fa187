"""Which packages are Python's own. A name alone does not tell: a ``test.py`` or ``statistics.py`` beside a notebook
stands in front of Python's."""

from __future__ import annotations

import functools
import sys
import sysconfig
from pathlib import Path
from typing import Any


def of_python(package: str) -> bool:
    """Whether the loaded top-level module of that name comes with Python.

    >>> of_python("functools"), of_python("sys"), of_python("numpy")
    (True, True, False)
    """
    if package not in sys.stdlib_module_names:
        return False
    spec: Any = getattr(sys.modules.get(package), "__spec__", None)
    return spec is not None and _beside_python(str(spec.origin))


@functools.cache
def _beside_python(origin: str) -> bool:
    """Whether a module's file lies where Python's do; some have none."""
    if origin in ("built-in", "frozen"):
        return True
    homes = {Path(sysconfig.get_path(kind)).resolve() for kind in ("stdlib", "platstdlib")}
    inside = set(Path(origin).resolve().parents)
    return bool(homes & inside) and not any(one.name in ("site-packages", "dist-packages") for one in inside)
