"""`rib campaign`: run a grid, or those of several models, or what is missing, to their reports."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from engine.commands.grids import grids_of
from engine.errors import CampaignError
from engine.grid import campaign, markers, workflow
from engine.grid.job_graph import SHAPES
from engine.machine import first_line
from engine.recipe.schema import Recipe
from loaders.schema import DamagedFile

SLURM_CORES = 4  # of a job: images are read beside the work


def add(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("campaign", help="run a grid: methods x sets, to a report")
    parser.add_argument("name", help="a campaign of recipes/campaigns, or a YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as in a recipe")
    add_options(parser)
    parser.set_defaults(run=run)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that say where and how a grid runs."""
    parser.add_argument("--cores", type=int, help="default: all; on Slurm: of each job, 4")
    parser.add_argument("--dry-run", action="store_true", help="show what would run and stop")
    parser.add_argument(
        "--profile", type=Path,
        help="a Snakemake profile (a folder with config.yaml): a cluster's executor and resources",
    )  # fmt: skip
    parser.add_argument(
        "--executor", choices=("local", "slurm"), default="local",
        help="slurm: each job is a Slurm job; the command stays on a login node, in tmux or nohup",
    )  # fmt: skip
    parser.add_argument("--gpus-per-job", type=int, default=1, help="GPUs that a job shares")
    parser.add_argument(
        "--shape", choices=("auto", *SHAPES), default="auto",
        help="columns: a job trains a column and evaluates it; split: training a column and "
        "evaluating all columns on a set are jobs; default: what several GPUs end sooner by",
    )  # fmt: skip
    slurm = parser.add_argument_group("with --executor slurm")
    slurm.add_argument("--partition", default="", help="default: Slurm's")
    slurm.add_argument("--account", default="", help="default: Slurm's")
    slurm.add_argument("--time", type=float, help="hours of each job; default: predicted")
    slurm.add_argument("--mem", type=float, help="GB of each job; default: predicted")
    slurm.add_argument("--retries", type=int, default=2, help="of a job that failed; default: 2")
    slurm.add_argument("--requeue", action="store_true", help="let Slurm preempt and requeue jobs")


def run(arguments: argparse.Namespace) -> None:
    from engine import recipe

    _check(arguments)
    grids = recipe.each_model(arguments.name, arguments.overrides)
    recipe.methods_of(arguments.name, grids[0])  # a wrong name shows before imports
    first_line.show(f"reading the campaign {arguments.name}")
    faults = _faults_of_sets(arguments, grids)
    if faults and not arguments.dry_run:
        raise CampaignError("; ".join(faults))
    _run(arguments, grids)
    if faults:  # of a dry run
        raise CampaignError("; ".join(faults))


def _check(arguments: argparse.Namespace) -> None:
    """Fill in `--cores`, and refuse options that have no effect beside the chosen ones."""
    on_slurm = arguments.executor == "slurm"
    if arguments.cores is None:  # inside an allocation these are fewer than the machine's
        arguments.cores = SLURM_CORES if on_slurm else len(os.sched_getaffinity(0))
    if on_slurm and arguments.profile:
        raise ValueError("--profile brings an executor of its own; leave --executor out")
    profile = arguments.profile
    if profile and not (profile / "config.yaml").is_file():
        raise CampaignError(f"--profile {profile}: there is no {profile / 'config.yaml'}")
    for name in ("partition", "account", "time", "mem", "requeue") if not on_slurm else ():
        if getattr(arguments, name):
            raise ValueError(f"--{name} is an option of --executor slurm")
    for name in ("time", "mem"):
        value = getattr(arguments, name)
        if value is not None and value <= 0:
            raise ValueError(f"--{name} {value:g}: it must be above 0")


