"""The rows of a grid's results and their CSV files: a dataclass a table, a field a column."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from engine.machine import files

PRE = "pre"
DEFAULT_ALPHA = 0.5  # of an interpolation's row in tables, unless its recipe names another


class Agreement(NamedTuple):
    """Shares of images in percent, before against after fine-tuning; `lost` + `both_right` is
    accuracy before, `gained` + `both_right` accuracy after. None if the images differ."""

    same_top1: float | None
    both_right: float | None
    lost: float | None
    gained: float | None


class Arm(NamedTuple):
    """What is compared: a method in a variant, on a pre-trained model.

    setting: what distinguishes arms of a method beyond variant and alpha: `step=16` of a model
    during training, `dataset.shots=4` where a campaign varies that key, and empty in a plain grid.
    """

    model: str
    method: str
    variant: str
    alpha: float | None
    setting: str = ""

    @property
    def before(self) -> Arm:
        """The pre-trained model."""
        return Arm(self.model, PRE, "", None)

    def __str__(self) -> str:
        alpha = "" if self.alpha is None else f" alpha={self.alpha:g}"
        setting = f" {self.setting}" if self.setting else ""
        variant = f" ({self.variant})" if self.variant else ""
        return f"{self.model} {self.method}{alpha}{setting}{variant}"


@dataclass(frozen=True)
class OfArm:
    """A row about an arm."""

    model: str
    method: str
    variant: str
    alpha: float | None
    setting: str

    @property
    def arm(self) -> Arm:
        return Arm(self.model, self.method, self.variant, self.alpha, self.setting)


@dataclass(frozen=True)
class ModelOnSet(OfArm):
    """A model evaluated on a set; `downstream` is empty for the pre-trained model (`PRE`)."""

    downstream: str
    evaluated_on: str

    @property
    def on_downstream(self) -> bool:
        """Whether the model was fine-tuned on the set that it is evaluated on."""
        return self.downstream == self.evaluated_on

    @property
    def cell(self) -> ModelOnSet:
        """Model and set alone, as a key of dictionaries."""
        return ModelOnSet(*self.key)

    @property
    def key(self) -> tuple[str, str, str, float | None, str, str, str]:
        """The first values of every row of a model on a set."""
        model, method, variant, alpha, setting = self.arm
        return model, method, variant, alpha, setting, self.downstream, self.evaluated_on

    def __str__(self) -> str:
        trained = f" fine-tuned on {self.downstream}" if self.downstream else ""
        return f"{self.arm}{trained}, evaluated on {self.evaluated_on}"


@dataclass(frozen=True)
class Evaluation(ModelOnSet):
    """A cell and the file or folder of its predictions (columns: `predictions.read`)."""

    path: Path
    seed: int = 0  # of the training; the pre-trained model has none
    headline: bool = True  # whether tables show the arm; other alphas are points of a curve


@dataclass(frozen=True)
class Accuracy(ModelOnSet):
    """Top-1 accuracy of a cell in percent, over `n` images; a mean where it has several seeds.

    headline: whether tables show its arm, as `Evaluation` says.
    """

    n: int
    accuracy: float
    headline: bool = True


@dataclass(frozen=True)
class SeedAccuracy(ModelOnSet):
    """Top-1 accuracy of a cell trained with a seed, in percent."""

    seed: int
    n: int
    accuracy: float


@dataclass(frozen=True)
class Behaviour(ModelOnSet):
    """What a cell's predictions are like, beyond accuracy; means over seeds.

    `same_top1`, `both_right`, `lost` and `gained`: `Agreement` with the pre-trained model, None for
    itself. `calibration_error` and `effective_robustness` are in points; the latter is None on the
    set fine-tuned on, on the upstream set, and where too few models give a trend line.
    """

    same_top1: float | None
    both_right: float | None
    lost: float | None
    gained: float | None
    calibration_error: float
    effective_robustness: float | None = None

    @property
    def agreement(self) -> Agreement:
        return Agreement(*(getattr(self, name) for name in Agreement._fields))


@dataclass(frozen=True)
class Mri(OfArm):
    """mRI of an arm in points of accuracy, and its 95% interval (the population: `bootstrap`)."""

    mri: float
    mri_low: float
    mri_high: float
    headline: bool = True  # as `Accuracy`


@dataclass(frozen=True)
class Interval(ModelOnSet):
    """A number (percent or points) and its 95% interval.

    `quantity`: `accuracy` of a cell; `RI` of a downstream set; `mRI`, where both sets are empty.
    """

    quantity: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison(OfArm):
    """The difference of two arms of a model in a setting, in points, and its 95% interval.

    `evaluated_on` is empty for mRI. On a set, `difference` is that of mean accuracy over the models
    trained elsewhere. `p` is of the paired difference (`bootstrap.p_values`), `p_corrected` Holm's
    over mRI, or over all sets.
    """

    against_method: str
    against_variant: str
    against_alpha: float | None
    evaluated_on: str
    difference: float
    low: float
    high: float
    p: float
    p_corrected: float

    @property
    def against(self) -> Arm:
        name, variant, alpha = self.against_method, self.against_variant, self.against_alpha
        return Arm(self.model, name, variant, alpha, self.setting)

    def swapped(self) -> Comparison:
        """The same comparison with the two arms exchanged."""
        _, method, variant, alpha, _ = self.against
        return replace(
            self,
            method=method,
            variant=variant,
            alpha=alpha,
            against_method=self.method,
            against_variant=self.variant,
            against_alpha=self.alpha,
            difference=-self.difference,
            low=-self.high,
            high=-self.low,
        )


def of_main_table(rows: Sequence[Mri]) -> list[Mri]:
    """The rows whose arms stand in the main table: headlines of the setting "", or of every setting
    where no headline of the model has that."""
    headlines = [row for row in rows if row.headline]
    plain = {row.model for row in headlines if not row.setting}
    return [row for row in headlines if not row.setting or row.model not in plain]


def write(path: Path, kind: type, rows: Sequence[Any]) -> Path:
    """Write rows of a dataclass as CSV, atomically: percent and points with six decimals, p-values
    with three digits."""
    names = [field.name for field in fields(kind)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([_plain(row, name) for name in names] for row in rows)
    files.write_atomic(path, text.getvalue().encode())
    return path


def _plain(row: Any, name: str) -> object:
    value = getattr(row, name)
    if isinstance(value, str):
        return inert(value)
    if not isinstance(value, float):
        return value
    return f"{value:.3g}" if name in ("p", "p_corrected") else round(value, 6)


def inert(text: str) -> str:
    """A text that a spreadsheet does not take for a formula: one that begins like a formula gets an
    apostrophe before it, as the OWASP advises."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text
