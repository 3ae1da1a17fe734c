"""Where numbers go besides the terminal: TensorBoard, Weights & Biases, MLflow, Trackio.

`trackers=[wandb]` asks for them; without it there are none. What a tracker does wrong must not cost
a training: it is left out from then on, with a warning.
"""

from __future__ import annotations

import dataclasses
import logging
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

log = logging.getLogger(__name__)
PROJECT = "rib"
T = TypeVar("T")


class Tracker(Protocol):
    """A run in a tracker."""

    def log(self, values: Mapping[str, float], step: int) -> None: ...

    def close(self) -> None: ...


@dataclasses.dataclass(frozen=True)
class Subject:
    """What a run is about. group: the campaign. config: the resolved recipe. folder: of outputs."""

    group: str
    name: str
    config: Mapping[str, Any]
    folder: Path


class TensorBoard:
    """Event files in `<folder>/tensorboard/<group>/<name>`."""

    def __init__(self, subject: Subject) -> None:
        from torch.utils.tensorboard import SummaryWriter

        parts = [re.sub(r"[^\w.-]+", "-", part) for part in (subject.group, subject.name)]
        folder = subject.folder.joinpath("tensorboard", *parts)
        self._writer = SummaryWriter(str(folder), flush_secs=10)
        text = "\n".join(f"    {key}: {value}" for key, value in subject.config.items())
        self._writer.add_text("recipe", text)

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run of the project `rib`; WANDB_MODE=offline for nodes without a network."""

    def __init__(self, subject: Subject) -> None:
        import wandb  # pyright: ignore[reportMissingImports]

        subject.folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=PROJECT,
            group=subject.group,
            name=subject.name,
            config=dict(subject.config),
            dir=str(subject.folder),
            reinit="create_new",
        )

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


class MLflow:
    """A run of the experiment that is named after the group; the server is MLFLOW_TRACKING_URI."""

    def __init__(self, subject: Subject) -> None:
        from mlflow import MlflowClient  # pyright: ignore[reportMissingImports]
        from mlflow.entities import Metric, Param  # pyright: ignore[reportMissingImports]

        self._client, self._metric = MlflowClient(), Metric
        experiment = self._client.get_experiment_by_name(subject.group)
        name = experiment and experiment.experiment_id
        name = name or self._client.create_experiment(subject.group)
        self._id = self._client.create_run(name, run_name=subject.name).info.run_id
        config = [Param(key, str(value)[:500]) for key, value in subject.config.items()]
        self._client.log_batch(self._id, params=config)

    def log(self, values: Mapping[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        metrics = [self._metric(name, value, now, step) for name, value in values.items()]
        self._client.log_batch(self._id, metrics=metrics)

    def close(self) -> None:
        self._client.set_terminated(self._id)


class Trackio:
    """A run of the project `rib`; `trackio show` displays it."""

    def __init__(self, subject: Subject) -> None:
        import trackio  # pyright: ignore[reportMissingImports]

        self._run = trackio.init(
            project=PROJECT,
            group=subject.group,
            name=subject.name,
            config=dict(subject.config),
            embed=False,
        )

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def close(self) -> None:
        self._run.finish()


KINDS: dict[str, Callable[[Subject], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": MLflow,
    "trackio": Trackio,
}


class Trackers:
    """A run in each of the trackers named; a context manager that closes them. Only rank 0 has any.

    subject: called where there is a tracker.
    """

    def __init__(self, names: Sequence[str], subject: Callable[[], Subject]) -> None:
        self._trackers: dict[str, Tracker] = {}
        if names:
            from engine.machine import ranks  # late: reports without trackers need no torch

            names = names if ranks.rank() == 0 else ()
        for name in names:
            tracker = self._softly(name, lambda kind=KINDS[name]: kind(subject()))
            if tracker is not None:
                self._trackers[name] = tracker

    def __enter__(self) -> Trackers:
        return self

    def __exit__(self, *error: object) -> None:
        for name, tracker in list(self._trackers.items()):
            self._softly(name, tracker.close)

    def __bool__(self) -> bool:
        return bool(self._trackers)

    def log(self, values: Mapping[str, float], step: int) -> None:
        """values: by name, such as `train/loss`."""
        for name, tracker in list(self._trackers.items()):
            self._softly(name, lambda tracker=tracker: tracker.log(values, step))

    def _softly(self, name: str, work: Callable[[], T]) -> T | None:
        try:
            return work()
        except Exception as error:  # whatever a tracker raises, the training goes on
            self._trackers.pop(name, None)
            cure = f"; pip install {error.name}" if isinstance(error, ModuleNotFoundError) else ""
            log.warning("trackers=%s goes on without it: %s%s", name, error, cure)
            return None
