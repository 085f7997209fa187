"""Replays and sweeps on a real Dask cluster of two worker processes: the same figures, whoever dies on the way."""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
import torch
from layers import random_ids

import moe_lab as ml
from moe_lab.engine import passes as passing
from moe_lab.errors import ClusterError, PolicyError, SettingError

distributed = pytest.importorskip("distributed")

from moe_lab.evaluation import cluster as spreading  # noqa: E402 - only where distributed is
from moe_lab.evaluation import errands  # noqa: E402
from moe_lab.evaluation import measure as measuring  # noqa: E402
from moe_lab.evaluation.cluster import Cluster  # noqa: E402
from moe_lab.evaluation.counting import Task, count  # noqa: E402
from moe_lab.eviction import LRU  # noqa: E402
from moe_lab.kernels.policy_code import freeze  # noqa: E402

# A client whose scheduler is gone tries to connect again, and leaves the socket of its last try to the collector.
pytestmark = pytest.mark.filterwarnings("ignore:Exception ignored in. <socket:pytest.PytestUnraisableExceptionWarning")

QUIET = {"distributed.admin.system-monitor.gil.enabled": False, "distributed.comm.timeouts.connect": "30s"}


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    """A client of two worker processes with one thread each."""
    import dask

    with dask.config.set(QUIET), distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=":0", memory_limit=None) as made, \
            distributed.Client(made) as one:
        yield one


@pytest.fixture
def threads() -> Iterator[Any]:
    """A cluster in this process, to be closed in the middle."""
    made = distributed.LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=":0",
                                    memory_limit=None)
    one = distributed.Client(made)
    yield one
    one.close()
    made.close()
    gc.collect()


@pytest.fixture
def trace(rng: np.random.Generator) -> ml.Trace:
    ids = np.stack([random_ids(rng, 160, 3, 12) for _ in range(2)], axis=1)
    return ml.Trace(ids=ids, weights=rng.random(ids.shape), experts=12)


SCALE = 2.0


@numba.njit
def helped(value):
    return SCALE * value


@ml.eviction.policy(slope=ml.Parameter(1, 0, 4), rows=ml.eviction.Table([1.0, 0.0]))
def of_ones_own(expert, stats, state, params, now):
    """Stands in this file, which no worker can import, with a helper, a constant, a parameter and a table."""
    return params[0] * helped(stats.last_use[expert]) * params[1] + params[2]


def test_a_replay_there_is_a_replay_here(client: Any, trace: ml.Trace) -> None:
    @ml.eviction.policy
    def fragile(expert, stats, state, params, now):
        return np.nan if now > 200 else stats.last_use[expert]

    trained = ml.eviction.LearnedEviction.fit(trace, epochs=1)
    arguments = dict(eviction=["lru", "random", of_ones_own(slope=2), trained, fragile, "mrs"], cache=[2, 4, "75%"],
                     disk=ml.DiskModel("1 GB/s", "1 MB", "5 ms"), seed=3)
    here = ml.replay({"a": trace, "b": trace[:90]}, **arguments)       # first, so that kernels are compiled once
    there = ml.replay({"a": trace, "b": trace[:90]}, **arguments, client=client)
    assert repr(there) == repr(here)            # NaNs of skipped rows differ from each other
    assert [row for row in there if not row.skipped] == [row for row in here if not row.skipped]
    assert sum(not row.skipped for row in there) == 16 and "returned NaN" in there.rows[13].skipped
    assert there.rows[7].layers == here.rows[7].layers and there.rows[10].seen == 1


