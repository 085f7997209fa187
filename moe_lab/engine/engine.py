"""The engine: a Hugging Face model whose experts come from disk into a bounded cache.

Ties the parts together and is what users hold. What one layer does stands in ``moe_block``, the decode loop
in ``stream``, scoring in ``score``, what goes on around a forward call in ``passes``, what is told of it all in
``report``; here are the knobs, who may turn them when, and the runs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, Self

import numpy as np
from tqdm.auto import tqdm

from moe_lab.cache import Held
from moe_lab.engine import explain as explanation
from moe_lab.engine import passes, report
from moe_lab.engine import score as scoring
from moe_lab.engine import stream as decoding
from moe_lab.engine.applied import Applied, actor
from moe_lab.engine.cache import Cache
from moe_lab.engine.core import Core
from moe_lab.engine.lean import LeanDecode, check_past
from moe_lab.engine.ranking import Ranking
from moe_lab.engine.records import Reply, Score, Stats, Step
from moe_lab.engine.sampling import Sampler, Sampling
from moe_lab.engine.telemetry import Telemetry
from moe_lab.engine.text import stop_strings, to_ids, window_of
from moe_lab.engine.warm import Ahead, for_tokens
from moe_lab.errors import SettingError
from moe_lab.eviction import EVICTION, EvictionPolicy
from moe_lab.kernels.formats import Format
from moe_lab.models import StreamedModel, empty_weights
from moe_lab.models.decoder import Decoder, read_decoder
from moe_lab.policy import check_layers, resolve
from moe_lab.routing import ROUTING, RoutingPolicy
from moe_lab.spec import ModelSpec
from moe_lab.store import Disk
from moe_lab.trace import Trace
from moe_lab.units import whole_number


class Engine:
    """A streamed mixture-of-experts model. Made by ``ml.load``.

    >>> import moe_lab as ml
    >>> engine = ml.load("pocket", cache="50%", routing="cache-prior")      # doctest: +SKIP
    >>> for step in engine.stream("def fibonacci(n):", max_new_tokens=50, temperature=1.0):  # doctest: +SKIP
    ...     print(step.text, end="")
    """

    def __init__(self, model: StreamedModel, core: Core, ahead: Ahead) -> None:
        self.hf: Any = model.hf
        self.tokenizer: Any = model.tokenizer
        self.seed = core.seed
        self._core = core
        self.new_past, self._places = model.new_past, model.blocks
        model.connect(core.blocks, passes.Watch(core))
        self._ahead = ahead
        ahead.add(for_tokens(self))

    # --- what it is -----------------------------------------------------------------------------------

    @property
    def spec(self) -> ModelSpec:
        """Layers, experts and sizes of the model."""
        return self._core.spec

    @property
    def format(self) -> Format:
        """How an expert lies in a slot."""
        return self._core.format

    @property
    def dense(self) -> str:
        """The format of the dense part."""
        return self._core.dense

    @property
    def telemetry(self) -> Telemetry:
        """What is counted, token by token: ``telemetry.snapshot()``."""
        return self._core.telemetry

    # --- knobs ----------------------------------------------------------------------------------------

    @property
    def routing(self) -> RoutingPolicy:
        """The routing policy; set an instance, a class or a name, in force at the next token.

        A parameter may be a list, one number for each MoE layer, or an ``ml.Schedule`` over the tokens that a layer has
        seen since the engine was loaded (in a score or a sweep: since it began); emptying the cache sets none back.
        """
        return self._core.routing

    @routing.setter
    def routing(self, policy: RoutingPolicy | type[RoutingPolicy] | str) -> None:
        chosen = resolve(policy, ROUTING, "routing")
        check_layers(chosen, self.spec.L)
        if not self.routes and chosen.lossy:
            raise SettingError(f"routing policies are off for this model: {self.spec.routing}")
        core = self._core
        core.change("routing", chosen, lambda: core.routing, lambda: core.set_routing(chosen))

    @property
    def eviction(self) -> EvictionPolicy:
        """The eviction policy; set an instance, a class or a name, in force at the next token. Parameters as in
        ``routing``."""
        return self._core.eviction

    @eviction.setter
    def eviction(self, policy: EvictionPolicy | type[EvictionPolicy] | str) -> None:
        chosen = resolve(policy, EVICTION, "eviction")
        check_layers(chosen, self.spec.L)
        core = self._core
        core.change("eviction", chosen, lambda: core.eviction, lambda: core.set_eviction(chosen))

    @property
    def sampling(self) -> Sampling | None:
        """How ``stream`` draws tokens in the run in progress, or drew them in the last one; None before the first.

        Set an ``ml.Sampling`` to draw by it from the next token of the run in progress on; only another seed starts
        the random numbers afresh. With no run in progress it is checked and does nothing: a run begins, at its first
        token, with the options of its own call. ``engine.hf.generate`` has its own and is not meant here.
        """
        return self._core.sampling

    @sampling.setter
    def sampling(self, sampling: Sampling) -> None:
        if not isinstance(sampling, Sampling):
            raise SettingError(f"engine.sampling = {sampling!r} is not a sampling; type "
                               "engine.sampling = ml.Sampling(temperature=0.8), or ml.Sampling() for greedy")

        core = self._core
        core.change("sampling", sampling, lambda: core.sampling, lambda: core.set_sampling(sampling))

    @property
    def cache(self) -> Cache:
        """The cache: ``slots``, ``resident``, ``resize(...)``, ``reset()``."""
        return Cache(self._core)

    @property
    def disk(self) -> Disk | None:
        """The simulated disk, or None for the real one."""
        return self._core.disk

    @property
    def applied(self) -> tuple[Applied, ...]:
        """What was changed on this engine, by whom, and from which token on: the newest 64 changes, oldest first.

        Any thread may read it at any time; snapshots hold it too (``engine.telemetry.snapshot().applied``).
        """
        self._core.notice_disk()
        return self._core.log.entries

    @property
    def exact(self) -> bool:
        """Original routing in the checkpoint's own precision: nothing alters the model's answers."""
        return self._core.exact

    @property
    def precision(self) -> str:
        """The formats of the experts and, where it is another, of the dense part: ``"q4, dense q8"``."""
        return self._core.precision

    @property
    def routes(self) -> bool:
        """Whether routing policies work on this model; ``spec.routing`` says why where they do not."""
        return self._core.blocks.rules is not None

    @property
    def files(self) -> tuple[str, ...]:
        """The checkpoint's weight files."""
        return tuple(str(path) for path in self._core.experts.readers.store.plan.files)

    @property
    def miss_bytes(self) -> int:
        """Bytes that one miss reads from the files, whatever an expert takes in a slot."""
        return self._core.experts.readers.store.plan.expert_bytes

    def disk_rate(self, reads: int = 32) -> float:
        """Bytes a second of the simulated disk, or as ``reads`` experts come from the real one (from the page cache,
        where the files lie there)."""
        self._core.check_open()
        if self.disk is not None:
            return self.disk.bandwidth
        cache, spec = self._core.experts, self.spec
        slot = np.empty(cache.slot_bytes, dtype=np.uint8)
        draw = np.random.default_rng(self.seed)
        loads = [cache.readers.load(int(draw.integers(spec.L)), [(int(draw.integers(spec.experts)), slot)])
                 for _ in range(reads)]
        return sum(size for size, _ in loads) / max(1e-9, sum(wait for _, wait in loads))

    @property
    def busy(self) -> bool:
        """Whether somebody generates (a stream that nobody has asked for a token for seconds counts no more)."""
        return self._core.owner.busy

    @property
    def vocabulary(self) -> int:
        """Rows of the embedding: token ids go from 0 to one less."""
        self._core.check_open()
        return int(self.hf.get_input_embeddings().weight.shape[0])

    @property
    def end_ids(self) -> frozenset[int]:
        """Ids that end a text."""
        end = getattr(self.hf.generation_config, "eos_token_id", None)
        return frozenset() if end is None else frozenset([end] if isinstance(end, int) else end)

    # --- runs -----------------------------------------------------------------------------------------

    def stream(self, prompt: str | Sequence[int], *, max_new_tokens: int = 128, temperature: float = 0.0,
               top_k: int | None = None, top_p: float | None = None, repetition_penalty: float = 1.0,
               seed: int | None = None, stop: str | Sequence[str] | None = None,
               stop_at_end: bool = True) -> Iterator[Step]:
        """Generate token by token: an iterator of ``Step``.

        ``prompt`` is a string or token ids. Greedy unless ``temperature`` is above 0. ``stop`` ends the text
        before the first of its strings. The loop may be left at any point; the engine stays usable.
        Beams and assistants are the business of ``engine.hf.generate``.
        """
        tokens = whole_number(max_new_tokens)
        if tokens is None or tokens < 1:
            raise SettingError(f"max_new_tokens={max_new_tokens!r} must be a number of tokens, 1 or more")
        ids = to_ids(prompt, self.tokenizer, self.vocabulary, "prompt")
        if len(ids) >= self.spec.context:
            raise SettingError(f"the prompt has {len(ids):,} tokens and this model reads at most "
                               f"{self.spec.context:,}, the new ones included; shorten it")
        check_past(len(ids), 2 * len(ids) * self.spec.past_bytes)       # transformers' own, and the kernels'
        sampling = Sampling(temperature, top_k, top_p, repetition_penalty, self.seed if seed is None else seed)
        return self._stream(ids, tokens, sampling, stop_strings(stop, self.tokenizer), stop_at_end, actor())

    def _stream(self, ids: list[int], max_new_tokens: int, sampling: Sampling, stops: tuple[str, ...],
                stop_at_end: bool, by: str) -> Iterator[Step]:
        core, sampler = self._core, Sampler(sampling)
        core.check_open()
        claim = core.owner.take_stream()
        try:
            core.begin_run(sampler, by)
            steps = decoding.decode(self, ids, max_new_tokens, sampler, stops, stop_at_end)
            for step in self._ahead.announced(steps):
                core.owner.rest(claim)
                yield step
                if not core.owner.go_on(claim):
                    return
        finally:
            core.end_run(sampler)
            core.owner.drop(claim)

    def stop(self) -> bool:
        """End the stream in progress, whichever thread or dashboard began it: after its present token, or at once where
        nobody is asking it for one. Returns whether there was one. (A score, a sweep and ``engine.hf.generate`` end by
        interrupting them.)"""
        return self._core.owner.stop()

    def generate(self, prompt: str | Sequence[int], **options: Any) -> Reply:
        """Generate to the end; takes the options of ``stream`` and returns a ``Reply``."""
        known = inspect.signature(self.stream).parameters
        if unknown := [name for name in options if name not in known]:
            raise SettingError(f"generate() does not take {', '.join(unknown)}; it takes {', '.join(list(known)[1:])}. "
                               "For beams, assistants and the rest use engine.hf.generate")
        pieces: list[str] = []
        ids: list[int] = []
        finish = ""
        total = options.get("max_new_tokens", 128)
        steps = self.stream(prompt, **options)
        for step in tqdm(steps, total=total, unit="tokens", desc="generate", delay=2, leave=False):
            pieces.append(step.text)
            ids += step.ids
            finish = step.finish
        return Reply("".join(pieces), tuple(ids), self.stats, self.trace, finish)

    def score(self, text: str | Sequence[int], *, window: int | None = None,
              state: Literal["fresh", "live"] = "fresh") -> Score:
        """Perplexity of ``text`` under the present routing, teacher-forced in windows of ``window`` tokens
        (1,024, or the model's context where that is shorter).

        ``state="fresh"``: a residency of its own, empty at each window (the running range of Cache-Prior
        persists); the live slots stay untouched, and reads are counted but not slowed. ``"live"`` goes on
        from the present residents and moves them. Source: PAPER section 4, the paper's protocol.
        """
        if state not in ("fresh", "live"):
            raise SettingError(f"state={state!r} is neither 'fresh' nor 'live'")
        ids = to_ids(text, self.tokenizer, self.vocabulary, "text")
        if len(ids) < 2:
            raise SettingError("a score needs two tokens at least: the first is only read")
        window = window_of(window, self.spec.context)
        with self._ahead.awaited():
            if state == "live":
                self._core.check_open()
                with self._core.owner.held(run=True):
                    self._core.begin_run()
                    return scoring.evaluate(self, ids, window, self.telemetry.recorder, fresh=False)
            with self.fresh_state() as telemetry:
                return scoring.evaluate(self, ids, window, telemetry.recorder, fresh=True)

    def explain(self, step: Step | None = None) -> list[str]:
        """Sentences on what happened at ``step`` (by default the last token): swaps, reads, evictions."""
        if not isinstance(step, Step | None):
            raise SettingError(f"explain({step!r}): type engine.explain(step) with a step of engine.stream(...), or "
                               "engine.explain() for the last token")
        t = self.telemetry
        if not t.token:
            return ["nothing has been generated yet"]
        position = t.token - 1 if step is None else step.position
        return explanation.sentences(t.ring, position, t.token, self.spec.top_k,
                                     self.miss_bytes, self.spec.layers)

    def ranking(self, layer: int) -> Ranking | None:
        """Where the experts of MoE layer ``layer`` (0 to L - 1) stood at the last token: a ``Ranking`` of places before
        and after the routing policy. None before the first token.

        Safe from any thread while another generates. Where routing policies are off (``engine.routes``) the model's
        logits are not known: before is as after, and only the chosen have a place.
        """
        number = whole_number(layer)
        if number is None or not 0 <= number < self.spec.L:
            raise SettingError(f"layer={layer!r} is no MoE layer of this model; type one from 0 to {self.spec.L - 1}")
        return self.telemetry.ranking(number)

    def close(self) -> None:
        """Give everything back at once: slots, dense weights, threads, files. The engine cannot be used afterwards;
        what was recorded stays. ``with ml.load(...) as engine:`` closes at the end of the block.

        Raises ``BusyError`` while another thread generates (``engine.stop()`` ends a stream).
        """
        self._core.close()
        self._ahead.stop()
        empty_weights(self.hf)

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._core.closed

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # --- decoding --------------------------------------------------------------------------------------

    @property
    def decoding(self) -> str:
        """What ``stream`` runs the tokens after the prompt with: ``"kernels"``, or transformers' modules and why."""
        found = self._decoder()
        return f"transformers' modules: {found}" if isinstance(found, str) else "kernels"

    def lean_decode(self, past: Any, room: int) -> LeanDecode | None:
        """Kernels that go on with the text in ``past`` up to ``room`` tokens; None where they do not know the model."""
        found = self._decoder()
        return None if isinstance(found, str) else LeanDecode(found, self._core.blocks, past, room)

    def decoding_kernels(self) -> list[Callable[[], object]]:
        """What compiles the kernels of ``lean_decode``, where there are any; it holds nothing of the engine."""
        lean = self.lean_decode(self.new_past(), 1)
        return [] if lean is None else lean.compiling()

    def _decoder(self) -> Decoder | str:
        """The dense part as it is now (a hook may have come, a module may have gone)."""
        return read_decoder(self.hf, self._places) if self.routes else "the model routes by itself"

    # --- reports --------------------------------------------------------------------------------------

    @property
    def stats(self) -> Stats:
        """Figures of the last run (the present one, while it runs)."""
        return report.stats_of(self, self.telemetry.recorder)

    @property
    def trace(self) -> Trace:
        """Routes of the last run."""
        return report.trace_of(self, self.telemetry.recorder)

    @property
    def setting(self) -> str:
        """Routing, eviction, slots, formats and disk in words."""
        return self._core.setting

    def __repr__(self) -> str:
        return report.words(self)

    # --- passes ---------------------------------------------------------------------------------------

    def one_pass(self, rows: int, length: int, cached: bool) -> AbstractContextManager[None]:
        """Own the engine for one pass over ``rows`` x ``length`` tokens (``cached``: earlier ones are remembered)."""
        return passes.one_pass(self._core, rows, length, cached)

    def fresh_state(self, routing: RoutingPolicy | None = None, eviction: EvictionPolicy | None = None,
                    slots: int | None = None, held: Held | None = None) -> AbstractContextManager[Telemetry]:
        """Residency, policy state and telemetry of its own, for a score or a sweep; the live slots stay as they are.

        Policies and slots are the engine's where none are given. ``held`` keeps the experts that passes read.
        The engine is owned meanwhile; one may stand inside another.
        """
        core = self._core
        return passes.fresh_state(core, routing or core.routing, eviction or core.eviction, slots or core.experts.slots,
                                  held)

    def reset_residents(self) -> None:
        """Empty the residency in force (a score's own, at each window)."""
        for state in self._core.experts.states:
            state.reset()
