"""The report on the paper: one command makes it, an interrupted one goes on, and every verdict follows from figures.

A tiny random model stands in for the pocket model: every part runs, no figure means anything.
"""

from __future__ import annotations

import copy
import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import moe_lab as ml
from moe_lab.pocket.corpus import WORLDS

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def paper() -> Iterator:
    sys.path.insert(0, str(BENCHMARKS))
    import paper

    yield paper
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def tiny(checkpoint) -> str:
    folder = checkpoint("olmoe", vocab_size=4096)
    for path in ml.pocket.folder().glob("tokenizer*"):
        shutil.copy(path, folder)
    return str(folder)


@pytest.fixture(scope="module")
def made(paper, tiny, tmp_path_factory) -> Path:
    """A folder with the results (``store``) and the report (``out``) of a quick run without pictures.

    One world's settings were measured beforehand, as on another core.
    """
    folder = tmp_path_factory.mktemp("paper")
    arguments = ["--quick", "--model", tiny, "--store", str(folder / "store"), "--out", str(folder / "out")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shutil, "which", lambda _: None)
        paper.main([*arguments, "--fill", "prose"])
        assert not (folder / "out").exists()
        filled = _results(folder / "store")
        paper.main(arguments)
    assert len(filled) > 10
    assert all(path.stat().st_mtime_ns == when for path, when in filled.items())
    return folder


