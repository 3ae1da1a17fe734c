"""Merge users' checkpoints into one model with the methods of campaigns.

A method asks its context for cells by name. Here the names refer to files: the members of a soup
are the files themselves, and cells of certain methods are replaced by the files in order.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from engine.data.sets import LabelledSet, Sets
from engine.evaluation import bank, passes
from engine.exchange import user_models
from engine.exchange.export import DescribedModel
from engine.exchange.user_models import pack_at
from engine.machine import ranks
from engine.machine.files import cache_folder
from engine.measures.rows import PRE, UNION
from engine.methods.base import Derived
from engine.model_files.architectures import open_clip_name
from engine.model_files.weights import TEXT, load_weights
from engine.recipe import image_transform, methods, overrides
from engine.recipe.finder import allow_users_files
from engine.recipe.methods import METHODS
from engine.recipe.overrides import Override
from engine.recipe.resolve import recipe_of_sections, varied_recipe
from engine.recipe.schema import MethodRecipe
from engine.run import Run
from engine.store.artifacts import STORE, Store
from engine.store.cells import Average, Cell, Ensemble, Export, canonical_mix
from engine.store.use import in_use

log = logging.getLogger(__name__)
MEMBERS, SEEDS = "members", "seeds"  # options of methods that merge a list of cells


class Checkpoints:
    """The context (`engine.methods.base`) of a method that trains nothing, with files as cells.

    cells: by the names that the method uses. base: the pretrained model, if there is one. Choices
    use the run's downstream dataset, if it has one.
    """

    def __init__(self, run: Run, cells: Mapping[str, Cell], base: Cell | None) -> None:
        self.recipe, self.device, self.network = run.recipe, run.device, run.network
        self.has_chosen = False
        self._run, self._cells, self._base = run, cells, base

    def __getattr__(self, name: str) -> Any:
        raise ValueError(
            f"the method {self.recipe.method.name} uses `{name}`, which checkpoints do not have: "
            "run it in a campaign"
        )

    @property
    def base(self) -> Cell:
        if self._base is None:
            raise ValueError(
                f"{self.recipe.method.title} starts from the pretrained model: give its "
                "checkpoint with --base"
            )
        return self._base

    @property
    def target(self) -> LabelledSet:
        """The dataset that choices use, all of it held out."""
        if not self.recipe.downstream:
            raise ValueError(
                f"{self.recipe.method.title} is chosen on images: give a folder of <class>/<image> "
                "that no model was trained on, with --holdout"
            )
        self.has_chosen = True
        labelled = self._run.target
        return dataclasses.replace(labelled, holdout=np.arange(len(labelled.pack)))

    def cell(self, method: str, *, seed: int | None = None) -> Cell:
        return self._cells[method]

    def holdout_accuracy(self, average: Average) -> float:
        accuracy = passes.holdout_accuracy(self._run, average)
        files = {cell.name: file for file, cell in self._cells.items()}
        names = " + ".join(files.get(name, PRE) for name in average)
        log.info("%.2f%% on %s: %s", accuracy, self.recipe.downstream, names)
        return accuracy


@allow_users_files()
def merged(
    method: str,
    places: Sequence[Path],
    base: Path | None,
    given: Sequence[Override] = (),
    *,
    holdout: Path | None = None,
    arch: str | None = None,
    classes: Sequence[str] | None = None,
) -> DescribedModel:
    """The model that a method of `recipes/methods`, or a user's file, makes from checkpoints.

    places, base: files, timm folders or cells. holdout: folder of <class>/<image>, or a pack, that
    chooses a greedy soup, among the folder's classes as in a campaign. arch, classes: of all
    models, if no file next to them has these.

    Raises ValueError and RecipeError for a method that trains, for incompatible checkpoints (naming
    file and tensor), and as `user_models.described`.
    """
    everything = [*places, *([] if base is None else [base])]
    of_method = [override for override in given if override.key.startswith("method.")]
    rest = [override for override in given if override not in of_method]
    resolved, files, classes = user_models.described(everything, arch, rest, classes)
    user_models.refuse_prompts(files, "leave it out")
    device = ranks.start(resolved.device)
    names = list(map(str, files[: len(places)]))
    options = _options(method, names, base is not None, resolved.model.arch, of_method)
    store = Store(Path(resolved.runs) / STORE, resolved.generation)
    with in_use(store):
        of_files, head = user_models.cells_of(resolved, store, files, classes)
        by_name = {str(file): cell for file, cell in of_files.items()}
        pre_trained = of_files[files[-1]]  # of the base, if there is one
        packs = {}
        if holdout is not None:
            packs = {holdout.resolve().name.replace(UNION, "-"): pack_at(resolved, holdout)}
        resolved = dataclasses.replace(resolved, method=options, downstream="".join(packs))
        sets = Sets(resolved, device, cache_folder(), packs, head)
        run = Run(resolved, device, sets, store, pre_trained, shares_features=False)
        asked = {name: by_name[file] for name, file in _asked(options, names).items()}
        context: Any = Checkpoints(run, asked, None if base is None else pre_trained)
        with run.threads():
            state, mix = _made(options, context, by_name)
    if packs and not context.has_chosen:
        raise ValueError(f"{options.title} makes no choice: leave --holdout out")
    parts = " + ".join(f"{weight:.4g} {file}" for file, weight in mix.items())
    made_of = parts or ", ".join(names) + ("" if base is None else f" from {files[-1]}")
    model = image_transform.described_model(image_transform.description(resolved.model))
    if open_clip_name(model.arch):
        with_text = (str(file) for file in reversed(files) if TEXT in load_weights(file))
        weights = dataclasses.replace(resolved.model.weights, path=next(with_text, ""))
        model = dataclasses.replace(model, weights=weights)
    return DescribedModel(f"{options.title} of {made_of}", mix, model, head, state)


def _options(
    method: str, files: Sequence[str], has_base: bool, arch: str, given: Sequence[Override]
) -> MethodRecipe:
    """The method's options; the files are its members, if it has any."""
    for key in (MEMBERS, SEEDS):
        if any(override.key == f"method.{key}" for override in given):
            raise ValueError(f"method.{key}: the checkpoints are the members; leave the key out")
    of_arch = overrides.of_mapping({"model.arch": arch, "dataset.sets": []})
    cell = recipe_of_sections("file", "folder", [*of_arch, *given], method=method)
    options = vars(cell.method)
    if MEMBERS in options:
        with_base = has_base and PRE in options[MEMBERS]
        members = [*([PRE] if with_base else []), *files]
        one_seed = {f"method.{SEEDS}": 1} if SEEDS in options else {}
        cell = varied_recipe(cell, {f"method.{MEMBERS}": members, **one_seed})
    return methods.checked(cell)


