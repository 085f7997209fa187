"""What all tests share: no network, one source of randomness, quiet libraries."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import hypothesis
import numpy as np
import pytest

signal.signal(signal.SIGINT, signal.default_int_handler)      # a job in the background is born deaf to Ctrl-C

hypothesis.settings.register_profile("house", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "house")


@pytest.fixture
def seed() -> int:
    """The one seed of a test."""
    return 20241129


@pytest.fixture
def rng(seed: int) -> np.random.Generator:
    """Random numbers that are the same in every run."""
    return np.random.default_rng(seed)


@pytest.fixture(scope="session", autouse=True)
def own_memory_of_files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Digests of weight files are remembered in a folder of the tests' own."""
    from moe_lab.store import content

    folder = tmp_path_factory.mktemp("caches")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(content, "cache_folder", lambda: folder)
        yield


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Sums in one order: torch, where a test uses it, runs on one thread."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``checkpoint(family, **options)``: the folder of a tiny random checkpoint, made once: ``checkpoints.make``."""
    made: dict[str, Path] = {}

    def folder(family: str, **options: object) -> Path:
        from checkpoints import make

        key = f"{family} {sorted(options.items())!r}"
        if key not in made:
            made[key] = make(tmp_path_factory.mktemp(family), family, **options)
        return made[key]

    return folder
