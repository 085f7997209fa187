"""The larger policies, each beside a plain Python version written from its paper with lists and dicts."""

from __future__ import annotations

from collections import OrderedDict, deque

import numpy as np
import pytest
from hypothesis import given, settings
from layers import layers, new_layer, random_ids, random_logits, softmax

from moe_lab.errors import PolicyError
from moe_lab.eviction import ARC, FIFO, LFRU, LFU, LRU, MRS, S3FIFO, SLRU, Clock, EvictionPolicy, LeastStale
from moe_lab.eviction.arc import TARGET
from moe_lab.kernels.queue import to_the_back
from moe_lab.kernels.replay import replay_layer
from moe_lab.kernels.walk import walk


class Plain:
    """A cache of C experts: hits are judged for the whole token, experts of the token never leave."""

    def __init__(self, C: int, K: int = 1) -> None:
        self.C, self.K, self.held, self.token, self.tick = C, K, set[int](), 0, 0

    def replay(self, ids: np.ndarray) -> list[list[bool]]:
        found = []
        for row in ids.tolist():
            self.token += 1
            hits = [e in self.held for e in row]
            for e, hit in zip(row, hits, strict=True):
                if e < 0:
                    continue
                self.tick += 1
                if hit:
                    self.hit(e)
                else:
                    self.miss(e, set(row))
                    self.held.add(e)
            found.append(hits)
        return found

    @property
    def full(self) -> bool:
        return len(self.held) >= self.C

    def hit(self, e: int) -> None: ...

    def miss(self, e: int, row: set[int]) -> None: ...


class PlainClock(Plain):
    def __init__(self, C: int, K: int = 1) -> None:
        super().__init__(C)
        self.queue, self.used = list[int](), set[int]()

    def hit(self, e: int) -> None:
        self.used.add(e)

    def miss(self, e: int, row: set[int]) -> None:
        i = 0
        while self.full:
            front = self.queue[i]
            if front in self.used:
                self.used.discard(front)
                self.queue.append(self.queue.pop(i))
            elif front in row:
                i += 1
            else:
                self.held.discard(self.queue.pop(i))
        self.queue.append(e)


class PlainSLRU(Plain):
    share = 0.5

    def __init__(self, C: int, K: int = 1) -> None:
        super().__init__(C)
        self.probation, self.favoured = OrderedDict[int, None](), OrderedDict[int, None]()

    def hit(self, e: int) -> None:
        self.probation.pop(e, None)
        self.favoured.pop(e, None)
        self.favoured[e] = None
        while len(self.favoured) > max(1, int(self.share * self.C)):
            self.probation[self.favoured.popitem(last=False)[0]] = None

    def miss(self, e: int, row: set[int]) -> None:
        if self.full:
            lists = [*self.probation, *self.favoured]
            gone = next(x for x in lists if x not in row)
            self.probation.pop(gone, None)
            self.favoured.pop(gone, None)
            self.held.discard(gone)
        self.probation[e] = None


class PlainS3FIFO(Plain):
    share = 0.1

    def __init__(self, C: int, K: int = 1) -> None:
        super().__init__(C)
        self.target = max(1, int(self.share * C))
        self.small, self.main, self.uses = list[int](), deque[int](), dict[int, int]()
        self.ghosts: deque[int | None] = deque(maxlen=max(0, C - self.target))

    def hit(self, e: int) -> None:
        self.uses[e] = min(self.uses[e] + 1, 3)

    def evict_small(self, row: set[int]) -> bool:
        i = 0
        while i < len(self.small):
            e = self.small[i]
            if self.uses[e] > 1:
                self.main.append(self.small.pop(i))
                self.uses[e] = 0
            elif e in row:
                i += 1
            else:
                self.ghosts.append(self.small.pop(i))
                self.held.discard(e)
                return True
        return False

    def evict_main(self, row: set[int]) -> bool:
        if all(e in row for e in self.main):
            return False
        while True:
            e = self.main.popleft()
            if self.uses[e] > 0 or e in row:
                self.uses[e] = max(0, self.uses[e] - 1)
                self.main.append(e)
            else:
                self.held.discard(e)
                return True

    def evict_anyone(self, row: set[int]) -> None:
        for wanted in (lambda e: self.uses[e] <= 1, lambda e: True):
            for e in self.small:
                if e not in row and wanted(e):
                    self.small.remove(e)
                    self.ghosts.append(e)
                    self.held.discard(e)
                    return

    def miss(self, e: int, row: set[int]) -> None:
        known = e in self.ghosts
        if known:
            self.ghosts[self.ghosts.index(e)] = None
        if self.full:
            if len(self.small) >= self.target:
                assert self.evict_small(row) or self.evict_main(row)
            elif not self.evict_main(row):
                self.evict_anyone(row)
        self.uses[e] = 0
        (self.main if known else self.small).append(e)


