"""Where experts rest: safetensors by offset, the readers, the simulated disk. Knows no policy and no family."""

from moe_lab.store.disk import Disk
from moe_lab.store.experts import ExpertStore
from moe_lab.store.plan import ExpertPlan
from moe_lab.store.readers import Readers
from moe_lab.store.safetensors import TensorEntry, read_checkpoint, read_header

__all__ = ["Disk", "ExpertPlan", "ExpertStore", "Readers", "TensorEntry", "read_checkpoint", "read_header"]
