"""Experts at rest: the bytes of one expert, from the files into a slot.

Knows the plan and a weight format. Where the file's type is the format's own the bytes go straight into
the slot, one system call for every stretch that is contiguous in the file; else they are read into
scratch memory and encoded on the way. Knows no cache and no policy.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np

from moe_lab.errors import ReadError, SettingError
from moe_lab.store.files import WeightFiles
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
        self._scratch = threading.local()

    def read(self, layer: int, expert: int, slot: np.ndarray) -> int:
        """Fill ``slot`` (at least slot_bytes,) uint8 with one expert; returns the bytes read from the file.

        Raises ``ReadError`` with file, offset and reason (the file was changed in place, ends too early, is closed);
        the slot's contents are then undefined.
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

    @property
    def files(self) -> WeightFiles:
        """The weight files that it reads, open since the model was opened."""
        return self.plan.files

    def close(self) -> None:
        """Close the files; reading afterwards raises ``ReadError``."""
        self.files.close()
        self._scratch = threading.local()

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
                plan.files.fill(files[first], wanted, offsets[first])
            except (OSError, EOFError) as error:
                self._fail(layer, expert, parts, error)
            begin = end

    def _fail(self, layer: int, expert: int, parts: list[int], error: Exception) -> None:
        plan, first = self.plan, parts[0]
        path, offset = plan.files[plan.file[layer, expert, first]], plan.offset[layer, expert, first]
        names = ", ".join(f"{PARTS[part]} {plan.tensors[layer][expert][part]}" for part in parts)
        raise ReadError(
            f"expert {expert} of MoE layer {layer} could not be read: {path} at byte {offset:,}, "
            f"{plan.part_bytes * len(parts):,} bytes wanted ({names}): {error}",
            experts=(expert,),
        ) from error


_NUMBERS: dict[str, type[np.generic]] = {"F32": np.float32, "BF16": np.uint16, "F16": np.float16}
"""What the bytes of a part are for ``Format.encode``, by the type in the file; bfloat16 as its bits."""
