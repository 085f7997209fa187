"""An engine in words, and the records of its runs.

Knows what is told of a setting and where its figures stand. Changes nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from moe_lab.engine.recorder import Recorder
from moe_lab.engine.records import Stats
from moe_lab.kernels import crew
from moe_lab.trace import Trace
from moe_lab.units import format_bytes

if TYPE_CHECKING:
    from moe_lab.engine.engine import Engine


def words(engine: Engine) -> str:
    """The engine as it prints itself."""
    spec, size = engine.spec, engine.spec.expert_bytes[engine.format.name]
    if engine.closed:
        return f"{spec.name}: {spec.family}, closed; load it again: ml.load(...)"
    return (
        f"{spec.name}: {spec.family}, {spec.L} MoE layers x {spec.experts} experts, top-{spec.top_k}, "
        f"{engine.precision}\n"
        f"  cache     {engine.cache!r}; an expert has {format_bytes(size)}, the floor is "
        f"{format_bytes(spec.floor_bytes(engine.format.name))}\n"
        f"  routing   {engine.routing!r}: {'exact' if engine.exact else 'lossy'}\n"
        f"  eviction  {engine.eviction!r}\n"
        f"  disk      {_disk(engine)}\n"
        f"  decode    {engine.decoding}\n"
        f"  kernels   {_kernels(engine)}"
    )


def stats_of(engine: Engine, recorder: Recorder) -> Stats:
    """Figures of the run that ``recorder`` kept."""
    prefill, decode = recorder.phases
    exact = recorder.exact if recorder.settings else engine.exact
    return Stats(prefill, decode, exact, engine.disk is not None, _setting(engine, recorder), recorder.digest(),
                 recorder.distinct)


def trace_of(engine: Engine, recorder: Recorder) -> Trace:
    """Routes of the run that ``recorder`` kept."""
    ids, gates, phase = recorder.arrays()
    return Trace(ids=ids, weights=gates, phase=phase, experts=engine.spec.experts, tokens=None,
                 meta={"model": engine.spec.name, "setting": _setting(engine, recorder)})


def _setting(engine: Engine, recorder: Recorder) -> str:
    """What a run was under: the last of its settings, and how often it was changed."""
    ran = recorder.settings or [engine.setting]
    changes = len(ran) - 1
    return ran[-1] + (f" (changed {changes} time{'s' if changes > 1 else ''} on the way)" if changes else "")


def _kernels(engine: Engine) -> str:
    """The experts' path of instructions and the threads of a token."""
    spec, format = engine.spec, engine.format
    path = "plain loops" if format.path == "portable" else format.path
    small = spec.top_k * spec.expert_bytes[format.name] < crew.SMALL
    threads = 1 if small else crew.shared().threads
    return f"{path}, {threads} {'thread' if threads == 1 else 'threads'}{' (the experts are small)' if small else ''}"


def _disk(engine: Engine) -> str:
    return repr(engine.disk) if engine.disk is not None else "real disk"
