"""`rib campaign`: run the missing cells of one or more grids, and write their reports."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import itertools
import shlex
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from engine.campaigns import earlier_work, record, seal, sites, workflow
from engine.campaigns.make_plan import make_plan, settings_of_needs
from engine.campaigns.plan import PAGE, REPORT, TABLE, Plan, read_plan
from engine.campaigns.schedulers import RunOptions
from engine.data.kinds import kind_of
from engine.errors import CampaignError, RecipeError, printable
from engine.machine.files import cache_folder
from engine.machine.terminal import announce
from engine.measures.rows import trained_sets
from engine.model_files.model_names import model_section
from engine.recipe import kinds
from engine.recipe.campaigns import each_model, model_of, recipe_names
from engine.recipe.finder import allow_users_files, is_users
from engine.recipe.grid_keys import overrides_of_sweep
from engine.recipe.overrides import Override, of_mapping
from engine.recipe.schema import ModelRecipe, Recipe
from engine.recipe.words import read_words
from engine.store import made_by, use
from engine.store.artifacts import Store
from loaders.files.durable import short_digest
from loaders.files.root import Root
from loaders.files.typed_json import DamagedFile


def run(arguments: argparse.Namespace) -> None:
    if arguments.checkpoints is not None:
        from engine.exchange import listed_models  # late, as few campaigns need it

        words = arguments.name, arguments.checkpoints, arguments.overrides
        arguments.overrides = listed_models.overrides_of(*words)
    _run(arguments)


def sweep(arguments: argparse.Namespace) -> None:
    """`rib sweep`: train a row in every combination of values, as the jobs of a campaign."""
    arguments.name, arguments.overrides = overrides_of_sweep(arguments.name, arguments.overrides)
    page = _run(arguments)
    if page is not None:
        print(f"table   {page.with_name('tables').resolve() / 'sweep-configurations.csv'}")


def _run(arguments: argparse.Namespace) -> Path | None:
    fields = dataclasses.fields(RunOptions)
    options = RunOptions(**{field.name: getattr(arguments, field.name) for field in fields})
    overrides = arguments.overrides
    if arguments.limit is not None:  # a smoke run; the last value of a key counts
        smoke = {"dataset.limit": arguments.limit, "train.epochs": 1, "train.warmup_steps": None}
        overrides = [*of_mapping(smoke), *overrides]
    return complete(arguments.name, overrides, options, dry_run=arguments.dry_run)


def complete(
    name: str, overrides: Sequence[Override], options: RunOptions, *, dry_run: bool = False
) -> Path | None:
    """Run the missing jobs of a campaign, for all its models at once, and print the tables.

    Returns the path of the report, or of the common report for several models. With dry_run, shows
    the jobs and returns None. Raises CampaignError if datasets are missing, or if a grid fails;
    the other grids then run to their end first.
    """
    options = sites.checked(options)
    # Run users' method files now: only they know which cells they need, and they may raise.
    with allow_users_files(not dry_run):
        plans = {make_plan(name, grid, options.cores): grid for grid in each_model(name, overrides)}
    announce(f"reading the campaign {name}")
    # Commands to encode come last: they have lines of their own.
    faults = [*_faults_of_warmup(plans), *_faults_of_words(plans), *_faults_of_sets(name, plans)]
    if faults and not dry_run:
        raise CampaignError("; ".join(faults))
    missing = [
        plan for plan in plans if not (seal.finished(plan) and (dry_run or _has_same_needs(plan)))
    ]
    for plan in plans:
        if plan not in missing:
            print(f"{plan.name} is finished; nothing to do.")
            if not dry_run:
                use.list_again(Store(plan.place.store))
    for remark in [*_remarks(missing), *_of_earlier_work(plans, missing, options)]:
        print(f"note: {remark}", file=sys.stderr)
    if dry_run:
        workflow.run(list(plans), options, dry_run=True)
        if faults:
            raise CampaignError("; ".join(faults))
        return None
    failure = None
    if missing:
        for plan in missing:
            _show_model(plan.recipe.model)
        try:
            workflow.run(missing, options)
        except CampaignError as error:
            failure = error
    finished = [plan for plan in plans if plan not in missing or seal.finished(plan)]
    if not failure and (lacking := [plan.name for plan in plans if plan not in finished]):
        names = ", ".join(lacking)
        failure = CampaignError(
            f"{names}: all jobs ended, but results are missing; run the command again"
        )
    for plan in finished:
        show(plan.page)
    if failure:
        raise failure
    return finished[0].page if len(plans) == 1 else _merged(name, list(plans), bool(missing))


def _of_earlier_work(
    plans: Collection[Plan], missing: Collection[Plan], options: RunOptions
) -> Iterator[str]:
    """Yields which finished work other code or versions made."""
    is_here = options.executor == "local" and not options.profile
    for plan in plans:
        words = ""
        if plan not in missing:
            with contextlib.suppress(OSError, DamagedFile):
                words = earlier_work.of_record(record.read_record(plan.place).record)
        elif plan.place.store.is_dir():
            words = earlier_work.of_store(plan, _kind_of_device(plan) if is_here else None)
        if words:
            yield f"{plan.place.campaign.name}: {words}"


def _kind_of_device(plan: Plan) -> str:
    """The kind of device of jobs on this machine."""
    from engine.machine.devices import pick_device  # late: it imports torch

    return made_by.kind_of_device(pick_device(plan.device).type == "cuda")


def _has_same_needs(plan: Plan) -> bool:
    """Whether users' methods still need the same cells as when the campaign ran."""
    if not any(map(is_users, plan.modules)):
        return True
    try:
        return settings_of_needs(plan) == settings_of_needs(read_plan(plan.place))
    except (OSError, DamagedFile):
        return False


