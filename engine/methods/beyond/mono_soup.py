"""MonoSoup: reweighs the large and small singular directions of one fine-tuned model's change.

For each weight matrix, let D = w_ft - w_pre have the singular values s_1 >= s_2 >= ... Then

    k = ceil(exp(-sum_i p_i log p_i)),  p_i = s_i / sum_j s_j    (the effective rank)
    rho = (s_{k+1} / s_1)^2,  cos^2 = sum_{i>k} s_i^2 / sum_i s_i^2
    low = rho + (1 - rho) cos,  high = 1 - low
    w = w_pre + high D_k + low (D - D_k)

where D_k is the rank-k approximation of D (Abdollahpoorrostam et al. 2026, arXiv 2602.09689, the
variant without a threshold). A convolution's kernel is reshaped to one row per output. Vectors,
such as biases, keep their fine-tuned values.

Differs from the authors' code: every matrix is reweighed; the authors leave tensors alone whose
relative change is below 1e-6.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from engine.methods.beyond.options.mono_soup import Recipe
from engine.methods.beyond.task_vectors import TaskVectors, Vector


class Method(TaskVectors):
    recipe: Recipe

    def update(self, vectors: Sequence[Vector], net: nn.Module) -> Vector:
        (tuned,) = vectors
        return {
            name: reweighed(vector.flatten(1)).view_as(vector) if vector.ndim > 1 else vector
            for name, vector in tuned.items()
        }


def reweighed(change_MN: Tensor) -> Tensor:
    """high D_k + low (D - D_k) of a change D [M, N], or D if k >= min(M, N)."""
    u_MR, s_R, v_RN = torch.linalg.svd(change_MN, full_matrices=False)
    p_R = s_R / s_R.sum()
    k = int(torch.special.entr(p_R).sum().exp().ceil()) if s_R.any() else len(s_R)
    if k >= len(s_R):
        return change_MN
    energy_R = s_R.square()
    rho = energy_R[k] / energy_R[0]
    cos = (energy_R[k:].sum() / energy_R.sum()).sqrt()
    low = rho + (1 - rho) * cos
    top_MN = (u_MR[:, :k] * s_R[:k]) @ v_RN[:k]
    return (1 - low) * top_MN + low * (change_MN - top_MN)