def test_a_pool_and_a_routing_travel_too(client: Any, trace: ml.Trace, rng: np.random.Generator) -> None:
    logits = rng.standard_normal((160, 2, 12))
    with_logits = ml.Trace(ids=np.argsort(-logits, axis=2)[:, :, :3], logits=logits, experts=12)
    routing = ml.routing.CachePrior(penalty=[0.1, 0.4])
    for arguments in (dict(pooled=True, cache=[4, 12]), dict(routing=routing, cache=6)):
        here = ml.replay(with_logits, **arguments).rows
        assert ml.replay(with_logits, **arguments, client=client).rows == here


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGKILL")
def test_a_killed_worker_costs_time_and_nothing_else(client: Any, trace: ml.Trace, tmp_path: Path,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    mark = str(tmp_path / "killed")
    before = set(client.run(os.getpid).values())

    def deadly(trace: ml.Trace, task: Task) -> Any:
        """The first worker to come here dies in the middle of its work."""
        import os

        if task.eviction is not None and task.eviction.name == "fifo" and not os.path.exists(mark):
            open(mark, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return count(trace, task)

    monkeypatch.setattr(errands, "count", deadly)
    arguments = dict(eviction=["lru", "fifo", "lfu"], cache=[4, 6, 8])
    there = ml.replay(trace, **arguments, client=client)
    assert os.path.exists(mark)
    assert there.rows == ml.replay(trace, **arguments).rows
    client.wait_for_workers(2, timeout=60)
    assert set(client.run(os.getpid).values()) != before


def test_an_answer_lost_with_its_worker_is_made_again(client: Any, trace: ml.Trace,
                                                      monkeypatch: pytest.MonkeyPatch) -> None:
    lost, wait = [], Cluster._wait

    def slow(trace: ml.Trace, task: Task) -> Any:
        time.sleep(0.5)
        return count(trace, task)

    def too_late(self: Cluster, waiting: set[Any]) -> None:
        """The first time, when all is done and before it is fetched, the worker that has it dies."""
        if not lost:
            distributed.wait(list(waiting))
            (future,) = waiting
            (worker,) = client.who_has([future])[future.key]
            client.run(os.kill, client.run(os.getpid, workers=[worker])[worker], signal.SIGKILL, workers=[worker],
                       on_error="ignore")
            while future.status == "finished":
                time.sleep(0.01)
            lost.append(future.status)
        wait(self, waiting)

    monkeypatch.setattr(Cluster, "_wait", too_late)
    cluster, task = Cluster(client), Task(LRU(), (4,))
    ((place, answer),) = cluster.spread(slow, [((cluster.share(trace),), (task,))])
    assert lost == ["lost"] and place == 0
    assert answer[4].misses.tolist() == count(trace, task)[4].misses.tolist()
    client.wait_for_workers(2, timeout=60)


def test_a_job_that_kills_every_worker_is_named(client: Any, trace: ml.Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    def deadly(trace: ml.Trace, task: Task) -> Any:
        import os

        os.kill(os.getpid(), signal.SIGKILL)

    import dask

    monkeypatch.setattr(errands, "count", deadly)
    client.run_on_scheduler(lambda dask_scheduler: setattr(dask_scheduler, "allowed_failures", 0))
    with dask.config.set({"distributed.scheduler.allowed-failures": 0}), \
            pytest.raises(ClusterError, match="one job ended several workers"):
        ml.replay(trace, cache=4, client=client)
    client.run_on_scheduler(lambda dask_scheduler: setattr(dask_scheduler, "allowed_failures", 3))
    client.wait_for_workers(2, timeout=60)


def test_a_sweep_there_is_a_sweep_here_and_its_results_are_found_again(client: Any, checkpoint: Any, tmp_path: Path,
                                                                       rng: np.random.Generator,
                                                                       monkeypatch: pytest.MonkeyPatch) -> None:
    @ml.routing.policy
    def fragile(logits, weights, K, resident, state, params, scores):
        scores[:] = logits
        if state[1] > 30:
            scores[0] = np.nan

    ids = rng.integers(0, 160, 131).tolist()
    engine = ml.load(str(checkpoint("olmoe")), cache=4)
    arguments = dict(routing=["original", ml.routing.CachePrior(penalty=0.3), fragile], eviction=["lru", of_ones_own],
                     cache=[3, 4], window=40)
    there = ml.sweep(engine, ids, **arguments, client=client, store=tmp_path)
    points = list(there)
    assert len(points) == 8 and len(there.skipped) == 4 and "NaN" in there.skipped[0][1]
    again = ml.sweep(engine, ids, **{**arguments, "routing": arguments["routing"][:2]}, store=tmp_path)
    one_pass, passes = passing.one_pass, []
    monkeypatch.setattr(passing, "one_pass", lambda *args: passes.append(1) or one_pass(*args))
    assert again.to_frame().equals(there.to_frame()) and not passes         # the same content, the same place
    here = ml.sweep(engine, ids, **{**arguments, "routing": arguments["routing"][:2]}, store=False)
    assert here.to_frame().equals(there.to_frame()) and passes              # digests among the columns
    assert {point.digest for point in here.points} == {point.digest for point in points}
    engine.close()


def test_a_worker_loads_the_dense_part_in_the_same_format(client: Any, checkpoint: Any, tmp_path: Path,
                                                         rng: np.random.Generator) -> None:
    ids = rng.integers(0, 160, 61).tolist()
    engine = ml.load(str(checkpoint("olmoe", dtype=torch.bfloat16)), cache=4, weights="bf16", dense="q8")
    arguments = dict(routing=["original", "cache-prior"], cache=3, window=20)
    there = ml.sweep(engine, ids, **arguments, client=client, store=tmp_path).to_frame()
    assert there.equals(ml.sweep(engine, ids, **arguments, store=False).to_frame())
    engine.close()


def test_a_model_changed_in_memory_is_not_measured_by_workers_that_load_the_files(client: Any, checkpoint: Any,
                                                                                  tmp_path: Path) -> None:
    engine = ml.load(str(checkpoint("olmoe")), cache=4)
    arguments = dict(routing=["original"], cache=3, window=20, client=client, store=tmp_path)
    for norm, eps in ((2.0, 1e-5), (1.0, 1e-3)):
        engine.hf.model.norm.weight.data[:], engine.hf.config.rms_norm_eps = norm, eps
        with pytest.raises(ClusterError, match=r"is not the engine here: the model in memory .*leave client out"):
            ml.sweep(engine, list(range(61)), **arguments).finish()
    engine.hf.lm_head.register_forward_hook(lambda module, args, out: out)
    with pytest.raises(SettingError, match=r"client=\.\.\.: lm_head has the hook .*leave client out"):
        ml.sweep(engine, list(range(61)), **arguments)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    engine.close()


def test_a_checkpoint_of_links_is_found_by_workers(client: Any, checkpoint: Any, tmp_path: Path) -> None:
    for file in checkpoint("olmoe").iterdir():
        (tmp_path / "blobs").mkdir(exist_ok=True)
        (tmp_path / "snapshot").mkdir(exist_ok=True)
        (tmp_path / "blobs" / file.stem).write_bytes(file.read_bytes())
        (tmp_path / "snapshot" / file.name).symlink_to(tmp_path / "blobs" / file.stem)
    engine = ml.load(str(tmp_path / "snapshot"), cache=4)
    sweep = ml.sweep(engine, list(range(61)), routing="original", cache=3, window=20, client=client, store=False)
    assert len(sweep.finish().points) == 1
    engine.close()


def test_a_cluster_that_goes_away_is_an_error_and_what_was_finished_is_kept(threads: Any, trace: ml.Trace,
                                                                          monkeypatch: pytest.MonkeyPatch) -> None:
    spread = spreading.Cluster.spread

    def cut(self: spreading.Cluster, *args: Any) -> Iterator[Any]:
        for number, answer in enumerate(spread(self, *args)):
            yield answer
            if number == 7:
                threads.cluster.close()

    monkeypatch.setattr(spreading.Cluster, "spread", cut)
    monkeypatch.setattr(errands, "count", slowly(count))
    with pytest.raises(ClusterError, match="the cluster went away before all was done") as caught:
        ml.replay(trace, eviction=["lru", "lfu", "fifo"], cache=[4, 6, 8], client=threads)
    finished = [row for row in caught.value.finished if not row.skipped]
    assert [row.eviction for row in finished[:3]] == ["lru"] * 3 and 3 <= len(finished) < 9
    assert {row.skipped for row in caught.value.finished if row.skipped} == {"not counted"}
    whole = ml.replay(trace, eviction=["lru", "lfu", "fifo"], cache=[4, 6, 8])
    assert all(row in whole.rows for row in finished)
    with pytest.raises(ClusterError, match="is not there any more"):
        ml.replay(trace, client=threads)


def test_a_sweep_whose_cluster_goes_away_keeps_its_points_and_goes_on_elsewhere(
        threads: Any, checkpoint: Any, tmp_path: Path, rng: np.random.Generator,
        monkeypatch: pytest.MonkeyPatch) -> None:
    ids = rng.integers(0, 160, 81).tolist()
    engine = ml.load(str(checkpoint("olmoe")), cache=4)
    routing = [ml.routing.CachePrior(penalty=p / 10) for p in range(1, 6)]
    arguments = dict(routing=routing, cache=4, window=40, store=tmp_path)
    monkeypatch.setattr(measuring, "measure", slowly(measuring.measure))        # the worker is in this process
    sweep = ml.sweep(engine, ids, **arguments, client=threads)
    started = iter(sweep)
    next(started)
    threads.cluster.close()
    with pytest.raises(ClusterError, match="what was finished is kept"):
        list(started)
    done = sweep.points
    assert 1 <= len(done) < 5 and not errands._LOCK._is_owned()
    resumed = ml.sweep(engine, ids, **arguments).finish()
    assert all(point in resumed.points for point in done) and len(resumed.points) == 5
    engine.close()


def slowly(work: Any) -> Any:
    """The work, with time for a cluster to go away in between."""
    def slow(*args: Any) -> Any:
        import time

        time.sleep(0.2)
        return work(*args)

    return slow


def test_a_cluster_without_workers_is_given_up(trace: ml.Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spreading, "PATIENCE_S", 1.0)
    with distributed.LocalCluster(n_workers=0, processes=False, dashboard_address=":0") as none, \
            distributed.Client(none) as client, pytest.raises(ClusterError, match="no worker for 1 s, and 2 of 2 jobs"):
        ml.replay(trace, cache=4, client=client)


def test_what_is_no_client_is_refused(trace: ml.Trace) -> None:
    with pytest.raises(SettingError, match=r"is not a distributed\.Client"):
        ml.replay(trace, client="tcp://127.0.0.1:8786")
    with pytest.raises(SettingError, match=r"is not a distributed\.Client"):
        ml.sweep(object(), "text", client=object())


def test_without_distributed_the_extra_is_named(trace: ml.Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("moe_lab.evaluation.cluster", "moe_lab.evaluation.errands"):
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(SettingError, match=r"pip install 'moe-lab\[cluster\]'"):
        ml.replay(trace, client=object())


def test_other_sources_on_a_worker_are_refused(threads: Any, trace: ml.Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spreading, "sources", iter(["here", *["there"] * 9]).__next__)
    with pytest.raises(ClusterError, match="other sources of moe-lab"):
        list(spreading.Cluster(threads).spread(count, [((), (trace, Task(None, (4,))))]))


def test_a_policy_that_would_be_another_on_a_worker_is_refused_before_it_is_sent(
        monkeypatch: pytest.MonkeyPatch) -> None:
    @ml.eviction.policy
    def scaled(expert, stats, state, params, now):
        return SCALE * stats.last_use[expert]

    spreading.check_whole([scaled(), of_ones_own(), LRU(), None])
    freeze(scaled)                                      # as if it were compiled with the scale as it is now
    monkeypatch.setitem(globals(), "SCALE", 3.0)
    with pytest.raises(PolicyError, match="'scaled' would be another on a worker"):
        spreading.check_whole([scaled()])


def test_what_a_policy_does_otherwise_than_its_kind_travels_with_it() -> None:
    class Shifted(LRU):
        name = "shifted"

        def vector(self):
            return np.append(super().vector(), 5.0)

    there = spreading._unpacked(spreading.packed(Timid())).value
    assert (there.lossy, type(there).__name__) == (False, "Timid")
    with pytest.raises(PolicyError, match="'shifted' would be another on a worker"):
        spreading.check_whole([Shifted()])              # its method needs the class itself


class Timid(ml.routing.MaxRank):
    """Says otherwise than its kind that it changes nothing."""

    @property
    def lossy(self):
        return False


def test_a_policy_travels_as_what_it_is() -> None:
    policy = of_ones_own(slope=3, rows=[0.5, 2.0])
    there = spreading._unpacked(spreading.packed(policy)).value
    again = spreading._unpacked(spreading.packed(policy)).value
    assert type(there) is type(again) is not of_ones_own        # made anew once, so compiled once
    assert (there.name, there.values(), there.rows) == (policy.name, policy.values(), policy.rows)
    assert there.vector().tolist() == [3, 0.5, 2.0] and there.kind == "eviction"
    ours = ml.eviction.AgedLFU(half_life=9)
    assert spreading._unpacked(spreading.packed(ours)).value == ours
    with pytest.raises(PolicyError, match="frozen"):
        there.slope = 1
