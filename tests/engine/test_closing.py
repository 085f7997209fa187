"""What an engine gives back: memory, threads and files, when it is closed and when nobody holds it any more."""

from __future__ import annotations

import gc
import threading
import weakref

import psutil
import pytest
import torch

import moe_lab as ml
from moe_lab.engine.lean import LeanDecode
from moe_lab.errors import BusyError, SettingError

PROMPT = [5, 17, 3, 90, 41]
LARGE = dict(hidden_size=256, intermediate_size=512, num_experts=16, num_experts_per_tok=4, num_hidden_layers=2)
"""All experts 48 MiB."""


@pytest.fixture
def uncollected():
    """No garbage is collected: what goes, goes by counting references."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def resident_mib() -> float:
    return psutil.Process().memory_info().rss / 2**20


def used_in_every_way(engine) -> list[weakref.ref]:
    """References to an engine that has done all that engines do."""
    engine.generate(PROMPT, max_new_tokens=4)
    engine.hf.generate(torch.tensor([PROMPT]), max_new_tokens=3, do_sample=False)
    engine.hf(torch.tensor([PROMPT]), output_hidden_states=True)
    engine.score(PROMPT * 4)
    engine.routing, engine.eviction = "cache-prior", "lfu"
    engine.cache.resize(6)
    engine.cache.reset()
    next(engine.stream(PROMPT, max_new_tokens=9))
    for view in (engine.telemetry.snapshot(), engine.stats, engine.trace, engine.ranking(0), engine.explain()):
        assert view is not None
    repr(engine)
    return [weakref.ref(thing) for thing in (engine, engine.hf, engine._core, engine._core.experts.layers[0])]


@pytest.mark.parametrize("weights", ["f32", "q8"])
def test_an_engine_that_nobody_holds_is_gone_without_garbage_collection(checkpoint, uncollected, weights):
    engine = ml.load(str(checkpoint("qwen2-moe")), cache=4, weights=weights)
    engine._ahead.join()
    refs = used_in_every_way(engine)
    del engine
    assert [ref() for ref in refs] == [None] * 4


def test_an_engine_that_nobody_holds_is_gone_although_its_kernels_are_still_compiled(checkpoint, uncollected,
                                                                                     monkeypatch):
    inside, go_on = threading.Event(), threading.Event()
    monkeypatch.setattr(LeanDecode, "compiling", lambda self: [lambda: inside.set() or go_on.wait(30)])
    engine = ml.load(str(checkpoint("qwen2-moe")), cache=4)
    ahead, core = engine._ahead, weakref.ref(engine._core)
    assert inside.wait(30)
    del engine
    assert core() is None
    go_on.set()
    ahead.join()


def test_a_change_that_was_refused_keeps_no_engine_alive(checkpoint, uncollected, monkeypatch):
    engine = ml.load(str(checkpoint("olmoe")), cache=4)
    engine._ahead.join()
    monkeypatch.setattr("moe_lab.cache.slots.mmap.mmap", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError) as met:
        engine.cache.resize(8)
    monkeypatch.undo()
    core = weakref.ref(engine._core)
    del engine, met
    assert core() is None


def test_close_gives_back_the_room_in_which_experts_are_quantised(checkpoint):
    engine = ml.load(str(checkpoint("olmoe")), cache="100%", weights="q8")
    room = weakref.ref(engine._core.experts.readers.store._scratch_bytes())
    engine.close()
    assert room() is None


def test_twenty_loads_in_a_row_leave_memory_flat(checkpoint, uncollected):
    folder, seen = str(checkpoint("olmoe", **LARGE)), []
    for _ in range(20):
        engine = ml.load(folder, cache="100%")
        engine.generate(PROMPT, max_new_tokens=2)
        seen.append(resident_mib())
    engine.close()
    assert max(seen[10:]) - max(seen[3:10]) < 24           # half of one engine's slots


def test_close_gives_slots_weights_threads_and_files_back_whoever_still_holds_the_parts(checkpoint):
    folder = checkpoint("olmoe", **LARGE, vocab_size=64_000, tie_word_embeddings=True)
    engine = ml.load(str(folder), cache="100%")
    engine._core.experts.readers.load(0, [(e, layer.arena[e]) for layer in engine._core.experts.layers for e in (0, 1)])
    engine._ahead.join()
    hf, parameters, arena = engine.hf, list(engine.hf.parameters()), engine._core.experts.layers[0].arena
    held, files, process = resident_mib(), engine.files, psutil.Process()
    threads = {thread.name for thread in threading.enumerate()}
    assert any(name.startswith("moe-lab-reader") for name in threads)
    engine.close()
    assert held - resident_mib() > 48 + 62 * 0.9            # slots, and the embedding
    assert not any(thread.name.startswith("moe-lab-reader") for thread in threading.enumerate())
    assert not {file.path for file in process.open_files()} & set(files)
    assert hf is engine.hf and all(p.numel() == 0 for p in parameters) and arena is not None
    engine.close()


@pytest.mark.parametrize("use", [
    lambda e: e.generate(PROMPT, max_new_tokens=2), lambda e: e.score(PROMPT * 3),
    lambda e: e.hf(torch.tensor([PROMPT])), lambda e: e.hf.generate(torch.tensor([PROMPT]), max_new_tokens=2),
    lambda e: e.cache.resize(4), lambda e: setattr(e, "routing", "cache-prior"), lambda e: e.disk_rate(),
    lambda e: e.fresh_state().__enter__(),
], ids=["generate", "score", "hf", "hf.generate", "resize", "routing", "disk_rate", "fresh_state"])
def test_a_closed_engine_says_so(checkpoint, use):
    engine = ml.load(str(checkpoint("olmoe")), cache=3)
    engine.generate(PROMPT, max_new_tokens=2)
    engine.close()
    with pytest.raises(SettingError, match="closed"):
        use(engine)
    assert "closed" in repr(engine) and engine.stats.decode.tokens == 1 and len(engine.trace) == 6


def test_an_engine_closes_at_the_end_of_a_with_block_even_where_a_stream_was_left(checkpoint):
    with ml.load(str(checkpoint("olmoe")), cache=3) as engine:
        stream = engine.stream(PROMPT, max_new_tokens=9)
        next(stream)
    with pytest.raises(BusyError, match="another run began"):
        next(stream)
    with pytest.raises(SettingError, match="closed"):
        engine.generate(PROMPT)


def test_an_engine_that_another_thread_uses_is_not_closed_under_it(checkpoint):
    engine = ml.load(str(checkpoint("olmoe")), cache=3)
    inside, go = threading.Event(), threading.Event()

    def loop() -> None:
        with engine.fresh_state():
            inside.set()
            go.wait(20)

    thread = threading.Thread(target=loop)
    thread.start()
    inside.wait(20)
    with pytest.raises(BusyError, match="wait for it"):
        engine.close()
    go.set()
    thread.join()
    assert engine.generate(PROMPT, max_new_tokens=2).finish == "length"
    engine.close()
