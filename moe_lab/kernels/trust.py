"""Whose kept kernels are run, and how files are made that can be trusted later.

A kept kernel is a pickle with machine code in it: whoever can write one does in this process what they like. So a
folder of kept kernels, each folder above it and each file in it have to pass two questions:

- Does it belong to us, to root, or to an owner of the package's sources or of a folder above them? Those may change
  the sources, so they need no kernels to do us harm; such is a checkout mounted into a container where one is root.
- May nobody else write to it? A group counts as somebody else, unless it is the private group of one of those owners:
  it bears the owner's name and has no other member, as many systems give one to every user. A folder above may be open
  to all where it is sticky, as /tmp is: nobody renames there what belongs to another.

Knows owners and modes; access lists are not read. Windows has neither, and keeps a user's folders to that user.
"""

from __future__ import annotations

import functools
import os
import stat
from pathlib import Path

SOURCES = Path(__file__).resolve().parent.parent
"""The folder of the package."""
OTHERS_MAY_READ, OTHERS_MAY_ENTER = 0o644, 0o755
"""Modes of the files and folders that are made here, before the user's umask."""


def make_folder(folder: str) -> None:
    """Make ``folder``, an absolute path, and what is missing above it, not writable by others.

    Raises:
        OSError: it cannot be made.
    """
    for place in (*reversed(Path(folder).parents), Path(folder)):
        if not place.exists():
            place.mkdir(OTHERS_MAY_ENTER, exist_ok=True)


def make_file(path: str) -> int:
    """A new file, not writable by others, open for writing: its descriptor.

    Raises:
        OSError: it cannot be made, or is there already.
    """
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), OTHERS_MAY_READ)


def open_to_others(folder: str) -> str:
    """Why files in ``folder``, an absolute path without links, may not be ours, in words; empty where they are. Of a
    folder that is not there yet those above it are asked.

    Raises:
        OSError: a folder cannot be looked at.
    """
    for place in (Path(folder), *Path(folder).parents):
        if not place.exists():
            continue
        status = place.stat()
        if not _owned(status):
            return f"{place} belongs to another user (id {status.st_uid})"
        guarded = place != Path(folder) and status.st_mode & stat.S_ISVTX
        if _writable_by_others(status) and not guarded:
            return f"others may write to {place} (chmod go-w {place} would mend it)"
    return ""


def is_ours(status: os.stat_result) -> bool:
    """Whether a file of this status, in a folder that is not open to others, was written by nobody else."""
    return _owned(status) and not _writable_by_others(status)


@functools.cache
def _owners() -> frozenset[int]:
    """Ids of those who may do with this process what they like."""
    return frozenset({0, os.geteuid(), *(place.stat().st_uid for place in (SOURCES, *SOURCES.parents))})


def _owned(status: os.stat_result) -> bool:
    return not hasattr(os, "geteuid") or status.st_uid in _owners()


def _writable_by_others(status: os.stat_result) -> bool:
    if not hasattr(os, "geteuid"):
        return False
    by_group = status.st_mode & stat.S_IWGRP and not any(is_private(status.st_gid, owner) for owner in _owners())
    return bool(status.st_mode & stat.S_IWOTH or by_group)


def is_private(group: int, user: int) -> bool:
    """Whether ``group`` is the private group of ``user``, both by id. Where the system has no name for either, as in
    a container, by the custom that the two bear one number.

    >>> is_private(0, 0)
    True
    """
    if group == user == 0:
        return True
    import grp
    import pwd

    try:
        person = pwd.getpwuid(user)
    except KeyError:
        person = None
    try:
        members = grp.getgrgid(group)
    except KeyError:
        return person is None and group == user
    return (person is not None and person.pw_gid == group and person.pw_name == members.gr_name
            and set(members.gr_mem) <= {person.pw_name})