def _faults_of_sets(arguments: argparse.Namespace, grids: Sequence[Sequence[str]]) -> list[str]:
    """Why sets are not encoded and cannot be, each reason once.

    A grid takes days and opens a set only when its turn comes, so sets are checked first. All
    commands of `rib encode` are one reason.
    """
    from engine import recipe

    faults: dict[str, None] = {}
    commands: dict[Path, str] = {}
    for words in grids:
        plan = campaign.plan(arguments.name, words, arguments.cores)  # mistakes come first
        resolved = recipe.load(arguments.name, words)
        if resolved.dataset.kind == "emoji" or _finished(arguments.name, words):
            continue
        from engine.grid import verify

        needed = plan.needed(resolved.dataset)
        encoded = verify.encoded(resolved, needed)
        missing = [name for name in needed if name not in encoded]
        if resolved.dataset.kind == "folder":
            faults |= dict.fromkeys(_faults_of_folders(resolved, missing))
        else:
            model = recipe.model_of(arguments.name)
            words = [*([f"model={model}"] if model else []), *words]
            for folder, command in _encode_commands(resolved, missing, words).items():
                commands.setdefault(folder, command)
    if commands:
        text = "\n  ".join(["these sets are not encoded yet; run", *commands.values()])
        faults[text] = None
    return list(faults)


def _faults_of_folders(resolved: Recipe, names: Sequence[str]) -> Iterator[str]:
    from loaders import folders

    for name in names:
        try:
            folders.read(Path(resolved.dataset.root) / name)
        except ValueError as error:
            yield str(error)


def _encode_commands(
    resolved: Recipe, names: Sequence[str], words: Sequence[str]
) -> dict[Path, str]:
    """The command for each set that `dataset.root` does not hold, by the folder of its pack."""
    from engine.commands import encode
    from engine.data import imagenet, packs

    dataset = resolved.dataset
    commands = {}
    for name in names:
        rooted = dataset.root and not imagenet.is_whole_c(dataset, name)
        if not (rooted and (Path(dataset.root) / name).exists()):
            folder = packs.pack_folder(Path(resolved.runs), dataset, resolved.model, name)
            commands[folder] = encode.command(resolved, name, words)
    return commands


def _finished(name: str, words: Sequence[str]) -> bool:
    from engine.grid import record

    try:
        record.find(name, words)
    except (CampaignError, DamagedFile):
        return False
    return True


def _run(arguments: argparse.Namespace, models: Sequence[Sequence[str]]) -> None:
    """Run the grids of all models at once, a look of their evaluation after the other.

    Raises CampaignError where one fails, after the others have gone on as far as they can.
    """
    from engine.grid import half_widths

    looks = [
        half_widths.sequential_plans(arguments.name, words, arguments.cores) for words in models
    ]
    pages: dict[Path, bool] = {}  # and whether it is new
    faults = []
    while plans := {plan.path: (plan, look) for look in looks if (plan := next(look, None))}:
        to_run = [plan for plan, _ in plans.values() if not markers.finished(plan)]
        if arguments.dry_run:
            workflow.run(grids_of(arguments, [plan for plan, _ in plans.values()]), dry_run=True)
            return
        for plan, _ in plans.values():
            if plan not in to_run:
                print(f"{plan.name} is finished; nothing to do.")
        try:
            if to_run:
                workflow.run(grids_of(arguments, to_run))
        except CampaignError as error:
            faults.append(str(error))
        looks = []
        for plan, look in plans.values():
            if plan not in to_run or markers.finished(plan):
                pages[campaign.report_page(plan)] = plan in to_run
                looks.append(look)
    for page in pages:
        show(page)
    if faults:
        raise CampaignError("; ".join(faults))
    if len(models) > 1:
        _show_merged(arguments.name, models, pages)


def _show_merged(name: str, models: Sequence[Sequence[str]], pages: Mapping[Path, bool]) -> None:
    """Write a common report of all models' grids, unless there is one of these, and say where."""
    from engine.grid import record
    from engine.report import finish

    folder = next(iter(pages)).parents[2] / f"{Path(name).stem}-models" / campaign.REPORT
    page = folder / campaign.PAGE
    if any(pages.values()) or not page.is_file():
        page = finish.write_merged(folder, [record.find(name, words) for words in models])
    print(f"all models  {page.resolve()}")


def show(page: Path) -> None:
    """Print the table of a campaign's report, and the path of its page."""
    print(f"\n{page.with_name(campaign.TABLE).read_text()}\nreport  {page.resolve()}")
