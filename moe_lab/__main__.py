"""The terminal: ``python -m moe_lab demo | generate | info | replay | compile``.

Knows words on a command line and how to print; every figure comes from the public surface of the
package. Any error is one line on standard error and exit status 2; ``MOE_LAB_TRACEBACK=1`` in the environment
shows its traceback instead (see ``moe_lab.status``).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

import moe_lab as ml
from moe_lab.errors import SettingError
from moe_lab.spec import WeightFormat
from moe_lab.status import ended
from moe_lab.units import format_rate

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from moe_lab.engine import Engine, Score, Stats
    from moe_lab.routing import RoutingPolicy

PROMPT = 'def read_lines(path):\n    """'
BANDWIDTH = "20 MB/s"
FAST = "100 GB/s"
"""The simulated disk's bandwidth while the demo warms up."""
SCORED = 4096
"""Tokens of held-out text that the demo scores per world and setting."""
WORLDS = ("python", "prose")
FORMATS = get_args(WeightFormat)


@dataclass(frozen=True)
class Setting:
    """One column of the demo."""

    name: str
    cache: str
    routing: str


SETTINGS = (
    Setting("all experts resident", "100%", "original"),
    Setting("half, LRU, original", "50%", "original"),
    Setting("half, LRU, Cache-Prior", "50%", "cache-prior"),
)


@dataclass(frozen=True)
class Outcome:
    """What one setting came to: the figures of its writing, and a score per world."""

    setting: Setting
    slots: int
    stats: Stats
    scores: dict[str, Score]


# --------------------------------------------------------------------------------------------- demo


def demo(arguments: argparse.Namespace) -> None:
    """The main job: one model, one prompt, three settings, on a disk slowed to a stated speed."""
    console = _console()
    disk = ml.Disk(bandwidth=arguments.bandwidth)
    slow = disk.bandwidth
    engine = ml.load(arguments.model, cache="100%", disk=disk)
    console.print(f"{engine!r}\n", highlight=False, markup=False)
    texts = {world: _excerpt(engine, ml.pocket.held_out(world), SCORED) for world in WORLDS}
    outcomes = []
    for setting in SETTINGS:
        engine.cache.resize(setting.cache)
        engine.routing = _routing(setting.routing, arguments.penalty)
        engine.cache.reset()
        disk.bandwidth = FAST
        engine.generate(arguments.prompt, max_new_tokens=4, stop_at_end=False)      # warm-up: kernels are compiled,
        for ids in texts.values():                                                  # and the cache is full
            engine.score(ids[:1024], state="live")
        disk.bandwidth = slow
        console.rule(f"{setting.name}  ({disk!r})", align="left")
        stats = _write(console, engine, arguments)
        scores = {world: engine.score(ids) for world, ids in texts.items()}
        outcomes.append(Outcome(setting, engine.cache.slots, stats, scores))
    engine.close()
    console.print(_side_by_side(outcomes, engine, arguments))
    console.print(
        f"Simulated disk at {format_rate(slow)}; the cache was full before the first token, warm-up is not counted. "
        f"Sampled at temperature {arguments.temperature:g}, seed {arguments.seed}. Perplexity: teacher-forced over "
        f"{min(map(len, texts.values())):,} held-out tokens a world, windows of 1,024 from an empty cache.",
        style="dim", highlight=False,
    )


def _write(console: Console, engine: Engine, arguments: argparse.Namespace) -> Stats:
    """Stream one text to the terminal; its figures."""
    console.print(arguments.prompt, style="bold", end="", markup=False, highlight=False)
    steps = engine.stream(arguments.prompt, max_new_tokens=arguments.tokens, temperature=arguments.temperature,
                          seed=arguments.seed, stop_at_end=False)
    for step in steps:
        console.out(step.text, end="", highlight=False)
    stats = engine.stats
    figures = f"{stats.tokens_per_s:.1f} tokens/s, miss rate {stats.miss_rate:.1%}"
    console.print(f"\n\n{figures}\n", style="dim", highlight=False)
    return stats


def _excerpt(engine: Engine, text: str, tokens: int) -> list[int]:
    """The first ``tokens`` ids of a text."""
    if engine.tokenizer is None:
        raise SettingError("the demo writes text, and this checkpoint has no tokenizer; type --model pocket")
    return list(engine.tokenizer(text, verbose=False)["input_ids"][:tokens])


