"""The terminal: what the commands print, and how they fail."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import moe_lab as ml
from moe_lab.__main__ import SETTINGS, _budget, _price, main, parser

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs one command line, 160 columns wide: exit status, standard output, standard error."""
    monkeypatch.setenv("COLUMNS", "160")

    def command(*words: str) -> tuple[int, str, str]:
        status = main(words)
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return command


def cells(out: str, name: str) -> list[str]:
    """The cells of the row ``name`` of a printed table."""
    (line,) = (line for line in out.splitlines() if re.match(rf"[│┃]\s*{re.escape(name)}\s*[│┃]", line))
    return [cell.strip() for cell in re.split("[│┃]", line)[2:-1]]


def test_demo_shows_three_settings_side_by_side(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moe_lab.__main__.SCORED", 1100)
    status, out, _ = run("demo", "--tokens", "24", "--bandwidth", "50 MB/s")
    assert status == 0
    assert "simulated disk" in out.lower()
    assert out.count("def read_lines(path):") == len(SETTINGS)
    speeds, misses, swapped = cells(out, "tokens/s"), cells(out, "miss rate"), cells(out, "swapped experts")
    perplexities = [float(cell.split()[0]) for cell in cells(out, "perplexity, held-out python")]
    assert len(speeds) == len(misses) == len(swapped) == len(perplexities) == 3
    read_bytes = float(cells(out, "read per token")[1].split()[0]) * 2**20
    assert 0 < float(speeds[1]) <= 1.1 * 50e6 / read_bytes                  # no faster than the disk delivers
    assert float(misses[0].rstrip("%")) < float(misses[2].rstrip("%")) < float(misses[1].rstrip("%"))
    assert swapped[:2] == ["0.0%", "0.0%"]
    assert float(swapped[2].rstrip("%")) > 0
    assert perplexities[0] == pytest.approx(perplexities[1], abs=0.02)      # evicting changes no answer


def test_generate_streams_the_text_and_says_what_it_cost(run: Run) -> None:
    status, out, _ = run("generate", "import os\n", "--tokens", "8", "--cache", "50%")
    assert status == 0
    assert "import os\n" in out
    assert re.search(r"decode .*tokens/s, miss rate", out)


def test_generate_refuses_a_penalty_without_cache_prior(run: Run) -> None:
    status, _, err = run("generate", "x", "--penalty", "0.5")
    assert status == 2
    assert "--routing cache-prior" in err


def test_info_prints_the_shape_of_the_pocket_model(run: Run) -> None:
    status, out, _ = run("info", "pocket")
    assert status == 0
    assert "olmoe" in out
    assert "floor" in out


def test_an_unknown_model_is_one_line_and_status_2(run: Run) -> None:
    status, out, err = run("info", "no/such-model-anywhere")
    assert status == 2
    assert out == ""
    assert err.startswith("moe_lab: ")
    assert "Traceback" not in err


def test_replay_prints_a_row_per_policy_and_size(tmp_path: Path, rng: np.random.Generator, run: Run) -> None:
    ids = np.argsort(rng.random((60, 2, 8)), axis=2)[:, :, :2].astype(np.int32)
    trace = ml.Trace(ids=ids, weights=None, phase=np.ones(60, dtype=np.uint8), experts=8, tokens=None, meta={})
    trace.write(tmp_path / "random.npz")
    words = ("replay", str(tmp_path / "random.npz"), "--eviction", "lru", "fifo", "--cache", "4", "50%", "75%")
    status, out, _ = run(*words)
    assert status == 0
    assert len([line for line in out.splitlines() if re.search(r"\b(lru|fifo)\b", line)]) == 6
    assert "bound hit rate" in out


def test_an_unknown_command_lists_the_known_ones(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parser().parse_args(["dmeo"])
    assert "replay" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "budget"), [("16", 16), ("50%", "50%"), ("6 GiB", "6 GiB")])
def test_a_whole_number_is_a_number_of_slots(text: str, budget: int | str) -> None:
    assert _budget(text) == budget


def test_a_price_is_shown_only_where_there_is_one() -> None:
    assert _price(20.2, 20.0) == "20.20 (+1.00 %)"
    assert _price(19.9, 20.0) == "19.90 (-0.50 %)"
    assert _price(20.0, 20.0) == "20.00"


def test_nothing_of_a_text_is_printed_before_its_first_token_is_there(run: Run,
                                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    stream = ml.Engine.stream

    def told(engine: ml.Engine, *words: object, **options: object) -> Iterator[object]:
        print("a word on compiling")
        yield from stream(engine, *words, **options)        # type: ignore[arg-type]

    monkeypatch.setattr(ml.Engine, "stream", told)
    _, out, _ = run("generate", "def add(", "--cache", "50%", "--tokens", "2")
    assert 0 < out.index("a word on compiling\n") < out.index("def add(")


def test_compile_leaves_nothing_to_compile_for_a_first_run(run: Run) -> None:
    status, _, err = run("compile", "--weights", "bf16")
    assert status == 0
    assert "100%" in err
    script = ("from numba.core import event; import moe_lab as ml\n"
              "with event.install_recorder('numba:compile') as compiled:\n"
              "    for routing in ('original', 'cache-prior'):\n"
              "        engine = ml.load('pocket', cache='50%', routing=routing)\n"
              "        engine.generate('def', max_new_tokens=3)\n"
              "    engine._ahead.join()\n"
              "print(len(compiled.buffer))")
    first = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert (first.stdout, first.stderr) == ("0\n", "")


@pytest.mark.slow
def test_kernels_damaged_on_disk_are_made_anew_and_blame_nobody(tmp_path: Path) -> None:
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}

    def lab(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([sys.executable, "-m", "moe_lab", *words], capture_output=True, text=True,
                              env=environment, check=True)

    lab("compile", "--weights", "bf16")
    kept = [*tmp_path.rglob("*.nbi"), *tmp_path.rglob("*.nbc")]
    for number, file in enumerate(kept):
        file.write_bytes(file.read_bytes()[: (0, 40, -1)[number % 3]])
    damaged = {file: file.read_bytes() for file in kept}
    lab("generate", "def f(", "--cache", "50%", "--tokens", "2")
    lab("compile", "--weights", "bf16")
    assert [file for file in kept if file.read_bytes() == damaged[file]] == []
