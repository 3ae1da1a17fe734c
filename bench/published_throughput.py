"""The arithmetic of `rib plan` beside what others measured: 72 throughputs of nine architectures.

No GPU is needed, and nothing is timed: a row has the predicted and the published images a second,
and the ratio of the two. The constants of `engine.cost.rates` were fitted to these rows, so they
are fitted again without each architecture, and without each GPU, whose rows are then predicted:
these are the errors to expect of a model or a GPU that is not among them. A median error is at most
a quarter; rows beyond that are named.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from scipy.optimize import least_squares

from engine.cost import rates
from engine.cost.flops import elements_of_image, of_image
from engine.cost.rates import Fit

FILE = Path(__file__).with_suffix(".csv")
MOST = 0.25  # of the median error
SIZE = 224
FEWEST = 3  # rows that a constant is fitted to
LARGE = 0.1  # an error of the logarithm


@dataclass(frozen=True)
class Throughput:
    """A published number of images a second. kind: of the pass. operations, elements: of an image,
    as `rates.traffic` takes them."""

    model: str
    gpu: str
    kind: str
    published: float
    operations: float
    elements: float

    def predicted(self, fit: Fit = rates.FIT) -> float:
        """Images a second by these constants."""
        traffic = rates.traffic(
            self.elements, compiled="compiled" in self.kind, training=self.is_training, fit=fit
        )
        return 1 / rates.seconds(rates.CONSUMER[self.gpu], self.operations, traffic, fit)

    @property
    def is_training(self) -> bool:
        return "training" in self.kind

    @property
    def uses(self) -> set[str]:
        """The constants that its prediction is made of."""
        rate = "half_rate" if rates.CONSUMER[self.gpu].is_half else "full_rate"
        eager = "compiled" if "compiled" in self.kind else "eager"
        return {rate, eager} | ({"training"} if self.is_training else set())


def throughputs() -> list[Throughput]:
    """Each published throughput, with what its prediction is made of."""
    lines = [line for line in FILE.read_text("utf-8").splitlines() if not line.startswith("#")]
    known = []
    for row in csv.DictReader(lines):
        counted = _counted(row["model"], "training" in row["pass"])
        facts = row["model"], row["gpu"], row["pass"], float(row["images_s"])
        known.append(Throughput(*facts, *counted))
    return known


def fitted(known: Sequence[Throughput]) -> Fit:
    """The constants with the least errors of the logarithm, of which large ones count less than by
    their squares; those of which too few rows tell stay as they are in `rates.FIT`."""
    names = told(known)
    start = np.log([getattr(rates.FIT, name) for name in names])

    def fit(logarithms: np.ndarray) -> Fit:
        values = dict(zip(names, np.exp(logarithms).tolist(), strict=True))
        return dataclasses.replace(rates.FIT, **values)

    def errors(logarithms: np.ndarray) -> np.ndarray:
        constants = fit(logarithms)
        return np.log([row.predicted(constants) / row.published for row in known])

    return fit(least_squares(errors, start, loss="soft_l1", f_scale=LARGE).x)


def told(known: Sequence[Throughput]) -> list[str]:
    """The constants that so many rows use that they can be fitted to them."""
    names = [field.name for field in dataclasses.fields(Fit)]
    return [name for name in names if sum(name in row.uses for row in known) >= FEWEST]


def left_out(
    known: Sequence[Throughput], group: Callable[[Throughput], str]
) -> dict[str, list[float]]:
    """By group, the ratios of its rows to predictions by constants that the other rows gave. Rows
    that need a constant of which the others do not tell are missing."""
    ratios: dict[str, list[float]] = {}
    for name in dict.fromkeys(map(group, known)):
        others = [row for row in known if group(row) != name]
        rows = [row for row in known if group(row) == name and row.uses <= {*told(others)}]
        if rows:
            fit = fitted(others)
            ratios[name] = [row.predicted(fit) / row.published for row in rows]
    return ratios


def median_error(ratios: Sequence[float]) -> float:
    """Of the ratios' distance from 1."""
    return statistics.median(abs(ratio - 1) for ratio in ratios)


@functools.cache
def _counted(model: str, training: bool) -> tuple[float, float]:
    with torch.device("meta"):
        net = timm.create_model(model).train(training)
    return of_image(net, SIZE, backward=training), elements_of_image(net, SIZE)


def rows() -> Iterator[dict[str, Any]]:
    """A row for each, the most pessimistic first. Raises AssertionError where a median error is too
    large."""
    known = throughputs()
    ratios = {row: row.predicted() / row.published for row in known}
    for row, ratio in sorted(ratios.items(), key=lambda item: item[1]):
        facts = {"model": row.model, "gpu": row.gpu, "kind": row.kind}
        numbers = {"predicted": row.predicted(), "published": row.published, "ratio": ratio}
        yield facts | numbers | ({"miss": "yes"} if abs(ratio - 1) > MOST else {})
    errors = {"fitted to all rows": list(ratios.values())}
    for name, group in (
        ("architecture", lambda row: row.model),
        ("GPU", lambda row: row.gpu),
    ):
        of_group = left_out(known, group)
        errors[f"fitted without the row's {name}"] = [r for each in of_group.values() for r in each]
        for each, held in of_group.items():
            print(f"without {each}: {median_error(held):.0%} of {len(held)}")
    for name, each in errors.items():
        print(f"median error, {name}: {median_error(each):.0%} of {len(each)}")
    assert all(median_error(each) <= MOST for each in errors.values())
