"""What can be turned, described from the policies' own declarations; and a turn made into a policy.

Knows parameters, names and ranges. Knows no widget and no thread. A policy that this file has never heard
of gets its controls like any other: from its declared parameters.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from typing import Any

from moe_lab.errors import MoELabError, PolicyError
from moe_lab.parameters import Schedule
from moe_lab.policy import Policy

KINDS = ("routing", "eviction")
WORDS_KEPT = 60
"""Letters of a value in a mark; a list for many layers is longer."""


def shipped() -> dict[str, dict[str, Any]]:
    """The tables of policies that come with MoE Lab."""
    from moe_lab.eviction import EVICTION
    from moe_lab.routing import ROUTING

    return {"routing": dict(ROUTING), "eviction": dict(EVICTION)}


def homemade() -> Iterator[type[Policy]]:
    """Policy classes that were made outside MoE Lab so far, such as in a notebook's cells; the newest last."""
    from moe_lab.eviction import EvictionPolicy
    from moe_lab.routing import RoutingPolicy

    def below(base: type[Policy]) -> Iterator[type[Policy]]:
        for found in base.__subclasses__():
            if not found.__module__.startswith("moe_lab."):
                yield found
            yield from below(found)

    yield from below(RoutingPolicy)
    yield from below(EvictionPolicy)


def _instance(policy: Any) -> Any:
    return policy() if isinstance(policy, type) else policy


class Refused(PolicyError):
    """A parameter refuses a value; ``knob`` is its name."""

    def __init__(self, message: str, knob: str) -> None:
        super().__init__(message)
        self.knob = knob


class Choices:
    """The policies on offer: the shipped tables, the engine's own, ``policies`` of the user and all that cells made."""

    def __init__(self, engine: Any, policies: Iterable[Any] = ()) -> None:
        self.engine = engine
        self.policies: dict[str, dict[str, Any]] = {
            kind: {name: _instance(policy) for name, policy in table.items()} for kind, table in shipped().items()
        }
        self._shipped = {kind: frozenset(table) for kind, table in self.policies.items()}
        self._known: set[type] = set()
        self.look_around()
        for policy in (*policies, *(getattr(engine, kind) for kind in KINDS)):
            self.learn(policy)

    def look_around(self) -> bool:
        """Offer what cells have made since, and the engine's own; returns whether anything is new."""
        new = False
        for made in homemade():
            if made in self._known:
                continue
            self._known.add(made)
            try:
                new |= made.name not in self._shipped[made.kind] and self.learn(made)
            except (MoELabError, TypeError):       # it cannot be made without arguments; it is offered once it is set
                continue
        for kind in KINDS:
            own = getattr(self.engine, kind)
            new |= type(own) not in self._known and self.learn(own)
        return new

    def learn(self, policy: Any) -> bool:
        """Offer ``policy`` (an instance or a class) too; returns whether it is new."""
        if getattr(policy, "kind", None) not in KINDS:
            raise PolicyError(f"{policy!r} is neither a routing nor an eviction policy; give a policy, or its class")
        table, policy = self.policies[policy.kind], _instance(policy)
        self._known.add(type(policy))
        if policy.name in table and type(table[policy.name]) is type(policy):
            return False
        table[policy.name] = policy
        return True

    def build(self, kind: str, name: str, values: dict[str, float]) -> Any:
        """The policy ``name`` with ``values``, as a page writes them; what is not named stays as it is.

        Names of parameters that only another policy has are passed over: they are left over from it.
        Raises ``PolicyError``, and ``Refused`` where a parameter does not take its value.
        """
        if name not in self.policies[kind]:
            raise PolicyError(f"no {kind} policy is called {name!r}; there are {', '.join(self.policies[kind])}")
        policy, now = self.policies[kind][name], getattr(self.engine, kind)
        if type(now) is type(policy):
            policy = now
        known, present = policy.parameters(), written(policy)
        chosen: dict[str, Any] = {}
        for key, value in values.items():
            if key in known and value != present[key]:
                asked = f"{key} of {type(policy).__name__}"
                try:
                    chosen[key] = known[key].accept(_read(value, known[key].words), asked)
                except PolicyError as error:
                    raise Refused(str(error), key) from None
            elif key not in known and key not in {*self.parameters(kind), *now.parameters()}:
                raise PolicyError(f"{name} has no parameter {key!r}; it has {', '.join(known) or 'none'}")
        return policy.replace(**chosen)

    def parameters(self, kind: str) -> list[str]:
        """Names of all parameters of all policies of ``kind``."""
        return list(dict.fromkeys(p for policy in self.policies[kind].values() for p in policy.parameters()))

    def describe(self) -> dict[str, Any]:
        """Everything a page needs to draw the controls: plain lists, dicts, texts and numbers."""
        spec = self.engine.spec
        return {
            **{kind: [_describe(policy) for policy in table.values()] for kind, table in self.policies.items()},
            "slots": {"low": spec.top_k, "high": spec.experts},
            "simulated": self.engine.disk is not None,
        }


def _describe(policy: Any) -> dict[str, Any]:
    """One policy: name, first line of its docstring, parameters."""
    doc = (type(policy).__doc__ or "").strip().split("\n")[0]
    return {"name": policy.name, "doc": doc,
            "parameters": [_parameter(name, p) for name, p in policy.parameters().items()]}


def _parameter(name: str, p: Any) -> dict[str, Any]:
    return {"name": name, "default": float(p.default), "low": float(p.low), "high": float(p.high), "unit": p.unit,
            "doc": p.doc, "integer": bool(p.integer), "open_ended": bool(p.open_ended), "rare": bool(p.rare),
            "words": {word: float(number) for word, number in p.words.items()}}


def written(policy: Any) -> dict[str, float | str]:
    """Values by name as a page is told them: numbers; what differs by layer or token as text."""
    values, known = policy.values(), policy.parameters()
    return {key: value if isinstance(value, (int, float)) else known[key].shown(value)
            for key, value in values.items()}


def _read(value: Any, words: Iterable[str]) -> Any:
    """What was typed: a number, a word, a list by layer, a schedule; anything else is for the parameter to refuse."""
    if not isinstance(value, str) or value in words:
        return value
    text = value.strip()
    try:
        if text.startswith("Schedule(") and text.endswith(")"):
            return Schedule(ast.literal_eval(text[len("Schedule("):-1]))
        return ast.literal_eval(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return value


def spec_of(engine: Any) -> dict[str, Any]:
    """The model in the few facts that a page shows."""
    spec, size = engine.spec, engine.spec.expert_bytes[engine.format.name]
    return {"name": spec.name, "family": spec.family, "layers": list(spec.layers), "experts": spec.experts,
            "top_k": spec.top_k, "expert_bytes": size, "format": engine.format.name, "context": spec.context}


def words_of(policy: Any, before: Any = None) -> str:
    """A change of policy in the words of a mark: ``cache-prior penalty 0.5``, or just what is new: ``penalty 0.8``."""
    values, old = policy.values(), before.values() if type(before) is type(policy) else {}
    said = [f"{key} {_cut(p.shown(values[key]).strip(chr(39)))}" for key, p in policy.parameters().items()
            if old.get(key) != values[key] and (old or not (p.rare and values[key] == p.default))]
    return ", ".join(said) if old else f"{policy.name} {', '.join(said)}".strip()


def _cut(text: str) -> str:
    return text if len(text) <= WORDS_KEPT else text[:WORDS_KEPT - 1] + "…"
