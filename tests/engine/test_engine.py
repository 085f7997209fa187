"""What an engine promises its user: knobs between tokens, honest counts, and a cache that never lies."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

import moe_lab as ml
from moe_lab.errors import BudgetError, BusyError, PolicyError, ReadError, SettingError

PROMPT = [5, 17, 3, 90, 41]


@pytest.fixture
def engine(checkpoint):
    made = ml.load(str(checkpoint("olmoe")), cache=4)
    yield made
    made.close()


def true_residents(engine) -> bool:
    """Whether every resident expert's slot holds the bytes that are on disk, and nobody else has a slot."""
    cache = engine._core.experts
    expected = np.empty(cache.slot_bytes, np.uint8)
    for layer, (here, state) in enumerate(zip(cache.layers, cache.states, strict=True)):
        if not np.array_equal(here.slot_of >= 0, state.resident):
            return False
        taken = here.slot_of[here.slot_of >= 0]
        places = [*taken.tolist(), *here.free]
        if sorted(places) != list(range(here.arena.shape[0])):
            return False
        for expert in np.nonzero(state.resident)[0]:
            cache.readers.store.read(layer, int(expert), expected)
            if not np.array_equal(here.arena[here.slot_of[expert]], expected):
                return False
    return True


def test_the_steps_joined_are_the_reply(engine):
    steps = list(engine.stream(PROMPT, max_new_tokens=12))
    reply = engine.generate(PROMPT, max_new_tokens=12)
    assert tuple(i for s in steps for i in s.ids) == reply.ids and len(reply.ids) == 12
    assert steps[-1].finish == reply.finish == "length" and all(not s.finish for s in steps[:-1])


def test_hits_and_misses_are_all_expert_uses(engine):
    steps = list(engine.stream(PROMPT, max_new_tokens=8))
    assert steps[0].hits + steps[0].misses == len(PROMPT) * 3 * 2
    assert all(s.hits + s.misses == 3 * 2 for s in steps[1:])
    stats = engine.stats
    assert stats.prefill.tokens == len(PROMPT) and stats.decode.tokens == 7
    assert stats.decode.misses == sum(s.misses for s in steps[1:])


def test_a_decoded_token_reads_exactly_its_misses(engine):
    size = engine.spec.expert_bytes["f32"]
    for step in list(engine.stream(PROMPT, max_new_tokens=20))[1:]:
        assert step.read_bytes == step.misses * size
        assert step.touched_bytes == engine._core.dense_bytes + 3 * 2 * size


def test_a_change_takes_effect_at_the_next_token(engine):
    seen = []
    for step in engine.stream(PROMPT, max_new_tokens=9):
        seen.append(engine.cache.slots)
        if step.index == 2:
            engine.cache.resize("100%")
            engine.routing = "cache-prior"
        if step.index == 5:
            engine.cache.resize(2)
            engine.eviction = ml.eviction.LFU
    assert seen == [4, 4, 4, 8, 8, 8, 2, 2, 2]
    assert engine.cache.resident.sum(1).max() <= 2 and true_residents(engine)
    assert repr(engine.routing).startswith("CachePrior") and repr(engine.eviction).startswith("LFU")


@pytest.mark.parametrize("sizes", [(4, 2, 8, 3), (8, 2, 2, 7)])
def test_slots_hold_what_they_say_after_any_sequence_of_changes(engine, sizes):
    for i, slots in enumerate(sizes):
        engine.cache.resize(slots)
        engine.generate(PROMPT[i:] + PROMPT, max_new_tokens=6)
        assert true_residents(engine)
    engine.cache.reset()
    assert not engine.cache.resident.any() and true_residents(engine)