class PlainARC(Plain):
    def __init__(self, C: int, K: int = 1) -> None:
        super().__init__(C)
        self.t1, self.t2, self.b1, self.b2 = (OrderedDict[int, None]() for _ in range(4))
        self.p = 0.0

    def hit(self, e: int) -> None:
        self.t1.pop(e, None)
        self.t2.pop(e, None)
        self.t2[e] = None

    def replace(self, from_b2: bool, row: set[int]) -> None:
        if not self.full:
            return
        first = bool(self.t1) and (len(self.t1) > self.p or (from_b2 and len(self.t1) == self.p))
        for list_, ghosts in [(self.t1, self.b1), (self.t2, self.b2)][:: 1 if first else -1]:
            for e in list_:
                if e not in row:
                    del list_[e]
                    ghosts[e] = None
                    self.held.discard(e)
                    return

    def miss(self, e: int, row: set[int]) -> None:
        if e in self.b1:
            self.p = min(self.C, self.p + max(1, len(self.b2) / len(self.b1)))
            del self.b1[e]              # its slot among the ghosts is free before another comes
            self.replace(False, row)
            self.t2[e] = None
        elif e in self.b2:
            self.p = max(0, self.p - max(1, len(self.b1) / len(self.b2)))
            del self.b2[e]
            self.replace(True, row)
            self.t2[e] = None
        else:
            if len(self.t1) + len(self.b1) >= self.C:
                if len(self.t1) < self.C:
                    self.b1.popitem(last=False)
                    self.replace(False, row)
                else:
                    gone = next(x for x in self.t1 if x not in row)
                    del self.t1[gone]
                    self.held.discard(gone)
            else:
                if len(self.t1) + len(self.t2) + len(self.b1) + len(self.b2) >= 2 * self.C:
                    self.b2.popitem(last=False)
                self.replace(False, row)
            self.t1[e] = None


class PlainLeastStale(Plain):
    fresh = 4

    def __init__(self, C: int, K: int = 1) -> None:
        super().__init__(C)
        self.queue, self.last = list[int](), dict[int, int]()

    def hit(self, e: int) -> None:
        self.last[e] = self.token

    def miss(self, e: int, row: set[int]) -> None:
        if self.full:
            stale = [x for x in self.queue if self.token - self.last[x] > self.fresh and x not in row]
            gone = (stale or [x for x in self.queue if x not in row])[0]
            self.queue.remove(gone)
            self.held.discard(gone)
        self.queue.append(e)
        self.last[e] = self.token


TWINS: list[tuple[EvictionPolicy, type[Plain]]] = [
    (Clock(), PlainClock), (SLRU(), PlainSLRU), (S3FIFO(), PlainS3FIFO), (ARC(), PlainARC),
    (LeastStale(), PlainLeastStale)]


@pytest.mark.parametrize(("policy", "plain"), TWINS, ids=lambda x: getattr(x, "name", None))
@settings(max_examples=80)
@given(sizes=layers())
def test_a_policy_hits_where_its_plain_version_does(policy: EvictionPolicy, plain: type[Plain],
                                                    sizes: tuple[int, int, int, int]) -> None:
    E, K, C, seed = sizes
    ids = random_ids(np.random.default_rng(seed), 120, K, E, missing=0.1 if seed % 2 else 0.0)
    assert replay_layer(ids, None, new_layer(E, K, C, None, policy)).tolist() == plain(C).replay(ids)


@pytest.mark.parametrize(("policy", "plain"), [(SLRU(favoured=0.8), PlainSLRU), (S3FIFO(small=0.4), PlainS3FIFO),
                                               (LeastStale(fresh=12), PlainLeastStale)], ids=lambda x: repr(x))
def test_shares_and_spans_act_as_in_the_plain_version(policy: EvictionPolicy, plain: type[Plain],
                                                      rng: np.random.Generator) -> None:
    value = next(iter(policy.values().values()))
    twin = type("Set", (plain,), {"share": value, "fresh": value})
    differ = []
    for E, K, C in ((24, 3, 10), (40, 1, 7), (16, 6, 8)):
        ids = random_ids(rng, 400, K, E)
        hits = replay_layer(ids, None, new_layer(E, K, C, None, policy))
        assert hits.tolist() == twin(C).replay(ids)
        differ.append((hits != replay_layer(ids, None, new_layer(E, K, C, None, type(policy)()))).any())
    assert any(differ)


