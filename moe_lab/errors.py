"""The family of errors: what was asked, what is possible, what to type.

Every error a user can cause is one of these; each text stands alone, without a traceback.

    MoELabError
    ├── CheckpointError        no such model, no safetensors, a missing shard, a corrupt file
    ├── UnsupportedModelError  a dense model, or a family whose experts are not understood
    ├── BudgetError            a cache under the floor, or larger than memory
    ├── PolicyError            an unknown policy, a bad parameter, a plug-in that breaks its contract
    ├── SettingError           any other argument that cannot be used
    ├── BusyError              another thread generates
    ├── ReadError              the disk failed while experts were read
    ├── NotFiniteError         the model computed NaN or infinity where a number is needed
    ├── TraceError             a trace that is malformed, truncated or of another model
    └── ClusterError           the Dask cluster went away, or its workers cannot do the work
"""

from __future__ import annotations


class MoELabError(Exception):
    """Base of all errors of MoE Lab."""


class CheckpointError(MoELabError):
    """A model that cannot be found, or whose files are missing, truncated or corrupt."""


class UnsupportedModelError(MoELabError):
    """A checkpoint that is whole, but not a mixture of experts that MoE Lab can stream."""


class BudgetError(MoELabError, ValueError):
    """A cache that cannot work: below the floor of K experts a layer, or beyond memory."""


class PolicyError(MoELabError, ValueError):
    """A routing or eviction policy that is unknown, badly set, or breaks its contract."""


class SettingError(MoELabError, ValueError):
    """An argument that cannot be used: an empty prompt, a negative count, an unknown option."""


class BusyError(MoELabError, RuntimeError):
    """The engine is generating in another thread, or cannot do this while it streams."""


class ReadError(MoELabError, OSError):
    """Bytes of an expert could not be read. ``experts`` names those that are not in memory."""

    def __init__(self, message: str, experts: tuple[int, ...] = ()) -> None:
        super().__init__(message)
        self.experts = experts


class NotFiniteError(MoELabError, ArithmeticError):
    """The model computed NaN or infinity where a number is needed: its weights are damaged, or changed."""


class TraceError(MoELabError, ValueError):
    """A trace that cannot be read, or does not fit what it is used with."""


class ClusterError(MoELabError, RuntimeError):
    """A Dask cluster that went away, or whose workers cannot do the work. ``finished`` holds what was done, if any."""

    def __init__(self, message: str, finished: object = None) -> None:
        super().__init__(message)
        self.finished = finished
