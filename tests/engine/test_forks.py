"""A forked child that uses its parent's engine: the same tokens, and no waiting for threads that are not there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import multiprocessing, sys, threading
import torch
import moe_lab as ml
torch.set_num_threads(2)
PROMPT = [3, 5, 7, 11] * 5
engine = ml.load(sys.argv[1], cache=6, disk=ml.Disk("10 GB/s"))
engine._ahead.join()

def text():
    return [step.ids for step in engine.stream(PROMPT, max_new_tokens=4)]

def in_a_child():
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    child = context.Process(target=lambda: answers.put(text()))
    child.start()
    answer = answers.get(timeout=60)
    child.join()
    return answer

expected = text()                                       # threads of torch, readers and kernels have begun
print(in_a_child() == expected)
thread = threading.Thread(target=lambda: list(engine.stream([1, 2, 3], max_new_tokens=4000, stop_at_end=False)))
thread.start()
while engine.telemetry.token < 60:
    pass
print(in_a_child() == expected, in_a_child() == expected)
engine.stop()
thread.join()
print(text() == expected)
"""


@pytest.mark.skipif(not hasattr(os, "fork") or sys.platform == "darwin", reason="the system cannot fork safely")
def test_a_child_forked_at_rest_or_while_another_thread_generates_writes_the_same_text(checkpoint):
    folder = checkpoint("olmoe", hidden_size=512, intermediate_size=512, num_experts=16, num_experts_per_tok=4,
                        num_attention_heads=8, num_key_value_heads=8, num_hidden_layers=2,
                        max_position_embeddings=8192)               # experts of 3 MiB, which several readers share
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(folder)], capture_output=True, text=True, timeout=240,
                          cwd=Path(__file__).parents[2])
    assert done.stdout.split() == ["True"] * 4, done.stderr


LOADING = """
import multiprocessing, sys, threading
import moe_lab as ml
from moe_lab.models.find import loading

folder, inside, go_on = sys.argv[1], threading.Event(), threading.Event()

def load_slowly():
    with loading():
        inside.set()
        go_on.wait(60)

thread = threading.Thread(target=load_slowly)
thread.start()
inside.wait()
threading.Timer(0.5, go_on.set).start()
child = multiprocessing.get_context("fork").Process(target=lambda: ml.load(folder, cache=6).close())
child.start()
child.join(60)
print(child.exitcode)
child.kill()
"""


@pytest.mark.skipif(not hasattr(os, "fork") or sys.platform == "darwin", reason="the system cannot fork safely")
def test_a_child_forked_while_another_thread_loads_a_model_can_load_one(checkpoint):
    done = subprocess.run([sys.executable, "-c", LOADING, str(checkpoint("olmoe"))], capture_output=True, text=True,
                          timeout=240, cwd=Path(__file__).parents[2])
    assert done.stdout.split() == ["0"], done.stderr
