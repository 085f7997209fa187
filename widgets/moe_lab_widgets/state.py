"""The documented state of a dashboard: what users set, and what the engine says.

Knows traits only. ``sync`` traits are the page's too; any of them can be linked to any ipywidgets control.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anywidget
import numpy as np
import traitlets as tr

from moe_lab.parameters import Schedule

_STATIC = Path(__file__).parent / "static"


class Setting(tr.TraitType):
    """A parameter's value: a number; a word of it, or what differs by layer or token, as text; None where the present
    policy has no such parameter. Lists and schedules may be assigned."""

    info_text = "a number, a word, a list by layer, a Schedule, or None"
    allow_none = True
    default_value = None

    def validate(self, obj: Any, value: object) -> object:
        """``value`` as a float or as text."""
        if isinstance(value, str):
            return value
        if isinstance(value, Schedule):
            return f"Schedule({dict(value.steps)})"
        if isinstance(value, (list, tuple, np.ndarray)):
            return str([float(number) for number in value])
        if isinstance(value, (int, float, np.number)) and not isinstance(value, bool):
            return float(value)
        self.error(obj, value)


class LabState(anywidget.AnyWidget):
    """Traits of ``Lab``. The settings act at the next token; what is of the next run says so."""

    _esm = (_STATIC / "lab.js").read_text(encoding="utf-8")     # a path would be watched, by a signal that keeps every
    _css = (_STATIC / "lab.css").read_text(encoding="utf-8")    # dashboard there ever was

    slots = tr.Int(0, help="Cache slots a layer; acts at the next token.").tag(sync=True)
    routing = tr.Unicode("", help="Name of the routing policy; acts at the next token.").tag(sync=True)
    routing_values = tr.Dict(help="Its parameters by name.").tag(sync=True)
    eviction = tr.Unicode("", help="Name of the eviction policy; acts at the next token.").tag(sync=True)
    eviction_values = tr.Dict(help="Its parameters by name.").tag(sync=True)
    bandwidth = tr.Float(0.0, help="Bandwidth of the simulated disk in MB/s; 0 where the disk is real.").tag(sync=True)

    prompt = tr.Unicode("def fibonacci(n):", help="What the next run starts from.").tag(sync=True)
    max_new_tokens = tr.Int(400, help="Tokens of the next run at most.").tag(sync=True)
    temperature = tr.Float(1.0, help="0 is greedy; acts at the next token, as do the four below.").tag(sync=True)
    top_k = tr.Int(0, help="Draw from so many of the likeliest tokens; 0 means all.").tag(sync=True)
    top_p = tr.Float(1.0, help="Draw from the likeliest tokens of this share together; 1 means all.").tag(sync=True)
    repetition_penalty = tr.Float(1.0, help="Above 1 weakens tokens seen before; 1 changes nothing.").tag(sync=True)
    seed = tr.Int(0, help="Starts the random numbers afresh.").tag(sync=True)
    fps = tr.Float(10.0, min=0.2, max=60.0, help="Pictures a second at most.").tag(sync=True)

    uid = tr.Unicode("", help="Tells dashboards on one page apart.").tag(sync=True)
    state = tr.Unicode("ready", help="ready, running, paused, stopped or finished.").tag(sync=True)
    finish = tr.Unicode("", help="Why the last run ended: end, length, stop or context.").tag(sync=True)
    exact = tr.Bool(True, help="Whether nothing alters the model's answers.").tag(sync=True)
    disk = tr.Unicode("", help="The disk in words; a simulated one is called so.").tag(sync=True)
    error = tr.Unicode("", help="What the run met, if it met something.").tag(sync=True)
    refusals = tr.Dict(help="Messages of refused settings, by name; of a parameter: routing.penalty.").tag(sync=True)
    foreign = tr.Bool(False, help="Whether code outside the dashboards generates; Stop ends it.").tag(sync=True)
    foreground = tr.Bool(
        False, help="Whether a loop in a cell generates (controls may wait for its end).").tag(sync=True)
    offered = tr.Dict(help="What can be turned: policies with their parameters, range of the slots.").tag(sync=True)
    model = tr.Dict(help="The model: name, layers, experts, top_k, bytes of an expert.").tag(sync=True)

    token = tr.Int(0, help="Tokens generated since the dashboard was made.")
    tokens_per_s = tr.Float(0.0, help="Speed over the last two seconds.")
    hit_rate = tr.Float(0.0, help="Share of the expert uses that found theirs resident, last two seconds.")
    read_mib_per_token = tr.Float(0.0, help="MiB read for a token, last two seconds.")
