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
from moe_lab.kernels.decoder import Layer, Room, decode_layer
from moe_lab.kernels.dense import head, look_up
from moe_lab.kernels.jit import compile_for
from moe_lab.kernels.sealed import Sealed
from moe_lab.models.decoder import Decoder
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
        softmax = blocks.rules[0].score == "softmax"
        self.position = int(past.get_seq_length())
        cos, sin = decoder.angles(room)
        # in one piece: large enough for huge pages, and a token touches all of it
        keys, values = np.empty((2, len(decoder.layers), decoder.G, room, S), dtype=decoder.embedding.dtype)
        for number, layer in enumerate(past.layers if self.position else []):
            keys[number, :, : self.position] = bits_of(layer.keys[0])
            values[number, :, : self.position] = bits_of(layer.values[0])
        f = np.float32
        self._room = Room(np.zeros(D, f), np.zeros((decoder.H, S), f), np.zeros((decoder.G, S), f),
                          np.zeros((decoder.G, S), f), np.zeros((decoder.H, S), f), np.zeros(D, f), np.zeros(room, f),
                          np.zeros(2 * decoder.ffn_width + D, f))
        self._x = np.zeros(D, f)
        self._logits, self._weights = np.zeros((1, E), f), np.zeros((1, E), f)
        self._out = np.zeros(int(decoder.head.shape[0]), f)
        self._layers = [(Sealed(decode_layer, Layer(
            self._x, layer.attention, cos, sin, keys[number], values[number], self._room, layer.norm, layer.router,
            softmax, self._logits[0], self._weights[0], layer.ffn, decoder.activation)), layer.moe)
            for number, layer in enumerate(decoder.layers)]

    def __call__(self, token: int) -> np.ndarray:
        """Logits (V,) float32 after ``token``; the same memory each time."""
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

    def compile(self) -> None:
        """Compile all that a token needs beside its experts; nothing is computed."""
        d = self.decoder
        compile_for(look_up, d.embedding, 0, self._x)
        for layer, _ in self._layers:
            layer.compile()
        compile_for(head, self._x, d.norm, d.eps, d.head, self._room.h, self._out)
