"""Every text that a page, a notebook or a command shows is sampled so that it does not repeat itself.

A text in a loop uses the same experts again and again, and its hit rate and speed flatter.
"""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from statistics import mean

import pytest

import moe_lab as ml
from moe_lab.__main__ import PROMPT, parser
from moe_lab.engine.records import DISTINCT
from moe_lab.pocket.card import PROMPTS, WARMTH
from moe_lab_widgets.wishes import TEMPERATURE

ROOT = Path(__file__).resolve().parent.parent
SEEDS = range(5)
TOKENS = 200


def sources() -> dict[str, str]:
    """The code of every page and notebook."""
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
    found = {page.name: "\n".join(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)) for page in pages}
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text())["cells"]
        found[path.name] = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code")
    return {name: code for name, code in found.items() if code}


def shown(code: str) -> list[tuple[str, float]]:
    """(prompt, temperature) of each text that ``code`` has a model write."""
    tree = ast.parse(code)
    names = {target.id: node.value.value for node in ast.walk(tree)
             if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
             for target in node.targets if isinstance(target, ast.Name)}
    calls = [(node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", ""), node)
             for node in ast.walk(tree) if isinstance(node, ast.Call)]

    def given(call: ast.Call) -> float | None:
        return next((word.value.value for word in call.keywords
                     if word.arg == "temperature" and isinstance(word.value, ast.Constant)), None)

    board = next((at for name, call in calls if name == "Lab" and (at := given(call)) is not None), TEMPERATURE)
    found = []
    for name, call in calls:
        if name not in ("generate", "stream", "start") or not call.args:
            continue
        first = call.args[0]
        prompt = first.value if isinstance(first, ast.Constant) else names.get(getattr(first, "id", ""))
        if isinstance(prompt, str):
            at = given(call)
            found.append((prompt, (board if name == "start" else 0.0) if at is None else at))
    return found


def by_commands() -> list[tuple[str, float]]:
    """The same of the commands that the README names, and of the demo."""
    demo, one = (parser().parse_args(words) for words in (["demo"], ["generate", "Once"]))
    return [(PROMPT, demo.temperature), ("Once", one.temperature)]


def by_the_card() -> list[tuple[str, float]]:
    """The same of the model card."""
    return [(prompt, WARMTH) for prompts in PROMPTS.values() for prompt in prompts]


SHOWN = sorted({*by_commands(), *by_the_card(), *(one for code in sources().values() for one in shown(code))})


def test_pages_and_notebooks_show_texts_at_all():
    assert {"README.md", "dashboard.md", "00_welcome.ipynb", "20_your_policy.ipynb"} <= {
        name for name, code in sources().items() if shown(code)}
    assert len(SHOWN) >= 8


@pytest.fixture(scope="module")
def engine():
    with ml.load("pocket", cache="50%") as made:
        yield made


@pytest.mark.parametrize(("prompt", "temperature"), SHOWN)
@pytest.mark.parametrize("routing", ["original", "cache-prior"])
def test_a_text_that_is_shown_does_not_repeat_itself(engine, prompt, temperature, routing):
    engine.routing = routing
    shares = [engine.generate(prompt, max_new_tokens=TOKENS, temperature=temperature, seed=seed,
                              stop_at_end=False).distinct for seed in SEEDS]
    assert mean(shares) > DISTINCT


def test_a_text_in_a_loop_says_so_with_its_figures(engine):
    engine.routing = "original"
    reply = engine.generate("Once", max_new_tokens=60, stop_at_end=False)
    assert reply.distinct < 0.1 and reply.stats.loops and "repeats itself" in repr(reply)
    fresh = engine.generate("Once", max_new_tokens=60, temperature=1.0, stop_at_end=False)
    assert fresh.distinct > DISTINCT and "repeats itself" not in repr(fresh)
    assert engine.score("Once upon a time, and so on").stats.distinct != engine.stats.distinct


def test_what_transformers_generates_is_measured_too(engine):
    import torch

    ids = torch.tensor([engine.tokenizer("Once")["input_ids"]])
    engine.hf.generate(ids, max_new_tokens=60, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert engine.stats.distinct < 0.1
