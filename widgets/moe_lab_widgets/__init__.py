"""The live dashboard of MoE Lab.

    from moe_lab_widgets import Lab

    lab = Lab(engine)       # in a notebook: the last line of a cell
    lab.start("def fibonacci(n):")

Knows the engine's public surface. Nothing in ``moe_lab`` knows of this package.
"""

from __future__ import annotations

from moe_lab_widgets.lab import Lab

__all__ = ["Lab"]
