"""How much memory this process may still take: the machine's, its container's, its own limit's.

Knows the files in which Linux tells of it, cgroup v1 and v2; asks psutil for the rest. Knows no cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import psutil

_NO_LIMIT = 1 << 60
"""cgroup v1 writes a number of about this size where there is no limit."""


class Free(NamedTuple):
    """Bytes that are free, and whose they are, in words."""

    nbytes: int
    of: str


def free_memory(root: Path = Path("/")) -> Free:
    """What is free: the least of what the machine has, what the limits of this process's control groups leave, and
    what ``ulimit -v`` leaves. Memory that the system can take back from files counts as free.

    >>> free_memory().nbytes > 0
    True
    """
    found = [Free(psutil.virtual_memory().available, "of this machine")]
    found += (Free(max(0, left), "of this container's limit (cgroup)") for left in _groups(root))
    found += (Free(max(0, left), "of this process's limit (ulimit -v)") for left in _address_space())
    return min(found)


def _groups(root: Path) -> Iterator[int]:
    """Bytes that each memory limit above this process leaves."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:                     # no Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            base, files, cached = root / "sys/fs/cgroup", ("memory.max", "memory.current"), ""
        elif "memory" in controllers.split(","):
            base, cached = root / "sys/fs/cgroup/memory", "total_"
            files = "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        here = base / path.lstrip("/")
        for folder in (here, *here.parents):
            if folder == base or base in folder.parents:
                left = _left(folder, *files, cached)
                if left is not None:
                    yield left


def _left(folder: Path, limit: str, used: str, cached: str) -> int | None:
    """Bytes that the limit in ``folder`` leaves; None where it has none. (Of a path that a container cannot see, only
    the root is there.)"""
    try:
        most, taken = (int((folder / name).read_text()) for name in (limit, used))
    except (OSError, ValueError):       # no such file, or "max"
        return None
    if most >= _NO_LIMIT:
        return None
    try:
        stat = dict(line.partition(" ")[::2] for line in (folder / "memory.stat").read_text().splitlines())
    except OSError:
        stat = {}
    return most - taken + sum(int(stat.get(f"{cached}{kind}_file", 0)) for kind in ("inactive", "active"))


def _address_space() -> Iterator[int]:
    """Bytes of address space that a limit leaves."""
    try:
        import resource
    except ImportError:                 # no Unix
        return
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit != resource.RLIM_INFINITY:
        yield limit - psutil.Process().memory_info().vms
