"""Models of transformers with their experts elsewhere: the only place that knows checkpoint and transformers names."""

from moe_lab.models.find import find_routers
from moe_lab.models.hub import model_name, resolve_model
from moe_lab.models.open import DTYPES, StreamedModel, Study, describe, info, open_model, study
from moe_lab.models.quantised import empty_weights
from moe_lab.models.rules import RULES, RouterRule, find_rules
from moe_lab.models.streaming import BlockHandler

__all__ = [
    "DTYPES", "RULES", "BlockHandler", "RouterRule", "StreamedModel", "Study", "describe", "empty_weights",
    "find_routers", "find_rules", "info", "model_name", "open_model", "resolve_model", "study",
]
