"""What policies do, measured: recorded traces replayed, bounds beside them.

Knows engines, traces and policies. Draws nothing unless asked for a figure.
"""

from __future__ import annotations

from moe_lab.evaluation.replay import Replay, ReplayRow, replay

__all__ = ["Replay", "ReplayRow", "replay"]
