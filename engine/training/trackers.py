"""Log metrics to TensorBoard, Weights & Biases, Trackio, or a user's class.

`trackers=[wandb]` enables them. A cell has one run per tracker, which its training and its
evaluation log to. A tracker that raises an error is dropped with a warning, and training continues.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import pkgutil
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from engine.machine import ranks
from engine.measures.rows import robustness_improvement
from engine.recipe import finder
from engine.recipe.effects import values_of
from engine.recipe.overrides import flat
from engine.recipe.schema import Affects, MethodRecipe, Recipe
from loaders.files.durable import short_digest
from loaders.files.root import Root

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Subject:
    """A run, as described to a tracker.

    group: the campaign. name: readable, and unique in the group. id: determined by the cell's
    recipe and the runs folder. config: the resolved recipe, by dotted key. folder: the runs folder.
    """

    group: str
    name: str
    id: str
    config: Mapping[str, Any]
    folder: Path


class TensorBoard:
    """Writes event files to `<folder>/tensorboard/<group>/<name>`; a run of this name continues."""

    def __init__(self, subject: Subject) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # No part may begin with a dot: `..` would leave the folder.
        parts = [re.sub(r"^\.+|[^\w.-]+", "-", part) for part in (subject.group, subject.name)]
        folder = Root(subject.folder).make("/".join(["tensorboard", *parts]))  # follows no links
        self._writer = SummaryWriter(str(folder), flush_secs=10)
        text = "\n".join(f"    {key}: {value}" for key, value in subject.config.items())
        self._writer.add_text("recipe", text)

    def log(self, values: Mapping[str, float], step: int | None) -> None:
        """values: by name. step: the optimizer step, or None after training."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """Logs to the project `rib`. Set WANDB_MODE=offline on nodes without a network."""

    def __init__(self, subject: Subject) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        Root(subject.folder).make("wandb")  # wandb writes there; raises if it is a link
        self._run = wandb.init(
            project="rib",
            group=subject.group,
            name=subject.name,
            id=subject.id,
            config=dict(subject.config),
            dir=str(subject.folder),
            resume="allow",
            reinit="create_new",
        )

    def log(self, values: Mapping[str, float], step: int | None) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()

    def fail(self) -> None:
        """In place of `close`, after an error."""
        self._run.finish(exit_code=1)


class Trackio(WeightsAndBiases):
    """Logs to the project `rib` on this machine, or where Trackio's variables say
    (TRACKIO_DIR, TRACKIO_SPACE_ID)."""

    def __init__(self, subject: Subject) -> None:
        import trackio  # pyright: ignore[reportMissingImports]

        self._run = trackio.init(
            project="rib",
            group=subject.group,
            name=subject.name,
            config=dict(subject.config),
            resume="allow",
            embed=False,
        )

    def fail(self) -> None:
        self.close()  # Trackio has no failed runs


KINDS = {"tensorboard": TensorBoard, "wandb": WeightsAndBiases, "trackio": Trackio}


class Trackers:
    """A cell's run in each of its recipe's trackers, as a context manager that closes them.

    Only rank 0 has trackers.
    """

    def __init__(self, recipe: Recipe) -> None:
        self._trackers: dict[str, Any] = {}
        for name in recipe.trackers if ranks.rank() == 0 else ():
            with self._softly(name):
                self._trackers[name] = _kind_of(name)(subject(recipe))

    def __enter__(self) -> Trackers:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        for name, tracker in list(self._trackers.items()):
            with self._softly(name):
                close = tracker.close if error is None else getattr(tracker, "fail", tracker.close)
                close()

    def log(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Log values by name, such as `train/loss`. step: the optimizer step, or None."""
        for name, tracker in list(self._trackers.items()):
            with self._softly(name):
                tracker.log(values, step)

    @contextlib.contextmanager
    def _softly(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever a tracker raises, training continues
            self._trackers.pop(name, None)
            is_missing = isinstance(error, ModuleNotFoundError)
            cure = _cure(name, error.name) if is_missing and error.name else ""
            log.warning("training continues without trackers=%s: %s%s", name, error, cure)


def _kind_of(name: str) -> Callable[[Subject], Any]:
    """The class of a tracker. Runs a user's file."""
    if name in KINDS:
        return KINDS[name]
    file, _, kind = name.rpartition(":")
    if not finder.is_users(file):
        return pkgutil.resolve_name(name)
    with finder.allow_users_files():
        return getattr(finder.run(file), kind)


def _cure(name: str, missing: str) -> str:
    """What to do about a module that a tracker lacks."""
    if name in KINDS:
        return f"; pip install {missing}"
    module, _, kind = name.rpartition(":")
    if missing != module.partition(".")[0]:
        return ""
    return f"; name a file of yours by its path, as in trackers=[{missing}.py:{kind}]"


def subject(recipe: Recipe) -> Subject:
    """The run of a recipe's cell, named after the method's options, learning rate and seed."""
    config = flat(dataclasses.asdict(recipe))
    shared = {field.name for field in dataclasses.fields(MethodRecipe)}
    options = {k: v for k, v in vars(recipe.method).items() if k not in shared}
    options |= {"lr": recipe.optimizer.lr, "seed": recipe.seed}
    words = " ".join(f"{key}={value}" for key, value in options.items())
    of_cell = values_of(recipe, set(Affects) - {Affects.NOTHING})
    number = short_digest([recipe.campaign, of_cell, str(Path(recipe.runs).resolve())])
    name = f"{recipe.method.title} on {recipe.downstream} {words} {number[:6]}"
    return Subject(recipe.campaign or "cells", name, number, config, Path(recipe.runs))


def log_accuracies(recipe: Recipe, rows: Mapping[str, Sequence[Any]]) -> None:
    """Log a cell's accuracies (percent), and its RI (percentage points).

    rows: by dataset, the objects with the `accuracy` before and after training.
    """
    before, after = ({name: row[k].accuracy for name, row in rows.items()} for k in (0, 1))
    values = {f"accuracy/{name}": value for name, value in after.items()}
    values |= {f"accuracy before/{name}": value for name, value in before.items()}
    if not {*recipe.dataset.sets} <= {*recipe.trained_sets}:
        sets = recipe.dataset.sets
        values["RI"] = robustness_improvement(recipe.downstream, after, before, sets)
    with Trackers(recipe) as trackers:
        trackers.log(values)
