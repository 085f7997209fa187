"""Work spread over a Dask cluster: jobs go out, answers come back as they are done, dead workers' jobs start again.

Knows ``distributed`` and how policies travel. Knows neither models nor traces: what is done stands in ``errands``.
Everything that a job needs is part of it, so nothing is lost with a worker.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any

import numba
from numba.core.dispatcher import Dispatcher

from moe_lab.errors import ClusterError, MoELabError, PolicyError, SettingError
from moe_lab.evaluation.sources import sources_digest
from moe_lab.eviction import EvictionPolicy
from moe_lab.kernels.policy_code import FUNCTIONS, PLAIN, code_of, own
from moe_lab.policy import Policy
from moe_lab.routing import RoutingPolicy

if TYPE_CHECKING:
    from distributed import Client, Future

PATIENCE_S = 60.0
"""Seconds to wait for a worker to come back when there is none left."""
_LOOK_S = 0.5

try:
    import cloudpickle
    import dask
    import distributed
except ImportError as missing:
    raise SettingError("client=... needs dask.distributed, which is not installed; type: pip install "
                       "'moe-lab[cluster]'") from missing


class Cluster:
    """The cluster behind a ``distributed.Client``.

    Raises:
        SettingError: something else than a client, or one for asynchronous code.
        ClusterError: a client that is closed.
    """

    def __init__(self, client: Client) -> None:
        if not isinstance(client, distributed.Client) or client.asynchronous:
            raise SettingError(f"client={client!r} is not a distributed.Client for ordinary code; type "
                               "client=distributed.Client('tcp://scheduler:8786'), or client=distributed.Client() for "
                               "the cores of this machine")
        self._client = client
        if client.status != "running":
            raise ClusterError(f"the cluster of {client!r} is not there any more: the client is {client.status}; make "
                               "a new one")

    def share(self, value: Any) -> Future:
        """A value that many jobs need; it lies in the scheduler and comes to each worker once."""
        with dask.config.set({"distributed.admin.large-graph-warning-threshold": "100GB"}):
            return self._client.submit(_same, _Packed(value), pure=False)

    def spread(self, work: Callable[..., Any],
               jobs: Sequence[tuple[tuple[Future, ...], tuple[Any, ...]]]) -> Iterator[tuple[int, Any]]:
        """Do ``work(*shared, *own)`` for every job (shared, own); yields (place of the job, answer) as they are done.

        An answer is what ``work`` returns, or the MoELabError that it raised.

        Raises:
            ClusterError: the cluster went away, a job killed several workers, or the workers' sources are others.
        """
        with dask.config.set({"distributed.admin.large-graph-warning-threshold": "100GB"}):
            futures = {self._client.submit(_done, work, sources(), _Packed(own), *shared, pure=False): place
                       for place, (shared, own) in enumerate(jobs)}
        waiting, seen = set(futures), time.monotonic()
        while waiting:
            self._wait(waiting)
            # lost: with its worker, before it came here; the scheduler has it made again
            for future in [one for one in waiting if one.status not in ("pending", "lost")]:
                answer = self._answer(future)
                waiting.discard(future)
                yield futures[future], answer
            if self._workers():
                seen = time.monotonic()
            elif time.monotonic() - seen > PATIENCE_S:
                raise ClusterError(f"the cluster has had no worker for {PATIENCE_S:.0f} s, and {len(waiting)} of "
                                   f"{len(futures)} jobs are not done; start workers and repeat the call")

    def _wait(self, waiting: set[Future]) -> None:
        """Until one is done, or for a moment."""
        if self._client.status not in ("running", "connecting"):
            raise self._gone("the client is closed")
        try:
            with contextlib.suppress(TimeoutError, CancelledError), self._client.as_current():
                distributed.wait(list(waiting), timeout=_LOOK_S,      # type: ignore[no-untyped-call]
                                 return_when="FIRST_COMPLETED")
        except (ValueError, RuntimeError) as error:         # asked of a client that closes just now
            raise self._gone(str(error)) from error

    def _workers(self) -> int:
        try:
            return len(self._client.scheduler_info()["workers"])
        except Exception:       # asked while the scheduler goes away; its futures tell
            return 0

    def _answer(self, future: Future) -> Any:
        if future.status == "cancelled":
            raise self._gone("the scheduler does not answer")
        try:
            answer, failure = future.result(timeout=PATIENCE_S)
        except (CancelledError, TimeoutError, OSError) as error:
            raise self._gone(str(error) or type(error).__name__) from error
        except distributed.KilledWorker as error:
            raise ClusterError(f"one job ended several workers one after the other, as a lack of memory does: {error}; "
                               "give the workers more, or take fewer at a time on one machine") from error
        except MoELabError:
            raise
        except Exception as error:
            raise ClusterError(f"a worker failed: {type(error).__name__}: {error}; install the same moe-lab and the "
                               "same libraries there as here") from error
        return answer if failure is None else failure

    @staticmethod
    def _gone(why: str) -> ClusterError:
        return ClusterError(f"the cluster went away before all was done: {why}; make a new one and repeat the call, "
                            "what was finished is kept")


def sources() -> str:
    """A hash of all of this package that the figures hang on; its own policies travel by name."""
    return sources_digest(policies=True)


def _done(work: Callable[..., Any], here: str, own: _Packed, *shared: Any) -> tuple[Any, MoELabError | None]:
    """On a worker: do the work, and bring an error of ours back as an answer."""
    if sources() != here:
        raise ClusterError("a worker has other sources of moe-lab than this program, and its figures might differ; "
                           "install the same version there")
    try:
        return work(*shared, *own.value), None
    except MoELabError as error:
        return None, error


def _same(packed: _Packed) -> Any:
    return packed.value


# --- how policies travel ----------------------------------------------------------------------------


def check_whole(policies: Iterable[Policy | None]) -> None:
    """Raise a PolicyError for one that would be another after the journey, before anything is sent."""
    for policy in dict.fromkeys(policies):
        try:
            _unpacked(packed(policy))
        except MoELabError:
            raise
        except Exception as error:      # whatever the code of its author makes the pickler raise
            raise PolicyError(f"the policy {policy!r} cannot be sent to workers: {error}; leave client out") from error


class _Packed:
    """A value on its way: pickled by cloudpickle, policies by what they are."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpacked, (packed(self.value),)


