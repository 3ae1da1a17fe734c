"""The two programs of `bench.grid`, and the grid of images that both of them run."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

from bench import plain_grid
from bench.report import ROOT
from engine.grid import campaign, estimate

METHODS = {
    "paper": ("fine_tune", "linear_probe", "ewc", "lwf", "lp_ft", "wise_ft", "soup"),
    "canonical": ("fine_tune", "ewc", "lwf", "wise_ft", "soup"),
}
UPSTREAM = "upstream"
CORES = 2
Table = dict[tuple[str, float, str, str], float]  # percent; see `Outcome`


@dataclass(frozen=True)
class Counts:
    """Images: `decoded` from files, and passed `forward` and `backward` through a model."""

    decoded: int
    forward: int
    backward: int


@dataclass(frozen=True)
class Outcome:
    """What a program that ran a grid gave and took.

    table: accuracy by method, alpha, set that was fine-tuned on, and set that it is measured on.
    """

    table: Table
    counts: Counts
    processes: int
    seconds: float

    @property
    def figures(self) -> dict[str, float]:
        return {"wall_s": self.seconds, "processes": self.processes, **asdict(self.counts)}


@dataclass(frozen=True)
class Images:
    """`folder` holds images/SET/CLASS/*.jpg, of `sets` and upstream, and pre.safetensors.

    columns: the sets that models are fine-tuned on. settings: lr, epochs and batch_size.
    """

    folder: Path
    sets: tuple[str, ...]
    columns: tuple[str, ...]
    arch: str
    image_size: int
    settings: Mapping[str, float]

    @cached_property
    def sizes(self) -> dict[str, int]:
        """Number of images of every set; upstream comes first."""
        names = (UPSTREAM, *self.sets)
        return {name: len(list((self.folder / "images" / name).glob("*/*.jpg"))) for name in names}


