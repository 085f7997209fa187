"""The experts of one token: x prepared once, then for each expert gate and up, the activation, and down.

Knows the order of things and no weight format: a format supplies three functions over a ``Job``'s block.
``prepare(job)`` makes of x what its products take; ``up(job, weights, k, begin, end)`` computes rows ``begin`` to
``end`` of the hidden layer of the k-th expert, whose weights lie at address ``weights``; ``down(job, weights, k,
begin, end)`` adds rows of its output, times its gate, to ``out``. Every number is computed by one call and sums run
over the experts in order, so it does not matter to a single bit how rows are cut.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from moe_lab.kernels.activation import activation_number
from moe_lab.kernels.crew import SMALL, address_of, run, shared
from moe_lab.kernels.jit import jit
from moe_lab.kernels.job import (
    ARENA,
    DOWN_ROWS,
    FIELDS,
    GATES,
    HIDDEN,
    OUT,
    SLOTS,
    STRIDE,
    TOP_K,
    UP_ROWS,
    WIDTH,
    Job,
    X,
    filled,
    job_of,
)
from moe_lab.kernels.pointers import SIGNATURES, array_at, ints_at
from moe_lab.kernels.sealed import Sealed


class Steps(NamedTuple):
    """What a format supplies, and the name that tells its machine code from others."""

    name: str
    prepare: Callable[..., Any]
    up: Callable[..., Any]
    down: Callable[..., Any]


class _Call(NamedTuple):
    """What ``Token`` is called with."""

    job: np.ndarray
    x: np.ndarray
    arena: np.ndarray
    slots: np.ndarray
    gates: np.ndarray
    out: np.ndarray
    piece: int
    """Address of a piece's machine code, for a crew."""


