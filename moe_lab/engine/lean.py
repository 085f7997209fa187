"""A token through the whole model by kernels: transformers' arithmetic without its modules.

Knows the order of layers and where keys and values are kept. What a layer computes stands in ``kernels.decoder``,
what an MoE block does in ``moe_block``. The prompt goes through transformers' modules, and the text goes on from
their keys and values. Hidden states stay in float32 between the layers, so that in bfloat16 the logits lie nearer to
those of a float32 model than transformers' own.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from moe_lab.cache import free_memory
from moe_lab.engine.moe_block import MoEBlocks
from moe_lab.errors import BudgetError, SettingError
from moe_lab.kernels.decoder import Layer, Room, decode_layer
from moe_lab.kernels.dense import head, look_up
from moe_lab.kernels.jit import compiling
from moe_lab.kernels.sealed import Sealed
from moe_lab.models.decoder import Decoder
from moe_lab.models.quantised import bits_of
from moe_lab.units import format_bytes

CHECKED = 64 << 20
"""Bytes of keys and values beyond which free memory is asked for first."""
AHEAD = 512
"""Tokens that memory is asked for ahead of the text."""


class LeanDecode:
    """Decodes one text of at most ``limit`` tokens, after what ``past`` holds of it (transformers' cache).

    Keys and values lie in (G, N, S) arrays of the model's own type, for each layer; N grows with the text.
    Raises ``BudgetError`` where they would not fit into memory.
    """

    def __init__(self, decoder: Decoder, blocks: MoEBlocks, past: Any, limit: int) -> None:
        self.decoder, self.blocks, self.limit = decoder, blocks, limit
        assert blocks.rules is not None
        D, S = decoder.embedding.shape[1], decoder.S
        E = max(layer.router.shape[0] for layer in decoder.layers)
        self.position = int(past.get_seq_length())
        f = np.float32
        self._room = Room(np.zeros(D, f), np.zeros((decoder.H, S), f), np.zeros((decoder.G, S), f),
                          np.zeros((decoder.G, S), f), np.zeros((decoder.H, S), f), np.zeros(D, f), np.zeros(0, f),
                          np.zeros(2 * decoder.ffn_width + D, f))
        self._x = np.zeros(D, f)
        self._logits, self._weights = np.zeros((1, E), f), np.zeros((1, E), f)
        self._out = np.zeros(int(decoder.head.shape[0]), f)
        self._past = np.empty((2, len(decoder.layers), decoder.G, 0, S), dtype=decoder.embedding.dtype)
        self._layers: list[tuple[Sealed, int | None]] = []
        self._grow(min(limit, self.position + AHEAD))
        for number, layer in enumerate(past.layers if self.position else []):
            self._past[0, number, :, : self.position] = bits_of(layer.keys[0])
            self._past[1, number, :, : self.position] = bits_of(layer.values[0])

    def _grow(self, room: int) -> None:
        """Make room for ``room`` tokens; what is there of the text is kept."""
        if room <= self._past.shape[3]:
            raise SettingError(f"this text was begun with at most {self.limit:,} tokens, and they are all there")
        d, had = self.decoder, self._past.shape[3]
        shape = (*self._past.shape[:3], room, d.S)
        nbytes = math.prod(shape) * self._past.itemsize
        check_past(room, nbytes)
        try:
            past = np.empty(shape, dtype=self._past.dtype)     # in one piece: large enough for huge pages
        except MemoryError as error:
            raise _lacking(room, nbytes, "the system does not give them") from error
        past[:, :, :, :had] = self._past
        cos, sin = d.angles(room)
        scratch = self._room._replace(scores=np.zeros(room, np.float32))
        softmax = self.blocks.rules is not None and self.blocks.rules[0].score == "softmax"
        layers = [(Sealed(decode_layer, Layer(
            self._x, layer.attention, cos, sin, past[0, number], past[1, number], scratch, layer.norm, layer.router,
            softmax, self._logits[0], self._weights[0], layer.ffn, d.activation)), layer.moe)
            for number, layer in enumerate(d.layers)]
        self._room, self._past, self._layers = scratch, past, layers

    def __call__(self, token: int) -> np.ndarray:
        """Logits (V,) float32 after ``token``, an id that the embedding has a row for; the same memory each time."""
        check_row(token, len(self.decoder.embedding))
        if self.position == self._past.shape[3]:
            self._grow(min(self.limit, 2 * self.position))
        d, x, h, t = self.decoder, self._x, self._room.h, self.position
        look_up(d.embedding, token, x)
        ones = self.blocks.over(h, self._logits, self._weights)
        for layer, moe in self._layers:
            layer(t)
            if moe is not None:
                x += self.blocks.token(moe, ones[moe])
        head(x, d.norm, d.eps, d.head, h, self._out)
        self.position = t + 1
        return self._out

    def compiling(self) -> list[Callable[[], object]]:
        """What compiles all that a token needs beside its experts; it holds nothing of the model."""
        d = self.decoder
        return [compiling(look_up, d.embedding, 0, self._x), *(layer.compiling() for layer, _ in self._layers),
                compiling(head, self._x, d.norm, d.eps, d.head, self._room.h, self._out)]


def check_row(token: int, rows: int) -> None:
    """Raise ``SettingError`` for an id that an embedding of so many rows does not know: a head may have more."""
    if not 0 <= token < rows:
        raise SettingError(f"token {token} has no row in the embedding, which has {rows}")


def check_past(tokens: int, nbytes: int) -> None:
    """Raise ``BudgetError`` where the keys and values of ``tokens``, ``nbytes``, do not fit into the free memory."""
    if nbytes > CHECKED and nbytes > (free := free_memory()).nbytes:
        raise _lacking(tokens, nbytes, f"{format_bytes(free.nbytes)} are free {free.of}")


def _lacking(tokens: int, nbytes: int, why: str) -> BudgetError:
    return BudgetError(f"keys and values of {tokens:,} tokens take {format_bytes(nbytes)}, and {why}; take a smaller "
                       "cache, or a shorter text")
