"""The phases of a token, as every file and :class:`moe_lab.trace.Trace` count them."""

PREFILL, DECODE = 0, 1