def packed(value: Any) -> bytes:
    """Bytes of a value with all the code of policies that the other side may not have."""
    import io

    foreign: set[str] = set()
    buffer = io.BytesIO()
    pickler = _Pickler(buffer, foreign)
    try:
        pickler.dump(value)
    finally:
        for name in foreign:
            cloudpickle.unregister_pickle_by_value(sys.modules[name])
    return buffer.getvalue()


def _unpacked(data: bytes) -> _Packed:
    return _Packed(cloudpickle.loads(data))


class _Pickler(cloudpickle.Pickler):
    """Sends a policy class that is not of this package as its functions and declarations, to be made anew."""

    def __init__(self, file: Any, foreign: set[str]) -> None:
        super().__init__(file)
        self._foreign = foreign

    def reducer_override(self, thing: Any) -> Any:
        if isinstance(thing, type) and issubclass(thing, Policy) and not thing.__module__.startswith("moe_lab."):
            module = sys.modules.get(thing.__module__)
            if module is not None and thing.__module__ not in cloudpickle.list_registry_pickle_by_value():
                cloudpickle.register_pickle_by_value(module)
                self._foreign.add(thing.__module__)
            return _made_anew, (code_of(thing).digest, thing.kind, _body(thing))
        if isinstance(thing, Dispatcher) and thing.py_func.__module__ in self._foreign:     # numba would send its name
            return _compiled_anew, (thing.py_func, thing.targetoptions)
        return super().reducer_override(thing)


_PLAIN = (*PLAIN, "__doc__", "__module__", "__qualname__")


def _body(cls: type[Policy]) -> dict[str, Any]:
    """What a policy class is made of."""
    body: dict[str, Any] = {key: getattr(cls, key) for key in _PLAIN if hasattr(cls, key)}
    body |= {**cls.parameters(), **cls.tables()}
    functions = {key: (function, function.__code__.co_filename) for key in FUNCTIONS
                 if (function := getattr(cls, key, None)) is not None}
    return {"plain": body, "functions": functions, "own": own(cls), "title": cls.__name__,
            "strange": code_of(cls).strange}


def _compiled_anew(function: Callable[..., Any], options: dict[str, Any]) -> Any:
    return numba.jit(**options)(function)


_KNOWN: dict[tuple[str, str], type[Policy]] = {}


def _made_anew(key: str, kind: str, parts: dict[str, Any]) -> type[Policy]:
    """The class; the same one each time, so that it is compiled once."""
    name = parts["plain"]["name"]
    base: type[Policy] = RoutingPolicy if kind == "routing" else EvictionPolicy
    body = {**parts["plain"], **parts["own"]}
    for hook, (function, file) in parts["functions"].items():
        function.__code__ = function.__code__.replace(co_filename=file)     # so that errors name the line
        body[hook] = staticmethod(function)
    made = type(parts["title"], (base,), body)
    if not parts["strange"] and code_of(made).digest != key:
        raise PolicyError(f"the policy {name!r} would be another on a worker: what it reads was changed after it was "
                          "compiled here, stands in a file that is another there, or cannot travel; define it anew, or "
                          "leave client out")
    return _KNOWN.setdefault((key, name), made)
