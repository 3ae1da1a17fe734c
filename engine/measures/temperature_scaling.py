"""Temperature scaling: logits z are divided by one number T for all images and classes.

T minimizes the negative log-likelihood (NLL) on held-out images (Guo et al. 2017, section 4.2). It
changes no prediction. Confidence and margin determine the NLL: if the true class is not the
prediction, its logit is the prediction's plus the margin. So the confidences at `TEMPERATURES`,
which are stored with the predictions, are enough.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

TEMPERATURES = 2.0 ** (np.arange(-8, 17) / 4)  # 1/4 to 16


@dataclass(frozen=True)
class Temperature:
    """A temperature `offset` steps (-0.5 to 0.5) from `TEMPERATURES[place]`."""

    place: int
    offset: float = 0.0

    @property
    def value(self) -> float:
        return float(TEMPERATURES[self.place] * (TEMPERATURES[1] / TEMPERATURES[0]) ** self.offset)

    @property
    def is_at_end(self) -> bool:
        """Whether the best temperature may be outside the stored range."""
        return self.place in (0, len(TEMPERATURES) - 1)

    def confidence(self, confidences_NT: np.ndarray) -> np.ndarray:
        """Confidences [N] at this temperature, interpolated between those at `TEMPERATURES`: their
        logarithm is a parabola in log T through three points."""
        if self.is_at_end:
            return confidences_NT[:, self.place]
        u = self.offset
        weights_3 = np.array([u * (u - 1) / 2, 1 - u * u, u * (u + 1) / 2])
        logs_N3 = np.log(confidences_NT[:, self.place - 1 : self.place + 2].astype(np.float64))
        return np.exp(np.minimum(logs_N3 @ weights_3, 0))


def fitted(confidences_NT: np.ndarray, margin_N: np.ndarray, weights_N: np.ndarray) -> Temperature:
    """The temperature of the lowest NLL: the vertex of the parabola in log T through the lowest at
    `TEMPERATURES` and its neighbours.

    confidences_NT: float64, at `TEMPERATURES`. margin_N: the true class's logit minus the largest
    other one. weights_N: of the images.
    """
    # If the prediction is right, the margin is positive and the confidence is the true class's.
    below_NT = np.minimum(margin_N, 0)[:, None] / TEMPERATURES
    nll_T = weights_N @ (-np.log(confidences_NT) - below_NT)
    best = Temperature(int(np.argmin(nll_T)))
    if best.is_at_end:
        return best
    left, least, right = nll_T[best.place - 1 : best.place + 2]
    bend = left - 2 * least + right
    return Temperature(best.place, (left - right) / (2 * bend) if bend > 0 else 0.0)
