"""A smoke test where else the dashboard has to run: Notebook 7, and JupyterLab with ipykernel 6.31."""

import os
import shutil

import browsing
import fake_engine
import pytest

pytestmark = pytest.mark.browser

CELL = fake_engine.CELL + """
import ipykernel
engine = fake_engine.FakeEngine(token_s=0.02)
lab = Lab(engine, max_new_tokens=100_000)
lab
"""


def test_the_welcome_notebook_opens_with_a_dashboard_that_writes_and_takes_its_own_advice(jupyter, browser):
    shutil.copy(browsing.ROOT / "notebooks" / "00_welcome.ipynb", jupyter.work / "welcome.ipynb")
    tab = browsing.Tab(browser, jupyter)
    tab.open("welcome.ipynb")
    first, stop = [i for i, kind in enumerate(tab.page.evaluate(
        "() => window.jupyterapp.shell.currentWidget.content.widgets.map(c => c.model.type)")) if kind == "code"][:2]
    tab.run(first)
    tab.until("() => +document.querySelector('.moelab canvas.map')?.dataset.token > 20")
    slow = tab.ask("lab.hit_rate")
    tab.page.get_by_label("routing", exact=True).select_option("cache-prior")
    tab.page.get_by_role("slider", name="penalty").evaluate(
        "e => { e.value = 90; e.dispatchEvent(new Event('input', { bubbles: true })); }")
    tab.until_asked(f"lab.hit_rate > {slow} + 0.05")
    tab.run(stop)
    tab.until("() => document.querySelector('.moelab').dataset.state === 'stopped'")
    assert tab.output(stop).startswith("pocket: olmoe")
    tab.page.wait_for_timeout(500)
    problems = tab.problems
    tab.shut()
    assert problems == []


@pytest.mark.parametrize("place", ["notebook 7", "ipykernel 6.31"])
def test_it_runs_a_slider_acts_and_stop_ends_it(browser, tmp_path, place):
    other = os.environ.get("MOE_LAB_IPYKERNEL6", "")
    if place == "ipykernel 6.31" and not other:
        pytest.skip("no ipykernel 6.31: pip install --no-deps --target FOLDER ipykernel==6.31.0, and set MOE_LAB_IPYKERNEL6=FOLDER")
    app, kernel = ("notebook", "python3") if place == "notebook 7" else ("lab", "other")
    with browsing.server(tmp_path, app=app, other_kernel=other) as server:
        tab = browsing.Tab(browser, server)
        tab.open(server.notebook("smoke", [CELL], kernel), app)
        tab.run(0)
        tab.until("() => document.querySelector('.moelab canvas.map')?.dataset.seq")
        if kernel == "other":
            assert tab.ask("ipykernel.__version__") == "6.31.0"
        tab.page.click(".moelab [data-do=run]")
        tab.until("() => +document.querySelector('.moelab canvas.map').dataset.token > 20")
        tab.page.get_by_role("slider", name="slots").evaluate(
            "e => { e.value = 33; e.dispatchEvent(new Event('input', { bubbles: true })); }")
        tab.until_asked("engine.cache.slots == 33")
        assert tab.ask("lab.state") == "running"
        tab.page.click(".moelab [data-do=stop]")
        tab.until("() => document.querySelector('.moelab').dataset.state === 'stopped'")
        # Notebook 7.6 complains of a setting of its own while it starts
        problems = [p for p in tab.problems if not ("notebook_core" in p and "'schema'" in p)]
        tab.shut()
    assert problems == []


@pytest.fixture(scope="module")
def busy(jupyter, browser):
    """A notebook with a dashboard, a cell that loops over tokens, and a cell that shows a second one and stays busy."""
    tab = browsing.Tab(browser, jupyter)
    tab.open(jupyter.notebook("busy", [CELL, "for step in lab.watch(engine.stream('a', max_new_tokens=200)):\n    pass",
                                       "import time\nlab2 = Lab(engine)\ndisplay(lab2)\ntime.sleep(5)"]))
    tab.run(0)
    tab.until("() => document.querySelector('.moelab canvas.map')?.dataset.seq")
    yield tab
    problems = tab.problems
    tab.shut()
    assert problems == []


def test_a_loop_in_a_cell_shows_itself_while_the_kernel_is_busy(busy):
    busy.run(1, wait=False)
    busy.until("() => +document.querySelector('.moelab canvas.map').dataset.token > 40 && document.querySelector('.moelab').dataset.state === 'running' "
               "&& document.querySelector('.moelab .note').textContent.startsWith('A loop in a cell')")
    busy.until("() => document.querySelector('.moelab').dataset.state === 'finished'")
    busy.until("() => document.querySelector('.moelab canvas.map').dataset.token === '200'")


def test_a_view_that_comes_while_the_kernel_is_busy_says_so_and_then_fills(busy):
    busy.run(2, wait=False)
    busy.until("() => document.querySelectorAll('.moelab')[1]?.querySelector('.note').textContent.startsWith('Waiting for the kernel')")
    busy.until("() => document.querySelectorAll('.moelab canvas.map')[1]?.dataset.seq")