@pytest.mark.parametrize("leave", ["break", "interrupt", "error", "close"])
def test_a_stream_may_be_left_at_any_point(engine, leave):
    expected = engine.generate(PROMPT, max_new_tokens=6).ids
    try:
        for step in (steps := engine.stream(PROMPT, max_new_tokens=50)):
            if step.index == 3:
                if leave == "break":
                    break
                if leave == "close":
                    steps.close()
                    break
                raise KeyboardInterrupt if leave == "interrupt" else RuntimeError("of the loop's own")
    except (KeyboardInterrupt, RuntimeError):
        pass
    del steps
    assert not engine.busy and true_residents(engine)
    assert engine.generate(PROMPT, max_new_tokens=6).ids == expected


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_a_pass_that_is_cut_off_leaves_the_cache_true(engine, monkeypatch, error):
    engine.generate(PROMPT, max_new_tokens=4)
    expected = engine.generate(PROMPT, max_new_tokens=10).ids
    load, calls = engine._core.experts.readers.load, [0]

    def broken(*args, **kwargs):
        calls[0] += 1
        if calls[0] == 3:
            raise error
        return load(*args, **kwargs)

    engine.cache.reset()
    monkeypatch.setattr(engine._core.experts.readers, "load", broken)
    with pytest.raises(error):
        engine.generate(PROMPT[::-1], max_new_tokens=10)
    monkeypatch.undo()
    assert calls[0] == 3 and not engine.busy and true_residents(engine)
    assert engine.generate(PROMPT, max_new_tokens=10).ids == expected


