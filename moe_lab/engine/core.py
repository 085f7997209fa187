"""What a streamed model runs on: slots, policies, passes, the record; and the knobs of these.

Knows no transformers model and no text. So the model may hold it, and an engine holds both, without a circle: an
engine that nobody needs any more gives its memory back at once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch

from moe_lab.cache import ExpertCache, check_memory
from moe_lab.engine.applied import ChangeLog, acting_name, actor
from moe_lab.engine.moe_block import MoEBlocks
from moe_lab.engine.owner import Owner
from moe_lab.engine.recorder import NOTHING
from moe_lab.engine.sampling import Sampler, Sampling
from moe_lab.engine.telemetry import Facts, Telemetry
from moe_lab.errors import SettingError
from moe_lab.eviction import EvictionPolicy
from moe_lab.forks import renew_in_child
from moe_lab.interrupts import uninterrupted
from moe_lab.kernels.formats import Format
from moe_lab.models import RouterRule
from moe_lab.routing import RoutingPolicy
from moe_lab.spec import ModelSpec
from moe_lab.store import Disk


class Core:
    """Slots, policies and telemetry of one engine, who uses them, and what was changed on them.

    ``dense`` is the format of the dense part, ``dense_bytes`` what one token reads of it.
    """

    def __init__(self, spec: ModelSpec, experts: ExpertCache, format: Format, dense: str, dense_bytes: int,
                 rules: list[RouterRule] | None, activation: str, disk: Disk | None, seed: int) -> None:
        self.spec, self.experts, self.format, self.dense = spec, experts, format, dense
        self.dense_bytes, self.disk, self.seed = dense_bytes, disk, seed
        self.routing: RoutingPolicy = experts.states[0].routing
        self.eviction: EvictionPolicy = experts.states[0].eviction
        self.sampling: Sampling | None = None
        self.sampler: Sampler | None = None
        self.owner = Owner()
        self.log = ChangeLog()
        self.telemetry = Telemetry(experts.states)
        self.blocks = MoEBlocks(experts, format, rules, self.telemetry, spec.hidden, spec.expert_hidden, activation)
        self.last_pass = NOTHING, 0
        """Counts of the last pass, and the weight bytes that it touched."""
        self.cut_off = False
        """Whether a pass of the live state has begun and not come to its end: map and residency may disagree."""
        self.closed = False
        self._bandwidth = disk.bandwidth if disk is not None else 0.0
        self.tell()
        renew_in_child(self)

    def after_fork(self) -> None:
        """In a child: torch's OpenMP threads are the parent's, and a product that asks for them would wait for ever."""
        torch.set_num_threads(1)

    # --- what is in force -----------------------------------------------------------------------------

    @property
    def exact(self) -> bool:
        """Original routing in the checkpoint's own precision."""
        return not self.routing.lossy and self.format.name == self.dense == self.spec.dtype

    @property
    def precision(self) -> str:
        """The formats of the experts and, where it is another, of the dense part."""
        return self.format.name if self.dense == self.format.name else f"{self.format.name}, dense {self.dense}"

    @property
    def setting(self) -> str:
        """Routing, eviction, slots, formats and disk in one line."""
        disk = "real disk" if self.disk is None else repr(self.disk)
        return (f"{self.routing!r}, {self.eviction!r}, {self.experts.slots} of {self.spec.experts} slots a layer, "
                f"{self.precision}, {disk}")

    def tell(self) -> None:
        """Let snapshots say what is in force now."""
        self.telemetry.facts = Facts(self.experts.slots, self.setting, self.exact, self.disk is not None,
                                     self.log.entries)

    # --- changes --------------------------------------------------------------------------------------

    def change(self, knob: str, value: Any, before: Callable[[], Any], make: Callable[[], object]) -> None:
        """Make a change now or, while somebody generates, between two tokens, and note it, unless ``make()`` returns
        False. ``before()`` is the value that it replaces."""
        by = actor()

        def made() -> None:
            self.check_open()
            with uninterrupted():       # else what is in force and what is told of it could part for good
                old = before()
                if make() is not False:
                    self.note(knob, value, old, by)

        def refused(error: Exception) -> None:
            self.log.add(knob, value, before(), self.telemetry.token, by, str(error))
            self.tell()
            print(f"moe_lab: {knob} stays {before()!r}: {error}", file=sys.stderr)

        self.owner.wish(knob, made, refused)

    def note(self, knob: str, value: Any, before: Any, by: str) -> None:
        """Enter a change that was made into the log."""
        self.log.add(knob, value, before, self.telemetry.token, by)
        self.tell()

    def set_routing(self, policy: RoutingPolicy) -> bool:
        """Route by ``policy`` in every layer, or in none if a layer refuses it. False: it did so already."""
        if policy == self.routing:
            return False
        self.experts.change(lambda state: state.set_routing(policy))
        self.routing = policy
        return True

    def set_eviction(self, policy: EvictionPolicy) -> bool:
        """Evict by ``policy`` in every layer, or in none if a layer refuses it. False: it did so already."""
        if policy == self.eviction:
            return False
        self.experts.change(lambda state: state.set_eviction(policy))
        self.eviction = policy
        return True

    def set_sampling(self, sampling: Sampling) -> bool:
        """Draw by ``sampling`` from the next token of the run in progress on. False: there is none, or it did so."""
        if self.sampler is None or sampling == self.sampling:
            return False
        self.sampler.change(sampling)
        self.sampling = sampling
        return True

    def resize(self, slots: int) -> bool:
        """Give every layer ``slots`` slots, or none of them another number. False: it had as many."""
        if slots == self.experts.slots:
            return False
        check_memory(slots, self.spec, self.format.name, 0, self.experts.nbytes)
        self.change_residents(lambda: self.experts.resize(slots))
        return True

    def reset(self) -> None:
        """Empty the cache; what routing policies have learned stays."""
        self.change_residents(self.experts.reset)

    def change_residents(self, make: Callable[[], object]) -> None:
        """Make a change of the live cache and show it."""
        self.blocks.let_go()
        make()
        self.telemetry.settled()

    def notice_disk(self) -> None:
        """Note a bandwidth that was set on the disk itself, which knows no engine."""
        if self.disk is not None and self.disk.bandwidth != self._bandwidth:
            before, self._bandwidth = self._bandwidth, self.disk.bandwidth
            self.note("disk", self._bandwidth, before, acting_name() or "code")

    # --- runs and passes ------------------------------------------------------------------------------

    def begin_run(self, sampler: Sampler | None = None, by: str = "") -> None:
        """A new run: trace, digest and statistics start afresh. ``sampler`` draws the tokens of a stream that was begun
        ``by`` somebody."""
        self.telemetry.begin_run()
        self.sampler = sampler
        if sampler is not None and sampler.sampling != self.sampling:
            before, self.sampling = self.sampling, sampler.sampling
            self.note("sampling", self.sampling, before, by)

    def end_run(self, sampler: Sampler) -> None:
        """The stream that ``sampler`` draws for is over."""
        if self.sampler is sampler:
            self.sampler = None

    def check_open(self) -> None:
        """Raise ``SettingError`` once the engine is closed."""
        if self.closed:
            raise SettingError("this engine is closed, its memory is given back; load the model again: ml.load(...)")

    def settle(self) -> None:
        """Make map and residency agree again if a pass was cut off."""
        if self.cut_off:
            self.change_residents(self.experts.reconcile)
            self.cut_off = False

    def close(self) -> None:
        """Give slots, threads and files back at once; again, where it was cut off. Raises ``BusyError`` while another
        thread generates."""
        with self.owner.held(run=True):
            self.closed = True
            self.blocks.let_go()
            self.experts.close()
            self.telemetry.settled()
