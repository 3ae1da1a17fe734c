"""What a method sets beside its loss: a penalty or a projection in the optimizer's step, or how the
head is made in place of steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

EVALUATIONS = 200  # of a fit, as plans assume: emoji-RIB's heads take 100 to 200 iterations


@dataclass(frozen=True)
class Penalty:
    """lam / 2 * sum_i fisher_i (theta_i - anchor_i)^2, by parameter name; fisher None: identity.

    anchor and fisher: whole tensors, shaped like the parameters, on any device; names that belong
    to no trained parameter are ignored. Raises ValueError unless lam is finite and not negative.
    """

    lam: float
    anchor: Mapping[str, Tensor]
    fisher: Mapping[str, Tensor] | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.lam) and self.lam >= 0):
            raise ValueError(f"the penalty's weight must be finite and >= 0, not {self.lam}")


@dataclass(frozen=True)
class Projection:
    """Selective projection decay (Tian et al. 2024) towards an anchor, by parameter name.

    For each parameter theta with gradient g, after the optimizer's step to theta', where
    sum(g * (theta - anchor)) > 0:

        theta'' = theta' - lam r (theta' - anchor),
        r = clamp((|theta' - anchor| - |theta - anchor|) / |theta' - anchor|, 0, 1)

    lam = 1 brings a parameter that moved away back to its former distance. anchor: as in `Penalty`.
    Raises ValueError unless lam is finite and not negative.
    """

    lam: float
    anchor: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        if not (math.isfinite(self.lam) and self.lam >= 0):
            raise ValueError(f"the projection's strength must be finite and >= 0, not {self.lam}")


@dataclass(frozen=True, eq=False)
class Problem:
    """The fit of a head.

    features_ND: float32, on the CPU, mapped from a file; labels_N: int64, in the head's order, on
    the head's device; rows_n: int64, on the CPU, the training images. l2 > 0. mask_C: bool, True
    for the outputs to fit, or None. members_GM: int64, the outputs of each class, or None.
    """

    features_ND: Tensor
    labels_N: Tensor
    rows_n: Tensor
    l2: float
    mask_C: Tensor | None = None
    members_GM: Tensor | None = None

    def flops(self, classes: int) -> float:
        """Operations of the fit. An evaluation takes the logits and the gradient of the weight."""
        return EVALUATIONS * 4.0 * len(self.rows_n) * self.features_ND.shape[1] * classes


@dataclass(frozen=True, eq=False)
class Prototypes:
    """A head of class prototypes, in closed form (`engine.training.prototypes`).

    features_ND, labels_N, rows_n: as in `Problem`; every output has a training image. scale: above
    0; cosines of features with prototypes are multiplied by it.
    """

    features_ND: Tensor
    labels_N: Tensor
    rows_n: Tensor
    scale: float

    def flops(self, classes: int) -> float:
        """Operations: the norms of the features, and their sums by class."""
        return 4.0 * len(self.rows_n) * self.features_ND.shape[1]
