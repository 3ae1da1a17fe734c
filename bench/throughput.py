"""The arithmetic of `rib plan` beside what others measured: 72 throughputs of nine architectures.

No GPU is needed, and nothing is timed: a row has the predicted and the published images a second,
and the ratio of the two. The median error is at most a quarter; rows beyond that are named.
"""

from __future__ import annotations

import csv
import dataclasses
import functools
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch

from engine.machine import rates
from engine.machine.flops import elements_of_image, of_image

FILE = Path(__file__).with_suffix(".csv")
MOST = 0.25  # of the median error
SIZE = 224


@dataclass(frozen=True)
class Throughput:
    """Images a second, predicted and published. kind: of the pass."""

    model: str
    gpu: str
    kind: str
    predicted: float
    published: float

    @property
    def ratio(self) -> float:
        return self.predicted / self.published


def throughputs() -> Iterator[Throughput]:
    """Each published throughput with its prediction."""
    lines = [line for line in FILE.read_text("utf-8").splitlines() if not line.startswith("#")]
    for row in csv.DictReader(lines):
        training, compiled = "training" in row["pass"], "compiled" in row["pass"]
        operations, elements = _counted(row["model"], training)
        traffic = rates.traffic(elements, compiled=compiled, training=training)
        seconds = rates.seconds(rates.CONSUMER[row["gpu"]], operations, traffic)
        facts = row["model"], row["gpu"], row["pass"]
        yield Throughput(*facts, 1 / seconds, float(row["images_s"]))


def median_error(rows: list[Throughput]) -> float:
    """Of the ratios' distance from 1."""
    return statistics.median(abs(row.ratio - 1) for row in rows)


@functools.cache
def _counted(model: str, training: bool) -> tuple[float, float]:
    with torch.device("meta"):
        net = timm.create_model(model).train(training)
    return of_image(net, SIZE, backward=training), elements_of_image(net, SIZE)


def rows() -> Iterator[dict[str, Any]]:
    """A row for each, the most pessimistic first. Raises AssertionError where the median error is
    too large."""
    known = sorted(throughputs(), key=lambda row: row.ratio)
    for row in known:
        miss = {"miss": "yes"} if abs(row.ratio - 1) > MOST else {}
        yield dataclasses.asdict(row) | {"ratio": row.ratio} | miss
    error = median_error(known)
    print(f"median error: {error:.0%} of {len(known)}")
    assert error <= MOST, error
