"""What lies between two models whose weights are interpolated."""

from __future__ import annotations

from collections.abc import Sequence


def barrier(alphas: Sequence[float], accuracies: Sequence[float]) -> float:
    """max over alpha of (1 - alpha) a(0) + alpha a(1) - a(alpha), in the unit of the accuracies.

    It is never below 0, its value at both ends (Entezari et al. 2022, with accuracy in
    place of loss). alphas: those that were evaluated, 0 and 1 among them.
    """
    by_alpha = dict(zip(alphas, accuracies, strict=True))
    before, after = by_alpha[0.0], by_alpha[1.0]
    return max((1 - x) * before + x * after - accuracy for x, accuracy in by_alpha.items())
