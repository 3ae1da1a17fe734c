"""The RIB engine from Python: what the commands do, a function each.

    import engine
    recipe = engine.load_recipe("emoji/ewc", "downstream=twemoji")
    cell = engine.train("emoji/ewc", "downstream=twemoji")      # found, or trained now
    net = engine.load_cell(cell.artifact.folder)                # a timm model in eval mode
    engine.campaign("emoji", {"seeds": 3})                      # `rib campaign emoji seeds=3`
    table = engine.results("emoji")                             # a pandas DataFrame
    images = engine.predictions("emoji", ["twemoji"])           # of each image, on these sets
    engine.evaluate(["my.safetensors"], {"new": "my/style"}, arch="resnet50")
    engine.distances("emoji", ["twemoji", "noto-v1"])

Settings are words such as `downstream=twemoji`, as on the command line, or mappings such as
`{"seeds": 3, "dataset.sets": ["twemoji", "openmoji"]}`. A function imports what it needs when it is
called: `import engine` is quick and brings no torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas
    from torch import nn

    from engine.recipe.schema import Recipe
    from engine.store.cells import Cell

Settings = str | Mapping[str, Any]  # `key=value`, or values by key

__all__ = [
    "campaign",
    "distances",
    "evaluate",
    "load_cell",
    "load_recipe",
    "predictions",
    "results",
    "train",
]


def load_recipe(name: str, *settings: Settings) -> Recipe:
    """A recipe (`emoji/ewc`, or a path) with these settings, resolved and checked.

    Raises RecipeError, a ValueError, naming the key.
    """
    from engine import recipe

    return recipe.load(name, recipe.parsed(settings))


def train(name: str, *settings: Settings) -> Cell:
    """The cell of a recipe: found in its store, or trained now. Raises as `load_recipe`."""
    from engine.cells import cell_plan
    from engine.cells.build import Builder
    from engine.machine import ranks
    from engine.recipe import parsed

    cell = cell_plan.resolve(name, parsed(settings), run_users=True)
    return Builder(cell, ranks.start(cell.recipe.device), run_users=True).build()


def load_cell(folder: str | Path) -> nn.Module:
    """The trained cell in a folder as a timm model in eval mode, on the CPU.

    Raises FileNotFoundError where the folder holds no weights (a mix holds none; `rib export`
    writes it), ValueError where they do not fit or have an input prompt, which timm's model lacks.
    """
    from safetensors.torch import load_file

    from engine import models
    from engine.data import descriptions
    from engine.recipe.schema import ModelRecipe
    from engine.store import cells, tensors

    place = Path(folder)
    if (place / tensors.PROMPT).is_file():
        raise ValueError(f"{place} has an input prompt, which a timm model lacks")
    weights = place / tensors.WEIGHTS
    if not weights.is_file():
        raise FileNotFoundError(
            f"{weights} is missing: name the folder of a trained cell; a mix (WiSE-FT, soups) "
            "holds no weights, and `rib export` writes its model"
        )
    description = descriptions.read(place / cells.CELL)
    model = description.model
    recipe = ModelRecipe(
        name=model["arch"],
        arch=model["arch"],
        image_size=model["image_size"],
        projection=model["projection"],
    )
    net = models.create(recipe, len(description.classes or ()))
    return models.load_state(net, load_file(weights), str(weights)).eval()


def campaign(name: str, *settings: Settings, cores: int = 0) -> Path:
    """Run what is missing of a campaign, to its report page, as `rib campaign` does; of several
    models to their common page. cores: 0: all. Raises CampaignError as `rib` says."""
    from engine.commands import campaign as command
    from engine.grid.schedulers import RunOptions
    from engine.recipe import parsed

    page = command.complete(name, parsed(settings), RunOptions(cores=cores))
    assert page is not None  # no dry run
    return page


def results(name: str, *settings: Settings) -> pandas.DataFrame:
    """Accuracies of a finished campaign, a row a model and set; needs pandas.

    Columns as in `accuracy.csv`: model, method, variant, alpha, setting, downstream (empty
    before fine-tuning), evaluated_on, n, accuracy (percent), headline. Raises CampaignError where
    there is no finished campaign with these settings.
    """
    from engine.grid import record
    from engine.measures import metrics
    from engine.recipe import parsed

    run = record.find(name, parsed(settings))
    asked = run.record.sets, run.record.upstream, run.record.downstreams
    grid = metrics.gather(run.evaluations, *asked, draws=1)
    return grid.cells[[*metrics.KEY, "n", "accuracy", "headline"]]


def predictions(
    name: str, sets: Sequence[str] | None = None, *settings: Settings
) -> pandas.DataFrame:
    """What each model of a finished campaign predicted of each image; needs pandas.

    sets: those evaluated on; None: all. A row a model and image: the model's columns as in
    `results`, its training's seed, and index, source, label, top1, p_top1, p_true and margin (the
    true class's logit minus the largest other), with group where parts of a set count alike. Raises
    CampaignError as `results`, ValueError for a set that the campaign has not.
    """
    import dataclasses

    import pandas

    from engine.grid import record
    from engine.measures import predictions as stored
    from engine.recipe import parsed

    rows = record.find(name, parsed(settings)).evaluations
    names = _names(sets, sorted({row.evaluated_on for row in rows}))
    frames = []
    for row in rows:
        if row.evaluated_on in names:
            columns = dataclasses.asdict(row)
            frame = stored.read(columns.pop("path")).to_pandas()
            frames.append(frame.assign(**columns)[[*columns, *frame.columns]])
    return pandas.concat(frames, ignore_index=True)


def evaluate(
    checkpoints: Sequence[str | Path],
    sets: Mapping[str, str | Path],
    *settings: Settings,
    arch: str | None = None,
    classes: Sequence[str] | None = None,
    mask: str = "none",
) -> pandas.DataFrame:
    """Accuracy (percent) of checkpoints of one architecture on sets, a row each; needs pandas.

    checkpoints: files, or folders of a cell or of timm. sets: by name, folders with
    <class>/<image>. arch and classes: where nothing beside the checkpoints says them. Columns as in
    the file of `rib evaluate`. Raises ValueError as that command does.
    """
    import dataclasses

    import pandas

    from engine.evaluation import user_models
    from engine.machine import ranks
    from engine.recipe import parsed

    places = list(map(Path, checkpoints))
    recipe, files, named = user_models.described(places, arch, parsed(settings), classes)
    rows = user_models.evaluate(
        recipe,
        files,
        {name: Path(place) for name, place in sets.items()},
        ranks.pick_device(recipe.device),
        classes=named,
        mask=mask,
    )
    return pandas.DataFrame([dataclasses.asdict(row) for row in rows])


def distances(
    name: str, sets: Sequence[str] | None = None, *settings: Settings, **options: Any
) -> pandas.DataFrame:
    """Optimal Transport Dataset Distances between sets of a campaign, as a square table.

    options: those of `engine.otdd.problems.DistanceOptions`. NaN where a pair did not converge;
    needs pandas. Raises ValueError as `rib distance` does.
    """
    import pandas

    from engine.cells import cell_plan
    from engine.cells.build import Builder
    from engine.machine import ranks
    from engine.otdd import problems, solve
    from engine.recipe import parsed

    cell = cell_plan.resolve(name, parsed(settings))
    names = _names(sets, cell.recipe.dataset.evaluated_sets)
    run = Builder(cell, ranks.pick_device(cell.recipe.device)).run
    matrix = solve.distances(run, names, problems.DistanceOptions(**options))
    return pandas.DataFrame(matrix.values, index=names, columns=names)


def _names(sets: Sequence[str] | None, known: Sequence[str]) -> list[str]:
    """These sets, of None all that are known. Raises ValueError naming those that are not."""
    names = [sets] if isinstance(sets, str) else list(known if sets is None else sets)
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"{', '.join(unknown)}: not evaluated on; sets: {', '.join(known)}")
    return names
