"""What policies do, measured: recorded traces replayed, models swept and tuned, bounds beside them.

Knows engines, traces and policies. Draws nothing unless asked for a figure. Each module has one public function of its
own name; ``ml.replay``, ``ml.record``, ``ml.sweep`` and ``ml.tune`` are where users find them.
"""
