"""What a method may ask to be minimised: a pull that the optimizer applies, or a fitted head."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


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


@dataclass(frozen=True, eq=False)
class Problem:
    """What a head is fitted to.

    features_ND: float32, on the CPU, mapped from its file where the set is large; labels_N: int64,
    in the head's order, on the head's device; rows_n: int64, on the CPU, the images that take part.
    l2 > 0. mask_C: bool, True where an output takes part, or None.
    members_GM: int64, the outputs of each class, or None.
    """

    features_ND: Tensor
    labels_N: Tensor
    rows_n: Tensor
    l2: float
    mask_C: Tensor | None = None
    members_GM: Tensor | None = None

    def flops(self, classes: int) -> float:
        """Operations of one evaluation: the logits, and the gradient of the weight."""
        return 4.0 * len(self.rows_n) * self.features_ND.shape[1] * classes
