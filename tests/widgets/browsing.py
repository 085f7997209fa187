"""A JupyterLab server and a Chromium, offline, for the browser tests and for the pictures.

Knows processes, folders and the page's own API; knows no dashboard. Server, settings and browser profile live in
a folder of their own, which goes with the test run.
"""

from __future__ import annotations

import ast
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FLAGS = ("--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
         "--disable-component-update --disable-sync").split()
KERNEL_READY = """() => { const c = window.jupyterapp?.shell?.currentWidget, s = c?.sessionContext;
  return Boolean(s && s.isReady && s.session?.kernel?.status === 'idle'); }"""


def chromium() -> str | None:
    """The system's Chromium, or None."""
    return next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)


class Server:
    """A running server: its address, and the folder its notebooks lie in."""

    def __init__(self, url: str, work: Path) -> None:
        self.url, self.work = url, work

    def notebook(self, name: str, cells: Sequence[str], kernel: str = "python3") -> str:
        """Write a notebook of code cells; returns its file name."""
        body = {
            "nbformat": 4, "nbformat_minor": 5,
            "metadata": {"kernelspec": {"name": kernel, "display_name": kernel, "language": "python"}},
            "cells": [{"cell_type": "code", "id": f"c{i}", "metadata": {}, "execution_count": None, "outputs": [],
                       "source": source} for i, source in enumerate(cells)],
        }
        (self.work / f"{name}.ipynb").write_text(json.dumps(body))
        return f"{name}.ipynb"


@contextlib.contextmanager
def server(home: Path, theme: str = "JupyterLab Light", app: str = "lab", other_kernel: str = "") -> Iterator[Server]:
    """JupyterLab (or ``notebook``) on a free port of this machine, with everything of its own under ``home``.

    ``other_kernel`` is a folder with another ipykernel in it; the kernel ``other`` then runs that one.
    """
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    work = home / "work"
    work.mkdir(parents=True)
    settings = {
        "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True},
        "@jupyterlab/docmanager-extension/plugin": {"autosave": False},
        "@jupyterlab/notebook-extension/tracker": {"windowingMode": "none"},     # cells out of sight stay in the page
        "@jupyterlab/apputils-extension/themes": {"theme": theme},
    }
    for key, value in settings.items() if app == "lab" else ():        # Notebook 7 has not all of these plug-ins
        file = home / "settings" / f"{key}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(value))
    if other_kernel:
        kernel = home / "data" / "kernels" / "other"
        kernel.mkdir(parents=True)
        (kernel / "kernel.json").write_text(json.dumps({
            "argv": [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"], "display_name": "other", "language": "python",
            "env": {"PYTHONPATH": os.pathsep.join([other_kernel, str(ROOT), str(ROOT / "widgets"), str(Path(__file__).parent)])}}))
    env = {k: v for k, v in os.environ.items() if k.lower() not in ("http_proxy", "https_proxy", "all_proxy")}
    env |= {"HOME": str(home), "JUPYTER_CONFIG_DIR": str(home / "config"), "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
            "JUPYTER_DATA_DIR": str(home / "data"),
            "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"), "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
            "IPYTHONDIR": str(home / "ipython"), "HF_HUB_OFFLINE": "1", "JUPYTER_PLATFORM_DIRS": "1",
            "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "widgets"), str(Path(__file__).parent)])}
    log = home / "server.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", {"lab": "jupyterlab", "notebook": "notebook"}[app], "--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1",
             f"--ServerApp.port={port}", "--ServerApp.port_retries=0", "--IdentityProvider.token=",
             f"--ServerApp.root_dir={work}", "--ServerApp.disable_check_xsrf=True", "--LabApp.expose_app_in_browser=True",
             "--JupyterNotebookApp.expose_app_in_browser=True", "--LabApp.extension_manager=readonly"],
            env=env, stdout=out, stderr=out, cwd=work)
    url = f"http://127.0.0.1:{port}"
    try:
        _await_server(url, process, log)
        yield Server(url, work)
    finally:
        with contextlib.suppress(OSError):
            urllib.request.urlopen(urllib.request.Request(f"{url}/api/shutdown", method="POST"), timeout=5).close()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.terminate()
            process.wait(10)


def _await_server(url: str, process: subprocess.Popen, log: Path) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{url}/api/status", timeout=2) as answer:
            answer.read()
            return
        time.sleep(0.1)
    raise RuntimeError(f"the server did not start:\n{log.read_text()[-2000:]}")