@dataclass(frozen=True)
class Grid:
    """The methods of a variant x the downstream sets, for both programs."""

    images: Images
    variant: str
    _runs: list[int] = field(default_factory=list)

    @property
    def methods(self) -> tuple[str, ...]:
        return METHODS[self.variant]

    def engine(self) -> Outcome:
        """A campaign from nothing to its report: what columns share, the columns, the report."""
        self._runs.append(0)
        runs = self.images.folder / f"runs-{self.variant}-{len(self._runs)}"
        program = [sys.executable, str(ROOT / "engine" / "rib"), "campaign", str(self.file)]
        seconds = run([*program, "--cores", str(CORES), *self.words(runs)])
        table = {}
        (report,) = runs.glob(f"{self.file.stem}*/report/accuracy.csv")
        with report.open() as file:
            for row in csv.DictReader(file):
                key = (
                    row["method"],
                    float(row["alpha"] or 1),
                    row["downstream"],
                    row["evaluated_on"],
                )
                table[key] = float(row["accuracy"])
        return Outcome(table, self.engine_counts, len(self.plan.columns) + 2, seconds)

    def plain(self, start: Callable[[Sequence[str]], object] | None = None) -> Outcome:
        """The pre-trained model, then column by column, two columns at a time.

        start: runs a command to its end, by default as a process.
        """
        start = start or run
        self._runs.append(0)
        out = self.images.folder / f"cells-{self.variant}-{len(self._runs)}"
        begin = time.perf_counter()
        start(self.command(out, "pre"))

        def column(downstream: str) -> None:
            for method in self.methods:
                start(self.command(out, method, downstream))

        with ThreadPoolExecutor(CORES) as pool:
            list(pool.map(column, self.images.columns))
        seconds = time.perf_counter() - begin
        table: Table = {}
        counts = []
        for method, downstream in self.cells:
            result = json.loads((out / f"{method}-{downstream}" / "results.json").read_text())
            counts.append(result["counts"])
            for alpha, accuracies in result["accuracy"].items():
                for name, accuracy in accuracies.items():
                    table[method, float(alpha or 1), downstream, name] = accuracy
        total = Counts(*(sum(each[name] for each in counts) for name in asdict(self.plain_counts)))
        assert total == self.plain_counts, f"{total}, where {self.plain_counts} was expected"
        return Outcome(table, total, len(counts), seconds)

    @property
    def cells(self) -> list[tuple[str, str]]:
        return [("pre", ""), *((m, name) for name in self.images.columns for m in self.methods)]

    def command(self, out: Path, method: str, downstream: str = "") -> list[str]:
        images = self.images
        options = {
            "data": images.folder / "images",
            "downstream": downstream,
            "method": method,
            "variant": self.variant,
            "arch": images.arch,
            "weights": images.folder / "pre.safetensors",
            "image-size": images.image_size,
            "crop": 1.0,
            "out": out,
            **{name.replace("_", "-"): value for name, value in images.settings.items()},
        }
        program = [sys.executable, plain_grid.__file__, "--sets", *images.sizes]
        return program + [f"--{name}={value}" for name, value in options.items()]

    @cached_property
    def file(self) -> Path:
        """The campaign of the engine."""
        file = self.images.folder / "grid.yaml"
        settings = dict(self.images.settings)
        recipe = {
            "model": "file",
            "dataset": {
                "extends": "folder",
                "root": str(self.images.folder / "images"),
                "sets": list(self.images.sets),
                "holdout": 0.0,
            },
            "downstream": self.images.columns[0],
            "downstreams": list(self.images.columns),
            "optimizer": {"name": "sgd", "lr": settings["lr"], "momentum": plain_grid.MOMENTUM},
            "train": {
                "epochs": settings["epochs"],
                "batch_size": settings["batch_size"],
                "freeze_batchnorm": True,
                "compile": "never",
            },
            "evaluate": {"batch_size": settings["batch_size"], "compile": "never"},
            "methods": {
                **{name: {} for name in self.methods},
                "ewc": {"method": {"fisher_labels": "data", "fisher_scale": "mean"}},
            },
        }
        file.write_text(json.dumps(recipe, indent=1))  # JSON is YAML
        return file

    def words(self, runs: Path) -> list[str]:
        """What the command says beside the campaign's file."""
        images = self.images
        return [
            f"runs={runs}",
            f"method.variant={self.variant}",
            f"model.arch={images.arch}",
            f"model.image_size={images.image_size}",
            "model.crop=1.0",
            "model.channels_last=true",
            f"model.weights.path={images.folder / 'pre.safetensors'}",
        ]

    @property
    def plan(self) -> campaign.Plan:
        """What the engine would do in a folder where nothing is done."""
        return campaign.plan(str(self.file), self.words(self.images.folder / "nothing"), CORES)

    @cached_property
    def engine_counts(self) -> Counts:
        """Of a campaign, as `rib plan` counts them; every image is decoded into a pack once."""
        by_name = estimate.of(self.plan).by_name()
        images = {name: sum(part.images for part in parts) for name, parts in by_name.items()}
        learned = sum(images[name] for name in images if name.startswith("training"))
        every = sum(images.values())
        return Counts(sum(self.images.sizes.values()), every, learned)

    @cached_property
    def plain_counts(self) -> Counts:
        """Of all processes of the plain script, which counts them too while it runs."""
        sizes, canonical = self.images.sizes, self.variant == "canonical"
        alphas = {"wise_ft": len(plain_grid.ALPHAS[self.variant])}
        decoded = forward = backward = 0
        for method, downstream in self.cells:
            evaluated = sum(sizes.values()) * alphas.get(method, 1)
            trained = sizes.get(downstream, 0) * int(self.images.settings["epochs"])
            trained *= method not in ("wise_ft", "soup")
            fisher = sizes[UPSTREAM] * (canonical and method == "ewc")
            teacher = trained * (method == "lwf")
            decoded += evaluated + trained + fisher
            forward += evaluated + trained + fisher + teacher
            backward += trained + fisher
        return Counts(decoded, forward, backward)


def run(command: Sequence[str]) -> float:
    """Seconds that a command takes. Raises RuntimeError with its last lines where it fails."""
    begin = time.perf_counter()
    process = subprocess.run(command, env=_environment(), capture_output=True, text=True)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command[:4])} ... failed: {process.stderr[-2000:]}")
    return time.perf_counter() - begin


def _environment() -> dict[str, str]:
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(paths),
        "RIB_PROGRESS": "off",
        "OMP_NUM_THREADS": "1",
    }
