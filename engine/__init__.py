"""The Python API of the RIB engine.

    import engine
    recipe = engine.load_recipe("emoji/ewc", "downstream=twemoji")
    cell = engine.train("emoji/ewc", "downstream=twemoji")      # found, or trained now
    net = engine.load_cell(cell.artifact.folder)                # a timm model in eval mode
    engine.campaign("emoji", {"seeds": 3})                      # `rib campaign emoji seeds=3`
    table = engine.results("emoji")                             # a pandas DataFrame
    images = engine.predictions("emoji", ["twemoji"])           # for each image of a dataset
    engine.evaluate(["my.safetensors"], {"new": "my/style"}, arch="resnet50")
    engine.compare("emoji/ewc", "emoji/lora")                   # paired tests; also of tables
    engine.distances("emoji", ["twemoji", "noto-v1"])

Settings are strings such as `downstream=twemoji`, as on the command line, or mappings such as
`{"seeds": 3, "dataset.sets": ["twemoji", "openmoji"]}`. Functions import torch and pandas when
called, so `import engine` is fast.
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
    "compare",
    "distances",
    "evaluate",
    "load_cell",
    "load_recipe",
    "predictions",
    "results",
    "train",
]


def load_recipe(name: str, *settings: Settings) -> Recipe:
    """Resolve and check a recipe (`emoji/ewc`, or a path) with these settings.

    Raises RecipeError, a ValueError that names the key, if the recipe or a setting is invalid.
    """
    from engine.recipe import resolve
    from engine.recipe.overrides import parsed

    return resolve.load_recipe(name, parsed(settings))


def train(name: str, *settings: Settings) -> Cell:
    """Return the cell (fine-tuned model) of a recipe, from the store or trained now.

    Trains the recipe's first seed, and may download weights. The cell's `artifact.folder` holds
    its files, and `name` its name. Raises RecipeError as `load_recipe` does, and DivergedError if
    the loss or a weight is not finite.
    """
    from engine.cells.build import Builder
    from engine.cells.plan_cell import plan_cell
    from engine.cells.users_kinds import encode_apart
    from engine.machine import ranks
    from engine.recipe.finder import allow_users_files
    from engine.recipe.overrides import parsed
    from engine.store.use import in_use

    with allow_users_files():
        cell = plan_cell(name, parsed(settings))
        device = ranks.start(cell.recipe.device)
        encode_apart(cell, [*cell.recipe.base_sets, *cell.recipe.trained_sets])
        builder = Builder(cell, device)
        with in_use(builder.store):
            return builder.build()


def load_cell(folder: str | Path) -> nn.Module:
    """Load the trained cell in a folder as a timm model in eval mode, on the CPU.

    The transform (image size, mean, standard deviation, interpolation, crop) is in the folder's
    cell.json; the model's `pretrained_cfg` is timm's default for the architecture. Raises
    FileNotFoundError if the folder contains no weights (weight averages have none; write their
    model with `rib export`), and ValueError if the weights do not match the architecture, or the
    cell has an input prompt, which timm models do not support.
    """
    from safetensors.torch import load_file

    from engine import models
    from engine.model_files.descriptions import CELL, read_description
    from engine.recipe import image_transform
    from engine.store import tensors

    place = Path(folder)
    if (place / tensors.PROMPT).is_file():
        raise ValueError(f"{place} has an input prompt, which timm models do not support")
    weights = place / tensors.WEIGHTS
    if not weights.is_file():
        raise FileNotFoundError(
            f"{weights} is missing: name the folder of a trained cell. Averages (WiSE-FT, soups) "
            "have no weights of their own: write their model with `rib export`"
        )
    description = read_description(place / CELL)
    net = models.create(
        image_transform.described_model(description.model), len(description.classes or ())
    )
    return models.load_state(net, load_file(weights), str(weights)).eval()


def campaign(name: str, *settings: Settings, cores: int = 0) -> Path:
    """Run the missing parts of a campaign, as `rib campaign` does, and return its report's path.

    May run for hours, and prints progress. With several models, returns the path of their common
    report. cores: CPU cores; 0 means all.
    Raises CampaignError if the campaign cannot finish, RecipeError for an invalid setting.
    """
    from engine.campaigns.schedulers import RunOptions
    from engine.commands import campaign as command
    from engine.recipe.overrides import parsed

    if cores < 0:
        raise ValueError(f"cores={cores}: give at least 1, or 0 for all")
    page = command.complete(name, parsed(settings), RunOptions(cores=cores))
    assert page is not None  # no dry run
    return page


def results(name: str, *settings: Settings) -> pandas.DataFrame:
    """Accuracies of a finished campaign: one row per model and dataset.

    Columns as in `accuracy.csv`: model (the pretrained model), method, variant (`original` or
    `released`), alpha (of weight averages), setting (varied keys), downstream (empty before
    fine-tuning), evaluated_on, images, accuracy_pct, headline (whether tables show this alpha).
    Raises CampaignError if there is no finished campaign with these settings.
    """
    from engine.campaigns.find_campaign import find_campaign
    from engine.measures import metrics
    from engine.recipe.overrides import parsed

    run = find_campaign(name, parsed(settings))
    asked = run.record.sets, run.record.upstream, run.record.downstreams
    grid = metrics.gather(run.evaluations, *asked, draws=1)
    return grid.accuracies


def predictions(
    name: str, sets: Sequence[str] | None = None, *settings: Settings
) -> pandas.DataFrame:
    """Predictions of a finished campaign: one row per model and image.

    sets: evaluated datasets; None means all. Columns: the model's as in `results`, its training
    seed, and index, source, label, top1, p_top1, p_true and margin (the true class's logit minus
    the largest other logit). If a dataset's accuracy is a mean over parts, `group` is the part.
    Raises CampaignError as `results` does, and ValueError for a dataset that the campaign does not
    evaluate.
    """
    import pandas

    from engine.campaigns.find_campaign import find_campaign
    from engine.measures import metrics
    from engine.measures import predictions as stored
    from engine.measures.rows import TEST, of_role
    from engine.recipe.overrides import parsed

    rows = of_role(find_campaign(name, parsed(settings)).evaluations, TEST)
    names = _names(sets, sorted({row.evaluated_on for row in rows}))
    frames = []
    for row in rows:
        if row.evaluated_on in names:
            columns = {**dict(zip(metrics.KEY, row.key, strict=True)), "setting": str(row.setting)}
            columns |= {"seed": row.seed, "headline": row.headline}
            frame = stored.read_predictions(row.path).to_pandas()
            frames.append(frame.assign(**columns)[[*columns, *frame.columns]])
    return pandas.concat(frames, ignore_index=True)


def compare(*names: str | Path, settings: Sequence[Settings] = ()) -> pandas.DataFrame:
    """Paired tests of each further model against the first, on the same images. Imports no torch.

    names: tables of predictions or folders of tables (`engine.measures.score_tables.read_scores`
    lists their columns), or campaigns, `CAMPAIGN/METHOD` or `CAMPAIGN/METHOD/DATASET`. settings:
    of campaigns that are given by name. Columns: a, b, set (empty: the mean over sets, or mRI),
    quantity with its unit, a_mean, b_mean, difference (b - a) with its 95% interval (low, high), p,
    adjusted_p (Holm, over pairs or over pairs and sets), minimum_detectable_difference (with a
    power of 80%), images, only_a and only_b (images left out), sources (their effective number),
    seeds, test and notes (what tables leave unknown). Raises ValueError for tables that cannot be
    compared and CampaignError as `results`.
    """
    from engine.commands import compare as command
    from engine.recipe.overrides import parsed

    words, overrides = [*map(str, names)], parsed(settings)
    return command.compare(words, [command.find_side(word, overrides) for word in words])


def evaluate(
    checkpoints: str | Path | Sequence[str | Path],
    sets: Mapping[str, str | Path],
    *settings: Settings,
    arch: str | None = None,
    classes: Sequence[str] | None = None,
    mask: str = "none",
) -> pandas.DataFrame:
    """Evaluate checkpoints of one architecture: one row per checkpoint and dataset.

    checkpoints: one or several files, or folders of cells or of timm. sets: by name, folders with
    <class>/<image>, webdataset or parquet files, or packs. arch, classes: the architecture and the
    head's class names, if no file next to the checkpoints contains them. mask: the classes that a
    prediction can be: all of the head's ("none"), the dataset's ("present"), or as in published
    accuracies ("benchmark"). Columns as in the file that `rib evaluate` writes; accuracy is in
    percent. Raises ValueError as that command does.
    """
    import dataclasses

    import pandas

    from engine.exchange import user_models
    from engine.machine.devices import pick_device
    from engine.recipe.overrides import parsed

    is_one = isinstance(checkpoints, str | Path)
    places = list(map(Path, [checkpoints] if is_one else checkpoints))
    if not places or not sets:
        raise ValueError("nothing to evaluate: give at least one checkpoint and one dataset")
    recipe, files, named = user_models.described(places, arch, parsed(settings), classes)
    rows = user_models.evaluate(
        recipe,
        files,
        {name: Path(place) for name, place in sets.items()},
        pick_device(recipe.device),
        classes=named,
        mask=mask,
    )
    return pandas.DataFrame([dataclasses.asdict(row) for row in rows])


def distances(
    name: str, sets: Sequence[str] | None = None, *settings: Settings, **options: Any
) -> pandas.DataFrame:
    """Optimal Transport Dataset Distances between a campaign's datasets, as a square table.

    Values are debiased, in squared units of the features (Alvarez-Melis & Fusi 2020); NaN for pairs
    that did not converge. options: those of `engine.otdd.problems.DistanceOptions`, such as eps, a
    fraction of the mean cost (0.05), and samples, the maximum per dataset (None: all).
    Raises ValueError as `rib distance` does.
    """
    import pandas

    from engine.cells.build import Builder
    from engine.cells.plan_cell import plan_cell
    from engine.machine.devices import pick_device
    from engine.otdd import problems, solve
    from engine.recipe.overrides import parsed
    from engine.store.use import in_use

    cell = plan_cell(name, parsed(settings))
    names = _names(sets, cell.recipe.dataset.evaluated_sets)
    run = Builder(cell, pick_device(cell.recipe.device))
    with in_use(run.store):
        matrix = solve.distances(run, names, problems.DistanceOptions(**options))
    return pandas.DataFrame(matrix.values, index=names, columns=names)


def _names(sets: Sequence[str] | None, known: Sequence[str]) -> list[str]:
    """The given datasets; all for None. Raises ValueError for unknown datasets, and for none."""
    names = [sets] if isinstance(sets, str) else list(known if sets is None else sets)
    if not names:
        raise ValueError("no datasets: name at least one, or give None for all")
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"unknown datasets {', '.join(unknown)}: choose from {', '.join(known)}")
    return names
