"""Engines, drivers and browsers for the dashboard's tests."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))      # fake_engine and browsing stand beside the tests

import browsing
import fake_engine

from moe_lab_widgets import Lab, controls

FIGURES = pytest.StashKey[list[str]]()


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Callable[..., None]:
    """Print a measured figure, with what is aimed at, when all tests have ended."""

    def note(words: str, aim: str = "") -> None:
        request.config.stash.setdefault(FIGURES, []).append(f"{words}{f'   [{aim}]' if aim else ''}")

    return note


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """The figures that tests have noted."""
    if lines := config.stash.get(FIGURES, []):
        terminalreporter.section("figures of the dashboard")
        for line in lines:
            terminalreporter.write_line(line)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> fake_engine.FakeEngine:
    """An engine without a model, with policies of its own."""
    monkeypatch.setattr(controls, "shipped", lambda: fake_engine.TABLES)
    return fake_engine.FakeEngine(token_s=0.002)


@pytest.fixture
def lab(engine: fake_engine.FakeEngine) -> Iterator[Lab]:
    """A dashboard of it; what it runs is stopped."""
    board = Lab(engine)
    yield board
    board.stop()
    board.close()


@pytest.fixture
def until() -> Callable[..., None]:
    """Wait until something holds."""

    def wait(holds: Callable[[], Any], seconds: float = 30.0) -> None:
        end = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < end, "did not happen in time"
            time.sleep(0.002)

    return wait


# ------------------------------------------------------------------------------------------ the browser


@pytest.fixture(scope="session")
def chromium() -> str:
    """The system's Chromium, or a skip with a line."""
    pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install -e '.[dev]'")
    path = browsing.chromium()
    if path is None:
        pytest.skip("no Chromium: apt-get install chromium")
    return path


@pytest.fixture(scope="session")
def jupyter(chromium: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[browsing.Server]:
    """One JupyterLab for the whole session."""
    with browsing.server(tmp_path_factory.mktemp("jupyter")) as server:
        yield server


@pytest.fixture(scope="session")
def browser(chromium: str) -> Iterator[Any]:
    """One Chromium for the whole session."""
    with browsing.browser() as b:
        yield b


@pytest.fixture
def open_tab(jupyter: browsing.Server, browser: Any, request: pytest.FixtureRequest) -> Iterator[Callable[..., browsing.Tab]]:
    """Open a notebook of cells. Afterwards: no console error, and no request left the server."""
    tabs: list[browsing.Tab] = []

    def open(*cells: str, width: int = 1280, height: int = 1000, **context: Any) -> browsing.Tab:
        name = "".join(c for c in request.node.name if c.isalnum()) + str(len(tabs))
        tab = browsing.Tab(browser, jupyter, width, height, **context)
        tabs.append(tab)
        tab.open(jupyter.notebook(name, cells))
        return tab

    yield open
    problems = [p for tab in tabs for p in tab.problems]
    for tab in tabs:
        tab.shut()
    assert problems == []
