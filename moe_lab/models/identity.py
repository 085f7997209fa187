"""What a model in memory is, as one digest: its weights, the modules that hold them, its configuration.

Knows torch's modules and whose code runs in them. Where that is neither torch's, transformers' nor MoE Lab's (a hook, a
replaced function, a class of one's own) no digest can stand for what the model computes, and it says so. Refuses to
know files: the weights may be others by now than those that were loaded.
"""

from __future__ import annotations

import enum
import functools
import operator
import sys
import types
import weakref
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.nn.modules import module as torch_modules
from torch.overrides import _get_current_function_mode_stack
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from moe_lab.digests import Stretch, digest, digests
from moe_lab.kernels.formats.matrix import TYPES
from moe_lab.libraries import of_python

LIBRARIES = frozenset({"torch", "transformers", "moe_lab"})
"""Packages whose modules are told by name; their versions and sources are the business of whoever keeps results."""
_BESIDE = frozenset({"numpy", "typing_extensions"})
"""Packages that those three call."""
_CAPTURE = "transformers.utils.output_capturing"
"""Its hooks read what a layer gives and change nothing."""
_KEPT_BY_TORCH = frozenset(vars(nn.Module())) - {"training"}
_STEERS_NOTHING = frozenset({"name_or_path", "generation_config"})


class InMemory(NamedTuple):
    """A model as it is now."""

    digest: str
    strange: str
    """Why the digest does not say all, in words; empty where it does."""


def in_memory(hf: Any) -> InMemory:
    """What ``hf`` is now. Two models with one digest, and nothing strange, compute the same.

    >>> from moe_lab.models import open_model
    >>> model = open_model("pocket").hf
    >>> before = in_memory(model)
    >>> model.model.norm.weight.data[0] += 1
    >>> before.strange, before.digest == in_memory(model).digest
    ('', False)
    """
    found = _Description()
    words = [[name, found.module(name or "the model", one)] for name, one in hf.named_modules(remove_duplicate=False)]
    if torch_modules._global_forward_hooks or torch_modules._global_forward_pre_hooks:
        found.strange.append("torch has a hook for all modules")
    found.surroundings()
    tensors = digests([memory for _, memory in found.memory.values()], "hash the model")
    return InMemory(digest(words, tensors, found.renamed), found.strange[0] if found.strange else "")


def replaced_code(hf: Any) -> str:
    """What in the classes of ``hf``, in their files or in its attention somebody has replaced, in words; else empty.

    Looks at no weight, so it may be asked before each text.
    """
    found = _Description()
    for module in hf.modules():
        for base in type(module).__mro__:
            found._class(base)
    found.surroundings()
    found.attention(hf.config)
    return found.strange[0] if found.strange else ""


class _Looked(NamedTuple):
    """What was found in a class or a file, and what stood in it then."""

    names: list[str]
    things: list[Any]
    strange: list[str]
    renamed: list[list[str]]

    def same(self, place: Any) -> bool:
        """Whether the same things stand there now."""
        now = vars(place)
        return list(now) == self.names and all(map(operator.is_, now.values(), self.things))


_looked: weakref.WeakKeyDictionary[Any, _Looked] = weakref.WeakKeyDictionary()
"""Thousands of functions are looked at, before each text: only once, as long as nobody puts another in their place."""


def _look(name: str, place: Any) -> _Looked:
    """Look at all that can be called in a class or a file."""
    found = _Looked(list(vars(place)), list(vars(place).values()), [], [])
    for key, value in zip(found.names, found.things, strict=True):
        function = _inside(value)
        if not _runs(function):
            continue
        if _foreign(function):
            found.strange.append(f"{name}.{key} was replaced by {_full_name(function)}")
        elif getattr(function, "__name__", key) != key:
            found.renamed.append([name, key, _full_name(function)])
    return found


