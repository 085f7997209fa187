"""A setup: the setting that a tuning chose, in a small JSON file that ``ml.load(..., setup=...)`` takes.

Knows names and numbers. A policy is its name and its parameters; its code stays where it is.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moe_lab.errors import PolicyError, SettingError
from moe_lab.parameters import Schedule
from moe_lab.policy import P, Policy
from moe_lab.spec import ModelSpec
from moe_lab.trace_files.whole import whole

VERSION = 1
_SHAPE = ("family", "experts", "top_k", "hidden", "expert_hidden")


def shape_of(spec: ModelSpec) -> dict[str, Any]:
    """What a model must share with the one that a setup was tuned on."""
    return {"layers": spec.L, **{name: getattr(spec, name) for name in _SHAPE}}


@dataclass(frozen=True)
class Setup:
    """Policies by name and values, slots and weight formats, for models of one shape.

    >>> Setup("lru", {}, "cache-prior", {"penalty": 0.2}, 32, "bf16", {"experts": 64}).cache
    32
    """

    eviction: str
    eviction_values: Mapping[str, Any]
    routing: str
    routing_values: Mapping[str, Any]
    cache: int
    """Slots a layer."""
    weights: str
    model: Mapping[str, Any]
    evidence: Mapping[str, Any] = field(default_factory=dict)
    """Figures that speak for it; for people, not read back by ``load``."""
    dense: str | None = None
    """Format of the dense part; None where the file does not say, and ``load`` chooses as it does without a setup."""

    def write(self, path: str | Path) -> None:
        """Write to ``path``, whole or not at all."""
        path = Path(path)
        text = json.dumps({
            "moe_lab_setup": VERSION, "model": dict(self.model), "weights": self.weights, "dense": self.dense,
            "cache": self.cache,
            "routing": {"name": self.routing, "values": dict(self.routing_values)},
            "eviction": {"name": self.eviction, "values": dict(self.eviction_values)},
            "evidence": dict(self.evidence),
        }, indent=2)
        try:
            with whole(path) as file:
                file.write(text + "\n")
        except (OSError, ValueError) as error:
            raise SettingError(f"the setup cannot be written to {path}: {error}; type setup='file' in a folder that "
                               "is there") from error

    @classmethod
    def read(cls, path: str | Path) -> Setup:
        """The setup in ``path``. Raises ``SettingError`` for a file that is missing or not a whole setup."""
        try:
            found = json.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise SettingError(f"setup={str(path)!r} cannot be read: {error.strerror}; ml.tune(..., setup='file') "
                               "writes one") from error
        except ValueError as error:
            raise SettingError(f"setup={str(path)!r} is not JSON: {error}") from error
        if not isinstance(found, dict) or found.get("moe_lab_setup") != VERSION:
            raise SettingError(f"setup={str(path)!r} is no setup of this version of MoE Lab: it lacks "
                               f"\"moe_lab_setup\": {VERSION}; write one with ml.tune(..., setup='file')")
        try:
            made = cls(found["eviction"]["name"], dict(found["eviction"]["values"]), found["routing"]["name"],
                       dict(found["routing"]["values"]), found["cache"], found["weights"], dict(found["model"]),
                       dict(found.get("evidence", {})), found.get("dense"))
        except (KeyError, TypeError, ValueError) as error:
            raise SettingError(f"setup={str(path)!r} is not whole: {type(error).__name__} {error}; write it again with "
                               "ml.tune(..., setup='file')") from error
        names = (made.eviction, made.routing, made.weights, made.dense or "")
        if type(made.cache) is not int or not all(isinstance(name, str) for name in names):
            raise SettingError(f"setup={str(path)!r} is damaged: cache must be slots, names and formats must be texts")
        return made

    def check(self, spec: ModelSpec) -> None:
        """Raise ``SettingError`` if it was tuned on a model of another shape."""
        mine = shape_of(spec)
        if odd := [name for name in mine if self.model.get(name) != mine[name]]:
            tuned = ", ".join(f"{name} {self.model.get(name)}" for name in odd)
            raise SettingError(f"this setup was tuned on a model of another shape ({tuned}; {spec.name!r} has "
                               f"{', '.join(f'{name} {mine[name]}' for name in odd)}); tune this model: ml.tune(...)")

    def policy(self, kind: str, table: Mapping[str, type[P]]) -> P:
        """The routing or eviction policy that it names."""
        name, values = (self.routing, self.routing_values) if kind == "routing" else (self.eviction,
                                                                                        self.eviction_values)
        if name not in table:
            raise PolicyError(f"this setup was tuned with the {kind} policy {name!r}, which is not one of MoE Lab's; "
                              f"define it and type {kind}=... beside setup=")
        return table[name](**{key: _read(value) for key, value in values.items()})


def setup_of(routing: Policy, eviction: Policy, cache: int, weights: str, spec: ModelSpec,
             evidence: Mapping[str, Any], dense: str | None = None) -> Setup:
    """The setup of policies on a model."""
    return Setup(_name(eviction), _written(eviction), _name(routing), _written(routing), cache, weights, shape_of(spec),
                 evidence, dense)


def check_place(path: str | Path) -> None:
    """Raise a SettingError where no setup can be written to ``path``; for the moment before long work."""
    place = Path(path).absolute()
    if place.is_dir() or not place.parent.is_dir() or not os.access(place.parent, os.W_OK):
        raise SettingError(f"setup={str(path)!r}: no file can be written there; type the name of a file in a folder "
                           "that is there and that you may write to")


def _name(policy: Policy) -> str:
    """What it is found by again; one of the user's own, which may be called like a shipped one, is not."""
    return policy.name if type(policy).__module__.startswith("moe_lab.") else f"{policy.name} (your own)"


def _written(policy: Policy) -> dict[str, Any]:
    """Parameters and learned tables as JSON holds them: a schedule as its steps, what is given by layer as a list."""
    values = {**policy.values(), **{key: getattr(policy, key) for key in policy.tables()}}
    return {key: {"schedule": value.steps} if isinstance(value, Schedule) else value for key, value in values.items()}


def _read(value: Any) -> Any:
    return Schedule(value["schedule"]) if isinstance(value, dict) and "schedule" in value else value
