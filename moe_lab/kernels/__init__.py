"""Arrays in, arrays out: routing, residency and expert arithmetic, each with a slow twin in plain Python.

Knows arrays and the functions plugged into them. Knows neither torch nor transformers, no file, no slot.
Nothing is imported here, so that names such as ``moe_lab.kernels.layout`` cost no compiler.
"""
