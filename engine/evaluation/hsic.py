"""Linear centred kernel alignment (CKA) of two networks' features, from minibatches.

CKA compares what two layers say about the same images: 1 where one layer's features are the
other's, turned and scaled; near 0 where they have nothing to do with each other (Kornblith et al.
2019, equation 4). It is made of HSIC, which is estimated without bias in each minibatch of n images
(Song et al. 2012, equation 5) and averaged over minibatches before the ratio is taken (Nguyen et
al. 2021, equation 3), so that its value does not depend on the minibatches' size.
"""

from __future__ import annotations

import torch

from engine.recipe.checks import FEWEST_FOR_CKA as FEWEST


def gram(features: torch.Tensor) -> torch.Tensor:
    """Inner products (float32 [n, n], under autocast too) of n images' features [n, ...], each
    taken as a whole: all channels at all positions or tokens, as in the papers.

    The minibatch's mean is taken off, which changes no HSIC but keeps digits where it is large.
    """
    with torch.autocast(features.device.type, enabled=False):
        x_ND = features.float().flatten(1)
        x_ND = x_ND - x_ND.mean(0)
        return x_ND @ x_ND.T


def centred(gram_LNN: torch.Tensor) -> torch.Tensor:
    """Gram matrices [L, n, n] without their diagonals and centred without bias (float64).

    Rows and columns then add up to 0 off the diagonal (Székely and Rizzo 2014, equation 2.3).
    Raises ValueError for fewer than four images.
    """
    n = gram_LNN.shape[-1]
    if n < FEWEST:
        raise ValueError(f"CKA needs minibatches of {FEWEST} images or more, got {n}")
    k_LNN = gram_LNN.double()
    k_LNN.diagonal(dim1=-2, dim2=-1).zero_()
    rows_LN = k_LNN.sum(-1) / (n - 2)
    total_L = rows_LN.sum(-1) / (n - 1)
    k_LNN = k_LNN - rows_LN[:, :, None] - rows_LN[:, None, :] + total_L[:, None, None]
    k_LNN.diagonal(dim1=-2, dim2=-1).zero_()
    return k_LNN


def hsic(a_LNN: torch.Tensor, b_LNN: torch.Tensor) -> torch.Tensor:
    """Unbiased HSIC (float64 [L]) of `centred` Gram matrices; it can be below 0."""
    n = a_LNN.shape[-1]
    return (a_LNN * b_LNN).sum((-2, -1)) / (n * (n - 3))


def cka(sums_3L: torch.Tensor) -> torch.Tensor:
    """CKA (float64 [L]) from sums over minibatches of HSIC(before, after), HSIC(before, before) and
    HSIC(after, after). NaN where a layer's features do not vary. The sample's noise can put it
    below 0."""
    cross_L, before_L, after_L = sums_3L
    varies_L = (before_L > 0) & (after_L > 0)
    norm_L = torch.where(varies_L, before_L, torch.nan).sqrt() * after_L.clamp(min=0).sqrt()
    return cross_L / norm_L
