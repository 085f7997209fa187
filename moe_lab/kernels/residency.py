"""What one MoE layer knows of its experts: who is resident, when each was used, what its policies remember.

Knows plain arrays. Knows no bytes, no slots and no file: residency is logical, and only the walk and the
methods here change it. All that changes lies in one stretch of memory with a shadow beside it, so that a walk
that fails is undone by one copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

import numpy as np

from moe_lab.errors import BudgetError, PolicyError, SettingError
from moe_lab.kernels import layer as field
from moe_lab.kernels.jit import jit
from moe_lab.kernels.layer import LEFT, opened, remember, stands
from moe_lab.kernels.layout import EXPERTS, LAYER, OWN, SEED, SLOTS, TOKEN, TOP_K, Stats
from moe_lab.kernels.numbers import Numbers
from moe_lab.kernels.plugin import addresses, place, raised
from moe_lab.kernels.pointers import left_at
from moe_lab.kernels.settle import find_victim

if TYPE_CHECKING:
    from moe_lab.eviction import EvictionPolicy
    from moe_lab.routing import RoutingPolicy


class LayerState:
    """Residency and policy state of one layer.

    Make it with :meth:`new`; walk it with ``moe_lab.kernels.walk.walk``. Arrays are views that a change of
    policy replaces: take them from here each time.
    """

    E: int
    """Experts."""
    K: int
    """Experts a token uses."""
    C: int
    """Slots: experts that can be resident at once."""
    layer: int
    seed: int
    routing: RoutingPolicy
    eviction: EvictionPolicy
    resident: np.ndarray
    """(E,) bool."""
    stats: Stats
    clock: np.ndarray
    """(1,) int64: ticks so far, one per expert use."""
    route_state: np.ndarray
    """(OWN + state_size,) float64 of the routing policy."""
    evict_state: np.ndarray
    """(OWN + state_size,) float64 of the eviction policy."""
    logits: np.ndarray
    """(E,) float32 of the last token walked. This and the next two are a report, not state: nothing reads them back."""
    before: np.ndarray
    """(E,) bool: resident before the last token walked."""
    scores: np.ndarray
    """(E,) float32: what the routing policy gave for the last token walked."""
    block: np.ndarray
    """(F,) int64: what kernels are given, see ``moe_lab.kernels.layer``. The same array for good."""
    report: np.ndarray
    """(2,) int64: token and expert at which a kernel stopped."""
    _memory: np.ndarray
    _shadow: np.ndarray
    _numbers: Numbers
    _keys: np.ndarray
    _marks: np.ndarray

    @classmethod
    def new(cls, E: int, K: int, C: int, routing: RoutingPolicy, eviction: EvictionPolicy, layer: int = 0,
            seed: int = 0) -> LayerState:
        """An empty layer of ``E`` experts, ``K`` a token, ``C`` slots.

        Raises:
            BudgetError: fewer slots than ``K``.
            PolicyError: a policy that does not compile, or whose parameters know no such layer.
        """
        state = cls.__new__(cls)
        state.E, state.K, state.C = E, K, _slots(C, E, K)
        state.layer, state.seed = layer, seed
        state.logits, state.scores = np.zeros((2, E), dtype=np.float32)
        state.before = np.zeros(E, dtype=np.bool_)
        state.block = np.zeros(len(field.FIELDS), dtype=np.int64)
        state._keys = np.zeros(E, dtype=np.int64)
        state._marks = np.zeros(E + 1, dtype=np.int64)
        state.report = np.zeros(2, dtype=np.int64)
        state._build(routing, eviction)
        return state

    def _build(self, routing: RoutingPolicy, eviction: EvictionPolicy) -> None:
        """Lay the memory out for these policies, all zero, and write the block; if a policy refuses, nothing is new."""
        code = {**addresses(type(routing)), **addresses(type(eviction))}
        numbers_in_force = Numbers([routing, eviction], self.layer)
        E, columns = self.E, eviction.columns
        sizes = {"clock": 1, "last_use": E, "arrived": E, "uses": E, "own": columns * E,
                 "routing_state": OWN + routing.state_size, "eviction_state": OWN + eviction.state_size,
                 "resident": -(-E // 8)}
        self._memory = np.zeros(sum(sizes.values()), dtype=np.int64)
        self._shadow = np.zeros_like(self._memory)
        parts = dict(zip(sizes, np.split(self._memory, np.cumsum(list(sizes.values()))[:-1]), strict=True))
        self.resident = parts["resident"].view(np.bool_)[:E]
        self.clock = parts["clock"]
        self.stats = Stats(parts["last_use"], parts["arrived"], parts["uses"],
                           parts["own"].view(np.float64).reshape(columns, E))
        self.route_state = parts["routing_state"].view(np.float64)
        self.evict_state = parts["eviction_state"].view(np.float64)
        self.routing, self.eviction = routing, eviction
        self._numbers = numbers_in_force
        params = dict(zip(("routing_params", "eviction_params"), self._numbers.vectors, strict=True))
        here = {**parts, **params, "memory": self._memory, "shadow": self._shadow, "logits": self.logits,
                "before": self.before, "scores": self.scores, "keys": self._keys, "marks": self._marks,
                "report": self.report}
        numbers = {"experts": E, "top_k": self.K, "slots": self.C, "columns": columns, "begun": 0,
                   "routing_size": self.route_state.size, "eviction_size": self.evict_state.size,
                   "routing_parameters": params["routing_params"].size,
                   "eviction_parameters": params["eviction_params"].size, "memory_words": self._memory.size}
        values = {**numbers, **{name: array.ctypes.data for name, array in here.items()}, **code}
        self.block[:] = [values[name] for name in field.FIELDS]
        for head in (self.route_state, self.evict_state):
            head[LAYER], head[SEED] = self.layer, self.seed
            head[TOP_K], head[SLOTS], head[EXPERTS] = self.K, self.C, E

    def _rebuild(self, routing: RoutingPolicy, eviction: EvictionPolicy) -> None:
        """Exchange policies; what belongs to neither, and the own state of a class that stays, is kept."""
        kept = (self.resident, self.stats, self.clock, self.route_state, self.evict_state)
        same_routing = type(routing) is type(self.routing)
        same_eviction = type(eviction) is type(self.eviction)
        self._build(routing, eviction)
        resident, stats, clock, route_state, evict_state = kept
        self.resident[:], self.clock[:] = resident, clock
        for mine, before in zip(self.stats[:3], stats[:3], strict=True):
            mine[:] = before
        self.route_state[:OWN], self.evict_state[:OWN] = route_state[:OWN], evict_state[:OWN]
        if same_routing:
            self.route_state[:] = route_state
        if same_eviction:
            self.stats.own[:], self.evict_state[:] = stats.own, evict_state

    @property
    def token(self) -> int:
        """Tokens that the layer has seen; what a schedule counts. Emptying the layer does not set it back, unless
        what the routing policy has learned goes too."""
        return int(self.route_state[TOKEN])

    @property
    def steady(self) -> bool:
        """Whether no parameter follows a schedule."""
        return not self._numbers.follow

    def in_stretches(self, tokens: int, work: Callable[[int, int], None]) -> None:
        """Do ``work(first, end)`` on the next ``tokens`` tokens, cut where a schedule takes another number; if one
        fails, all is as before the first."""
        before = self._memory.copy()
        try:
            for first, end in self._numbers.stretches(self.token, tokens):
                work(first, end)
        except BaseException:
            self._memory[:] = before
            raise

    def set_routing(self, policy: RoutingPolicy) -> None:
        """Route by ``policy`` from the next token on. A new class starts with a state of its own."""
        self._rebuild(policy, self.eviction)

    def set_eviction(self, policy: EvictionPolicy) -> None:
        """Evict by ``policy`` from the next token on; residents stay. A new class starts with a state of its own."""
        self._rebuild(self.routing, policy)

    def resize(self, C: int) -> list[int]:
        """Change the slots to ``C``; returns the experts that had to leave, the lowest keep first."""
        C = _slots(C, self.E, self.K)
        self._numbers.use(self.token)
        gone = np.full(max(0, int(np.count_nonzero(self.resident)) - C), -1, dtype=np.int32)
        try:
            nan_at = _shrink(self.block, gone)
        except Exception as error:
            self.undo()
            raise raised(error, (type(self.eviction),), lambda: _keeps(self)) from error
        if nan_at >= 0:
            self.undo()
            raise nan_keep(self, nan_at)
        self.C = C
        self.block[field.SLOTS] = C
        self.route_state[SLOTS] = self.evict_state[SLOTS] = C
        return [int(e) for e in gone]

    def reset(self, keep_routing_state: bool = True) -> None:
        """Empty the layer and forget its uses. What the routing policy has learned (D) persists unless told."""
        route_state = self.route_state
        self._build(self.routing, self.eviction)
        if keep_routing_state:
            self.route_state[:] = route_state
            self.evict_state[TOKEN] = route_state[TOKEN]

    def drop(self, expert: int) -> None:
        """``expert`` is not resident any more, because its bytes are not here.

        The eviction policy's ``left`` is told; if that fails it is as if it had not been, for a drop cannot fail.
        """
        if not self.resident[expert]:
            return
        self.resident[expert] = False
        self._numbers.use(self.token)
        try:
            _tell_left(self.block, expert)
        except Exception:
            self.undo()

    def fill(self, experts: Iterable[int]) -> None:
        """Make ``experts`` resident, as if each had arrived in this order; for a start that is not empty."""
        new = list(dict.fromkeys(int(e) for e in experts if not self.resident[e]))
        if np.count_nonzero(self.resident) + len(new) > self.C:
            raise SettingError(f"{len(new)} more experts do not fit: {np.count_nonzero(self.resident)} of {self.C} "
                               "slots are taken; give fewer ids or more slots")
        for e in new:
            self.clock[0] += 1
            self.resident[e] = True
            self.stats.arrived[e] = self.stats.last_use[e] = self.clock[0]

    def undo(self) -> None:
        """Put everything back to before the walk, replay, resize or drop that failed; nothing if none had begun, as
        where its kernel was never compiled."""
        if self.block[field.BEGUN]:
            self._memory[:] = self._shadow
            self.block[field.BEGUN] = 0

    def copy(self) -> LayerState:
        """The same layer with memory of its own."""
        other = LayerState.new(self.E, self.K, self.C, self.routing, self.eviction, self.layer, self.seed)
        other._memory[:] = self._memory
        return other

    def become(self, other: LayerState) -> None:
        """Take over all that ``other`` is: policies, slots, residents, all state, and its memory. Nothing in it can
        fail. ``block`` stays the array that kernels have been given; ``other`` is not to be used any more."""
        block = self.block
        block[:] = other.block
        self.__dict__.update(other.__dict__)
        self.block = block

    def __repr__(self) -> str:
        held = int(np.count_nonzero(self.resident))
        return (f"LayerState(layer {self.layer}: {held} of {self.C} slots, {self.E} experts, top-{self.K}, "
                f"{self.routing!r}, {self.eviction!r}, tick {int(self.clock[0])})")


def nan_keep(state: LayerState, expert: int) -> PolicyError:
    """The error for a keep that is not a number."""
    policy = state.eviction
    return PolicyError(f"policy {policy.name!r}: {place(policy.keep)} returned NaN for expert {expert} of layer "
                       f"{state.layer}; return a finite number or an infinity. Nothing was changed.")


def _slots(C: int, E: int, K: int) -> int:
    if C < K:
        raise BudgetError(f"{C} slots a layer are under the floor: one token uses {K} of {E} experts at once, so a "
                          f"layer needs at least {K} slots; give cache={K} or more")
    return min(int(C), E)


def _keeps(state: LayerState) -> list[float | None]:
    """All keeps by the plain function; for the place of an error."""
    params, now = state.eviction.at(state.layer, state.token).vector(), int(state.clock[0])
    hooks = [f for f in (state.eviction.keep, state.eviction.left) if f is not None]
    return [f(int(e), state.stats, state.evict_state.copy(), params, now)
            for e in np.nonzero(state.resident)[0] for f in hooks]


@jit
def _shrink(block: np.ndarray, gone: np.ndarray) -> int:
    """Evict ``gone.size`` experts, written to ``gone``; the expert whose keep is NaN, or -1."""
    remember(block)
    layer = opened(block)
    layer.marks[-1] += 1
    now = layer.clock[0]
    for i in range(gone.size):
        victim = find_victim(block, layer, now)
        if victim < 0:
            return -2 - victim
        layer.resident[victim] = False
        gone[i] = victim
        if block[LEFT]:
            left_at(block[LEFT])(victim, layer.stats, layer.eviction_state, layer.eviction_params, now)
    stands(block)
    return -1


@jit
def _tell_left(block: np.ndarray, expert: int) -> None:
    """Call the ``left`` hook, if there is one."""
    remember(block)
    layer = opened(block)
    if block[LEFT]:
        left_at(block[LEFT])(np.int64(expert), layer.stats, layer.eviction_state, layer.eviction_params, layer.clock[0])
    stands(block)
