"""Iso-C: sums task vectors, and gives each weight matrix's sum equal singular values.

For each matrix, let D = sum_i (w_i - w_pre) = U diag(s) V^T. Then

    w = w_pre + scale mean(s) U V^T

(Marczak et al. 2025, arXiv 2502.04959). Other tensors, such as biases, get scale times the mean of
their task vectors, as in the authors' release. The release chooses the scale on validation images.

If D lacks full rank, as after a few steps of SGD, rounding chooses the directions that complete U
and V, and these directions count as much as all others.

A matrix is a tensor with two dimensions longer than 1, so kernels of 1 x 1 convolutions are
matrices, and larger kernels are not.

Differs from the authors' code: the scale is fixed; the authors choose it on validation images.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from engine.methods.beyond.options.iso_c import Recipe
from engine.methods.beyond.task_vectors import TaskVectors, Vector


class Method(TaskVectors):
    recipe: Recipe

    def update(self, vectors: Sequence[Vector], net: nn.Module) -> Vector:
        return {
            name: self.recipe.scale * isotropic(torch.stack([v[name] for v in vectors]))
            for name in vectors[0]
        }


def isotropic(changes: Tensor) -> Tensor:
    """mean(s) U V^T of the sum of changes [N, ...] of a matrix, or the changes' mean [...]."""
    matrix = changes.sum(0).squeeze()
    if matrix.ndim != 2:
        return changes.mean(0)
    u_MR, s_R, v_RN = torch.linalg.svd(matrix, full_matrices=False)
    return (s_R.mean() * u_MR @ v_RN).view_as(changes[0])