def _faults_of_sets(name: str, plans: Mapping[Plan, Sequence[Override]]) -> list[str]:
    """Returns why datasets are not encoded, or cannot be; each reason once.

    A grid can take days and opens a dataset only when it needs it, so all are checked first.
    """
    faults: dict[str, None] = {}
    alike: dict[str, dict[str, str]] = {}  # by remedy: what is wrong, by dataset
    commands: dict[frozenset[Path], str] = {}  # models with the same transform share packs
    for plan, overrides in plans.items():
        resolved = plan.recipe
        dataset = resolved.dataset
        every = {each: kind_of(dataset, each) for each in (*plan.needed, *dataset.probe_sets)}
        read = {each: kind for each, kind in every.items() if not kind.is_drawn}
        if not read or plan.place.record.exists():
            continue
        from engine.data import packs  # here, because it imports torch

        faults |= dict.fromkeys(_unions(plan))
        stored = [(resolved, list(read))]
        cropped = [row.recipe for row in plan.rows.values() if row.recipe.train.crops]
        stored += [(packs.to_train_on(each), plan.trained_sets) for each in cropped[:1]]
        for of_size, names in stored:
            missing = []
            for each in names:
                try:
                    if not packs.is_encoded(of_size, each) and read[each].needs_command():
                        missing.append(each)
                except ValueError as error:
                    remedy = str(error).rpartition(": ")[2]
                    alike.setdefault(remedy, {}).setdefault(each, str(error))
            places = (packs.pack_folder(of_size, each) for each in missing)
            if missing:
                command = _encode_command(resolved, model_of(name), overrides)
                if of_size is not resolved:
                    size = of_size.model.image_size
                    command += f" model.image_size={size} model.crop={of_size.model.crop:g}"
                command += f"   (SET: {', '.join(missing)})"
                commands.setdefault(frozenset(places), command)
    for of_sets in alike.values():
        texts = list(dict.fromkeys(of_sets.values()))
        others = f" (in the same way: {', '.join(list(of_sets)[1:])})" if len(texts) > 1 else ""
        faults[texts[0] + others] = None
    if commands:
        text = "some datasets are not encoded yet; run, for each SET"
        faults["\n  ".join([text, *commands.values()])] = None
    return list(faults)


def _unions(plan: Plan) -> Iterator[str]:
    """Yields why a column cannot train on a dataset that contains images of RI's datasets."""
    for name in plan.downstreams:
        with contextlib.suppress(ValueError):  # a folder that cannot be read is another fault
            read = {each: kind_of(plan.recipe.dataset, each) for each in plan.recipe.dataset.known}
            others = [other for other in plan.sets if other not in trained_sets(name)]
            pairs = itertools.product(trained_sets(name), others)
            if inside := dict.fromkeys(b for a, b in pairs if read[a].shares_files(read[b])):
                listed = ", ".join(inside)
                yield (
                    f"{name} contains images of {listed}, so RI would average over images that its "
                    f"models trained on: leave {listed} out of dataset.sets, or train on {name} "
                    "with `rib train` and judge the model on other datasets with `rib evaluate`"
                )


