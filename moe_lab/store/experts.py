"""Experts at rest: the bytes of one expert, from the files into a slot.

Knows the plan and a weight format. Where the file's type is the format's own the bytes go straight into
the slot, one system call for every stretch that is contiguous in the file; else they are read into
scratch memory and encoded on the way. Knows no cache and no policy.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import TYPE_CHECKING

import numpy as np

from moe_lab.errors import ReadError, SettingError
from moe_lab.store.plan import PARTS, ExpertPlan

if TYPE_CHECKING:
    from moe_lab.kernels.formats import Format


class ExpertStore:
    """Reads experts of ``plan`` into slots of ``format``. Safe to use from many threads at once.

    >>> from moe_lab.kernels.formats import FORMATS
    >>> from moe_lab.models import resolve_model, study
    >>> store = ExpertStore(study(resolve_model("pocket")).plan, FORMATS["bf16"])
    >>> slot = np.empty(store.slot_bytes, np.uint8)
    >>> store.read(0, 5, slot)
    98304
    """

    def __init__(self, plan: ExpertPlan, format: Format) -> None:
        if plan.dtype not in _NUMBERS:
            raise SettingError(f"experts of type {plan.dtype} cannot be read; possible are {', '.join(_NUMBERS)}")
        self.plan, self.format = plan, format
        self.slot_bytes = format.slot_bytes(plan.D, plan.F)
        self._straight = plan.dtype == format.native
        self._files = _Files(plan)
        self._scratch = threading.local()

    def read(self, layer: int, expert: int, slot: np.ndarray) -> int:
        """Fill ``slot`` (at least slot_bytes,) uint8 with one expert; returns the bytes read from the file.

        Raises ``ReadError`` with file, offset and the bytes wanted and got; the slot's contents are then undefined.
        """
        plan = self.plan
        if self._straight:
            self._fill(layer, expert, slot)
            return plan.expert_bytes
        raw = self._scratch_bytes()
        self._fill(layer, expert, raw)
        gate, up, down = raw.view(_NUMBERS[plan.dtype]).reshape(3, -1)
        shape = plan.F, plan.D
        self.format.encode(gate.reshape(shape), up.reshape(shape), down.reshape(shape[::-1]), slot)
        return plan.expert_bytes

    def close(self) -> None:
        """Close the files; reading afterwards raises ``ReadError``."""
        self._files.close()

    def _scratch_bytes(self) -> np.ndarray:
        """(expert_bytes,) uint8 of this thread."""
        try:
            return self._scratch.raw
        except AttributeError:
            self._scratch.raw = np.empty(self.plan.expert_bytes, np.uint8)
            return self._scratch.raw

    def _fill(self, layer: int, expert: int, target: np.ndarray) -> None:
        """The three parts one after the other into ``target``."""
        plan, size = self.plan, self.plan.part_bytes
        files, offsets = plan.file[layer, expert].tolist(), plan.offset[layer, expert].tolist()
        order = sorted(range(3), key=lambda part: (files[part], offsets[part]))
        places = [(files[part], offsets[part]) for part in order]
        begin = 0
        while begin < 3:
            first, end = order[begin], begin + 1
            while end < 3 and places[end] == (files[first], offsets[first] + (end - begin) * size):
                end += 1
            parts = order[begin:end]
            wanted = [target[part * size : (part + 1) * size] for part in parts]
            try:
                got = os.preadv(self._files[files[first]], wanted, offsets[first])
                if got != size * len(parts):
                    self._finish(files[first], wanted, offsets[first], got)
            except (OSError, EOFError) as error:
                self._fail(layer, expert, parts, error)
            begin = end

    def _finish(self, file: int, wanted: list[np.ndarray], offset: int, got: int) -> None:
        """The rest after a short read (a signal, a network disk); ``EOFError`` where the file ends."""
        for part in wanted:
            done = min(got, part.size)
            got -= done
            while done < part.size:
                more = os.preadv(self._files[file], [part[done:]], offset + done)
                if not more:
                    raise EOFError(f"the file ends at {offset + done:,}, {part.size - done:,} bytes short")
                done += more
            offset += part.size

    def _fail(self, layer: int, expert: int, parts: list[int], error: Exception) -> None:
        plan, first = self.plan, parts[0]
        path, offset = plan.files[plan.file[layer, expert, first]], plan.offset[layer, expert, first]
        names = ", ".join(f"{PARTS[part]} {plan.tensors[layer][expert][part]}" for part in parts)
        raise ReadError(
            f"expert {expert} of MoE layer {layer} could not be read: {path} at byte {offset:,}, "
            f"{plan.part_bytes * len(parts):,} bytes wanted ({names}): {error}",
            experts=(expert,),
        ) from error


class _Files:
    """Open files by number: opened at first use, closed with the store or when it is collected."""

    def __init__(self, plan: ExpertPlan) -> None:
        self._paths = plan.files
        self._open: dict[int, int] = {}
        self._lock = threading.Lock()
        self._closed = False
        self._finalizer = weakref.finalize(self, _close, self._open)

    def __getitem__(self, number: int) -> int:
        descriptor = self._open.get(number)
        return self._open_file(number) if descriptor is None else descriptor

    def _open_file(self, number: int) -> int:
        with self._lock:
            if self._closed:
                raise OSError("the store is closed; load the model again")
            if number not in self._open:
                self._open[number] = os.open(self._paths[number], os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
            return self._open[number]

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._finalizer()


def _close(descriptors: dict[int, int]) -> None:
    while descriptors:
        os.close(descriptors.popitem()[1])


_NUMBERS: dict[str, type[np.generic]] = {"F32": np.float32, "BF16": np.uint16, "F16": np.float16}
"""What the bytes of a part are for ``Format.encode``, by the type in the file; bfloat16 as its bits."""
