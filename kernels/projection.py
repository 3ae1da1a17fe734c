"""Selective projection decay: what a step took too far from an anchor is taken back.

A parameter theta with gradient g is stepped to theta' by any optimizer. Where sum(g d) > 0 for its
offset d = theta - anchor,

    theta'' = theta' - lam r d',   r = clamp((|d'| - |d|) / |d'|, 0, 1)

`offset_products_` sums what decides, g d and d d, before the step, and d' d' after it; `project_`
draws back. Operators of torch take all parameters at once.

Source: Tian et al. 2024, algorithm 1.
"""

# pyright: reportPrivateImportUsage=false
from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

_norms = partial(torch._foreach_norm, dtype=torch.float64)


@torch.no_grad()
def offset_products_(
    thetas: list[Tensor],
    anchors: list[Tensor],
    grads: list[Tensor] | None = None,
    *,
    out: Tensor,
) -> None:
    """For each parameter sum(g d), and in a second row sum(d d); without grads sum(d d) alone.

    thetas, anchors, grads: fp32 tensors, of one shape for each of T parameters, all on one device.
    out: float64 [2, T] or, without grads, [1, T]; it is overwritten. Products are fp32, sums
    float64. The host does not wait.
    """
    if not thetas:
        return
    offsets = torch._foreach_sub(thetas, anchors)
    if grads is not None:
        products = torch._foreach_mul(offsets, grads)
        of_all = torch.stack(_norms(products, 1))
        torch._foreach_clamp_min_(products, 0.0)
        # No operator sums over lists but norms: what is positive, less what is not.
        out[0] = 2 * torch.stack(_norms(products, 1)) - of_all
    out[-1] = torch.stack(_norms(offsets, 2)).square()


@torch.no_grad()
def project_(thetas: list[Tensor], anchors: list[Tensor], sums: Tensor, lam: float) -> None:
    """Draws the stepped parameters theta' back, in place.

    thetas, anchors: as for `offset_products_`. sums: float64 [3, T]: sum(g d), sum(d d) and
    sum(d' d'), which may be those of whole parameters where thetas are pieces. lam: 1 brings a
    parameter back to its distance before the step.
    """
    if not thetas:
        return
    ascent, before, after = sums[0], sums[1].sqrt(), sums[2].sqrt()
    ratios = ((after - before) / after).clamp(0, 1)
    # Also where the offset is 0 and the ratio no number: nothing is there to draw back.
    shares = torch.where((ascent > 0) & (after > 0), lam * ratios, 0.0).float()
    offsets = torch._foreach_sub(thetas, anchors)
    torch._foreach_mul_(offsets, shares.unbind())
    torch._foreach_sub_(thetas, offsets)
