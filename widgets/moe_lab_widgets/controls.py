"""What can be turned, described from the policies' own declarations; and a turn made into a policy.

Knows parameters, names and ranges. Knows no widget and no thread. A policy that this file has never heard
of gets its controls like any other: from its declared parameters.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from moe_lab.errors import PolicyError

KINDS = ("routing", "eviction")


def shipped() -> dict[str, dict[str, Any]]:
    """The tables of policies that come with MoE Lab."""
    from moe_lab.eviction import EVICTION
    from moe_lab.routing import ROUTING

    return {"routing": dict(ROUTING), "eviction": dict(EVICTION)}


def _instance(policy: Any) -> Any:
    return policy() if isinstance(policy, type) else policy


class Choices:
    """The policies on offer: the shipped tables, the engine's own, and ``policies`` of the user."""

    def __init__(self, engine: Any, policies: Iterable[Any] = ()) -> None:
        self.engine = engine
        self.policies: dict[str, dict[str, Any]] = {
            kind: {name: _instance(policy) for name, policy in table.items()} for kind, table in shipped().items()
        }
        for policy in (*policies, *(getattr(engine, kind) for kind in KINDS)):
            self.learn(policy)

    def learn(self, policy: Any) -> bool:
        """Offer ``policy`` (an instance or a class) too; returns whether it is new."""
        if getattr(policy, "kind", None) not in KINDS:
            raise PolicyError(f"{policy!r} is neither a routing nor an eviction policy; give a policy, or its class")
        table, policy = self.policies[policy.kind], _instance(policy)
        if policy.name in table and type(table[policy.name]) is type(policy):
            return False
        table[policy.name] = policy
        return True

    def build(self, kind: str, name: str, values: dict[str, float]) -> Any:
        """The policy ``name`` with ``values``; parameters that are not named keep their defaults.

        Names of parameters that only another offered policy has are passed over: they are left over from it.
        Raises ``PolicyError``.
        """
        if name not in self.policies[kind]:
            raise PolicyError(f"no {kind} policy is called {name!r}; there are {', '.join(self.policies[kind])}")
        policy = self.policies[kind][name]
        known = policy.parameters()
        elsewhere = {p for other in self.policies[kind].values() for p in other.parameters()}
        chosen: dict[str, Any] = {}
        for key, value in values.items():
            if key in known:
                chosen[key] = round(value) if known[key].integer and float(value).is_integer() else value
            elif key not in elsewhere:
                raise PolicyError(f"{name} has no parameter {key!r}; it has {', '.join(known) or 'none'}")
        return type(policy)(**chosen)

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
            "doc": p.doc, "integer": bool(p.integer), "open_ended": bool(p.open_ended)}


def spec_of(engine: Any) -> dict[str, Any]:
    """The model in the few facts that a page shows."""
    spec, size = engine.spec, engine.spec.expert_bytes[engine.format.name]
    return {"name": spec.name, "family": spec.family, "layers": list(spec.layers), "experts": spec.experts,
            "top_k": spec.top_k, "expert_bytes": size, "format": engine.format.name, "context": spec.context}


def words_of(policy: Any, before: Any = None) -> str:
    """A change of policy in the words of a mark: ``cache-prior penalty 0.5``, or just what is new: ``penalty 0.8``."""
    values, old = policy.values(), before.values() if type(before) is type(policy) else {}
    said = ", ".join(f"{name} {value:g}" for name, value in values.items() if old.get(name) != value)
    return said if old else f"{policy.name} {said}".strip()