def _routing(name: str, penalty: float | None) -> str | RoutingPolicy:
    """The policy of that name; ``penalty`` is Cache-Prior's alone."""
    return ml.routing.CachePrior(penalty=penalty) if name == "cache-prior" and penalty is not None else name


def _side_by_side(outcomes: Sequence[Outcome], engine: Engine, arguments: argparse.Namespace) -> Table:
    from rich.table import Table

    table = Table(title=f"{engine.spec.name}, {arguments.tokens} tokens on a simulated disk of {arguments.bandwidth}",
                  title_justify="left")
    table.add_column("")
    for outcome in outcomes:
        slots = f"{outcome.slots} of {engine.spec.experts} slots a layer"
        table.add_column(f"{outcome.setting.name}\n{slots}", justify="right")

    def row(name: str, cells: Iterable[str]) -> None:
        table.add_row(name, *cells)

    row("tokens/s", (f"{o.stats.tokens_per_s:.1f}" for o in outcomes))
    row("miss rate", (f"{o.stats.miss_rate:.1%}" for o in outcomes))
    row("read per token", (f"{o.stats.read_bytes_per_token / 2**20:.2f} MiB" for o in outcomes))
    row("swapped experts", (f"{o.stats.swapped_share:.1%}" for o in outcomes))
    row("distinct 4-grams", (f"{o.stats.distinct:.0%}{' (it loops)' * o.stats.loops}" for o in outcomes))
    for world in WORLDS:
        table.add_section()
        first = outcomes[0].scores[world].perplexity
        row(f"perplexity, held-out {world}", (_price(o.scores[world].perplexity, first) for o in outcomes))
        row(f"miss rate, held-out {world}", (f"{o.scores[world].miss_rate:.1%}" for o in outcomes))
    return table


def _price(perplexity: float, reference: float) -> str:
    """A perplexity, and how far it lies above the reference.

    >>> _price(20.2, 20.0), _price(20.0, 20.0)
    ('20.20 (+1.00 %)', '20.00')
    """
    change = perplexity / reference - 1
    return f"{perplexity:.2f}" + (f" ({change:+.2%})".replace("%", " %") if change else "")


# ------------------------------------------------------------------------------------ other commands


def generate(arguments: argparse.Namespace) -> None:
    """Write one text, and say what it cost."""
    if arguments.penalty is not None and arguments.routing != "cache-prior":
        raise SettingError(f"--penalty belongs to Cache-Prior, not to {arguments.routing}; add --routing cache-prior")
    console = _console()
    disk = ml.Disk(bandwidth=arguments.bandwidth) if arguments.bandwidth else None
    engine = ml.load(arguments.model, cache=arguments.cache, weights=arguments.weights,
                     routing=_routing(arguments.routing, arguments.penalty), eviction=arguments.eviction, disk=disk)
    console.print(f"{engine!r}\n", highlight=False, markup=False)
    for step in engine.stream(arguments.prompt, max_new_tokens=arguments.tokens, temperature=arguments.temperature,
                              seed=arguments.seed):
        if step.index == 0:         # not before: until then a word on compiling may stand here
            console.print(arguments.prompt, style="bold", end="", markup=False, highlight=False)
        console.out(step.text, end="", highlight=False)
    console.print(f"\n\n{engine.stats!r}", highlight=False, markup=False)
    engine.close()


def info(arguments: argparse.Namespace) -> None:
    """Layers, experts and bytes of a model; loads no weights."""
    print(repr(ml.info(arguments.model)))


def replay(arguments: argparse.Namespace) -> None:
    """Run a recorded trace through eviction policies and cache sizes."""
    from rich.table import Table

    trace = ml.Trace.read(arguments.trace)
    result = ml.replay(trace, eviction=arguments.eviction, cache=arguments.cache)
    frame = result.to_frame()[["eviction", "cache", "hit_rate", "miss_rate", "bound_hit_rate", "regret"]]
    table = Table(title=repr(trace).splitlines()[0], title_justify="left")
    for column in frame.columns:
        table.add_column(column.replace("_", " "), justify="left" if column == "eviction" else "right")
    for record in frame.itertuples(index=False):
        table.add_row(*(_cell(column, value) for column, value in zip(frame.columns, record, strict=True)))
    _console().print(table)
    for row in result:
        if row.skipped:
            print(f"skipped {row.eviction}, {row.cache} slots: {row.skipped}")


