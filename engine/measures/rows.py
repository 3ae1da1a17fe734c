"""Keys of evaluations: a model, the method that made it, varied keys, and the dataset."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Literal, NamedTuple

Scalar = bool | int | float | str  # a value of a varied key
PRE = "pretrained"  # the pretrained model in tables, and among the members of soups
UNION = "+"  # joins the datasets of a column that trains on several; no dataset has it in its name
TRIAL = "trial"  # key of a column's setting: the number of its trial
STEP = "step"  # key of a snapshot's setting: its number of optimizer steps
Role = Literal["test", "seen", "replicate", "probe"]
TEST: Role = "test"
SEEN: Role = "seen"
REPLICATE: Role = "replicate"
PROBE: Role = "probe"
DEFAULT_ALPHA = 0.5  # of an interpolation's row in tables, unless its recipe sets another


def trained_sets(downstream: str) -> list[str]:
    """The datasets that a column trains on: one, or those of a union `A+B`."""
    return downstream.split(UNION)


def robustness_improvement(
    downstream: str, after: Mapping[str, float], before: Mapping[str, float], sets: Sequence[str]
) -> float:
    """RI of one fine-tuned model: its mean change in accuracy on the other datasets, in points."""
    return fmean(
        after[name] - before[name] for name in sets if name not in trained_sets(downstream)
    )


class Setting(dict[str, Scalar]):
    """Values by key, such as `{"optimizer.lr": 1e-4}`. It is hashable, so never change it."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))

    def __str__(self) -> str:
        """`optimizer.lr=0.0001,train.epochs=1`, for tables and file names."""
        return ",".join(f"{key}={setting_text(value)}" for key, value in self.items())

    @property
    def short(self) -> str:
        """`adamw, lr 0.0001`, for labels: the last part of each key, which a name does without."""
        parts = ((key.rpartition(".")[2], setting_text(value)) for key, value in self.items())
        return ", ".join(value if key == "name" else f"{key} {value}" for key, value in parts)

    @property
    def is_tried(self) -> bool:
        """Whether a column's setting is one that a campaign tries beside the recipe's own."""
        return bool(self.without(TRIAL) or self.get(TRIAL))

    def without(self, key: str) -> Setting:
        """The other values."""
        return Setting({name: value for name, value in self.items() if name != key})


PLAIN = Setting()  # of a grid without varied keys


def setting_text(value: Scalar) -> str:
    """A value as written in a recipe."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value).removesuffix(".0")


class Arm(NamedTuple):
    """A method configuration: a method in a variant, on a pretrained model.

    setting: further keys that distinguish arms of a method: the `step` of a snapshot, or varied
    keys such as `dataset.shots`; empty in a plain grid.
    """

    model: str
    method: str
    variant: str
    alpha: float | None
    setting: Setting = PLAIN

    @property
    def before(self) -> Arm:
        """The pretrained model."""
        return Arm(self.model, PRE, "", None)

    @property
    def step(self) -> int | None:
        """The optimizer steps of a snapshot; None for other arms."""
        step = self.setting.get(STEP)
        return None if step is None else int(step)

    @property
    def without_step(self) -> Arm:
        """The arm of the cell that a snapshot belongs to."""
        return self._replace(setting=self.setting.without(STEP))

    def __str__(self) -> str:
        alpha = "" if self.alpha is None else f" alpha={self.alpha:g}"
        setting = f" {self.setting}" if self.setting else ""
        variant = f" ({self.variant})" if self.variant else ""
        return f"{self.model} {self.method}{alpha}{setting}{variant}"


@dataclass(frozen=True)
class ModelOnSet:
    """A model evaluated on a dataset. downstream: the dataset that it was fine-tuned on, or a union
    `A+B`; of a pretrained model (`PRE`), what its head was fitted on if each column has a
    pretrained model, otherwise empty."""

    model: str
    method: str
    variant: str
    alpha: float | None
    setting: Setting
    downstream: str
    evaluated_on: str

    @property
    def arm(self) -> Arm:
        return Arm(self.model, self.method, self.variant, self.alpha, self.setting)

    @property
    def on_downstream(self) -> bool:
        """Whether the model is evaluated on a dataset that it was fine-tuned on."""
        return self.evaluated_on in trained_sets(self.downstream)

    @property
    def cell(self) -> ModelOnSet:
        """Model and dataset only, as a dictionary key."""
        return ModelOnSet(*self.key)

    @property
    def key(self) -> tuple[str, str, str, float | None, Setting, str, str]:
        """The first values of every row of a model on a dataset."""
        model, method, variant, alpha, setting = self.arm
        return model, method, variant, alpha, setting, self.downstream, self.evaluated_on

    def __str__(self) -> str:
        trained = f" fine-tuned on {self.downstream}" if self.downstream else ""
        return f"{self.arm}{trained}, evaluated on {self.evaluated_on}"


@dataclass(frozen=True)
class Evaluation(ModelOnSet):
    """A model on a dataset, and the file or folder of its predictions (columns:
    `predictions.read_predictions`).

    seed: of the training; 0 for the pretrained model. headline: whether tables show the arm; other
    alphas are points of a curve. trains: whether its row is trained, and not a mix of other rows.

    role: `test`: RI and all means are made from these evaluations. `seen`: on photos that the model
    was trained on in another dataset, and of the pretrained model on all such photos (`leak`).
    `replicate`: of a column that was trained again with another seed. `probe`: with a head that was
    fitted on the model's features of one of `dataset.probe_sets`.
    """

    path: Path
    seed: int = 0
    headline: bool = True
    trains: bool = True
    role: Role = TEST


def of_role(evaluations: Iterable[Evaluation], role: Role) -> list[Evaluation]:
    """The evaluations of a role."""
    return [row for row in evaluations if row.role == role]


def pretrained(cell: ModelOnSet, known: Container[ModelOnSet]) -> ModelOnSet:
    """The pretrained model that a model on a dataset is compared with: that of its column if
    `known` has one, otherwise the one of all columns."""
    of_column = ModelOnSet(*cell.arm.before, cell.downstream, cell.evaluated_on)
    return of_column if of_column in known else replace(of_column, downstream="")


@dataclass(frozen=True)
class Diverged:
    """A training that diverged. model: the pretrained model. setting: the column's."""

    model: str
    method: str
    downstream: str
    setting: Setting
