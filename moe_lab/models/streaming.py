"""A transformers model whose experts are somewhere else.

Knows how a model is built so that ``from_pretrained`` reads everything but the experts, and how a block
calls whoever has them (the handler). Knows no cache, no slot, no policy. What cannot work on such a model
(saving, training, moving) says so instead of doing something else.
"""

from __future__ import annotations

import functools
import re
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NoReturn, Protocol

import torch
from torch import nn

from moe_lab.errors import SettingError
from moe_lab.models.find import Block


class BlockHandler(Protocol):
    """Whoever has the experts. ``layer`` counts MoE blocks from 0; T are the rows of a batch, token by token."""

    def route(self, layer: int, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Choose for (T, E) ``logits``: ids (T, K) int64 and gate weights (T, K) float32.

        None keeps the choice of the model's own router. Not called where routing policies are off.
        """

    def compute(self, layer: int, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """The weighted sum (T, D) of experts ``ids`` (T, K) of ``x`` (T, D), in the type of ``x``."""


class Unconnected:
    """The handler of a model that has none yet."""

    def route(self, layer: int, logits: torch.Tensor) -> NoReturn:
        """Refuse."""
        raise SettingError("this model has no experts yet: models are opened by ml.load(...), use engine.hf")

    def compute(self, layer: int, x: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor) -> NoReturn:
        """Refuse."""
        raise SettingError("this model has no experts yet: models are opened by ml.load(...), use engine.hf")


class PassHandler(Protocol):
    """Whoever wants to know of passes and runs: what stands around each."""

    def forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> AbstractContextManager[None]:
        """Around ``model(*args, **kwargs)``."""

    def generation(self) -> AbstractContextManager[None]:
        """Around ``model.generate(...)``."""


class Unwatched:
    """Around the passes of a model that nobody watches stands nothing."""

    def forward(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> AbstractContextManager[None]:
        """Nothing."""
        return nullcontext()

    def generation(self) -> AbstractContextManager[None]:
        """Nothing."""
        return nullcontext()


class Socket:
    """The one place where a model and its blocks look for their handlers. It is the model's, so a handler must not
    hold the model: they would keep each other in memory."""

    __slots__ = ("handler", "inside", "watch")

    def __init__(self) -> None:
        self.handler: BlockHandler = Unconnected()
        self.watch: PassHandler = Unwatched()
        self.inside = 0
        """The thread whose call of the whole model is about to call the part without a head."""


class StreamedExperts(nn.Module):
    """Stands where the experts were; has no parameters."""

    def __init__(self, socket: Socket, layer: int) -> None:
        super().__init__()
        self.socket, self.layer = socket, layer

    def forward(self, hidden_states: torch.Tensor, top_k_index: torch.Tensor,
                top_k_weights: torch.Tensor) -> torch.Tensor:
        """The handler's sum of expert outputs, (T, D)."""
        return self.socket.handler.compute(self.layer, hidden_states, top_k_index, top_k_weights)

    def extra_repr(self) -> str:
        """For ``print(model)``."""
        return f"MoE layer {self.layer}, streamed"


class RouterHook:
    """A forward hook that puts the handler's choice in the place of the router's."""

    def __init__(self, socket: Socket, layer: int, router: nn.Module) -> None:
        self._socket, self._layer = socket, layer
        self._tried = _settings(router)

    def __call__(self, router: nn.Module, args: Any, out: Any) -> Any:
        """Called by torch after each pass of the router."""
        if odd := self.changed(router):
            raise SettingError(
                f"the router of MoE layer {self._layer} was changed after the model was loaded ({odd}), and MoE Lab "
                "routes by the rule that it had then; change its weights, give it a forward hook, or change "
                "config.json and load again")
        chosen = self._socket.handler.route(self._layer, out[0])
        return out if chosen is None else (out[0], chosen[1], chosen[0])

    def __deepcopy__(self, memo: object) -> RouterHook:
        """A copy of a router asks the same handler."""
        return self

    def changed(self, router: nn.Module) -> str:
        """What ``router`` computes by that is not as it was when its rule was tried; empty where nothing."""
        now, then = _settings(router), self._tried
        return "" if now == then else ", ".join(sorted(key for key in now | then if now.get(key) != then.get(key)))


def _settings(router: nn.Module) -> dict[str, Any]:
    """What a router computes by, beside its weights."""
    own = {key: value for key, value in vars(router).items() if isinstance(value, bool | int | float | str)}
    return {**own, "class": type(router), "forward": vars(router).get("forward", type(router).forward)}


def streaming_class(base: type[Any], blocks: list[Block]) -> type[Any]:
    """``base`` with streamed experts. Keeps name and module: transformers finds its conversion tables by them."""
    return _streaming_class(base, tuple(blocks))  # type: ignore[arg-type]


@functools.cache
def _streaming_class(base: type[Any], blocks: tuple[Block, ...]) -> type[Any]:
    """One class for all models of a shape: a class is never freed by counting references."""
    def __init__(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        base.__init__(self, config, *args, **kwargs)
        socket = Socket()
        for layer, block in enumerate(blocks):
            parent, _, attribute = block.experts.rpartition(".")
            setattr(self.get_submodule(parent), attribute, StreamedExperts(socket, layer))
        self.moe_lab_socket = socket
        if (body := self.base_model) is not self:
            body.moe_lab_socket, body.__class__ = socket, _watched(type(body))  # type: ignore[arg-type]

    @functools.wraps(base.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        socket = self.moe_lab_socket
        with socket.watch.forward(args, kwargs):
            socket.inside = threading.get_ident()
            try:
                return base.forward(self, *args, **kwargs)
            finally:
                socket.inside = 0

    @functools.wraps(base.generate)
    def generate(self: Any, *args: Any, **kwargs: Any) -> Any:
        with self.moe_lab_socket.watch.generation():
            return base.generate(self, *args, **kwargs)

    ignored = {rf"(^|\.){re.escape(block.experts.rpartition('.')[2])}\." for block in blocks}
    return type(base.__name__, (base,), {
        "__init__": __init__, "forward": forward, "generate": generate, "__module__": base.__module__,
        "__doc__": base.__doc__, **_GUARDS,
        "_keys_to_ignore_on_load_unexpected": [*(base._keys_to_ignore_on_load_unexpected or []), *sorted(ignored)],
    })


@functools.cache
def _watched(base: type[Any]) -> type[Any]:
    """The class of the model without its head: a call of it, too, is a pass, unless the whole model makes it."""
    @functools.wraps(base.forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        socket = self.moe_lab_socket
        if socket.inside == threading.get_ident():
            socket.inside = 0               # a hook that calls it once more makes a pass of its own
            return base.forward(self, *args, **kwargs)
        with socket.watch.forward(args, kwargs):
            return base.forward(self, *args, **kwargs)

    return type(base.__name__, (base,), {"forward": forward, "__module__": base.__module__, "__doc__": base.__doc__})


def hook_routers(model: Any, blocks: list[Block]) -> None:
    """Let the handler choose in every block whose router was found."""
    for layer, block in enumerate(blocks):
        if block.router is not None:
            router = model.get_submodule(block.router)
            router.register_forward_hook(RouterHook(model.moe_lab_socket, layer, router))


def _refuse(what: str, instead: str) -> Callable[..., Any]:
    def method(self: Any, *args: Any, **kwargs: Any) -> NoReturn:
        raise SettingError(f"{what} does not work on a streamed model, whose experts are not in it; {instead}")

    return method


def _to(self: Any, *args: Any, **kwargs: Any) -> Any:
    """Only to where and what the model is."""
    device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
    if (device is None or device.type == "cpu") and (dtype is None or dtype == self.dtype):
        return self
    raise SettingError(f"a streamed model stays on the CPU in {self.dtype} and does not become {device or dtype}; for "
                       f"another precision {_RELOAD}")


def _train(self: Any, mode: bool = True) -> Any:
    """Only ``eval()``."""
    if mode:
        raise SettingError("a streamed model cannot be trained, its experts are not in it; train the original with "
                           "transformers, then load the result")
    return nn.Module.train(self, False)


def _requires_grad(self: Any, requires_grad: bool = True) -> Any:
    """Only off."""
    if requires_grad:
        _train(self, True)
    return nn.Module.requires_grad_(self, False)


_RELOAD = "load it again in that precision: ml.load(..., weights='f32') or weights='bf16'"
_ORIGINAL = "copy the checkpoint folder it was loaded from, which is unchanged"
_GUARDS: dict[str, Any] = {
    "to": _to, "train": _train, "requires_grad_": _requires_grad,
    "save_pretrained": _refuse("save_pretrained", _ORIGINAL), "push_to_hub": _refuse("push_to_hub", _ORIGINAL),
    "cuda": _refuse(".cuda()", "it runs on the CPU"), "xpu": _refuse(".xpu()", "it runs on the CPU"),
    "mtia": _refuse(".mtia()", "it runs on the CPU"), "ipu": _refuse(".ipu()", "it runs on the CPU"),
    "to_empty": _refuse(".to_empty()", "it runs on the CPU"), "double": _refuse(".double()", _RELOAD),
    "half": _refuse(".half()", _RELOAD), "float": lambda self: self.to(torch.float32),
    "bfloat16": lambda self: self.to(torch.bfloat16), "type": _refuse(".type()", _RELOAD),
    "__deepcopy__": _refuse("copy.deepcopy", "load it a second time"),
}
"""Methods that a streamed model cannot have, or only in part."""
