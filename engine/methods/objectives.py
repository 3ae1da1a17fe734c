"""What a method sets beside its loss: a penalty, which is part of the optimizer's step."""

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
