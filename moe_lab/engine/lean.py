"""A token through the whole model by kernels: transformers' arithmetic without its modules.

Knows the order of layers and where keys and values are kept. What a layer computes stands in ``kernels.decoder``,
what an MoE block does in ``moe_block``. The prompt goes through transformers' modules, and the text goes on from
their keys and values. Hidden states stay in float32 between the layers, so that in bfloat16 the logits lie nearer to
those of a float32 model than transformers' own.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from moe_lab.engine.moe_block import MoEBlocks
from moe_lab.kernels.decoder import Room, dense_layer, to_router
from moe_lab.kernels.dense import head, look_up
from moe_lab.models.decoder import Decoder
from moe_lab.models.quantised import bits_of


class LeanDecode:
    """Decodes one text of at most ``room`` tokens, after the prompt that ``past`` holds (transformers' cache).

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
        for layer, (keys, values) in enumerate(zip(self._keys, self._values, strict=True)):
            keys[:, : self.position] = bits_of(past.layers[layer].keys[0])
            values[:, : self.position] = bits_of(past.layers[layer].values[0])
        f = np.float32
        self._room = Room(np.zeros(D, f), np.zeros((decoder.H, S), f), np.zeros((decoder.G, S), f),
                          np.zeros((decoder.G, S), f), np.zeros((decoder.H, S), f), np.zeros(D, f), np.zeros(room, f),
                          np.zeros(2 * decoder.ffn_width + D, f))
        self._x = np.zeros(D, f)
        self._logits, self._weights = np.zeros((1, E), f), np.zeros((1, E), f)
        self._out = np.zeros(int(decoder.head.shape[0]), f)

    def __call__(self, token: int) -> np.ndarray:
        """Logits (V,) float32 after ``token``; the same memory each time."""
        d, x, t, room = self.decoder, self._x, self.position, self._room
        cos, sin = self._cos[t], self._sin[t]
        look_up(d.embedding, token, x)
        for layer, keys, values in zip(d.layers, self._keys, self._values, strict=True):
            if layer.moe is None:
                dense_layer(x, layer.attention, cos, sin, keys, values, t, room, layer.norm, layer.ffn, d.activation)
            else:
                to_router(x, layer.attention, cos, sin, keys, values, t, room, layer.norm, layer.router, self._softmax,
                          self._logits[0], self._weights[0], layer.ffn, d.activation)
                x += self.blocks.token(layer.moe, room.h, self._logits, self._weights)
        head(x, d.norm, d.eps, d.head, room.h, self._out)
        self.position += 1
        return self._out