def _asked(options: MethodRecipe, files: Sequence[str]) -> dict[str, str]:
    """The file for each cell that a method uses."""
    method = METHODS.find(options.module).Method
    if not issubclass(method, Derived):
        raise ValueError(
            f"{options.name} trains. Methods that merge finished models: "
            "soup, greedy_soup, wise_ft, wise_ft_tuned, lines, model_stock, mono_soup, iso_c, "
            "ties, task_arithmetic"
        )
    needs = options.needs  # the files themselves, if they are members
    if len(needs) != len(files):
        raise ValueError(
            f"{options.title} takes {len(needs)} fine-tuned model"
            f"{'s' if len(needs) > 1 else ''} and --base, not {len(files)}: "
            f"{', '.join(files)}"
        )
    return dict(zip(needs, files, strict=True))


def _made(
    options: MethodRecipe, context: Any, cells: Mapping[str, Cell]
) -> tuple[Mapping[str, torch.Tensor], dict[str, float]]:
    """The tensors of the model that a method makes and, for an average, its weights.

    cells: by file.
    """
    method = METHODS.find(options.module).Method(options)
    no_model = ValueError(
        f"{options.title} averages outputs, which no single model has: merge by soup, or have "
        "`rib evaluate` judge each checkpoint"
    )
    if not options.merged_models:
        raise no_model
    made = method.make(context)
    if isinstance(made, Export):
        return {k: tensor.cpu() for k, tensor in made.state.items()}, {}
    (mix,) = (entry.mix for entry in made if entry.headline)
    if isinstance(mix, Ensemble):
        raise no_model
    files = {cell.name: file for file, cell in cells.items()}
    # By file: sums follow the order of names, and cells of a store have their names in the path.
    of_files = {files[name]: weight for name, weight in canonical_mix(mix).items()}
    (state,) = bank.mixed([of_files], cells, torch.device("cpu"))
    return state, dict(sorted(of_files.items()))
