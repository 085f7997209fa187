"""float16 and bfloat16 in kernels: widened and narrowed by integer arithmetic, as not every processor can do it.

Knows bits. numba has neither on a CPU; here each is its uint16 bits. The twins are NumPy's own casts, and
``formats.bf16``'s.
"""

from __future__ import annotations

import numpy as np

from moe_lab.kernels.jit import jit

_f, _i = np.float32, np.int32
_HALF_INFINITY, _HALF_NAN = _i(0x7C00), _i(0x7E00)


@jit(helper=True)
def widened_f16(bits):  # type: ignore[no-untyped-def]
    """A float16, given as uint16, as float32; exact."""
    sign, size = _i(_i(bits) & _i(0x8000)), _i(_i(bits) & _i(0x7FFF))
    small = _f(_f(size) * _f(2.0**-24)).view(_i)            # the steps of denormal ones are even
    usual, special = _i(_i(size << _i(13)) + _i(0x38000000)), _i(_i(size << _i(13)) | _i(0x7F800000))
    wide = small if size < 0x400 else (usual if size < 0x7C00 else special)
    return _i(wide | _i(sign << _i(16))).view(_f)


@jit(helper=True)
def nearest_f16(x):  # type: ignore[no-untyped-def]
    """The float16 nearest to a float32, ties to even, as uint16; infinity beyond 65,504."""
    bits = _f(x).view(_i)
    sign, size = _i(_i(bits >> _i(16)) & _i(0x8000)), _i(bits & _i(0x7FFFFFFF))
    if size > 0x7F800000:
        return np.uint16(sign | _HALF_NAN)
    if size < 0x38800000:                                   # below 2^-14 float16 counts in steps of 2^-24
        shifted = _f(_f(size.view(_f) * _f(2.0**24)) + _f(12582912.0))
        return np.uint16(sign | _i(shifted.view(_i) - _i(0x4B400000)))
    rounded = _i(_i(size + _i(0xFFF) + _i(_i(size >> _i(13)) & _i(1))) - _i(0x38000000)) >> _i(13)
    return np.uint16(sign | min(_i(rounded), _HALF_INFINITY))


@jit(helper=True)
def widened_bf16(bits):  # type: ignore[no-untyped-def]
    """A bfloat16, given as uint16, is the upper half of a float32."""
    return np.uint32(np.uint32(bits) << np.uint32(16)).view(np.float32)


@jit(helper=True)
def nearest_bf16(x):  # type: ignore[no-untyped-def]
    """The bfloat16 nearest to a float32, ties to even, as uint16; a NaN stays one."""
    bits = _f(x).view(np.uint32)
    if x != x:
        return np.uint16((bits >> np.uint32(16)) | np.uint32(0x40))
    return np.uint16((bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16))


@jit(helper=True)
def ceiling_f16(x):  # type: ignore[no-untyped-def]
    """The least float16 that is no smaller than a float32 of 0 or more, as uint16."""
    half = nearest_f16(x)
    return np.uint16(half + 1) if widened_f16(half) < x else half
