"""Reading experts into slots: the right bytes, by any number of threads, and honest errors."""

from __future__ import annotations

import gc
import os
import shutil
import threading

import numpy as np
import pytest
import torch
from checkpoints import FAMILIES, eager

from moe_lab.errors import ReadError, SettingError
from moe_lab.kernels.formats import FORMATS
from moe_lab.models import open_model
from moe_lab.store import Disk, ExpertStore, Readers


def reference(folder, layer, expert, dtype=torch.float32):
    """gate, up, down as transformers has them."""
    hf = eager(folder, dtype)
    blocks = [m for m in hf.modules() if hasattr(m, "is_concatenated")]
    gate, up = blocks[layer].gate_up_proj[expert].detach().float().chunk(2)
    return gate.numpy(), up.numpy(), blocks[layer].down_proj[expert].detach().float().numpy()


@pytest.mark.parametrize("family", [*FAMILIES, "granite"])
def test_a_slot_gets_the_expert_that_transformers_has(checkpoint, family):
    folder = checkpoint(family)
    plan = open_model(folder).plan
    store = ExpertStore(plan, FORMATS["f32"])
    slot = np.zeros(store.slot_bytes, np.uint8)
    assert store.read(1, 5, slot) == plan.expert_bytes
    for mine, theirs in zip(FORMATS["f32"].decode(slot, plan.D, plan.F), reference(folder, 1, 5), strict=True):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize(("dtype", "format"), [
    (torch.bfloat16, "bf16"), (torch.bfloat16, "f32"), (torch.float16, "f32"), (torch.float32, "f32"),
])
def test_every_type_fits_exactly_into_a_format_at_least_as_wide(checkpoint, dtype, format):
    folder = checkpoint("olmoe", dtype=dtype)
    plan = open_model(folder).plan
    store = ExpertStore(plan, FORMATS[format])
    slot = np.zeros(store.slot_bytes, np.uint8)
    store.read(2, 3, slot)
    for mine, theirs in zip(FORMATS[format].decode(slot, plan.D, plan.F), reference(folder, 2, 3, dtype), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_float32_is_rounded_to_bfloat16_as_torch_does_it(checkpoint):
    folder = checkpoint("olmoe")
    plan = open_model(folder).plan
    store = ExpertStore(plan, FORMATS["bf16"])
    slot = np.zeros(store.slot_bytes, np.uint8)
    store.read(0, 0, slot)
    for mine, theirs in zip(FORMATS["bf16"].decode(slot, plan.D, plan.F), reference(folder, 0, 0), strict=True):
        np.testing.assert_array_equal(mine, torch.from_numpy(theirs).bfloat16().float().numpy())


def test_a_slot_may_be_longer_than_an_expert_and_the_rest_is_left_alone(checkpoint):
    store = ExpertStore(open_model(checkpoint("olmoe")).plan, FORMATS["f32"])
    slot = np.full(store.slot_bytes + 64, 7, np.uint8)
    store.read(0, 0, slot)
    assert (slot[store.slot_bytes :] == 7).all()


def test_an_expert_that_lies_in_one_piece_is_one_system_call(checkpoint, monkeypatch):
    store = ExpertStore(open_model(checkpoint("olmoe")).plan, FORMATS["f32"])
    slot, calls, preadv = np.zeros(store.slot_bytes, np.uint8), [], os.preadv
    monkeypatch.setattr(os, "preadv", lambda *args: calls.append(args) or preadv(*args))
    store.read(0, 0, slot)
    assert len(calls) == 1


def test_short_reads_are_continued(checkpoint, monkeypatch):
    store = ExpertStore(open_model(checkpoint("olmoe")).plan, FORMATS["f32"])
    whole, cut, preadv = np.zeros(store.slot_bytes, np.uint8), np.zeros(store.slot_bytes, np.uint8), os.preadv
    store.read(1, 1, whole)
    monkeypatch.setattr(os, "preadv", lambda fd, buffers, offset: preadv(fd, [buffers[0][:1000]], offset))
    store.read(1, 1, cut)
    np.testing.assert_array_equal(whole, cut)


@pytest.fixture
def store(checkpoint):
    """A store whose plan may be changed."""
    return ExpertStore(open_model(checkpoint("olmoe")).plan, FORMATS["f32"])


def test_an_expert_behind_the_end_of_its_file_is_a_read_error_with_file_and_place(store):
    slot = np.zeros(store.slot_bytes, np.uint8)
    store.plan.offset[2, 7] += store.files.size(0)
    place = r"expert 7 of MoE layer 2 .*model\.safetensors at byte [\d,]+, [\d,]+ bytes wanted .*short"
    with pytest.raises(ReadError, match=place) as e:
        store.read(2, 7, slot)
    assert e.value.experts == (7,)
    assert isinstance(e.value, OSError)


def test_a_file_that_was_cut_in_place_is_a_read_error_that_says_to_load_again(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint("olmoe"), tmp_path / "cut")
    store = ExpertStore(open_model(folder).plan, FORMATS["f32"])
    os.truncate(store.files[0], store.files.size(0) * 2 // 3)
    for expert in (0, 7):
        with pytest.raises(ReadError, match=r"model\.safetensors .*changed in place.*load the model again") as e:
            store.read(2, expert, np.zeros(store.slot_bytes, np.uint8))
        assert e.value.experts == (expert,)


def test_readers_name_all_that_failed_and_load_the_others(store):
    arena = np.zeros((8, store.slot_bytes), np.uint8)
    good = np.zeros(store.slot_bytes, np.uint8)
    store.plan.offset[0, 3] += 10**9
    store.plan.offset[0, 6] += 10**9
    with pytest.raises(ReadError, match="2 of 8 experts") as e:
        Readers(store).load(0, [(expert, arena[expert]) for expert in range(8)])
    assert e.value.experts == (3, 6)
    store.read(0, 7, good)
    np.testing.assert_array_equal(arena[7], good)


@pytest.mark.parametrize("threads", [1, 2, np.int64(5)])
def test_any_number_of_readers_brings_the_same_bytes(checkpoint, threads, monkeypatch):
    monkeypatch.setattr("moe_lab.store.readers.ALONE_BYTES", 0)
    store = ExpertStore(open_model(checkpoint("olmoe", dtype=torch.bfloat16)).plan, FORMATS["f32"])
    arena, alone = (np.zeros((8, store.slot_bytes), np.uint8) for _ in range(2))
    readers = Readers(store, threads=threads)
    size, waited = readers.load(2, [(e, arena[e]) for e in range(8)])
    for e in range(8):
        store.read(2, e, alone[e])
    np.testing.assert_array_equal(arena, alone)
    assert size == 8 * store.plan.expert_bytes
    assert waited > 0


def test_many_threads_may_read_from_one_store(checkpoint):
    store = ExpertStore(open_model(checkpoint("olmoe", dtype=torch.bfloat16)).plan, FORMATS["f32"])
    expected, wrong = np.zeros((8, store.slot_bytes), np.uint8), []
    for e in range(8):
        store.read(0, e, expected[e])

    def read(offset):
        slot = np.zeros(store.slot_bytes, np.uint8)
        for i in range(40):
            expert = (i + offset) % 8
            store.read(0, expert, slot)
            if not np.array_equal(slot, expected[expert]):
                wrong.append(expert)

    threads = [threading.Thread(target=read, args=(n,)) for n in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def descriptors(path) -> int:
    links = (os.path.join("/proc/self/fd", fd) for fd in os.listdir("/proc/self/fd"))
    return sum(os.path.exists(link) and os.path.samefile(link, path) for link in links)


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts open files in /proc")
@pytest.mark.parametrize("how", ["closed", "collected"])
def test_files_and_threads_end_with_their_owner(checkpoint, monkeypatch, how):
    monkeypatch.setattr("moe_lab.store.readers.ALONE_BYTES", 0)
    path = checkpoint("olmoe") / "model.safetensors"
    gc.collect()
    files, threads = descriptors(path), set(threading.enumerate())
    readers = Readers(ExpertStore(open_model(path.parent).plan, FORMATS["f32"]), threads=3)
    arena = np.zeros((8, readers.store.slot_bytes), np.uint8)
    readers.load(0, [(e, arena[e]) for e in range(8)])
    assert descriptors(path) == files + 1
    if how == "closed":
        readers.close()
        with pytest.raises(ReadError, match="closed"):
            readers.store.read(0, 0, arena[0])
    else:
        del readers
    assert descriptors(path) == files
    for thread in threading.enumerate():
        if thread.name.startswith("moe-lab-reader"):
            thread.join(5)
    assert set(threading.enumerate()) <= threads       # others' may have ended meanwhile


@pytest.mark.parametrize("threads", [0, -1, 2.5, True, "2", 1000])
def test_a_number_of_readers_that_is_none_is_refused(checkpoint, threads):
    with pytest.raises(SettingError, match="1 to 64"):
        Readers(ExpertStore(open_model(checkpoint("olmoe")).plan, FORMATS["f32"]), threads=threads)


def test_a_disk_that_is_none_is_refused(checkpoint):
    with pytest.raises(SettingError, match=r"ml\.Disk"):
        Readers(ExpertStore(open_model(checkpoint("olmoe")).plan, FORMATS["f32"]), disk="200 MB/s")


def test_a_simulated_disk_holds_a_load_back_unless_told_not_to(checkpoint):
    store = ExpertStore(open_model(checkpoint("olmoe")).plan, FORMATS["f32"])
    size = store.plan.expert_bytes
    readers = Readers(store, Disk(4 * size / 0.1))
    arena = np.zeros((4, store.slot_bytes), np.uint8)
    wanted = [(e, arena[e]) for e in range(4)]
    assert readers.load(0, wanted)[1] >= 0.0999
    assert readers.load(0, wanted, paced=False)[1] < 0.09