@contextlib.contextmanager
def browser() -> Iterator[Any]:
    """A headless Chromium with a profile of its own."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        b = p.chromium.launch(executable_path=chromium(), headless=True, args=FLAGS)
        try:
            yield b
        finally:
            b.close()


class Tab:
    """A page on a notebook. ``problems`` are console errors and requests that left the server."""

    def __init__(self, browser: Any, server: Server, width: int = 1280, height: int = 1000, **context: Any) -> None:
        self.server = server
        self.problems: list[str] = []
        self._context = browser.new_context(viewport={"width": width, "height": height}, **context)
        self._context.on("request", self._asked)
        self.page = self._context.new_page()
        self.page.on("console", lambda m: self.problems.append(f"console: {m.text[:400]}") if m.type == "error" else None)
        self.page.on("pageerror", lambda e: self.problems.append(f"page error: {(e.stack or str(e))[:1500]}"))

    def _asked(self, request: Any) -> None:
        if not request.url.startswith((self.server.url, self.server.url.replace("http", "ws"), "data:", "blob:")):
            self.problems.append(f"request off the server: {request.url}")

    def open(self, notebook: str, app: str = "lab") -> None:
        """Show a notebook and wait for its kernel."""
        stem = notebook.removesuffix(".ipynb")
        where = f"lab/workspaces/{stem}/tree/{notebook}?reset" if app == "lab" else f"notebooks/{notebook}"
        self.page.goto(f"{self.server.url}/{where}", wait_until="domcontentloaded")
        self.ready()

    def ready(self) -> None:
        """Wait until notebook and kernel are there."""
        self.page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=60000)
        self.page.wait_for_function(KERNEL_READY, timeout=60000)

    def run(self, cell: int, wait: bool = True) -> None:
        """Run a cell by its place (a click in an output makes that cell the active one)."""
        self.page.evaluate("""i => { const a = window.jupyterapp; a.shell.currentWidget.content.activeCellIndex = i;
                              a.commands.execute('notebook:run-cell'); }""", cell)
        if wait:
            self.page.wait_for_function("""i => { const c = window.jupyterapp.shell.currentWidget.content.widgets[i];
                return c.model.executionCount > 0 && c.model.executionState !== 'running'; }""", arg=cell, timeout=300000)

    def do(self, code: str) -> None:
        """Run code in the kernel, out of sight; its exception is raised here."""
        answer = self.page.evaluate("""async code => { const k = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
            const f = k.requestExecute({ code, silent: true, store_history: false, stop_on_error: false }); return (await f.done).content; }""", code)
        assert answer["status"] == "ok", "\n".join(answer.get("traceback", [])) or answer

    def ask(self, expression: str) -> Any:
        """What an expression is worth in the kernel; anything that JSON can hold."""
        answer = self.page.evaluate("""async code => { const k = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
            const f = k.requestExecute({ code: 'import json', silent: true, store_history: false, user_expressions: { x: code } });
            return (await f.done).content.user_expressions.x; }""", f"json.dumps({expression})")
        assert answer["status"] == "ok", answer
        return json.loads(ast.literal_eval(answer["data"]["text/plain"]))

    def until(self, condition: str, arg: Any = None, seconds: float = 60) -> None:
        """Wait until a function of the page holds."""
        self.page.wait_for_function(condition, arg=arg, timeout=1000 * seconds)

    def until_asked(self, expression: str, seconds: float = 60) -> None:
        """Wait until an expression is true in the kernel."""
        end = time.monotonic() + seconds
        while not self.ask(expression):
            assert time.monotonic() < end, f"not in time: {expression}"
            self.page.wait_for_timeout(20)

    def write(self, cell: int, source: str) -> None:
        """Put source into a cell."""
        self.page.evaluate("([i, s]) => window.jupyterapp.shell.currentWidget.content.widgets[i].model.sharedModel.setSource(s)",
                           [cell, source])

    def clear(self, cell: int) -> None:
        """Take a cell's output away."""
        self.page.evaluate("""i => { const a = window.jupyterapp; a.shell.currentWidget.content.activeCellIndex = i;
                              a.commands.execute('notebook:clear-cell-output'); }""", cell)

    def save(self) -> None:
        """Save the notebook and wait until it is saved."""
        self.page.evaluate("async () => { await window.jupyterapp.shell.currentWidget.context.save(); }")

    def output(self, cell: int) -> str:
        """The text of a cell's outputs."""
        return self.page.evaluate("""i => [...window.jupyterapp.shell.currentWidget.content.widgets[i].node
            .querySelectorAll('.jp-OutputArea-output')].map(e => e.textContent).join('|')""", cell)

    def devtools(self) -> Any:
        """A session with Chromium's own tools, for this page."""
        return self._context.new_cdp_session(self.page)

    def shut(self) -> None:
        """End the kernel and close the page."""
        with contextlib.suppress(Exception):
            self.page.evaluate("async () => { await window.jupyterapp.shell.currentWidget.sessionContext.shutdown(); }")
        self._context.close()