def _results(store: Path) -> dict[Path, int]:
    """The files of a store and when each was written."""
    return {path: path.stat().st_mtime_ns for path in store.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def report(made):
    return json.loads((made / "out" / "paper.json").read_text())


def test_one_command_writes_the_page_and_the_values(made, report):
    page = (made / "out" / "paper.md").read_text()
    assert "Made with `--quick`" in page and report["made"]["quick"] is True
    for heading in ("Verdicts", "targets", "Perplexity against misses", "Lifetimes", "Sensitivity by rank", ": J",
                    "Accuracy", "Speed on a simulated disk", "Eviction", "The initial state", "The range D",
                    "Transfer of the penalty", "The floor", "Without a model"):
        assert re.search(rf"^## .*{heading}", page, re.MULTILINE), heading
    assert not re.search(r"\bnan\b|None|\binf\b", page)
    for claim in report["claims"]:
        assert claim["claim"] in page and claim["why"] and claim["test"]
    sources = {claim["source"] for claim in report["claims"]}
    assert sources >= {"section 1", "section 2", "section 4", "section 4, ablation", "section 6"}


def test_a_repeated_report_is_read_and_says_the_same(paper, made, report, tiny, monkeypatch):
    from moe_lab.engine.score import windows

    passes = []

    def counted(*args, **kwargs):
        passes.append(1)
        return windows(*args, **kwargs)

    for name in ("moe_lab.evaluation.measure", "moe_lab.engine.score", "reproduction.accuracy"):
        monkeypatch.setattr(sys.modules[name], "windows", counted)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    paper.main(["--quick", "--model", tiny, "--store", str(made / "store"), "--out", str(made / "again")])
    again = json.loads((made / "again" / "paper.json").read_text())
    assert not passes
    assert {k: v for k, v in again.items() if k != "made"} == {k: v for k, v in report.items() if k != "made"}


def test_a_page_is_made_again_from_its_values_alone(paper, made, monkeypatch):
    before = (made / "out" / "paper.md").read_text()
    (made / "out" / "paper.md").unlink()
    monkeypatch.setattr(paper, "Bench", None)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    paper.main(["--again", "--out", str(made / "out")])
    assert (made / "out" / "paper.md").read_text() == before


def test_an_interrupted_report_keeps_what_was_measured_and_says_how_to_go_on(paper, tiny, tmp_path, monkeypatch):
    from reproduction import bench

    measured, extend = [], bench.Bench.run

    def cut(self, plan):
        measured.append(1)
        extend(self, {world: settings[:2] for world, settings in plan.items()})
        raise KeyboardInterrupt

    monkeypatch.setattr(bench.Bench, "run", cut)
    with pytest.raises(SystemExit, match="the same command goes on from there"):
        paper.main(["--quick", "--model", tiny, "--store", str(tmp_path / "store"), "--out", str(tmp_path / "out")])
    assert len(list((tmp_path / "store").rglob("*.json"))) >= 4 and not (tmp_path / "out").exists()


def test_no_module_of_the_report_types_a_figure_into_its_words():
    """Thresholds have names; the paper's own claims are quoted. Any other number in a section's text is a suspect."""
    allowed = re.compile(r"arXiv 2412.00099|2412\.00099|95 %|float32|section \d|rank 3|J = [12]|J [12]|penalty 1\b|"
                         r"1 - C / E|0\.1 to 3 %|0\.1 %|about 0\.8|2 x|\bto 1\b|after 64 tokens|lacks to 1|paper\.json")
    for path in sorted((BENCHMARKS / "reproduction").glob("*.py")):
        for text in re.findall(r'return f?"""(.*?)"""', path.read_text(), re.DOTALL):
            bare = allowed.sub("", re.sub(r"\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}", "", text))
            assert not re.search(r"(?<![A-Za-z_\-])\d", bare), f"{path.name}: {bare}"


def test_verdicts_follow_the_figures(paper, report):
    def verdicts(changed):
        return {claim["claim"]: claim["verdict"] for claim in paper.judge(changed)["claims"]}

    good, bad = copy.deepcopy(report), copy.deepcopy(report)
    for values, misses, increase in ((good, 0.01, 0.001), (bad, 0.9, 0.001)):
        for row in values["curves"]["points"]:
            if row["rule"] == "cache-prior":
                row.update(miss_rate=misses, increase=increase, swapped_share=0.5)
    for claim in ("misses fall by more than half", "misses fall below Belady's optimum for the fixed routing"):
        assert (verdicts(good)[claim], verdicts(bad)[claim]) == ("holds", "does not hold")
    for row in good["curves"]["points"]:
        if row["rule"] == "cache-prior" and row["world"] == WORLDS[0]:
            row["miss_rate"] = 0.9
    assert verdicts(good)["misses fall by more than half"] == "holds in part"
    tampered = copy.deepcopy(report)
    tampered["model"]["digest_after"] = "another"
    assert verdicts(tampered)["it needs no training"] == "does not hold"


def test_the_best_of_a_size_keeps_to_what_is_allowed_and_the_rest_have_more_misses(paper, report):
    from reproduction import curves

    values = report["curves"]
    for slots in values["sizes"]:
        for world in WORLDS:
            rows = [r for r in values["points"] if (r["world"], r["slots"]) == (world, slots)]
            limit = sorted(r["increase"] for r in rows if r["rule"] != "original")[0]
            found = curves.best(values, world, slots, allowed=max(limit, 0.5))
            assert found is not None and found["rule"] != "original"
            assert all(r["miss_rate"] >= found["miss_rate"] for r in rows
                       if r["increase"] <= max(limit, 0.5) and r["rule"] != "original")


def test_a_rank_left_out_or_exchanged_is_the_only_one_that_changes(paper, rng):
    from layers import new_layer, random_logits, softmax
    from reproduction import ranks

    from moe_lab.kernels.walk import walk
    from moe_lab.testing import check_policy

    logits = random_logits(rng, 50, 16)
    for place in (0, 2, 3):
        dropped = walk(new_layer(16, 4, 8, ranks.without(place=place)), logits, softmax(logits))
        assert (np.sort(dropped.rank, 1) == [-1, *(r for r in range(4) if r != place)]).all()
        swapped = walk(new_layer(16, 4, 8, ranks.exchanged(place=place)), logits, softmax(logits))
        kept = np.sort(swapped.rank, 1)
        assert (kept[:, :3] == [r for r in range(4) if r != place]).all()
        assert (kept[:, 3] >= 4).all() and len(set(kept[:, 3])) > 6
    check_policy(ranks.exchanged)
    check_policy(ranks.without)


def test_a_measured_range_is_cache_prior_with_that_number(paper, rng):
    from layers import new_layer, random_logits, softmax
    from reproduction import spread

    from moe_lab.kernels.walk import walk

    logits, table = random_logits(rng, 200, 16), np.arange(spread.MOST_LAYERS, dtype=np.float64)
    theirs = ml.routing.CachePrior(penalty=0.3, keep_top=1, logit_range=3)
    ids = [walk(new_layer(16, 4, 8, policy, layer=3), logits, softmax(logits)).ids
           for policy in (spread.measured(penalty=0.3, ranges=table), theirs)]
    assert (ids[0] == ids[1]).all()


def test_the_quick_pictures_are_drawn(paper, report, tmp_path):
    pictures = pytest.importorskip("reproduction.pictures")
    figures = pictures.all_of(report)
    assert set(figures) == {"curves", "penalty", "ranks", "speed"}
    assert {trace.name for trace in figures["curves"].data} >= {"original, LRU", "cache-prior", "max-rank"}


@pytest.mark.browser
def test_pictures_are_small_pngs(paper, report, tmp_path):
    pictures = pytest.importorskip("reproduction.pictures")
    written = pictures.write({"ranks": pictures.ranks_figure(report["ranks"])}, tmp_path)
    if not written:
        pytest.skip("there is no Chromium here")
    assert written[0].read_bytes().startswith(b"\x89PNG") and 2_000 < written[0].stat().st_size < 60_000


def test_a_report_on_fewer_windows_says_so_and_one_window_is_refused(paper, report, capsys):
    from reproduction import page

    short = {**report, "made": {**report["made"], "quick": False, "windows": 3}}
    assert "Made with `--windows 3`" in page.page(short) and "--quick" not in page.page(short)
    whole = page.page({**short, "made": {**short["made"], "windows": 12}})
    assert "Made with `--" not in whole
    with pytest.raises(SystemExit):
        paper.main(["--windows", "1"])
    assert "intervals need 2" in capsys.readouterr().err
