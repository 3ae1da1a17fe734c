"""K weighted sums of M models on the CPU, compiled by numba in a few seconds and kept on disk.

Parents' chunks stay in a core's second cache while every output takes them up. Outputs are written
past the caches, a line of 64 bytes at a time: an ordinary store would read the line first, which
for eleven bf16 outputs is 22 of 52 bytes a parameter. Lines are LLVM's vectors, since numba has
neither vectors nor such stores. Bits are those of the reference, but for the sign of a sum of
nothing. See `kernels.interpolate`.
"""

from __future__ import annotations

from typing import Any

import numba
import torch
from llvmlite import ir
from numba.core import cgutils
from numba.extending import intrinsic
from torch import Tensor

from kernels.threads import kept, spread

# Elements: those of two parents are 128 KiB, and as many of an output are written one by one.
_CHUNK = 16384
# Elements from which a thread's share repays waking it.
_SHARE = 1 << 17
_LINE = 64  # bytes

_F32, _I32 = ir.FloatType(), ir.IntType(32)
_U64 = numba.uint64  # offsets: numba asks of others whether they are negative


def fill(parents: Tensor, weights: Tensor, out: Tensor) -> None:
    """out[k] = sum_m weights[k, m] * parents[m].

    parents: fp32 [M, P]; weights: fp32 [K, M]; out: fp32 or bf16 [K, P]; contiguous, on the CPU.
    """
    outputs, numel = out.shape
    threads = max(1, min(torch.get_num_threads(), outputs * numel // _SHARE))
    share = max(_CHUNK, -(-numel // (threads * _CHUNK)) * _CHUNK)
    written = out if out.dtype == torch.float32 else out.view(torch.uint16)
    given = parents.numpy(), weights.numpy(), written.numpy()
    starts = range(0, numel, share)
    spread(sums, [(*given, start, min(start + share, numel)) for start in starts], threads)


def _sum_of(elements: str) -> Any:
    """out[k, at] = sum_m weights[k, m] * parents[m, at], for one element or a `line` of them.

    A line starts at a multiple of its bytes. To uint16 go the bits of bf16: to nearest with ties to
    even, and NaN stays NaN.
    """

    @intrinsic
    def store_sum(typing, parents, weights, out, k, at):
        def generate(context, builder, signature, arguments):
            parents, weights, out = (
                context.make_array(kind)(context, builder, array)
                for kind, array in zip(signature.args[:3], arguments[:3], strict=True)
            )
            k, at = arguments[3:]
            count, numel = cgutils.unpack_tuple(builder, parents.shape)
            width = signature.args[2].dtype.bitwidth // 8
            lanes = _LINE // width if elements == "line" else 1

            def everywhere(kind: ir.Type, value: float) -> ir.Constant:
                return ir.Constant(ir.VectorType(kind, lanes), [value] * lanes)

            def pointer(array, row, columns, column, kind):
                element = builder.gep(array.data, [builder.add(builder.mul(row, columns), column)])
                return builder.bitcast(element, kind.as_pointer())

            floats, words = ir.VectorType(_F32, lanes), ir.VectorType(_I32, lanes)
            # Minus zero, the only neutral element of addition: 0 + -0 would lose the sign.
            total = cgutils.alloca_once_value(builder, everywhere(_F32, -0.0))
            with cgutils.for_range(builder, count) as parent:
                weight = builder.load(pointer(weights, k, count, parent.index, _F32))
                is_zero = builder.fcmp_ordered("==", weight, ir.Constant(_F32, 0.0))
                with builder.if_then(builder.not_(is_zero)):  # or its NaN would spread
                    theta = builder.load(pointer(parents, parent.index, numel, at, floats), align=4)
                    first = ir.Constant(_I32, 0)
                    spread_out = builder.shuffle_vector(
                        builder.insert_element(ir.Constant(floats, ir.Undefined), weight, first),
                        ir.Constant(floats, ir.Undefined),
                        everywhere(_I32, 0),
                    )
                    # Product and sum may become one instruction.
                    product = builder.fmul(theta, spread_out, flags=("contract",))
                    added = builder.fadd(builder.load(total), product, flags=("contract",))
                    builder.store(added, total)
            result = builder.load(total)
            if width == 2:
                bits, sixteen = builder.bitcast(result, words), everywhere(_I32, 16)
                odd = builder.and_(builder.lshr(bits, sixteen), everywhere(_I32, 1))
                half = builder.add(odd, everywhere(_I32, 0x7FFF))
                rounded = builder.lshr(builder.add(bits, half), sixteen)
                is_nan = builder.fcmp_unordered("uno", result, result)
                rounded = builder.select(is_nan, everywhere(_I32, 0x7FC0), rounded)
                result = builder.trunc(rounded, ir.VectorType(ir.IntType(16), lanes))
            place = pointer(out, k, numel, at, result.type)
            store = builder.store(result, place, align=lanes * width)
            if elements == "line":
                hint = builder.module.add_metadata([ir.Constant(_I32, 1)])
                store.set_metadata("nontemporal", hint)
            return context.get_dummy_value()

        return numba.void(parents, weights, out, _U64, _U64), generate

    return store_sum


_element, _line = _sum_of("element"), _sum_of("line")


@intrinsic
def _address(typing, array):
    def generate(context, builder, signature, arguments):
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.ptrtoint(data, ir.IntType(64))

    return _U64(array), generate


@intrinsic
def _fence(typing):
    """Stores past the caches are seen by other threads only after it."""

    def generate(context, builder, signature, arguments):
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return numba.void(), generate


@kept(error_model="numpy")
def sums(parents, weights, out, start, stop):
    """`fill`, for the columns start to stop; out: fp32, or uint16 for bf16."""
    width, numel, one = _U64(out.itemsize), _U64(out.shape[1]), _U64(1)
    before = _address(out) // width  # pyright: ignore[reportCallIssue]
    lanes = _U64(_LINE) // width
    for at in range(_U64(start), _U64(stop), _U64(_CHUNK)):
        end = min(at + _U64(_CHUNK), _U64(stop))
        for k in range(_U64(len(out))):
            column = at
            while column < end and (before + k * numel + column) % lanes:
                _element(parents, weights, out, k, column)
                column += one
            while column + lanes <= end:
                _line(parents, weights, out, k, column)
                column += lanes
            while column < end:
                _element(parents, weights, out, k, column)
                column += one
    _fence()