class _Description:
    """Plain values that stand for a model, and what they cannot stand for."""

    def __init__(self) -> None:
        self.memory: dict[tuple[int, int], tuple[int, Stretch]] = {}
        """By address and size; in the values a number stands for each."""
        self.strange: list[str] = []
        self.renamed: list[list[str]] = []
        """Functions of the libraries that stand under another name than their own."""
        self._configs: dict[int, Any] = {}
        self._seen: set[Any] = set()

    def module(self, name: str, module: nn.Module) -> list[Any]:
        """One module without its children."""
        for base in type(module).__mro__:
            self._class(base)
        if _root(type(module).__module__) not in LIBRARIES:
            self.strange.append(f"{name} is a {type(module).__qualname__}, whose code is neither torch's, "
                                "transformers' nor MoE Lab's")
        hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
        loader = isinstance(module, PreTrainedModel)        # whose private attributes tell how it was loaded
        own = {key: value for key, value in dict(vars(module)).items()
               if not (key in _KEPT_BY_TORCH or key in _STEERS_NOTHING or (loader and key.startswith("_")))}
        values = {**own, **module._parameters, **module._buffers}
        return [_full_name(type(module)), [self._hook(name, hook) for hook in hooks if not _captures(hook)],
                [[key, self.value(f"{name}.{key}", one)] for key, one in values.items() if not _renewed(module, key)]]

    def _class(self, base: type) -> None:
        """Look for functions that were put into a class, or into the file that it stands in, from outside."""
        if base in self._seen or _root(base.__module__) not in LIBRARIES:
            return
        self._seen.add(base)
        self.functions(base.__name__, base)
        if base.__module__.startswith("transformers.models."):
            self.functions(base.__module__, sys.modules[base.__module__])

    def surroundings(self) -> None:
        """What stands around every module."""
        for name, place in (("torch.nn.functional", nn.functional), ("torch", torch), ("torch.Tensor", torch.Tensor)):
            self.functions(name, place)
        for mode in _get_current_function_mode_stack():
            if _foreign(mode):
                self.strange.append(f"torch's functions run under the mode {_full_name(mode)}")

    def functions(self, name: str, place: Any) -> None:
        """All that can be called in a class or a file."""
        found = _looked.get(place)
        if found is None or not found.same(place):
            _looked[place] = found = _look(name, place)
        self.strange += found.strange
        self.renamed += found.renamed

    def _hook(self, name: str, hook: Any) -> str:
        if _foreign(hook):
            self.strange.append(f"{name} has the hook {_full_name(hook)}")
        return _full_name(hook)

    def value(self, name: str, value: Any) -> Any:
        """An attribute as JSON can hold it; where none can stand for it, its name among the strange."""
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, torch.Tensor | np.ndarray | np.generic):
            return self._array(name, value)
        if type(value) in TYPES.values():       # a quantised matrix: the rest of it is scratch
            return [type(value).__name__, self.value(name, value.blocks), self.value(name, value.shape)]
        if isinstance(value, list | tuple):
            return [self.value(f"{name}[{i}]", one) for i, one in enumerate(value)]
        if isinstance(value, dict):
            return [[str(key), self.value(f"{name}[{key!r}]", one)] for key, one in value.items()]
        if isinstance(value, set | frozenset):
            return sorted(str(self.value(name, one)) for one in value)
        if isinstance(value, PreTrainedConfig):
            return self._config(name, value)
        return self._thing(name, value)

    def _thing(self, name: str, value: Any) -> str:
        """What is told by its name or its words."""
        if _root(type(value).__module__) == "moe_lab":
            return _full_name(type(value))
        if isinstance(value, torch.dtype | torch.device | np.dtype | enum.Enum):
            return str(value)
        if isinstance(value, type | types.FunctionType | types.MethodType | types.BuiltinFunctionType):
            if not _foreign(value):
                return _full_name(value)
            self.strange.append(f"{name} was replaced by {_full_name(value)}")
        else:
            self.strange.append(f"{name} is a {type(value).__qualname__}")
        return ""

    def _array(self, name: str, value: Any) -> Any:
        """An array by its type, shape and the number of its bytes among the stretches."""
        if isinstance(value, torch.Tensor):
            plain = type(value) in (torch.Tensor, nn.Parameter, nn.Buffer) and value.layout == torch.strided
            if not plain or value.device.type != "cpu" or value.is_quantized:
                self.strange.append(f"{name} is a {type(value).__name__} on {value.device}")
                return None
            tensor = value.detach().resolve_conj().resolve_neg()
            array = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
        else:
            array = np.ascontiguousarray(value)
            if array.dtype.hasobject:
                self.strange.append(f"{name} is an array of Python objects")
                return None
        number, _ = self.memory.setdefault((array.ctypes.data, array.nbytes), (len(self.memory), Stretch.of(array)))
        return [str(value.dtype), list(value.shape), number]

    def _config(self, name: str, config: Any) -> Any:
        """A configuration without the place it came from, and the attention that it names."""
        if id(config) not in self._configs:
            self._configs[id(config)] = None
            values = {key: value for key, value in config.to_dict().items() if key != "_name_or_path"}
            self._configs[id(config)] = [self.value(name, values), self.attention(config)]
        return self._configs[id(config)]

    def attention(self, config: Any) -> Any:
        """The name of the attention that a configuration asks for."""
        attention = getattr(config.get_text_config(), "_attn_implementation", None)
        for table in (ALL_ATTENTION_FUNCTIONS, ALL_MASK_ATTENTION_FUNCTIONS):
            if (function := table.get(attention)) is not None and _foreign(function):
                self.strange.append(f"the attention {attention!r} is {_full_name(function)}")
        return attention