@pytest.mark.parametrize("tokens", [1, 20])
def test_a_read_error_surfaces_and_no_slot_lies(engine, monkeypatch, tokens):
    engine.cache.reset()
    read, calls = engine._core.experts.readers.store.read, [0]

    def failing(layer, expert, slot):
        calls[0] += 1
        if calls[0] == 4:
            slot[: slot.size // 2] = 0xAB
            raise ReadError(f"expert {expert} of layer {layer}: the disk is gone", (expert,))
        return read(layer, expert, slot)

    monkeypatch.setattr(engine._core.experts.readers.store, "read", failing)
    with pytest.raises(ReadError, match="the disk is gone"):
        engine.generate((PROMPT * 4)[:tokens], max_new_tokens=30)
    monkeypatch.undo()
    assert true_residents(engine) and not engine.busy
    assert len(engine.generate(PROMPT, max_new_tokens=5).ids) == 5


def test_a_second_thread_that_generates_is_refused(engine):
    caught: list[BaseException] = []

    def other() -> None:
        for run in (lambda: engine.generate(PROMPT, max_new_tokens=2), lambda: engine.score(PROMPT * 3),
                    lambda: engine.hf.generate(torch.tensor([PROMPT]), max_new_tokens=2),
                    lambda: engine.hf(input_ids=torch.tensor([PROMPT]))):
            try:
                run()
            except BusyError as error:
                caught.append(error)

    for step in engine.stream(PROMPT, max_new_tokens=3):
        if step.index == 0:
            thread = threading.Thread(target=other)
            thread.start()
            thread.join()
    assert len(caught) == 4 and step.finish == "length"


def test_a_change_from_another_thread_waits_for_the_next_token_and_errors_rise_there(engine):
    errors: list[BaseException] = []

    def other() -> None:
        engine.cache.resize(7)
        try:
            engine.cache.resize(1)
        except BudgetError as error:
            errors.append(error)

    seen = []
    for step in engine.stream(PROMPT, max_new_tokens=4):
        if step.index == 1:
            thread = threading.Thread(target=other)
            thread.start()
            thread.join()
        seen.append(engine.cache.slots)
    assert seen == [4, 4, 7, 7] and len(errors) == 1


def test_a_stream_that_was_left_behind_says_so(engine):
    old = engine.stream(PROMPT, max_new_tokens=9)
    next(old)
    engine.generate(PROMPT, max_new_tokens=3)
    with pytest.raises(BusyError, match="left half-way"):
        list(old)


def test_a_score_leaves_the_live_cache_alone(engine):
    engine.generate(PROMPT, max_new_tokens=8)
    before, token = engine.cache.resident, engine.telemetry.token
    score = engine.score(PROMPT * 6, window=10)
    assert np.array_equal(engine.cache.resident, before) and engine.telemetry.token == token and true_residents(engine)
    assert score.tokens == 29 and len(score.window_losses) == 3
    live = engine.score(PROMPT * 6, window=10, state="live")
    assert live.perplexity == pytest.approx(score.perplexity, rel=1e-4)
    assert not np.array_equal(engine.cache.resident, before) and true_residents(engine)


def test_a_score_without_a_tokenizer_says_nothing_of_bytes(engine):
    assert "bits per byte" not in repr(engine.score([5, 17, 3, 90])) and engine.tokenizer is None


def test_a_score_equals_the_loss_of_transformers(checkpoint):
    from checkpoints import eager

    ids = (np.arange(41) * 29 % 160).tolist()
    x = torch.tensor([ids])
    with torch.no_grad():
        loss = eager(checkpoint("mixtral"))(input_ids=x, labels=x).loss.item()
    score = ml.load(str(checkpoint("mixtral")), cache=2).score(ids, window=40)
    assert score.loss == pytest.approx(loss, rel=1e-5)
    assert score.perplexity == pytest.approx(np.exp(loss), rel=1e-4)


def test_batches_are_exact_under_original_routing_and_refused_under_a_lossy_one(engine):
    batch = torch.tensor([PROMPT, PROMPT[::-1]])
    with torch.no_grad():
        both = engine.hf(input_ids=batch).logits
        single = engine.hf(input_ids=batch[1:]).logits
    assert torch.allclose(both[1:], single, atol=1e-4)
    engine.routing = "cache-prior"
    with pytest.raises(SettingError, match="batch of 2 rows"):
        engine.hf(input_ids=batch)
    assert not engine.busy


def test_sampling_is_repeatable_and_differs_by_seed(engine):
    runs = [engine.generate(PROMPT, max_new_tokens=15, temperature=1.5, seed=s).ids for s in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


def change_here(engine, sampling) -> None:
    engine.sampling = sampling


def change_from_another_thread(engine, sampling) -> None:
    thread = threading.Thread(target=change_here, args=(engine, sampling))
    thread.start()
    thread.join()


@pytest.mark.parametrize("change", [change_here, change_from_another_thread])
def test_a_run_that_is_told_to_be_greedy_half_way_goes_on_greedily(engine, change):
    half, whole = 6, 14
    options = dict(max_new_tokens=whole, temperature=3.0, seed=5, stop_at_end=False)
    plain = [(step.ids[0], engine.stats.digest) for step in engine.stream(PROMPT, **options)]
    changed = []
    for step in engine.stream(PROMPT, **options):
        changed.append((step.ids[0], engine.stats.digest))
        if len(changed) == half:
            change(engine, ml.Sampling(seed=5))
    assert changed[:half] == plain[:half] and engine.sampling == ml.Sampling(seed=5)
    ids = [token for token, _ in changed]
    greedy = engine.generate(PROMPT + ids[:half], max_new_tokens=whole - half, stop_at_end=False).ids
    assert ids[half:] == list(greedy) != [token for token, _ in plain[half:]]


def test_the_sampling_in_force_is_that_of_the_run_or_of_the_last_one(engine):
    assert engine.sampling is None
    engine.sampling = ml.Sampling(temperature=2.0)
    assert engine.sampling is None
    for _ in engine.stream(PROMPT, max_new_tokens=2, temperature=0.5, seed=3):
        assert engine.sampling == ml.Sampling(temperature=0.5, seed=3)
    engine.sampling = ml.Sampling(temperature=2.0)
    assert engine.sampling == ml.Sampling(temperature=0.5, seed=3)
    assert engine.generate(PROMPT, max_new_tokens=3).ids == engine.generate(PROMPT, max_new_tokens=3).ids


def test_what_is_no_sampling_is_refused_where_it_was_asked_for(engine):
    for step in engine.stream(PROMPT, max_new_tokens=3):
        with pytest.raises(SettingError, match=r"engine.sampling = ml.Sampling\(temperature=0.8\)"):
            engine.sampling = 0.8
    assert step.finish == "length" and engine.sampling == ml.Sampling()


def test_the_context_limit_ends_a_run_and_says_so(engine):
    reply = engine.generate([1] * 250, max_new_tokens=50, stop_at_end=False)
    assert reply.finish == "context" and 250 + len(reply.ids) == engine.spec.context == 256
    with pytest.raises(SettingError, match="at most 256"):
        engine.generate([1] * 256)


def test_the_end_token_ends_a_run_unless_told_otherwise(engine):
    first = engine.generate(PROMPT, max_new_tokens=5).ids
    end = next(i for i in range(1, 5) if first[i] not in first[:i])
    engine.hf.generation_config.eos_token_id = first[end]
    ended = engine.generate(PROMPT, max_new_tokens=5)
    assert ended.finish == "end" and ended.ids == first[: end + 1]
    assert engine.generate(PROMPT, max_new_tokens=5, stop_at_end=False).ids == first


@pytest.mark.parametrize(("options", "says"), [
    (dict(max_new_tokens=0), "max_new_tokens"), (dict(num_beams=4), "engine.hf.generate"),
    (dict(temperature=-1.0), "temperature"), (dict(stop=""), "stop"),
])
def test_options_that_cannot_be_used_say_what_to_type(engine, options, says):
    with pytest.raises(SettingError, match=says):
        engine.generate(PROMPT, **options)


@pytest.mark.parametrize("prompt", ["words without a tokenizer", [], [160], [-1], None])
def test_prompts_that_cannot_be_used_are_refused_before_any_work(engine, prompt):
    with pytest.raises(SettingError):
        engine.stream(prompt)
    assert engine.telemetry.token == 0 and not engine.busy


@pytest.mark.parametrize(("what", "value", "error"), [
    ("routing", "cache-pior", PolicyError), ("eviction", "lur", PolicyError), ("routing", "lru", PolicyError),
])
def test_unknown_policies_name_the_nearest(engine, what, value, error):
    with pytest.raises(error, match=r"cache-prior|lru|original"):
        setattr(engine, what, value)


def test_a_policy_of_ones_own_runs_and_a_broken_one_changes_nothing(engine):
    @ml.routing.policy
    def backwards(logits, weights, K, resident, state, params, scores):
        for e in range(logits.size):
            scores[e] = -logits[e]

    @ml.routing.policy
    def broken(logits, weights, K, resident, state, params, scores):
        for e in range(logits.size):
            scores[e] = logits[e] if state[1] < 12 else np.nan

    engine.routing = backwards
    assert engine.generate(PROMPT, max_new_tokens=4).stats.swapped_share > 0.9
    assert not engine.exact and "lossy" in repr(engine)
    engine.routing = broken
    with pytest.raises(PolicyError, match="NaN"):
        engine.generate(PROMPT, max_new_tokens=30)
    assert true_residents(engine) and not engine.busy
    engine.routing = "original"
    assert engine.generate(PROMPT, max_new_tokens=4).stats.exact


def test_a_policy_may_use_fewer_experts(engine):
    @ml.routing.policy
    def one_only(logits, weights, K, resident, state, params, scores):
        scores[:] = -np.inf
        scores[np.argmax(logits)] = 0.0

    engine.routing = one_only
    steps = list(engine.stream(PROMPT, max_new_tokens=6))
    assert all(s.hits + s.misses == 3 for s in steps[1:]) and true_residents(engine)
    assert (engine.trace.ids[:, :, 1] == -1).all()


def test_repr_tells_what_matters(engine):
    text = repr(engine)
    for word in ("olmoe", "3 MoE layers x 8 experts", "top-2", "f32", "4 of 8", "floor", "exact", "real disk",
                 "plain loops, 1 thread"):
        assert word in text


def test_a_simulated_disk_is_named_everywhere_and_waits(checkpoint):
    engine = ml.load(str(checkpoint("olmoe")), cache=2, disk=ml.Disk(bandwidth="2 MB/s"))
    reply = engine.generate(PROMPT, max_new_tokens=4)
    assert "simulated" in repr(engine) and "simulated" in repr(reply.stats) and reply.stats.simulated
    assert reply.stats.decode.times.read_s >= 0.9 * reply.stats.decode.read_bytes / 2e6
    assert engine.telemetry.snapshot().simulated


def test_models_that_cannot_be_loaded_fail_before_long_work(checkpoint):
    with pytest.raises(BudgetError, match="2 x 3 x"):
        ml.load(str(checkpoint("olmoe")), cache=1)
    with pytest.raises(PolicyError):
        ml.load("nowhere", routing="orginal")
    with pytest.raises(SettingError, match="f32"):
        ml.load(str(checkpoint("olmoe")), weights="q9")  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="Disk"):
        ml.load(str(checkpoint("olmoe")), disk="200 MB/s")  # type: ignore[arg-type]
    for seed in (-1, 1.5, "7", True, None, 2**53):
        with pytest.raises(SettingError, match=r"seed=.* must be a whole number from 0"):
            ml.load("nowhere", seed=seed)  # type: ignore[arg-type]
