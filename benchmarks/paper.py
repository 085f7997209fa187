"""The paper reproduced: every claim of arXiv 2412.00099 measured on the pocket model, one command.

    python benchmarks/paper.py                # writes docs/paper.md, docs/paper.json, docs/pictures/paper-*.png
    python benchmarks/paper.py --quick        # a few tokens and settings, to see that every part runs

About half an hour on one core. What is measured is kept by its content in ``work/paper``: an interrupted report goes on
where it was, a repeated one is read (``--fresh`` measures again), and another model or other code is measured anew.
``--again`` measures nothing: verdicts, page and pictures are made from ``paper.json``. With a second core free, run
``--fill prose`` beside it: that measures one world's settings into the same store and writes no page.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from reproduction import accuracy, curves, eviction, floor, head, page, ranks, speed, spread, start, synthetic
from reproduction.bench import FULL, QUICK, Bench, Scale, Values
from tqdm.auto import tqdm

from moe_lab.engine.identity import identity
from moe_lab.evaluation.measure import Setting, made
from moe_lab.pocket.corpus import WORLDS

ROOT = Path(__file__).resolve().parent.parent
SWEPT: dict[str, ModuleType] = {"curves": curves, "ranks": ranks, "head": head, "eviction": eviction, "spread": spread}
"""Topics that need points of a sweep."""


def plan(bench: Bench, world: str) -> list[Setting]:
    """The settings that the topics need of one world, each once."""
    return list(dict.fromkeys(s for topic in SWEPT.values() for s in topic.settings(bench, world)))


def measure(bench: Bench) -> Values:
    """The whole report as plain values."""
    bench.run({world: plan(bench, world) for world in WORLDS})
    report: Values = {"model": _model(bench), "texts": _texts(bench)}
    with tqdm(total=len(SWEPT) + 5, desc="topics", unit="topic") as bar:
        def done(name: str, values: Values) -> None:
            report[name] = values
            bar.set_postfix_str(name, refresh=False)
            bar.update()

        for name, topic in SWEPT.items():
            done(name, topic.measure(bench))
        done("floor", floor.measure(bench))
        done("start", start.measure(bench))
        done("accuracy", accuracy.measure(bench, report["curves"]))
        done("synthetic", synthetic.measure(bench))
        done("speed", speed.measure(bench, report["curves"]))
    report["model"]["digest_after"] = identity(bench.engine).files
    report["made"] = {**made(), "quick": bench.scale.quick, "windows": bench.scale.windows}
    return report


def judge(report: Values) -> Values:
    """The report with the verdicts on its figures."""
    return {**report, "claims": [claim.values() for claim in page.claims(report)],
            "targets": curves.targets(report["curves"])}


def _model(bench: Bench) -> Values:
    spec = bench.engine.spec
    beside = Path(bench.engine.files[0]).parent / "training.json"
    trained: Any = json.loads(beside.read_text())["tokens"] if beside.exists() else None
    return {"name": spec.name, "digest": bench.model_digest, "layers": spec.L, "experts": spec.experts,
            "top_k": spec.top_k, "trained_tokens": trained}


def _texts(bench: Bench) -> Values:
    return {world: {"tokens": len(ids) - 1, "window": bench.scale.window,
                    "perplexity": bench.point(world, bench.setting()).perplexity} for world, ids in bench.ids.items()}


def write(report: Values, folder: Path) -> list[Path]:
    """Page, values and, where there are plotly and a Chromium, pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {"paper.json": json.dumps(report, indent=None, separators=(",", ":")) + "\n",
             "paper.md": page.page(report)}
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    try:
        from reproduction import pictures
    except ImportError as error:
        print(f"no pictures: {error.name} is missing; type: pip install -e '.[dev]'")
        return [folder / name for name in files]
    drawn = pictures.write(pictures.all_of(report), folder / "pictures")
    if not drawn:
        print("no pictures: there is no Chromium; install one, and run this again")
    return [*(folder / name for name in files), *drawn]


def _measured(scale: Scale, store: Path, model: str, fill: str | None) -> Values | None:
    bench = Bench(scale, store, model)
    try:
        if fill is None:
            return measure(bench)
        bench.run({fill: plan(bench, fill)})
        return None
    except KeyboardInterrupt:
        raise SystemExit(f"\nstopped; what was measured lies in {store}: the same command goes on from there") from None
    finally:
        bench.close()


def main(arguments: list[str] | None = None) -> None:
    """Measure, write, say what came out."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a short text and few settings; the figures mean nothing")
    parser.add_argument("--windows", type=int, default=FULL.windows,
                        help="windows of each world (%(default)s); fewer are faster and give wider intervals")
    parser.add_argument("--model", default="pocket", help="a checkpoint of this project's tokenizer (%(default)s)")
    parser.add_argument("--out", type=Path, help="folder of the report (docs; with --quick work/paper/quick)")
    parser.add_argument("--store", type=Path, default=ROOT / "work" / "paper", help="folder of results (%(default)s)")
    parser.add_argument("--again", action="store_true", help="measure nothing: make the page from paper.json")
    parser.add_argument("--fill", choices=WORLDS, help="only measure a world's settings, on another core")
    parser.add_argument("--fresh", action="store_true", help="keep results in a new folder below the store")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (%(default)s)")
    options = parser.parse_args(arguments)
    if not 2 <= options.windows <= FULL.windows:
        parser.error(f"--windows {options.windows}: intervals need 2, and the excerpts are divided for {FULL.windows}")
    torch.set_num_threads(options.threads)
    store = options.store / time.strftime("fresh-%Y%m%d-%H%M%S") if options.fresh else options.store
    out = options.out or (options.store / "quick" if options.quick else ROOT / "docs")
    if options.again:
        report = judge(json.loads((out / "paper.json").read_text(encoding="utf-8")))
    else:
        scale = QUICK if options.quick else dataclasses.replace(FULL, windows=options.windows)
        values = _measured(scale, store, options.model, options.fill)
        if values is None:
            return
        report = judge(values)
    for path in write(report, out):
        print(f"wrote {path}")
    for claim in report["claims"]:
        print(f"  {claim['verdict']:<14} {claim['claim']}: {claim['found']}")


if __name__ == "__main__":
    main()
