"""Load, generate, score, explain: the engine over a streamed model."""

from moe_lab.engine.cache import Cache
from moe_lab.engine.engine import Engine
from moe_lab.engine.load import load
from moe_lab.engine.ranking import Ranking
from moe_lab.engine.records import Phase, Reply, Score, Stats, Step, Times
from moe_lab.engine.sampling import Sampling
from moe_lab.engine.telemetry import Snapshot

__all__ = ["Cache", "Engine", "Phase", "Ranking", "Reply", "Sampling", "Score", "Snapshot", "Stats", "Step", "Times",
           "load"]
