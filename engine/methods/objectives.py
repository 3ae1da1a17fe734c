"""What a method sets beside its loss: a penalty or a projection in the optimizer's step."""

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