def _faults_of_warmup(plans: Collection[Plan]) -> Iterator[str]:
    """Yields which trainings are shorter than their warm-up, even on an image more a class."""
    shorter: dict[str, list[str]] = {}  # by error
    for plan in plans:
        trained = [
            cell
            for cell in itertools.chain(*itertools.chain(*plan.recipes))
            if cell.train.warmup_steps and cell.method.takes_steps
            if not is_users(cell.method.module)  # whose options only its file knows
        ]
        if not trained or plan.place.record.exists():
            continue
        from engine.cost import work  # late: it loads torch

        size_of = functools.cache(functools.partial(work.size_of, plan.recipe))
        for cell in trained:
            try:
                sizes = [size_of(name) for name in cell.trained_sets]
            except ValueError:  # a folder that cannot be read is another fault
                continue
            try:
                images, classes, _ = map(sum, zip(*sizes, strict=True))
                most = min(images, work.trained_on(cell, sizes) + classes)
                cell.train.warmup(cell.train.steps(most))
            except ValueError as error:
                title = f"{cell.method.title} on {cell.downstream} (at most {most} images)"
                shorter.setdefault(str(error), []).append(title)
    for error, titles in shorter.items():
        first, *others = dict.fromkeys(titles)  # rows share trainings
        yield f"{first}{f' and {len(others)} more' * bool(others)}: {error}"


def _faults_of_words(plans: Collection[Plan]) -> Iterator[str]:
    """Yields what is wrong with the classes in the file of `dataset.class_names`."""
    dataset = next(iter(plans)).recipe.dataset
    kind = kind_of(dataset, dataset.head_classes)
    if not dataset.class_names or kind.is_drawn:  # drawings are downloaded by a job
        return
    try:
        classes = kind.head_classes() or kind.listing(cache_folder()).classes
        read_words(Path(dataset.class_names), classes)
    except RecipeError as error:
        yield str(error)
    except ValueError:  # a folder that cannot be read is another fault
        pass


def _remarks(plans: Sequence[Plan]) -> list[str]:
    """Returns what a user must know of the datasets, which all models of a campaign share."""
    if not plans:
        return []
    dataset = plans[0].recipe.dataset
    every = [kind_of(dataset, name) for name in dataset.known]
    remarks = [each for i, kind in enumerate(every) for each in kind.remarks(every[:i])]
    reads_class_names = any(
        row.recipe.reads_class_names for plan in plans for row in plan.rows.values()
    )
    if reads_class_names and not (dataset.class_names or every[0].head_classes()):
        remarks.append(
            "CLIP's text tower reads classes by their names, with _ as a space: if it should read "
            "others, set dataset.class_names=FILE, with the lines class,name"
        )
    return remarks


def _show_model(model: ModelRecipe) -> None:
    """Print the weights, head and transform behind a model's name, unless a recipe lists them."""
    if model.name in recipe_names("models") or model.weights.source in ("random", "file"):
        return
    from engine.recipe.image_transform import choices  # here, because it imports numpy

    print(f"model       {choices(model)}", flush=True)


def _encode_command(resolved: Recipe, model: str | None, overrides: Sequence[Override]) -> str:
    """The command that encodes a dataset where a campaign with these overrides looks for it.

    model: the campaign's, by name. A model that the campaign itself describes has no name that
    `rib encode` knows; MODEL then stands for it.
    """
    model = [
        model or "",
        *(str(override.value) for override in overrides if override.key == "model"),
    ][-1]
    is_file = model.endswith(".yaml") or model in recipe_names("models")
    is_known = is_file or (model and model_section(model) is not None)
    command = ["rib", "encode", "SET", "--images", "FOLDER"]
    command += ["--model", model if is_known else "MODEL"]
    command += [f"runs={resolved.runs}"] if resolved.runs != Recipe.runs else []
    command += [
        override.text
        for override in overrides
        if override.section == "model" and override.key != "model"
    ]
    options = kinds.options_of(resolved.dataset)
    for key in ("pack_format", "seed", "undecodable", "background", *options):
        value = getattr(resolved.dataset, key)
        is_default = value == getattr(type(resolved.dataset), key, None)
        command += [] if is_default else [f"dataset.{key}={value}"]
    return shlex.join(command)


def _merged(name: str, plans: Sequence[Plan], is_new: bool) -> Path:
    """Returns the path of the common report of all models; writes it unless it exists."""
    from engine.report import finish, merged  # here, because they import pandas

    of_plans = short_digest([plan.place.name for plan in plans])[:8]
    folder = f"{Path(name).stem}-models-{of_plans}/{REPORT}"
    report = Root(plans[0].place.runs).below(folder)
    page = report.at(PAGE)
    if is_new or not page.is_file():
        runs = [record.read_record(plan.place) for plan in plans]
        page = finish.write_into(report.path, merged.merged(runs))
    print(f"all models  {page.resolve()}")
    return page


def show(page: Path) -> None:
    """Print the table of a campaign's report, and the report's path."""
    table = Root(page.parent).read(TABLE).decode()
    print(f"\n{printable(table)}\nreport  {page.resolve()}")
