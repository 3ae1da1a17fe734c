"""Confidences at other temperatures, and the temperature that fits held-out images.

Temperature scaling divides the logits z by one number T for all images and classes, which is chosen
for the least negative log-likelihood (NLL) on held-out images (Guo et al. 2017, section 4.2). It
leaves every answer as it is. Predictions hold the confidence max_c softmax(z / T)_c of each image
at `TEMPERATURES`. With the margin that is all that an NLL needs: where the true class is not the
answer, its logit is the answer's plus the margin. Imports no torch.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

TEMPERATURES = 2.0 ** (np.arange(-8, 17) / 4)  # 1/4 to 16


@dataclass(frozen=True)
class Temperature:
    """A temperature at or beside `TEMPERATURES[place]`, `offset` steps away (-0.5 to 0.5)."""

    place: int
    offset: float = 0.0

    @property
    def value(self) -> float:
        return float(TEMPERATURES[self.place] * (TEMPERATURES[1] / TEMPERATURES[0]) ** self.offset)

    @property
    def is_at_end(self) -> bool:
        """Whether the best temperature may lie beyond those that are stored."""
        return self.place in (0, len(TEMPERATURES) - 1)

    def confidence(self, confidences_NT: np.ndarray) -> np.ndarray:
        """Confidences [N] at this temperature, from those at `TEMPERATURES`: the logarithm is a
        parabola of log T through three of them."""
        if self.is_at_end:
            return confidences_NT[:, self.place]
        u = self.offset
        weights_3 = np.array([u * (u - 1) / 2, 1 - u * u, u * (u + 1) / 2])
        logs_N3 = np.log(confidences_NT[:, self.place - 1 : self.place + 2].astype(np.float64))
        return np.exp(np.minimum(logs_N3 @ weights_3, 0))


def fit(confidences_NT: np.ndarray, margin: np.ndarray, weights: np.ndarray) -> Temperature:
    """The temperature of the least NLL: the vertex of the parabola of log T through the least of
    the NLLs at `TEMPERATURES` and its neighbours. margin, weights: of each image [N]."""
    # At the right answer the margin is positive: the true class's probability is the confidence.
    below_NT = np.minimum(margin, 0)[:, None] / TEMPERATURES
    nll_T = weights @ (-np.log(confidences_NT.astype(np.float64)) - below_NT)
    place = Temperature(int(np.argmin(nll_T)))
    if place.is_at_end:
        return place
    left, least, right = nll_T[place.place - 1 : place.place + 2]
    bend = left - 2 * least + right
    return Temperature(place.place, (left - right) / (2 * bend) if bend > 0 else 0.0)
