"""Rules that turn an operator's input and output gradients into squared per-example gradients.

A rule has the signature of its torch function and yields (parameter, squares) for each argument
that it covers. `squares` takes the gradient of the function's output, with examples along dimension
0, and returns sum_b (d loss_b / d parameter)^2 in the parameter's shape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.fisher.outer_squares import accumulable, outer_squares

Covered = Iterator[tuple[Tensor | None, Callable[[Tensor], Tensor]]]

# Maximum elements per chunk of an unfolded convolution input.
_UNFOLDED = 1 << 24

_BINARY = ("add", "sub", "mul", "div")
ELEMENTWISE = frozenset(
    template.format(name)
    for name in (*_BINARY, "truediv")
    for template in ("{}", "{}_", "__i{}__", "__r{}__")
) | {"true_divide"}


def expand_over_batch(parameter: Tensor, activations: Tensor) -> Tensor | None:
    """Returns a view [B, ...] that broadcasts with `activations` [B, ...] as `parameter` does.

    Returns None if the parameter has its own batch dimension.
    """
    missing = activations.ndim - parameter.ndim
    if missing < 0 or (missing == 0 and parameter.shape[0] != 1):
        return None
    parameter = parameter[(None,) * missing]
    return parameter.expand(len(activations), *parameter.shape[1:])


def sum_of_squares(per_example: Tensor) -> Tensor:
    """[B, ...] to [...], in fp32 or wider: squares leave fp16's range long before gradients do."""
    return accumulable(per_example).square().sum(0)


def _over_tokens(tensor: Tensor, dims: int) -> Tensor:
    """[B, *tokens, *last] to [B, *last], where `last` are the last `dims` dimensions."""
    middle = tuple(range(1, tensor.ndim - dims))
    return tensor.sum(middle) if middle else tensor


def _over_positions(tensor: Tensor) -> Tensor:
    """[B, C, *positions] to [B, C]."""
    return tensor.flatten(2).sum(2) if tensor.ndim > 2 else tensor


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Covered:
    def squares(g: Tensor) -> Tensor:
        x = input.detach().to(g.dtype)
        tokens = input.shape[1:-1].numel()
        return outer_squares(
            g.reshape(len(g), tokens, g.shape[-1]), x.reshape(len(x), tokens, x.shape[-1])
        )

    yield weight, squares
    yield bias, lambda g: sum_of_squares(_over_tokens(g, 1))


def _conv2d(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Covered:
    yield bias, lambda g: sum_of_squares(_over_positions(g))
    if input.ndim != 4 or isinstance(padding, str):
        return
    given = ([v] if isinstance(v, int) else list(v) for v in (stride, padding, dilation))
    stride, padding, dilation = (values * (2 // len(values)) for values in given)

    def dense(g: Tensor) -> Tensor:
        x = input.detach().to(g.dtype)
        kernel = tuple(weight.shape[2:])
        g = g.flatten(2).transpose(1, 2)
        if kernel == (1, 1) and padding == [0, 0]:
            x = x[:, :, :: stride[0], :: stride[1]].flatten(2).transpose(1, 2)
            return outer_squares(g, x).reshape(weight.shape)
        chunk = max(1, _UNFOLDED // (g.shape[1] * weight[0].numel()))
        total: Any = 0
        for g_chunk, x_chunk in zip(g.split(chunk), x.split(chunk), strict=True):
            columns = F.unfold(x_chunk, kernel, dilation, padding, stride).transpose(1, 2)
            total = total + outer_squares(g_chunk, columns)
        return total.reshape(weight.shape)

    def grouped(g: Tensor) -> Tensor:
        """One convolution with examples as groups, so its weight gradient is per example."""
        x = input.detach().to(g.dtype)
        chunk = max(1, _UNFOLDED // weight.numel())
        total: Any = 0
        for g_chunk, x_chunk in zip(g.split(chunk), x.split(chunk), strict=True):
            examples = len(g_chunk)
            _, per_example, _ = torch.ops.aten.convolution_backward(
                g_chunk.reshape(1, -1, *g.shape[2:]),
                x_chunk.reshape(1, -1, *x.shape[2:]),
                weight.detach().to(g.dtype).repeat(examples, 1, 1, 1),
                None,
                stride,
                padding,
                dilation,
                False,
                [0, 0],
                groups * examples,
                [False, True, False],
            )
            total = total + sum_of_squares(per_example.reshape(examples, *weight.shape))
        return total

    yield weight, dense if groups == 1 else grouped


def _layer_norm(
    input: Tensor,
    normalized_shape: Any,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Covered:
    dims = len(normalized_shape)

    def squares(g: Tensor) -> Tensor:
        normalised = F.layer_norm(accumulable(input.detach()), normalized_shape, eps=eps)
        return sum_of_squares(_over_tokens(g * normalised, dims))

    yield weight, squares
    yield bias, lambda g: sum_of_squares(_over_tokens(g, dims))


def _batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Covered:
    def squares(g: Tensor) -> Tensor:
        normalised = F.batch_norm(input.detach(), running_mean, running_var, eps=eps)
        return sum_of_squares(_over_positions(g * normalised))

    yield weight, squares
    yield bias, lambda g: sum_of_squares(_over_positions(g))


def _group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Covered:
    def squares(g: Tensor) -> Tensor:
        normalised = F.group_norm(accumulable(input.detach()), num_groups, eps=eps)
        return sum_of_squares(_over_positions(g * normalised))

    yield weight, squares
    yield bias, lambda g: sum_of_squares(_over_positions(g))


def _embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Covered:
    def squares(g: Tensor) -> Tensor:
        g = accumulable(g)
        if padding_idx is not None:
            g = g.masked_fill((input == padding_idx % len(weight))[..., None], 0.0)
        rows = torch.arange(len(input), device=g.device).reshape(-1, *[1] * (input.ndim - 1))
        keys, place, times = (rows * len(weight) + input).unique(
            return_inverse=True, return_counts=True
        )
        g = g.reshape(-1, g.shape[-1])
        per_example = g.new_zeros(len(keys), g.shape[-1]).index_add_(0, place.flatten(), g)
        if scale_grad_by_freq:
            per_example = per_example / times[:, None]
        total = g.new_zeros(weight.shape)
        return total.index_add_(0, keys % len(weight), per_example.square())

    yield weight, squares


def _expand(parameter: Tensor, *sizes: Any, size: Any = None) -> Covered:
    def squares(g: Tensor) -> Tensor:
        shape = (1,) * (g.ndim - parameter.ndim) + tuple(parameter.shape)
        repeated = [d for d in range(1, g.ndim) if shape[d] == 1]
        g = g.sum(repeated, keepdim=True) if repeated else g
        return sum_of_squares(g).reshape(parameter.shape)

    sizes = sizes if size is None else (size,)
    dims = len(sizes[0] if isinstance(sizes[0], tuple | list) else sizes)
    # The parameter must be repeated along the batch dimension, not have its own.
    if dims > parameter.ndim or parameter.shape[0] == 1:
        yield parameter, squares


RULES: dict[Any, Callable[..., Covered]] = {
    F.linear: _linear,
    F.conv2d: _conv2d,
    F.layer_norm: _layer_norm,
    F.batch_norm: _batch_norm,
    F.group_norm: _group_norm,
    F.embedding: _embedding,
    Tensor.expand: _expand,
}