def _root(module: Any) -> str:
    return str(module or "").partition(".")[0]


def _library(module: Any) -> bool:
    """Whether a module's code is known by its name: that of the libraries, and Python's own."""
    root = _root(module)
    return root in LIBRARIES or root in _BESIDE or of_python(root)


def _runs(thing: Any) -> bool:
    """Whether what stands in a class or a file is a function, or an object that can be called or makes a method. What
    Python itself puts there (slots, types, unions) is none."""
    if isinstance(thing, types.FunctionType | types.BuiltinFunctionType):
        return True
    made = _root(type(thing).__module__) not in ("builtins", "types", "typing", "typing_extensions")
    return made and not isinstance(thing, type) and (callable(thing) or hasattr(type(thing), "__get__"))


def _inside(value: Any) -> Any:
    """What runs in a property, a method of a class, a partial or the like."""
    while True:
        if isinstance(value, property):
            value = value.fget
        elif isinstance(value, staticmethod | classmethod | types.MethodType):
            value = value.__func__
        elif isinstance(value, functools.partial | functools.partialmethod | functools.cached_property):
            value = value.func
        else:
            return value


def _foreign(function: Any) -> bool:
    """Whether code runs in it, or in what it wraps, that is of none of the libraries."""
    while function is not None:
        function = getattr(function, "__func__", function)
        around = getattr(function, "__globals__", None)
        if around is not None:
            known = _library(around.get("__name__"))
        elif isinstance(function, type | types.BuiltinFunctionType):
            known = _library(function.__module__ or "builtins")
        elif isinstance(function, types.MethodDescriptorType | types.WrapperDescriptorType):
            known = _library(function.__objclass__.__module__)
        elif isinstance(function, functools._lru_cache_wrapper):
            known = True                    # by what it keeps the results of
        else:           # an object that is called
            known = _root(type(function).__module__) in LIBRARIES
        if not known:
            return True
        function = getattr(function, "__wrapped__", None)
    return False


def _captures(hook: Any) -> bool:
    return getattr(hook, "__globals__", {}).get("__name__") == _CAPTURE


def _full_name(thing: Any) -> str:
    named = thing if hasattr(thing, "__qualname__") else type(thing)
    return f"{named.__module__}.{named.__qualname__}"


def _renewed(module: nn.Module, key: str) -> bool:
    """Whether each pass writes it anew: the frequencies of a rotary embedding that goes by the length of the text."""
    kinds = getattr(module, "rope_type", "")
    kinds = list(kinds.values()) if isinstance(kinds, dict) else [kinds]
    return "longrope" in kinds and key.endswith("inv_freq") and not key.endswith("original_inv_freq")
