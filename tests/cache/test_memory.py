"""Free memory as containers limit it, and one account of all that an engine takes."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

import moe_lab as ml
from moe_lab.cache import beside_slots, budget, check_memory, memory, slots_for
from moe_lab.cache.memory import Free, free_memory
from moe_lab.errors import BudgetError
from moe_lab.spec import ModelSpec

MIB = 1 << 20
SPEC = ModelSpec(name="tiny", family="olmoe", layers=(0, 1), experts=64, top_k=8, hidden=256, expert_hidden=64,
                 expert_bytes={"f32": 2 * MIB, "bf16": MIB}, dense_bytes=100 * MIB, dtype="bf16", context=8192,
                 routing="softmax", past_bytes=1024)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch):
    """Pretend that so many bytes are free."""
    def free(nbytes: int) -> None:
        monkeypatch.setattr(budget, "free_memory", lambda: Free(nbytes, "of this machine"))

    return free


def group(root: Path, path: str, **files: str) -> None:
    """A control group's folder below ``sys/fs/cgroup``."""
    folder = root / "sys/fs/cgroup" / path
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text + "\n")


def member(root: Path, *lines: str) -> None:
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text("\n".join(lines) + "\n")


def test_the_tightest_limit_above_the_process_counts_in_cgroup_v2_and_cached_files_are_free(tmp_path):
    member(tmp_path, "0::/a/b")
    stat = f"anon 1\ninactive_file {2 * MIB}\nactive_file {MIB}\nshmem 5"
    group(tmp_path, "a/b", memory__max="max", memory__current="1", memory__stat=stat)
    group(tmp_path, "a", memory__max=str(50 * MIB), memory__current=str(20 * MIB), memory__stat=stat)
    group(tmp_path, "", memory__stat=stat)
    assert free_memory(tmp_path) == Free(33 * MIB, "of this container's limit (cgroup)")


def test_a_limit_of_cgroup_v1_counts_also_where_the_path_is_outside_the_container(tmp_path):
    member(tmp_path, "12:cpu:/x", "7:memory:/docker/abc", "0::/")
    group(tmp_path, "memory", memory__limit_in_bytes=str(40 * MIB), memory__usage_in_bytes=str(30 * MIB),
          memory__stat=f"cache 9\ntotal_inactive_file {MIB}\ntotal_active_file 0")
    assert free_memory(tmp_path).nbytes == 11 * MIB


def test_without_a_limit_the_machine_counts(tmp_path, monkeypatch):
    member(tmp_path, "7:memory:/", "0::/")
    group(tmp_path, "memory", memory__limit_in_bytes="9223372036854771712", memory__usage_in_bytes="1", memory__stat="")
    group(tmp_path, "", memory__max="max", memory__current="1", memory__stat="")
    assert free_memory(tmp_path).of == "of this machine"
    monkeypatch.setattr(memory, "_address_space", lambda: iter([5]))
    assert free_memory(tmp_path) == Free(5, "of this process's limit (ulimit -v)")


def test_more_than_a_limit_is_used_leaves_nothing_free(tmp_path):
    member(tmp_path, "0::/")
    group(tmp_path, "", memory__max="10", memory__current="30", memory__stat="")
    assert free_memory(tmp_path).nbytes == 0


def test_all_that_stands_beside_the_slots_is_counted():
    past = 4096 * 1024
    assert beside_slots(SPEC, "bf16", 8, "bf16") == 100 * MIB + past + 8 * MIB
    assert beside_slots(SPEC, "f32", 8, "f32") == 2 * (100 * MIB + past) + 16 * MIB


def test_without_a_budget_slots_take_what_the_dense_part_leaves(machine):
    machine(1000 * MIB)
    assert slots_for(None, SPEC, "bf16") == 64
    machine(200 * MIB)
    assert slots_for(None, SPEC, "bf16") == 64 and slots_for(None, SPEC, "bf16", beside=100 * MIB) == 30
    machine(120 * MIB)
    with pytest.raises(BudgetError, match="the free memory gives 0 slots"):
        slots_for(None, SPEC, "bf16", beside=100 * MIB)


def test_a_cache_beyond_memory_is_refused_with_the_arithmetic_and_what_fits(machine):
    machine(150 * MIB)
    check_memory(25, SPEC, "bf16", 100 * MIB)
    words = (r"64 slots in each of 2 layers take 128 MiB \(bf16\) and 100 MiB for the dense part, keys and values, and "
             r"150 MiB are free of this machine; type cache=25")
    with pytest.raises(BudgetError, match=words):
        check_memory(64, SPEC, "bf16", 100 * MIB)
    with pytest.raises(BudgetError, match="not even the floor fits"):
        check_memory(8, SPEC, "bf16", 140 * MIB)
    check_memory(64, SPEC, "bf16", 0, held=20 * MIB)


def test_load_and_resize_refuse_a_cache_beyond_memory_before_any_work(checkpoint, machine, monkeypatch):
    folder = str(checkpoint("olmoe"))
    engine = ml.load(folder, cache=4)
    machine(1000)
    with pytest.raises(BudgetError, match="are free of this machine"):
        engine.cache.resize(8)
    assert engine.cache.slots == 4 and engine.generate([1, 2], max_new_tokens=2).finish == "length"
    loading = importlib.import_module("moe_lab.engine.load")
    monkeypatch.setattr(loading, "open_model", lambda *args, **kwargs: pytest.fail("the model was opened"))
    for cache in ("100%", None):
        with pytest.raises(BudgetError):
            ml.load(folder, cache=cache)


def test_keys_and_values_count_what_the_configuration_says(checkpoint):
    assert ml.info(str(checkpoint("olmoe"))).past_bytes == 2 * 3 * 2 * 16 * 4
    assert ml.info(str(checkpoint("qwen3-moe"))).past_bytes == 2 * 3 * 2 * 16 * 4
    assert ml.info("pocket").past_bytes > 0
