"""For each family: the streamed model with quantised experts against its NumPy twin and the eager model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from checkpoints import FAMILIES, KernelHandler, eager

from moe_lab.kernels.formats import FORMATS
from moe_lab.models import open_model
from moe_lab.models.find import experts_modules

IDS = torch.arange(12)[None] * 37 % 160
ROUTES_MAY_DIFFER = 0.3
"""Share of the tokens that a random model of two experts in eight may route differently once its experts differ."""


class TwinHandler(KernelHandler):
    """Runs every token through the format's twin in NumPy."""

    def compute(self, layer, x, ids, weights):
        F, act = self.model.spec.expert_hidden, self.model.activation
        tokens = zip(x.float().numpy(), ids.numpy().astype(np.int32), weights.float().numpy(), strict=True)
        out = [self.format.ffn_token_slow(row, self.arena[layer], slots, gates, F, act) for row, slots, gates in tokens]
        return torch.from_numpy(np.stack(out)).to(x.dtype)


def logits(folder, handler, name):
    model = open_model(folder, torch.float32)
    model.connect(handler(model, FORMATS[name]))
    with torch.no_grad():
        return model.hf(input_ids=IDS).logits[0]


def dequantised(folder, name):
    """The eager model over the weights that the format decodes to."""
    model, streamed = eager(folder), open_model(folder, torch.float32)
    arena, spec = KernelHandler(streamed, FORMATS[name]).arena, streamed.spec
    for layer, (_, experts) in enumerate(experts_modules(model)):
        for expert in range(spec.experts):
            parts = FORMATS[name].decode(arena[layer, expert], spec.hidden, spec.expert_hidden)
            gate, up, down = (torch.from_numpy(np.array(part)) for part in parts)
            experts.gate_up_proj.data[expert], experts.down_proj.data[expert] = torch.cat([gate, up]), down
    with torch.no_grad():
        return model(input_ids=IDS).logits[0]


@pytest.mark.parametrize("name", ["q8", "q4"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_the_numpy_twins(checkpoint, family, name):
    folder = checkpoint(family)
    mine, twin = (logits(folder, handler, name) for handler in (KernelHandler, TwinHandler))
    assert twin.std() > 0.1, "logits that hardly differ prove nothing"
    assert (mine - twin).abs().max() <= 1e-5 * twin.abs().max()


@pytest.mark.parametrize("name", ["q8", "q4"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_the_eager_models_over_dequantised_weights_but_for_activations_in_bytes(checkpoint, family, name):
    folder = checkpoint(family)
    mine, theirs = logits(folder, KernelHandler, name), dequantised(folder, name)
    differing = torch.linalg.vector_norm(mine - theirs, dim=-1) / torch.linalg.vector_norm(theirs, dim=-1)
    assert 0 < differing.median() < 0.03
    assert (differing > 0.1).float().mean() <= ROUTES_MAY_DIFFER
