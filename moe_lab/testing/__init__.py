"""The contract of a policy, run on one's own: what holds, and in words what does not.

Knows what every policy must keep whatever it decides: that it compiles, that machine code and plain function agree,
that it changes nothing but its own state, that its claims (``lossy``, ``needs``) are true. Refuses to know whether a
policy is any good: for that there are replay and sweeps.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from moe_lab.errors import PolicyError
from moe_lab.eviction import EVICTION
from moe_lab.policy import Policy, resolve
from moe_lab.routing import ROUTING
from moe_lab.testing.eviction import eviction_checks
from moe_lab.testing.routing import routing_checks

__all__ = ["Checked", "check_policy"]

@dataclass(frozen=True)
class Checked:
    """What :func:`check_policy` found to hold."""

    policy: Policy
    checks: tuple[str, ...]
    notes: tuple[str, ...] = field(default=())
    """What is no fault, but worth knowing."""

    def __repr__(self) -> str:
        head = f"{self.policy!r}: {len(self.checks)} checks hold"
        return "\n".join([head, *(f"  note: {note}" for note in self.notes)])


def check_policy(policy: str | Policy | type[Policy]) -> Checked:
    """Run the contract of its kind on a policy, with its own parameters and at the ends of their ranges.

    Args:
        policy: a name, a policy or its class (then its defaults).

    Raises:
        PolicyError: what is wrong, one finding a line, with the function and line where one is to blame.

    Example:
        >>> check_policy("clock")
        Clock(): 9 checks hold
    """
    policy = _resolved(policy)
    checks = routing_checks() if policy.kind == "routing" else eviction_checks()
    findings: list[str] = []
    for at in policy.at(0), *_extremes(policy.at(0)):
        for name, check in checks.items():
            try:
                said = check(at)
            except PolicyError as error:
                said = str(error)
            except Exception as error:      # a slow twin fails with whatever the policy's function raises
                said = f"raised {type(error).__name__}: {error}"
            if said:
                findings.append(f"{name}: {said}" + ("" if at == policy else f" [with {at!r}]"))
        if findings:
            break       # one setting that fails says enough
    if findings:
        lines = "\n".join(f"- {finding}" for finding in dict.fromkeys(findings))
        raise PolicyError(f"policy {policy.name!r} breaks its contract:\n{lines}")
    return Checked(policy, tuple(checks), tuple(_notes(policy)))


def _resolved(policy: Any) -> Policy:
    if isinstance(policy, str):
        return ROUTING[policy]() if policy in ROUTING else resolve(policy, EVICTION, "eviction")
    kind = getattr(policy, "kind", "")
    if kind == "routing":
        return resolve(policy, ROUTING, "routing")
    return resolve(policy, EVICTION, "eviction")


def _extremes(policy: Policy) -> Iterator[Policy]:
    """The policy with each parameter at either end of its range."""
    for key, parameter in policy.parameters().items():
        for value in dict.fromkeys((parameter.low, parameter.high, *parameter.words.values())):
            yield policy.replace(**{key: value})


def _notes(policy: Policy) -> Iterator[str]:
    for key, parameter in policy.parameters().items():
        if not parameter.doc:
            yield f"parameter {key!r} has no doc; a line on it stands beside its slider"
    if not vars(type(policy)).get("__doc__"):
        yield "no docstring; its first line is shown where a policy is chosen"
    try:
        pickle.dumps(policy)
    except Exception:
        yield "it cannot be pickled, so other processes cannot use it; define it in a module"
