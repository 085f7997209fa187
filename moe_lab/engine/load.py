"""``ml.load``: from a name to an engine. Everything cheap is checked before anything long begins."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tqdm.auto import tqdm

from moe_lab.cache import GROUP, ExpertCache, beside_slots, check_memory, slots_for
from moe_lab.engine.core import Core
from moe_lab.engine.engine import Engine
from moe_lab.engine.setup import Setup
from moe_lab.engine.warm import Ahead, for_loading
from moe_lab.errors import SettingError
from moe_lab.eviction import EVICTION, EvictionPolicy
from moe_lab.kernels import crew, instructions
from moe_lab.kernels.formats import FORMATS, Format
from moe_lab.kernels.formats.matrix import CODES
from moe_lab.kernels.residency import LayerState
from moe_lab.models import DTYPES, model_name, open_model, resolve_model, study
from moe_lab.models.quantised import dense_bytes_touched
from moe_lab.policy import check_layers, resolve
from moe_lab.routing import ROUTING, RoutingPolicy
from moe_lab.spec import WeightFormat
from moe_lab.store import Disk, ExpertStore, Readers
from moe_lab.units import format_bytes, seed_number


def load(model: str | os.PathLike[str], *, cache: int | str | None = None, weights: WeightFormat | None = None,
         dense: WeightFormat | None = None,
         routing: str | RoutingPolicy | type[RoutingPolicy] | None = None,
         eviction: str | EvictionPolicy | type[EvictionPolicy] | None = None,
         disk: Disk | None = None, seed: int = 0, setup: str | Path | None = None) -> Engine:
    """Load a mixture-of-experts model whose experts stay on disk.

    Args:
        model: ``"pocket"``, a local folder, or a hub id.
        cache: slots a layer (``16``), ``"25%"`` of the experts, or bytes (``"6 GiB"``), filled as experts are used;
            where all fit they are loaded at once. None keeps everything resident if it fits into the free memory,
            else as much as fits.
        weights: ``"f32"``, ``"bf16"``, or for the experts ``"q8"`` (8.5 bits a weight) or ``"q4"`` (4.5), quantised as
            they are read; by default the checkpoint's own precision.
        dense: the same for attention, shared experts and the head (router, norms and embedding are never quantised);
            by default ``"q8"`` beside quantised experts, else as ``weights``.
        routing: a policy, its class or its name; ``"original"`` unless told.
        eviction: the same; ``"lru"`` unless told.
        disk: ``ml.Disk(bandwidth="200 MB/s")`` slows the readers down, named as simulated everywhere (what is loaded
            before the first token is not slowed).
        seed: the default of sampling and of policies that draw.
        setup: a file written by ``ml.tune``, which gives cache, weights, dense, routing and eviction; what is typed
            beside it goes first.

    Raises:
        CheckpointError: no such model, or one that cannot be read.
        UnsupportedModelError: a model that MoE Lab cannot run.
        BudgetError: a cache under the floor.
        PolicyError: an unknown policy, one that does not compile, or one that does not fit the model's layers.
        SettingError: any other value that cannot be.

    Example:
        >>> import moe_lab as ml
        >>> engine = ml.load("pocket", cache="50%")                         # doctest: +SKIP
    """
    tuned = None if setup is None else Setup.read(setup)
    if tuned is not None:
        routing = tuned.policy("routing", ROUTING) if routing is None else routing
        eviction = tuned.policy("eviction", EVICTION) if eviction is None else eviction
    chosen_routing = resolve("original" if routing is None else routing, ROUTING, "routing")
    chosen_eviction = resolve("lru" if eviction is None else eviction, EVICTION, "eviction")
    if disk is not None and not isinstance(disk, Disk):
        raise SettingError(f"disk={disk!r} is not a disk; type disk=ml.Disk(bandwidth='200 MB/s')")
    seed = seed_number(seed)
    folder, model = resolve_model(model), model_name(model)
    studied = study(folder, model)
    spec = studied.spec
    if tuned is not None:
        tuned.check(spec)
        cache = tuned.cache if cache is None else cache
        weights = tuned.weights if weights is None else weights  # type: ignore[assignment]
        dense = tuned.dense if dense is None else dense  # type: ignore[assignment]
    name = spec.dtype if weights is None else weights
    format = _format(name, "weights")
    part = _format(("q8" if name in CODES else name) if dense is None else dense, "dense").name
    instructions.check()            # refuses what the environment asks for and this processor lacks
    crew.shared()                   # and what MOE_LAB_THREADS asks for and is no number of threads
    for policy in (chosen_routing, chosen_eviction):
        check_layers(policy, spec.L)
    beside = beside_slots(spec, part if part in DTYPES else spec.dtype, GROUP, name)
    slots = slots_for(cache, spec, name, beside)
    check_memory(slots, spec, name, beside)
    if studied.rules is None and chosen_routing.lossy:
        raise SettingError(f"routing={routing!r}: routing policies are off for {model!r}: {spec.routing}")
    if cache is None and slots < spec.experts:
        print(f"moe_lab: {slots} of {spec.experts} experts a layer fit into the free memory "
              f"({format_bytes(spec.L * slots * spec.expert_bytes[name])}); the rest comes from disk", file=sys.stderr)
    ahead = Ahead()
    ahead.add(for_loading(format, part, chosen_routing, chosen_eviction))
    opened = open_model(folder, DTYPES.get(part, DTYPES[spec.dtype]), name=model, studied=studied,
                        quantise=part if part in CODES else None)
    store = ExpertStore(opened.plan, format)
    states = [
        LayerState.new(spec.experts, spec.top_k, slots, chosen_routing, chosen_eviction, layer, seed)
        for layer in range(spec.L)
    ]
    experts = ExpertCache(states, slots, format.slot_bytes(spec.hidden, spec.expert_hidden), spec.experts,
                          Readers(store, disk))
    core = Core(spec, experts, format, part, dense_bytes_touched(opened.hf), opened.rules, opened.activation, disk,
                seed)
    engine = Engine(opened, core, ahead)
    if slots == spec.experts:
        with tqdm(total=spec.L * slots, unit="experts", desc="load", delay=2, leave=False) as bar:
            for loaded in experts.preload():
                bar.update(loaded)
        engine.telemetry.settled()
    return engine


def _format(name: str, what: str) -> Format:
    """The format called ``name``, as typed for ``what``."""
    if name not in FORMATS:
        raise SettingError(f"{what}={name!r} is not a format; type one of {', '.join(map(repr, FORMATS))}")
    return FORMATS[name]
