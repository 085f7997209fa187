"""MoE Lab: watch, measure, teach and tune how a mixture-of-experts model streams its experts from disk.

    import moe_lab as ml

    engine = ml.load("pocket", cache="50%", routing="cache-prior")
    for step in engine.stream("def fibonacci(n):", max_new_tokens=200, temperature=1.0):
        print(step.text, end="")

The shop window: it knows the public names and where each lives, and imports none of them before it
is asked for. So ``import moe_lab`` loads neither torch, transformers, numba nor Jupyter.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

# torch's OpenMP threads would spin while they wait for each other. Where another program wants the same cores
# (a browser, a training run), each of a pass's hundreds of small products then waits for a time slice: scoring
# was seen 400 times slower. Asleep they cost nothing. It must be said before torch is loaded; a user's own word stands.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

if TYPE_CHECKING:
    from moe_lab import errors, eviction, pocket, routing, testing
    from moe_lab.engine import Engine, Sampling, load
    from moe_lab.errors import MoELabError
    from moe_lab.evaluation.disk_model import DiskModel
    from moe_lab.evaluation.record import record
    from moe_lab.evaluation.replay import replay
    from moe_lab.evaluation.sweep import sweep
    from moe_lab.evaluation.tune import tune
    from moe_lab.eviction import EVICTION
    from moe_lab.models import info
    from moe_lab.parameters import Parameter, Schedule, Table
    from moe_lab.routing import ROUTING
    from moe_lab.store import Disk
    from moe_lab.trace import Trace

__all__ = [
    "EVICTION",
    "ROUTING",
    "Disk",
    "DiskModel",
    "Engine",
    "MoELabError",
    "Parameter",
    "Sampling",
    "Schedule",
    "Table",
    "Trace",
    "__version__",
    "errors",
    "eviction",
    "info",
    "load",
    "pocket",
    "record",
    "replay",
    "routing",
    "sweep",
    "testing",
    "tune",
]

_HOMES = {
    "EVICTION": "moe_lab.eviction",
    "ROUTING": "moe_lab.routing",
    "Disk": "moe_lab.store",
    "DiskModel": "moe_lab.evaluation.disk_model",
    "Engine": "moe_lab.engine",
    "MoELabError": "moe_lab.errors",
    "Parameter": "moe_lab.parameters",
    "Sampling": "moe_lab.engine",
    "Schedule": "moe_lab.parameters",
    "Table": "moe_lab.parameters",
    "Trace": "moe_lab.trace",
    "info": "moe_lab.models",
    "load": "moe_lab.engine",
    "record": "moe_lab.evaluation.record",
    "replay": "moe_lab.evaluation.replay",
    "sweep": "moe_lab.evaluation.sweep",
    "tune": "moe_lab.evaluation.tune",
}
"""Where each name lives; the other public names are modules of this package."""

_MODULES = ("errors", "eviction", "pocket", "routing", "testing")


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
    elif name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    elif name == "__version__":
        from importlib.metadata import version

        value = version("moe-lab")
    else:
        raise AttributeError(f"module 'moe_lab' has no attribute {name!r}; it has {', '.join(__all__)}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
