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

import contextlib
from collections.abc import Iterator


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


@contextlib.contextmanager
def foreign(what: str) -> Iterator[None]:
    """The one door for a stranger's file: whatever it makes the code inside raise leaves as a ``CheckpointError``.

    Its text is ``what``, which names the file, and the first line of the reason. Errors of the family pass as they
    are, and so does ``MemoryError``: a machine without memory is no damaged file.

    >>> with foreign("config.json cannot be read"):
    ...     {}["model_type"]
    Traceback (most recent call last):
        ...
    moe_lab.errors.CheckpointError: config.json cannot be read: KeyError: 'model_type'
    """
    try:
        yield
    except (MoELabError, MemoryError):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != _PANIC:
            raise
        reason = first_line(error)
        kind = "" if " " in reason else f"{type(error).__name__}: "
        raise CheckpointError(f"{what}: {kind if reason != type(error).__name__ else ''}{reason}") from error


def first_line(error: BaseException) -> str:
    """What an error says, without the pages that some libraries add; a line that ends in a colon brings the next.

    >>> [first_line(ValueError(text)) for text in ("no such thing\\nmore", "of all:\\n  this\\nmore", "")]
    ['no such thing', 'of all: this', 'ValueError']
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    ends = next((n for n, line in enumerate(lines, 1) if not line.endswith(":")), len(lines))
    return " ".join(lines[:ends])[:_LONGEST] or type(error).__name__


_LONGEST = 400
"""Letters of a library's error that are told."""
_PANIC = "PanicException"
"""What a library written in Rust raises where it gives up; no ``Exception``."""
