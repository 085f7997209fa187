"""What an engine measures with, as digests: everything beside policies, slots and text that steers a figure.

Knows the engine's parts and the switches of torch that reach into a pass. Leaves out where the files lie and what only
costs time: the cache, the disk, threads. Keeps nothing; that is the business of ``moe_lab.evaluation``.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch

from moe_lab.digests import Stretch, digest, digests
from moe_lab.engine.moe_block import MoEBlocks
from moe_lab.kernels import instructions
from moe_lab.models.identity import in_memory
from moe_lab.store.content import contents

if TYPE_CHECKING:
    from moe_lab.engine.engine import Engine


@dataclass(frozen=True)
class Identity:
    """Two engines of one identity give the same figures. Each part is a digest, or words."""

    files: str
    """The experts: content of the weight files, and what lies where in them."""
    model: str
    """The rest as it is in memory."""
    settings: str
    """Formats, seed, shape and the router's rules."""
    torch: str
    """Its switches."""
    libraries: str
    """Versions, and the instructions that the kernels use."""
    strange: str = ""
    """What no digest can stand for, in words. Where there is something, equal parts prove nothing."""

    @property
    def key(self) -> str:
        """One digest for all of them."""
        return digest(asdict(self))

    def apart(self, other: Identity) -> list[str]:
        """What differs, in words.

        >>> one = Identity("a", "b", "c", "d", "e")
        >>> one.apart(one), one.apart(Identity("a", "x", "c", "d", "y"))
        ([], ['the model in memory (weights, modules or configuration)', 'the libraries or the processor (e; y)'])
        """
        words = {
            "files": "the weight files",
            "model": "the model in memory (weights, modules or configuration)",
            "settings": "a setting (formats, seed or the router's rules)",
            "torch": f"torch's switches ({self.torch}; {other.torch})",
            "libraries": f"the libraries or the processor ({self.libraries}; {other.libraries})",
            "strange": "the code of the model",
        }
        return [said for part, said in words.items() if getattr(self, part) != getattr(other, part)]


def identity(engine: Engine, files: bool = True) -> Identity:
    """What ``engine`` measures with now; without ``files`` the weight files, which may take long, are left out.

    Raises:
        ReadError: a weight file is gone, or has changed since it was loaded.
    """
    model, handler = in_memory(engine.hf), engine.hf.moe_lab_socket.handler
    strange = model.strange
    if not isinstance(handler, MoEBlocks):
        strange = f"its experts are computed by another handler, {type(handler).__qualname__}"
    content = _files(engine) if files else ""
    return Identity(content, model.digest, _settings(engine), _switches(), _libraries(), strange)


def _files(engine: Engine) -> str:
    plan = engine._core.experts.readers.store.plan
    found = contents(plan.files, plan.files.descriptors)
    plan.files.check()
    return digest(found, digests([Stretch.of(plan.file), Stretch.of(plan.offset)]))


def _settings(engine: Engine) -> str:
    blocks, spec = engine._core.blocks, asdict(engine.spec)
    spec.pop("name")
    rules = None if blocks.rules is None else [asdict(rule) for rule in blocks.rules]
    return digest(engine.format.name, engine.dense, engine.seed, spec, rules, blocks.activation)


def _switches() -> str:
    """torch's switches that differ from its own defaults, in words."""
    on_cpu, sdp = torch.is_autocast_enabled("cpu"), torch.backends.cuda
    found: dict[str, Any] = {
        "default dtype": (torch.get_default_dtype(), torch.float32),
        "autocast": (torch.get_autocast_dtype("cpu") if on_cpu else None, None),
        "deterministic": (torch.are_deterministic_algorithms_enabled(), False),
        "mkldnn": (torch.backends.mkldnn.enabled, True),
        "mkldnn deterministic": (torch.backends.mkldnn.deterministic, False),
        "float32 products": (_float32_products(), ("highest", "exact", "exact")),
        "attention": ((sdp.flash_sdp_enabled(), sdp.math_sdp_enabled()), (True, True)),
        "denormals": (bool((torch.full((1,), 1e-38, dtype=torch.float32) * 1e-3).any()), True),
    }
    return ", ".join(f"{name} {value}" for name, (value, usual) in found.items() if value != usual) or "as they come"


def _float32_products() -> tuple[str, ...]:
    """How exact products of float32 must be, by torch's old switch and its new ones."""
    try:
        old = torch.get_float32_matmul_precision()
    except RuntimeError:        # it refuses to say where a new one was set
        old = "highest"
    backends: Any = torch.backends
    new = backends.fp32_precision, backends.mkldnn.matmul.fp32_precision
    return old, *("exact" if one in ("none", "ieee") else one for one in new)


@cache
def _versions() -> str:
    return ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "numba", "numpy"))


def _libraries() -> str:
    return f"{_versions()}, {instructions.chosen()}"
