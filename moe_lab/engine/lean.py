"""A token through the whole model by kernels: transformers' arithmetic without its modules.

Knows the order of layers and where keys and values are kept. What a layer computes stands in ``kernels.decoder``,
what an MoE block does in ``moe_block``. The prompt goes through transformers' modules, and the text goes on from
their keys and values. Hidden states stay in float32 between the layers, so that in bfloat16 the logits lie nearer to
those of a float32 model than transformers' own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from moe_lab.engine.moe_block import MoEBlocks
from moe_lab.kernels.decoder import Room, dense_layer, to_router
from moe_lab.kernels.dense import head, look_up
from moe_lab.kernels.jit import compile_for
from moe_lab.models.decoder import Decoder, DecoderLayer
from moe_lab.models.quantised import bits_of


class LeanDecode:
    """Decodes one text of at most ``room`` tokens, after what ``past`` holds of it (transformers' cache).

    Keys and values lie in (G, room, S) arrays of the model's own type, for each layer.
    """

    def __init__(self, decoder: Decoder, blocks: MoEBlocks, past: Any, room: int) -> None:
        self.decoder, self.blocks = decoder, blocks
        assert blocks.rules is not None
        D, S = decoder.embedding.shape[1], decoder.S
        E = max(layer.router.shape[0] for layer in decoder.layers)
        self._softmax = blocks.rules[0].score == "softmax"
        self.position = int(past.get_seq_length())
        self._cos, self._sin = decoder.angles(room)
        shape = decoder.G, room, S
        self._keys = [np.empty(shape, dtype=decoder.embedding.dtype) for _ in decoder.layers]
        self._values = [np.empty(shape, dtype=decoder.embedding.dtype) for _ in decoder.layers]
        before = past.layers if self.position else []
        for layer, keys, values in zip(before, self._keys, self._values, strict=False):
            keys[:, : self.position] = bits_of(layer.keys[0])
            values[:, : self.position] = bits_of(layer.values[0])
        f = np.float32
        self._room = Room(np.zeros(D, f), np.zeros((decoder.H, S), f), np.zeros((decoder.G, S), f),
                          np.zeros((decoder.G, S), f), np.zeros((decoder.H, S), f), np.zeros(D, f), np.zeros(room, f),
                          np.zeros(2 * decoder.ffn_width + D, f))
        self._x = np.zeros(D, f)
        self._logits, self._weights = np.zeros((1, E), f), np.zeros((1, E), f)
        self._out = np.zeros(int(decoder.head.shape[0]), f)

    def __call__(self, token: int) -> np.ndarray:
        """Logits (V,) float32 after ``token``; the same memory each time."""
        d, x, room = self.decoder, self._x, self._room
        look_up(d.embedding, token, x)
        for layer, keys, values in zip(d.layers, self._keys, self._values, strict=True):
            kernel, arguments = self._layer(layer, keys, values)
            kernel(*arguments)
            if layer.moe is not None:
                x += self.blocks.token(layer.moe, room.h, self._logits, self._weights)
        head(x, d.norm, d.eps, d.head, room.h, self._out)
        self.position += 1
        return self._out

    def _layer(self, layer: DecoderLayer, keys: np.ndarray, values: np.ndarray) -> tuple[Callable[..., None], Any]:
        """The kernel of a layer, and what it is called with at the present position."""
        d, t = self.decoder, self.position
        some = self._x, layer.attention, self._cos[t], self._sin[t], keys, values, t, self._room, layer.norm
        if layer.moe is None:
            return dense_layer, (*some, layer.ffn, d.activation)
        return to_router, (*some, layer.router, self._softmax, self._logits[0], self._weights[0], layer.ffn,
                           d.activation)

    def compile(self) -> None:
        """Compile all that a token needs beside its experts; nothing is computed."""
        d = self.decoder
        compile_for(look_up, d.embedding, 0, self._x)
        for layer, keys, values in zip(d.layers, self._keys, self._values, strict=True):
            kernel, arguments = self._layer(layer, keys, values)
            compile_for(kernel, *arguments)
        compile_for(head, self._x, d.norm, d.eps, d.head, self._room.h, self._out)
