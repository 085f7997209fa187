"""The parts of the report on the paper (arXiv 2412.00099); ``benchmarks/paper.py`` is the command.

One file a topic. Each has ``settings`` (what the sweep has to measure for it), ``measure`` (plain values for
``docs/paper.json``), ``claims`` (verdicts, by thresholds that stand at the top of the file), ``section`` (Markdown,
made from the plain values alone) and, some of them, ``picture``. ``bench`` holds what they share.
"""