class Token:
    """One token through the steps of a format, alone or, where the experts are large, with the crew of the process."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps

    @functools.cached_property
    def alone(self) -> Callable[..., Any]:
        """The kernel for one thread."""
        return token_kernel(self._steps)

    @functools.cached_property
    def shared(self) -> tuple[Callable[..., Any], int]:
        """The kernel for a crew, and the address of a piece."""
        return shared_token_kernel(self._steps), address_of(piece_kernel(self._steps), SIGNATURES["work"])

    def __call__(self, x: np.ndarray, arena: np.ndarray, slots: np.ndarray, gates: np.ndarray, out: np.ndarray,
                 F: int, activation: str) -> None:
        """See ``Format.ffn_token``."""
        job = job_of(x.size, F, slots.size, activation_number(activation))
        if _alone(arena, slots):
            self.alone(job.block, x, arena, slots, gates, out)
        else:
            kernel, piece = self.shared
            kernel(shared().address, piece, job.block, x, arena, slots, gates, out)

    def again(self, job: Job, x: np.ndarray, arena: np.ndarray, slots: np.ndarray, gates: np.ndarray,
              out: np.ndarray) -> Callable[[], None]:
        """See ``Format.token_again``."""
        name, lonely = self._steps.name, _alone(arena, slots)
        call = _Call(job.block, x, arena, slots, gates, out, 0 if lonely else self.shared[1])
        if lonely:
            alone = Sealed(self._sealed_alone, call, name, keep=job)
            return lambda: alone(0)
        with_crew = Sealed(self._sealed_shared, call, name, keep=job)
        return lambda: with_crew(shared().address)

    @functools.cached_property
    def _sealed_alone(self) -> Callable[..., Any]:
        kernel = self.alone

        @jit(helper=True)
        def alone(call, number):  # type: ignore[no-untyped-def]
            kernel(call.job, call.x, call.arena, call.slots, call.gates, call.out)

        return alone

    @functools.cached_property
    def _sealed_shared(self) -> Callable[..., Any]:
        kernel, _ = self.shared

        @jit(helper=True)
        def with_crew(call, crew):  # type: ignore[no-untyped-def]
            kernel(crew, call.piece, call.job, call.x, call.arena, call.slots, call.gates, call.out)

        return with_crew


def _alone(arena: np.ndarray, slots: np.ndarray) -> bool:
    """Whether a token is not worth sharing, or there is nobody to share it with."""
    return slots.size * arena.shape[1] < SMALL or shared().threads == 1


def token_kernel(steps: Steps) -> Callable[..., Any]:
    """The kernel of one token: ``(block, x (D,), arena (S, B), slots (K,), gates (K,), out (D,))``."""
    prepare, up, down = steps.prepare, steps.up, steps.down

    @jit(name=f"token {steps.name}")
    def token(job, x, arena, slots, gates, out):  # type: ignore[no-untyped-def]
        job[X], job[GATES], job[OUT] = x.ctypes.data, gates.ctypes.data, out.ctypes.data
        out[:] = 0
        prepare(job)
        for k in range(slots.size):
            if slots[k] >= 0:
                weights = arena[slots[k]].ctypes.data
                up(job, weights, k, 0, job[HIDDEN])
                down(job, weights, k, 0, job[WIDTH])

    return token


def shared_token_kernel(steps: Steps) -> Callable[..., Any]:
    """The kernel of one token for a crew: as ``token_kernel``'s, with ``(crew, function)`` before the rest: the
    addresses of a crew and of ``piece_kernel``'s machine code."""
    prepare = steps.prepare

    @jit(name=f"shared token {steps.name}")
    def token(crew, function, job, x, arena, slots, gates, out):  # type: ignore[no-untyped-def]
        job[X], job[GATES], job[OUT] = x.ctypes.data, gates.ctypes.data, out.ctypes.data
        job[ARENA], job[STRIDE], job[SLOTS] = arena.ctypes.data, arena.shape[1], slots.ctypes.data
        out[:] = 0
        prepare(job)
        ups = job[TOP_K] * (filled(job[HIDDEN], UP_ROWS) // UP_ROWS)
        return run(crew, np.int64(job.ctypes.data), function, ups + filled(job[WIDTH], DOWN_ROWS) // DOWN_ROWS, ups)

    return token


def piece_kernel(steps: Steps) -> Callable[..., Any]:
    """A piece of a token, ``(address of the block, number)``: rows of one expert's hidden layer, or, after all of
    those, rows of the output of all experts in order."""
    up, down = steps.up, steps.down

    @jit(name=f"piece of a token {steps.name}")
    def piece(address, item):  # type: ignore[no-untyped-def]
        job = array_at(address, (len(FIELDS),), np.int64)
        K, F, D = job[TOP_K], job[HIDDEN], job[WIDTH]
        slots, cuts = ints_at(job[SLOTS], K), filled(F, UP_ROWS) // UP_ROWS
        if item < K * cuts:
            k, begin = item // cuts, UP_ROWS * (item % cuts)
            if slots[k] >= 0:
                up(job, job[ARENA] + job[STRIDE] * slots[k], k, begin, min(begin + UP_ROWS, F))
        else:
            begin = DOWN_ROWS * (item - K * cuts)
            for k in range(K):
                if slots[k] >= 0:
                    down(job, job[ARENA] + job[STRIDE] * slots[k], k, begin, min(begin + DOWN_ROWS, D))

    return piece


def rows_kernel(steps: Steps) -> Callable[..., Any]:
    """The kernel of ``Format.ffn_rows``, ``(block of a job of one, x, slot, places, gates, out)``: row after row."""
    prepare, up, down = steps.prepare, steps.up, steps.down

    @jit(name=f"rows {steps.name}")
    def rows(job, x, slot, places, gates, out):  # type: ignore[no-untyped-def]
        K = out.shape[0] // x.shape[0]
        for place in places:
            job[X], job[GATES] = x[place // K].ctypes.data, gates[place:].ctypes.data
            job[OUT] = out[place].ctypes.data
            out[place, :] = 0
            prepare(job)
            up(job, slot.ctypes.data, 0, 0, job[HIDDEN])
            down(job, slot.ctypes.data, 0, 0, job[WIDTH])

    return rows