def compile(arguments: argparse.Namespace) -> None:
    """Make the kernels that first runs need, and keep them on disk."""
    from tqdm.auto import tqdm

    from moe_lab.engine.compile import everything

    with tqdm(list(everything(arguments.weights)), desc="compile kernels, once per installation", unit="steps") as bar:
        for step in bar:
            step()


def _cell(column: str, value: Any) -> str:
    """A value of the replay's frame as text: rates in percent."""
    return f"{value:.1%}" if column.endswith("_rate") else f"{value:.2f}" if column == "regret" else str(value)


def _budget(text: str) -> int | str:
    """A cache size as typed: a whole number is a number of slots.

    >>> _budget("16"), _budget("50%")
    (16, '50%')
    """
    return int(text) if text.strip().isdecimal() else text


def _console() -> Console:
    from rich.console import Console

    return Console(soft_wrap=False)


# --------------------------------------------------------------------------------------------- words


def parser() -> argparse.ArgumentParser:
    """The words of the command line."""
    top = argparse.ArgumentParser(prog="python -m moe_lab", description="MoE Lab in the terminal.")
    commands = top.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Any, help: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=help, description=help)
        made.set_defaults(run=run)
        return made

    def sampling(made: argparse.ArgumentParser, tokens: int, temperature: float) -> None:
        made.add_argument("--tokens", type=int, default=tokens, help="how many to write (default %(default)s)")
        made.add_argument("--temperature", type=float, default=temperature, help="0 is greedy (default %(default)s)")
        made.add_argument("--seed", type=int, default=0, help="of the sampling (default %(default)s)")
        made.add_argument("--penalty", type=float, help="Cache-Prior's, 0 to 1 (default: the policy's own)")

    made = command("demo", demo, "One model writes under three settings on a slowed disk, side by side.")
    made.add_argument("--model", default="pocket", help="pocket, a folder or a hub id (default %(default)s)")
    made.add_argument("--bandwidth", default=BANDWIDTH, help="of the simulated disk (default %(default)r)")
    made.add_argument("--prompt", default=PROMPT)
    sampling(made, 200, 1.0)

    made = command("generate", generate, "Write one text, and say what it cost.")
    made.add_argument("prompt")
    made.add_argument("--model", default="pocket", help="pocket, a folder or a hub id (default %(default)s)")
    made.add_argument("--cache", type=_budget,
                      help="slots a layer (16), a share (50%%) or bytes ('6 GiB'); default: what fits")
    made.add_argument("--weights", help="f32 or bf16 (default: the checkpoint's own)")
    made.add_argument("--routing", default="original", help="a routing policy's name (default %(default)s)")
    made.add_argument("--eviction", default="lru", help="an eviction policy's name (default %(default)s)")
    made.add_argument("--bandwidth", help="slow the disk down, as in '200 MB/s'; default: the real disk")
    sampling(made, 128, 1.0)

    made = command("info", info, "Layers, experts and bytes of a model; loads no weights.")
    made.add_argument("model", help="pocket, a folder or a hub id")

    made = command("replay", replay, "Run a recorded trace through eviction policies and cache sizes; needs no model.")
    made.add_argument("trace", help="a .jsonl or .npz file")
    made.add_argument("--eviction", nargs="+", default=["lru", "fifo", "lfu", "aged-lfu"], help="policies' names")
    made.add_argument("--cache", nargs="+", type=_budget, default=["25%", "50%", "75%"],
                      help="slots a layer (16) or shares (50%%)")

    made = command("compile", compile, "Compile now what first runs would wait for; the kernels are kept on disk.")
    made.add_argument("--weights", nargs="+", default=FORMATS, choices=FORMATS, metavar="FORMAT",
                      help=f"of {', '.join(FORMATS)} (default: all)")
    return top


def main(words: Sequence[str] | None = None) -> int:
    """Run a command line; the exit status."""
    def run() -> None:
        arguments = parser().parse_args(words)
        arguments.run(arguments)

    return ended(run)


if __name__ == "__main__":
    sys.exit(main())
