"""CPU loops of optimal transport, compiled by numba in a few seconds and cached on disk.

exp is a polynomial, because numba's own does not vectorise.
"""

from __future__ import annotations

import math
from typing import Any

import numba
from numba.extending import intrinsic

from kernels.threads import compiled

INFINITE = 1e300  # fastmath assumes that there are no infinities

_F32, _F64, _I32, _I64 = numba.float32, numba.float64, numba.int32, numba.int64


def _bits_as(kind: Any, bits: Any) -> Any:
    """Returns a function that reinterprets an integer of type `bits` as a float of type `kind`."""

    @intrinsic
    def as_float(typing, x):
        def generate(context, builder, signature, arguments):
            return builder.bitcast(arguments[0], context.get_value_type(kind))

        return kind(bits), generate

    return as_float


@intrinsic
def _floor(typing, x):
    """LLVM's floor of a float32, since Python's returns an integer."""

    def generate(context, builder, signature, arguments):
        function = builder.module.declare_intrinsic("llvm.floor", [arguments[0].type])
        return builder.call(function, arguments)

    return _F32(_F32), generate


_single, _double = _bits_as(_F32, _I32), _bits_as(_F64, _I64)


@numba.njit(fastmath=True, inline="always")
def _exp32(x):
    """exp(x) by a polynomial for 2^x on [0, 1), with a relative error of 3e-7.

    Arguments are clamped so that the result is a normal number. The whole part stays a float until
    it becomes the exponent bits: numba widens integers to 64 bits, which AVX2 cannot convert to
    floats.
    """
    power = min(max(x * _F32(1.4426950408889634), _F32(-126.0)), _F32(127.0))
    whole = _floor(power)  # pyright: ignore[reportCallIssue]
    rest = power - whole
    value = _F32(1.8775767e-3)
    value = value * rest + _F32(8.9893397e-3)
    value = value * rest + _F32(5.5826318e-2)
    value = value * rest + _F32(2.4015361e-1)
    value = value * rest + _F32(6.9315308e-1)
    value = value * rest + _F32(9.9999994e-1)
    return value * _single(_I32((whole + _F32(127.0)) * _F32(2.0**23)))


@numba.njit(fastmath=True, inline="always")
def _exp64(x):
    """exp(x) for x <= 0 to 3e-13, or 0 if x < -708: Taylor's polynomial around half powers of 2."""
    power = max(x * 1.4426950408889634, -1022.0)
    # Not negative, so that truncation rounds down.
    biased = _I32(power + 1023.0)  # pyright: ignore[reportCallIssue, reportArgumentType]
    rest = (power - (biased - 1023.0) - 0.5) * 0.6931471805599453
    value = 1 / 3628800
    value = value * rest + 1 / 362880
    value = value * rest + 1 / 40320
    value = value * rest + 1 / 5040
    value = value * rest + 1 / 720
    value = value * rest + 1 / 120
    value = value * rest + 1 / 24
    value = value * rest + 1 / 6
    value = value * rest + 1 / 2
    value = value * rest + 1.0
    value = (value * rest + 1.0) * 1.4142135623730951
    return value * _double(_I64(biased) << _I64(52)) if x > -708.0 else 0.0


@compiled(fastmath=True)
def sweep(q, f, g, kappa, log_s, columns, row):
    """`sinkhorn_sweep` into log_s and columns, float32, which starts at 0; row: float32 [m]
    scratch.
    """
    m = q.shape[1]
    for i in range(len(f)):
        potential, scale, total = f[i], kappa[i], _F32(0.0)
        for j in range(m):
            value = _exp32(potential + g[j] - scale * _F32(q[i, j]))
            row[j] = value
            total += value
        log_s[i] = math.log(total)
        weight = _F32(1.0) / total
        for j in range(m):
            columns[j] += weight * row[j]


@compiled(fastmath=True)
def row_sums(q, f, g, kappa, log_s):
    """`row_sums` into log_s."""
    m = q.shape[1]
    for i in range(len(f)):
        potential, scale, total = f[i], kappa[i], _F32(0.0)
        for j in range(m):
            total += _exp32(potential + g[j] - scale * _F32(q[i, j]))
        log_s[i] = math.log(total)


@compiled(fastmath=True)
def certify(
    q,
    offset,
    step,
    g,
    retained,
    f,
    hard_f,
    lost,
    moved,
    columns,
    hard_g,
    plan,
    part,
    eps,
):
    """The certificate's pass over rows of the stored copy; the caller divides sums by n m.

    plan, part: float64 [m] scratch.
    """
    n, m = q.shape
    inverse = 1 / eps
    for i in range(n):
        start, scale, low = offset[i], step[i], INFINITE
        for j in range(m):
            value = start + scale * q[i, j] - g[j]
            part[j] = value
            low = min(low, value)
        total = lost_total = moved_total = 0.0
        for j in range(m):
            value = part[j] - low
            p = _exp64(-value * inverse)
            hard_g[j] = min(hard_g[j], value + g[j])
            plan[j] = p
            total += p
            stays = p * retained[j]
            lost_total += p - stays
            moved_total += stays * value
        weight = m / total
        hard_f[i] = low
        f[i] = low - eps * math.log(total / m)
        lost[i] = weight * lost_total
        moved[i] = weight * moved_total
        for j in range(m):
            columns[j] += weight * plan[j]