def test_queues_resist_a_scan_that_empties_lru() -> None:
    """Four experts in steady use, with a long scan of others in between: LRU loses them, the queues do not."""
    liked = [[e] for e in range(4)]
    tokens = np.array([*liked * 4, *[row for i in range(60) for row in ([4 + i], liked[i % 4])]], dtype=np.int32)
    hits = {type(p): replay_layer(tokens, None, new_layer(64, 1, 6, None, p))[-100:].mean()
            for p in (LRU(), FIFO(), SLRU(), S3FIFO(), ARC(), LFU())}
    assert hits[S3FIFO] == hits[LFU] == hits[SLRU] == hits[ARC] == 0.5
    assert hits[FIFO] < 0.5


def test_ghosts_move_the_target_of_arc() -> None:
    """A miss on a once-used ghost asks for more room for recency, one on a twice-used ghost for less."""
    state = new_layer(16, 1, 4, None, ARC())

    def target_after(*experts: int) -> float:
        replay_layer(np.array([[e] for e in experts], dtype=np.int32), None, state)
        return float(state.evict_state[TARGET])

    assert target_after(0, 1, 0, 1, 2, 3, 4) == 0       # 2 left as a once-used ghost
    assert target_after(2) == 1                         # and is asked for again
    assert target_after(3, 4, 5, 6, 5, 6, 7) > 1
    before = state.evict_state[TARGET]
    ghosts = np.nonzero(state.stats.own[0] == 4)[0]
    assert len(ghosts) > 0
    assert target_after(int(ghosts[0])) < before


def test_uses_over_age_are_between_counting_and_recency(rng: np.random.Generator) -> None:
    ids = random_ids(rng, 300, 2, 16)

    def hits(policy: EvictionPolicy) -> np.ndarray:
        return replay_layer(ids, None, new_layer(16, 2, 6, None, policy))

    np.testing.assert_array_equal(hits(LFRU(age_power=0)), hits(LFU()))
    state = new_layer(16, 2, 6, None, LFRU())
    replay_layer(ids, None, state)
    now = int(state.clock[0])
    for e in range(16):
        if state.stats.uses[e]:
            keep = LFRU.keep(e, state.stats, state.evict_state, np.array([2.0]), now)
            assert keep == pytest.approx(state.stats.uses[e] / max(1, now - state.stats.last_use[e]) ** 2)


def test_mrs_mixes_the_scores_of_the_2k_largest(rng: np.random.Generator) -> None:
    logits = random_logits(rng, 60, 12, skew=1)
    weights = softmax(logits)
    state = new_layer(12, 2, 5, None, MRS(mix=0.3))
    walk(state, logits, weights)
    score = np.zeros(12)
    for w in weights.astype(np.float64):
        top = np.where(w >= np.sort(w)[-4], w, 0)
        score = 0.3 * top + 0.7 * score
    np.testing.assert_allclose(state.stats.own[0], score, rtol=1e-4, atol=1e-9)


def test_mrs_keeps_an_expert_that_was_nearly_chosen() -> None:
    """0 and 1 are used once; then 0 stays second in every ranking, 1 last: 1 leaves, though LRU would drop 0."""
    tokens = np.array([[0], [1], [2], [3]])
    logits = np.full((4, 5), -4, dtype=np.float32)
    logits[np.arange(4), tokens[:, 0]] = 5
    logits[1:, 0] = 3
    for policy, gone in ((MRS(), 1), (LRU(), 0)):
        state = new_layer(5, 1, 3, None, policy)
        assert walk(state, logits, softmax(logits)).evicted[3].tolist() == [gone]


def test_mrs_refuses_a_trace_without_logits(rng: np.random.Generator) -> None:
    with pytest.raises(PolicyError, match="'mrs' needs logits, which this trace does not hold"):
        replay_layer(random_ids(rng, 5, 1, 4), None, new_layer(4, 1, 2, None, MRS()))


def test_residents_that_a_policy_never_met_are_handled(rng: np.random.Generator) -> None:
    """After a change of policy, a filled start, a resize and a drop the queues still hold together."""
    for policy, _ in TWINS:
        state = new_layer(20, 3, 10)
        replay_layer(random_ids(rng, 60, 3, 20), None, state)
        state.set_eviction(policy)
        for C in (6, 14, 8):
            state.resize(C)
            state.drop(int(np.nonzero(state.resident)[0][0]))
            replay_layer(random_ids(rng, 80, 3, 20), None, state)
            assert state.resident.sum() == C
        state.reset()
        state.fill(range(8))
        replay_layer(random_ids(rng, 80, 3, 20), None, state)
        assert state.resident.sum() == 8


def test_the_back_of_a_queue_keeps_the_order() -> None:
    stamps, moving = np.array([5.0, 2.0, 9.0, 4.0]), np.array([True, True, False, True])
    for function in (to_the_back, to_the_back.py_func):
        mine = stamps.copy()
        assert function(mine, moving.copy(), 9.0) == 12.0
        assert mine.tolist() == [12.0, 10.0, 9.0, 11.0]
