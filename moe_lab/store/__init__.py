"""Where experts rest: safetensors by offset, the readers, the simulated disk. Knows no policy and no family."""

from moe_lab.store.checkpoint import Checkpoint, read_checkpoint
from moe_lab.store.disk import Disk
from moe_lab.store.experts import ExpertStore
from moe_lab.store.files import WeightFiles
from moe_lab.store.plan import ExpertPlan
from moe_lab.store.readers import Readers
from moe_lab.store.safetensors import TensorEntry, read_header

__all__ = ["Checkpoint", "Disk", "ExpertPlan", "ExpertStore", "Readers", "TensorEntry", "WeightFiles",
           "read_checkpoint", "read_header"]
