"""What the model card says, as one record: written by ``card``, drawn by ``page``.

Knows names and types, and how they are kept as JSON. Knows neither how a figure is measured nor how it looks.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moe_lab.pocket.measure import Balance, Locality, Loss, Row


@dataclass(frozen=True)
class Sample:
    """What the model wrote after ``prompt``; ``temperature`` 0 is greedy."""

    world: str
    prompt: str
    temperature: float
    text: str


@dataclass(frozen=True)
class Figures:
    """Everything the card says, measured."""

    shape: dict[str, int]
    training: dict[str, Any]
    sources: dict[str, dict[str, Any]]
    losses: dict[str, dict[str, dict[str, Loss]]]
    """world -> ``excerpt`` | ``all`` -> ``model`` | ``ngram``."""
    repeats: dict[str, dict[str, float]]
    """world -> ``excerpt`` | ``all`` -> share of the runs of 32 tokens that the training text holds too."""
    balance: list[Balance]
    """Per layer, both worlds together."""
    locality: dict[str, Locality]
    overlap: dict[str, list[float]]
    """``between`` the worlds and ``within`` one (the mean of both), per layer."""
    prices: dict[str, list[Row]]
    price_windows: int
    """Windows of each world that routes and prices are of."""
    samples: list[Sample]

    @classmethod
    def read(cls, path: Path) -> Figures:
        """Figures as ``write`` left them."""
        d = json.loads(path.read_text())
        return cls(
            d["shape"], d["training"], d["sources"],
            {w: {p: {m: Loss(**x) for m, x in ms.items()} for p, ms in ps.items()} for w, ps in d["losses"].items()},
            d["repeats"],
            [Balance(**b) for b in d["balance"]], {w: Locality(**x) for w, x in d["locality"].items()}, d["overlap"],
            {w: [Row(**r) for r in rows] for w, rows in d["prices"].items()}, d["price_windows"],
            [Sample(**s) for s in d["samples"]],
        )

    def write(self, path: Path) -> None:
        """As JSON."""
        path.write_text(json.dumps(asdict(self), indent=1) + "\n")
