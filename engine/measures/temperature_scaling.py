"""Temperature scaling: logits z are divided by one number T for all images and classes.

T minimizes the negative log-likelihood (NLL) on held-out images (Guo et al. 2017, section 4.2). It
changes no prediction. Confidence and margin determine the NLL: if the true class is not the
prediction, its logit is the prediction's plus the margin. So the confidences at `TEMPERATURES`,
which are stored with the predictions, are enough.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engine.measures import predictions
from engine.measures.predictions import TEMPERATURES

log = logging.getLogger(__name__)


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


def temperature_of(paths: Sequence[Path]) -> Temperature | None:
    """The temperature that minimizes the NLL of a model's predictions on one or several datasets of
    equal weight. None if they contain no confidences at other temperatures."""
    tables = [predictions.read_predictions(path) for path in paths]
    confidences = [c_NT for c_NT in map(predictions.scaled_confidences, tables) if c_NT is not None]
    if not confidences:
        return None
    of_sets = [predictions.weights(table) for table in tables]
    if len(of_sets) > 1:
        of_sets = [of_set / of_set.sum() for of_set in of_sets]
    margin_N = np.concatenate([table["margin"].to_numpy() for table in tables])
    confidences_NT = np.concatenate(confidences).astype(np.float64)
    best = fitted(confidences_NT, margin_N, np.concatenate(of_sets))
    if best.is_at_end:
        log.warning("%s: the temperature is at the end of its range, %g", paths[0], best.value)
    return best


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
