"""A model of time: a token computes, and waits for what it loads. What it says is predicted, not measured.

Knows arithmetic, and how to ask an engine for the numbers. Reads are taken not to overlap with computing.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from moe_lab.errors import SettingError
from moe_lab.units import format_bytes, format_rate, format_seconds, parse_bytes, parse_rate, parse_seconds

if TYPE_CHECKING:
    from moe_lab.engine import Engine

_STEPS, _WARM = 24, 4


@dataclass(frozen=True, repr=False)
class DiskModel:
    """What a token's time is made of. ``ml.DiskModel.of(engine)`` takes the numbers from an engine.

    Args:
        bandwidth: of the disk, bytes a second or ``"200 MB/s"``.
        expert_bytes: of one expert, a number or ``"6 MiB"``.
        compute_s: of a token that loads nothing, seconds or ``"20 ms"``.
        latency_s: before the first byte of a load, seconds or ``"0.1 ms"``; once for each layer that loads.
        simulated: whether the bandwidth is that of a simulated disk.

    Raises:
        SettingError: a number that is none, or a token that takes no time at all.

    Example:
        >>> model = DiskModel("200 MB/s", expert_bytes=98304, compute_s="10 ms", latency_s="0.1 ms")
        >>> model
        DiskModel(200 MB/s, 0.1 ms, 96.0 KiB an expert, 10 ms of compute a token)
        >>> round(model.tokens_per_s(loads=9.0, waits=5.0), 2)
        67.01
    """

    bandwidth: float
    expert_bytes: int
    compute_s: float
    latency_s: float = 0.0
    simulated: bool = False

    def __post_init__(self) -> None:
        found: dict[str, Any] = {
            "bandwidth": parse_rate(self.bandwidth), "expert_bytes": parse_bytes(self.expert_bytes),
            "compute_s": parse_seconds(self.compute_s), "latency_s": parse_seconds(self.latency_s)}
        for name, value in found.items():
            object.__setattr__(self, name, value)
        if self.bandwidth < 1 or self.expert_bytes < 1:
            raise SettingError(f"a disk model needs a bandwidth and bytes an expert above 0, not {self.bandwidth:g} "
                               f"B/s and {self.expert_bytes} bytes; type ml.DiskModel('200 MB/s', "
                               "expert_bytes='6 MiB', compute_s='20 ms')")

    @classmethod
    def of(cls, engine: Engine, compute_s: str | float | None = None, *, prompt: Sequence[int] = (0, 0)) -> DiskModel:
        """The numbers of an engine: its disk (a simulated one as it is set, else as experts come from the real one)
        and, unless given, a token's compute: the median of a short generation after ``prompt``, reads left out.

        Raises:
            SettingError: a ``compute_s`` that is no time.
        """
        if compute_s is None:
            room = max(_WARM + 1, min(_STEPS, engine.spec.context - len(prompt) - 1))
            steps = list(engine.stream(list(prompt), max_new_tokens=room, stop_at_end=False))
            compute_s = statistics.median(step.times.total_s - step.times.read_s for step in steps[_WARM:])
        disk = engine.disk
        return cls(engine.disk_rate(), engine.miss_bytes, parse_seconds(compute_s),
                   disk.latency if disk is not None else 0.0, disk is not None)

    def seconds(self, loads: float, waits: float) -> float:
        """Seconds a token that loads ``loads`` experts, in ``waits`` layers."""
        return self.compute_s + waits * self.latency_s + loads * self.expert_bytes / self.bandwidth

    def tokens_per_s(self, loads: float, waits: float) -> float:
        """Tokens a second at so many loads and waits a token."""
        seconds = self.seconds(loads, waits)
        return 1 / seconds if seconds > 0 else math.inf

    def __repr__(self) -> str:
        latency = f", {format_seconds(self.latency_s)}" if self.latency_s else ""
        simulated = ", simulated" if self.simulated else ""
        return (f"DiskModel({format_rate(self.bandwidth)}{latency}, {format_bytes(self.expert_bytes)} an expert, "
                f"{format_seconds(self.compute_s)} of compute a token{simulated})")
