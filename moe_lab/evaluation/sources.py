"""This package's own sources as a digest: another version of them may measure otherwise.

Knows files. All are in it but those of a short list, so that a new one is never forgotten; a policy's file is left out
because the policy is told by its code (``moe_lab.kernels.policy_code``).
"""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

import psutil

import moe_lab

STEER_NOTHING = {
    "__main__.py": "the terminal asks for sweeps and prints them",
    "pocket/*.py": "the shipped model's training; its files and its texts are told by their content",
    "testing/*.py": "checks of policies, which measure nothing",
    "evaluation/figures.py": "draws points that are made",
}
"""Sources that cannot steer a figure, and why."""
POLICIES = ("routing/[!_]*.py", "eviction/[!_]*.py")
"""Files of policies, each told by its code; ``base.py`` is in the digest all the same."""


@cache
def sources_digest(policies: bool = False) -> str:
    """The digest of the sources that make figures; with ``policies`` of those of the shipped policies as well.

    >>> len(sources_digest()), sources_digest() == sources_digest(policies=True)
    (32, False)
    """
    whole = hashlib.blake2b(digest_size=16)
    for path in files(policies):
        whole.update(f"{path.relative_to(_root())} {path.stat().st_size} ".encode() + path.read_bytes())
    return whole.hexdigest()


def files(policies: bool = False) -> list[Path]:
    """The sources that are in the digest."""
    patterns = [*STEER_NOTHING, *(() if policies else POLICIES)]
    out = {path for pattern in patterns for path in _root().glob(pattern) if path.name != "base.py"}
    return [path for path in sorted(_root().rglob("*.py")) if path not in out]


def changed() -> Path | None:
    """A source that was changed after this program began, so that what runs may be another than what lies there."""
    began = psutil.Process().create_time()
    return next((path for path in files() if path.stat().st_ctime > began + _TICK_S), None)


_TICK_S = 1.0
"""The system tells when a program began to the hundredth of a second, and corrects its clock meanwhile."""


def _root() -> Path:
    return Path(moe_lab.__file__).parent
