"""The arguments of every command of `rib`, and the checks that need nothing else.

A function of the command's name declares its arguments. The command's module is imported when it
runs, so this file imports no package that `rib doctor` may find hidden or broken.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

EXAMPLES = """\
examples:
  rib campaign emoji               train and evaluate the demo's methods
  rib train emoji/ewc seed=1       train one model"""
SETTING = "setting, such as train.epochs=1; docs/reference/recipe.md explains all keys"
THE_CAMPAIGNS = "the campaign's settings"
MODEL = "model name (docs/your-checkpoints.md), or YAML file"
CHECKPOINTS = "checkpoints, timm folders or cells"
CLASS_NAMES = "class names in the order of the head's outputs, one per line"
FEWEST = 12  # images per dataset of a smoke run: enough for two classes
MOST_ALPHAS = 1000  # in a range; each is a model in memory
DECIMALS = 6  # of an alpha in tables
MERGES = ("soup", "greedy_soup", "wise_ft", "wise_ft_tuned", "ties", "task_arithmetic", "lines",
          "model_stock", "mono_soup", "iso_c")  # fmt: skip
MASKS = ("none", "present", "benchmark")
SWEEP = """\
Train one method of a campaign with every combination of values, on every downstream dataset.

  rib sweep emoji/ewc method.lam=0.1,1,10 optimizer.lr=1e-4,1e-3 seed=0,1,2

trains 3 x 2 configurations with 3 seeds each. Commas separate values, except within brackets or
quotes: model.mean=[0.4,0.5,0.5] is one value. These keys can have several values:
optimizer.KEY, train.KEY, method.KEY, dataset.shots, dataset.fraction and seed.
downstream=A,B fine-tunes on these datasets only. Any other key=value applies to all.

Configurations share packs, pretrained model, features, Fisher and LP-FT's probe, and reuse cells
of other campaigns. To resume an interrupted sweep, run the same command. The report's folder has
tables/sweep-configurations.csv (one row per configuration), accuracy.csv (one row per
configuration, downstream dataset and dataset evaluated on) and, with several seeds, seeds.csv.\
"""
COMPARE = """\
Compare each further model with the first, in pairs on the same images: difference, 95% interval,
p, and the smallest difference that this much data finds with a probability of 80%. Tables are CSV,
Parquet or JSON lines (.jsonl) with the columns image, and correct (0 or 1), score, or label and
prediction; optionally set, source (the photo) and seed. In a folder of tables, each file is a
dataset.\
"""


class Parser(argparse.ArgumentParser):
    """A parser of which an error is one line, as all errors of `rib` are."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (see {self.prog} --help)")


class Command(NamedTuple):
    """group: heading in `rib --help`. runs: MODULE:FUNCTION of `engine.commands`. imports_torch: as
    it starts."""

    group: str
    help: str
    declare: Callable[[Parser], None]
    runs: str
    imports_torch: bool


COMMANDS: dict[str, Command] = {}


def command(
    group: str, help: str, *, runs: str = "", imports_torch: bool = False
) -> Callable[[Callable[[Parser], None]], Callable[[Parser], None]]:
    """Register the function that declares the arguments of the command with its name."""

    def register(declare: Callable[[Parser], None]) -> Callable[[Parser], None]:
        name = declare.__name__
        COMMANDS[name] = Command(group, help, declare, runs or f"{name}:run", imports_torch)
        return declare

    return register


def build_parser(names: Sequence[str] = ()) -> tuple[Parser, dict[str, Parser]]:
    """Returns the parser of `rib`, and the parsers of the named commands, by name."""
    whole = Parser(
        prog="rib",
        usage="rib [-h] [--version] [--debug] COMMAND ...",
        description=_listing(),
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    whole.add_argument("--version", action="version", version=f"rib {_version()}")
    whole.add_argument("--debug", action="store_true", help="show the traceback of an error")
    group = whole.add_subparsers(
        required=True, metavar="COMMAND", prog="rib", help=argparse.SUPPRESS
    )
    for name in names:
        parser = group.add_parser(
            name,
            help=COMMANDS[name].help,
            description=COMMANDS[name].help,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,  # so that the command line knows every option with a value
        )
        parser.set_defaults(command=name)
        COMMANDS[name].declare(parser)
    return whole, group.choices


def _listing() -> str:
    lines = ["Run the ImageNet-RIB benchmark of robust fine-tuning."]
    for group, named in itertools.groupby(COMMANDS.items(), lambda each: each[1].group):
        lines += ["", f"{group}:", *(f"  {name:<12}{each.help}" for name, each in named)]
    return "\n".join(lines)


def _version() -> str:
    try:
        return importlib.metadata.version("rib-engine")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


# Types of arguments: what argparse shows if they raise is the option, and this message.


def at_least(least: int) -> Callable[[str], int]:
    """The type of a whole number of at least `least`."""

    def read(text: str) -> int:
        if not text.removeprefix("-").isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text}: give a whole number of at least {least}")
        return int(text)

    return read


def above_0(text: str) -> float:
    """A finite number above 0."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: give a number above 0")
    return number


def existing_folder(text: str) -> Path:
    """A folder that exists."""
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"there is no folder {Path(text).absolute()}")
    return Path(text)


def runs_folder(text: str) -> Path:
    """A folder of results, which is in the folder where campaigns ran."""
    if not Path(text).is_dir():
        raise argparse.ArgumentTypeError(
            f"there is no folder {Path(text).absolute()}: change to the folder where the campaigns "
            "ran, or name their folder of results"
        )
    return Path(text)


def existing_path(text: str) -> Path:
    """A file or folder that exists."""
    if not Path(text).exists():
        raise argparse.ArgumentTypeError(f"{text} does not exist")
    return Path(text)


def existing_images(text: str) -> Path:
    """A folder or file of images, or a pattern that matches some."""
    from loaders import shards

    if not shards.exists(Path(text)):
        raise argparse.ArgumentTypeError(
            f"{text} does not exist: name a folder of <class>/<image>, or shards"
        )
    return Path(text)


def named_images(word: str) -> tuple[str, Path]:
    """A dataset's name and images, from FOLDER or NAME=FOLDER."""
    from engine.recipe.checks import check_name

    name, equals, folder = word.partition("=")
    if not equals or Path(word).exists():
        name, folder = Path(word).resolve().name, word
        if set("*?[") & set(name):
            raise argparse.ArgumentTypeError(f"name the dataset, as in --sets NAME={word}")
    try:
        check_name("dataset", name)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return name, existing_images(folder)


def merge_method(text: str) -> str:
    """A method, or a path."""
    from engine.did_you_mean import nearest
    from engine.recipe.catalogue import is_path, names

    if not is_path(text) and text not in names("methods"):
        raise argparse.ArgumentTypeError(f"there is no method {text!r}{nearest(text, MERGES)}")
    return text


def batch_sizes(text: str) -> list[int]:
    """Numbers above 0 with commas between them, such as `64,256`."""
    return [at_least(1)(word) for word in text.split(",")]


def alphas(text: str) -> list[float]:
    """`0:1:0.1` (both ends included) or `0,0.5,1`, each once; at most `MOST_ALPHAS` in a range."""
    separator = ":" if ":" in text else ","
    try:
        numbers = [float(word) for word in text.split(separator)]
        if not all(map(math.isfinite, numbers)):
            raise ValueError
        if separator == ":":
            start, stop, step = numbers
            if step <= 0 or stop < start:
                raise ValueError
            steps = int((stop - start) / step + 1e-9)
            if steps >= MOST_ALPHAS:
                much = f"{text} are {steps + 1} models: give at most {MOST_ALPHAS}"
                raise argparse.ArgumentTypeError(much)
            numbers = [start + number * step for number in range(steps + 1)]
    except (ValueError, OverflowError) as error:
        raise argparse.ArgumentTypeError(f"{text}: write START:STOP:STEP or a,b,c") from error
    return list(dict.fromkeys(round(number, DECIMALS) for number in numbers))


# Arguments that several commands share.


def _named_campaign(parser: Parser) -> None:
    parser.add_argument("name", help="campaign of recipes/campaigns, or YAML file")
    _settings(parser)


def _settings(parser: Parser, help: str = SETTING, metavar: str = "key=value") -> None:
    parser.add_argument("overrides", nargs="*", default=[], metavar=metavar, help=help)


def _runs(parser: Parser, kind: Callable[[str], Path] = runs_folder) -> None:
    parser.add_argument(
        "runs", nargs="?", type=kind, default="runs", help="folder of results (default: runs)"
    )


def _out(parser: Parser, help: str, metavar: str = "DIR", *, required: bool = False) -> None:
    parser.add_argument("--out", type=Path, metavar=metavar, required=required, help=help)
    parser.add_argument("--force", action="store_true", help="overwrite --out")


def _campaign_options(parser: Parser) -> None:
    """Where and how a campaign runs: the fields of `RunOptions`, and `--dry-run` and `--limit`."""
    from engine.campaigns.schedulers import SCHEDULERS

    add = parser.add_argument
    add("--cores", type=at_least(1), default=0,
        help="CPU cores (default: all; with Slurm, 4 per job and GPU)")  # fmt: skip
    add("--dry-run", action="store_true", help="show the jobs without running them")
    add("--profile", type=Path,
        help="Snakemake profile: folder whose config.yaml names a cluster's executor and "
        "resources")  # fmt: skip
    add("--executor", choices=("local", *SCHEDULERS), default="local",
        help="where jobs run (default: local). slurm: each is a Slurm job; keep the command "
        "running on a login node, in tmux or with nohup")  # fmt: skip
    add("--limit", type=at_least(FEWEST), metavar="N",
        help="smoke run: N images per dataset, one epoch, in a separate folder (default: no "
        "limit)")  # fmt: skip
    add("--gpus-per-job", type=at_least(1), default=0,
        help="GPUs per job (default: those predicted to end first on this machine; 1 on a "
        "cluster)")  # fmt: skip
    add("--jobs-per-column", type=at_least(1), default=0,
        help="jobs that train a column's cells side by side, and that then evaluate its models; 1: "
        "one job does all (default: as predicted to end first; 1 on this machine's CPU "
        "cores)")  # fmt: skip
    add = parser.add_argument_group("with --executor slurm").add_argument
    add("--partition", default="", help="partition (default: Slurm's)")
    add("--account", default="", help="account (default: Slurm's)")
    add("--time", type=above_0, help="hours per job (default: predicted)")
    add("--mem", type=above_0, help="GB of memory per job (default: predicted)")
    add("--retries", type=at_least(0), help="retries per failed job (default: 2)")
    add("--requeue", action="store_true", help="let Slurm preempt and requeue jobs (default: no)")


# The commands, by group, in the order of `rib --help`.


@command("run", "train and evaluate a grid of methods and datasets")
def campaign(parser: Parser) -> None:
    _named_campaign(parser)
    _campaign_options(parser)
    parser.add_argument("--checkpoints", type=Path, metavar="TABLE",
        help="CSV file of checkpoints: the campaign's models, without training")  # fmt: skip


@command("run", "train a method with every combination of values", runs="campaign:sweep")
def sweep(parser: Parser) -> None:
    parser.description = SWEEP
    parser.add_argument("name", metavar="CAMPAIGN/METHOD",
        help="method of a campaign, such as emoji/ewc")  # fmt: skip
    _settings(parser, "key and its values", "key=A,B")
    _campaign_options(parser)


@command("run", "train one cell and evaluate it on every dataset")
def train(parser: Parser) -> None:
    parser.usage = "rib train CAMPAIGN/METHOD [key=value ...] [-h] [--print]"
    parser.set_defaults(overrides=[])
    add = parser.add_argument
    add("words", nargs="*", metavar="CAMPAIGN/METHOD",
        help="method of a campaign, such as emoji/ewc, or YAML file (default: list them), and "
        "settings")  # fmt: skip
    add("--print", action="store_true", help="show the resolved recipe without training")
    # The `deepspeed` launcher adds it; the environment has the same value.
    add("--local_rank", "--local-rank", help=argparse.SUPPRESS)


@command("run", "predict a campaign's images, GPU-hours and disk space")
def plan(parser: Parser) -> None:
    _named_campaign(parser)
    help = "bf16 peak of your GPU, in TFLOP/s (default: A100 and H100 only)"
    parser.add_argument("--tflops", type=above_0, help=help)


@command("run", "list campaigns, models, methods and datasets")
def recipes(parser: Parser) -> None:
    parser.add_argument("name", nargs="?", metavar="CAMPAIGN",
        help="campaign whose methods to list (default: all recipes)")  # fmt: skip


@command("results", "list campaigns, their progress and the store's content")
def status(parser: Parser) -> None:
    _runs(parser)


@command("results", "write the tables and report of campaigns")
def report(parser: Parser) -> None:
    add = parser.add_argument
    add("names", nargs="+", metavar="RUN",
        help="name or folder of a campaign, or published folders, which are audited")  # fmt: skip
    _settings(parser, THE_CAMPAIGNS)
    add("--compare", nargs="?", const="", metavar="METHOD",
        help="also print paired tests against METHOD (without a name: the best; default: no "
        "tests)")  # fmt: skip
    add("--models-csv", type=Path, metavar="FILE",
        help="models for the baseline of effective robustness: columns model, set, accuracy "
        "(percent), with rows for the upstream dataset (default: timm's)")  # fmt: skip
    add("--published", type=Path, metavar="FILE",
        help="published numbers to compare with, or the released code's folder of runs, "
        "save/models (default: recipes/published.yaml)")  # fmt: skip
    add("--figures", action="store_true", help="also write figures as SVG and PDF")
    _out(parser, "folder for the report (default: the campaign's)")


@command("results", "test whether models differ, from campaigns or tables of predictions")
def compare(parser: Parser) -> None:
    parser.description = COMPARE
    add = parser.add_argument
    add("sides", nargs="+", metavar="A",
        help="a table or folder of tables; CAMPAIGN, CAMPAIGN/METHOD or CAMPAIGN/METHOD/DATASET, "
        "where CAMPAIGN is the name or folder of a finished campaign")  # fmt: skip
    _settings(parser, "settings of campaigns given by name")
    add("--at-least", type=float, metavar="X",
        help="exit with 0 if the interval of every B - A is at or above X, otherwise with 1: "
        "--at-least -1 accepts a loss of less than 1 point")  # fmt: skip
    add("--csv", type=Path, metavar="FILE", help="file for all numbers (default: none)")
    add("--force", action="store_true", help="overwrite --csv")


@command("results", "write a finished campaign's predictions and numbers for others to check")
def publish(parser: Parser) -> None:
    parser.add_argument("name", metavar="RUN", help="name or folder of a finished campaign")
    _settings(parser, THE_CAMPAIGNS)
    parser.add_argument("--out", type=Path, metavar="DIR", required=True, help="new folder")
    parser.add_argument("--weights", action="store_true", help="with the weights of all cells")


@command("results", "compute every number of a published folder again from its predictions",
         runs="publish:audit")  # fmt: skip
def audit(parser: Parser) -> None:
    add = parser.add_argument
    add("folder", type=existing_folder, metavar="DIR", help="published folder")
    add("--runs", type=Path, default="runs", metavar="DIR",
        help="folder of runs whose packs are compared with the images (default: runs)"
        )  # fmt: skip


@command("results", "compute optimal transport distances between datasets")
def distance(parser: Parser) -> None:
    add = parser.add_argument
    add("sets", nargs="*", metavar="SET", help="datasets (default: all)")
    _settings(parser)
    add("--campaign", default="emoji", help="campaign (default: emoji)")
    add("--eps", type=float, help="regularization, as a fraction of the mean cost (default: 0.05)")
    add("--biased", action="store_true", help="keep the self terms (no debiasing)")
    add("--samples", type=int, help="maximum samples per dataset (default: all)")


@command("results", "list files that no campaign needs; delete them with --yes", runs="status:gc")
def gc(parser: Parser) -> None:
    _runs(parser)
    parser.add_argument("--yes", action="store_true", help="delete them (default: only list them)")


@command("data", "download ImageNet-RIB's datasets, and weights")
def download(parser: Parser) -> None:
    add = parser.add_argument
    add("sets", nargs="*", metavar="SET", help="dataset, such as imagenet_v2, or all")
    add("--to", type=Path, metavar="DIR", help="folder for all datasets")
    add("--from", type=existing_folder, metavar="DIR", dest="local",
        help="folder with files that you have already (default: none)")  # fmt: skip
    add("--accept", action="store_true", help="accept the datasets' terms (default: ask)")
    add("--models", nargs="+", metavar="MODEL", default=[],
        help="models whose weights go to the hub's cache, or all (default: none)")  # fmt: skip
    add("--check", action="store_true",
        help="ask every address for its file and size, without downloading")  # fmt: skip
    add("--password", type=Path, metavar="FILE",
        help="file whose first line is the password of protected zip files (default: ask)"
        )  # fmt: skip
    add("--sources", type=Path, help="YAML file of addresses (default: recipes/sources.yaml)")


@command("data", "encode a dataset's images as a pack", imports_torch=True)
def encode(parser: Parser) -> None:
    add = parser.add_argument
    add("set", nargs="?", help="dataset, such as imagenet_v2 (or use --all)")
    _settings(parser)
    add("--all", action="store_true",
        help="every dataset in --images that models are evaluated on")  # fmt: skip
    images = parser.add_mutually_exclusive_group().add_argument
    images("--images", type=existing_images,
        help="folder, .tar, or webdataset or parquet files (also a pattern); with --all, folder of "
        "all datasets (default: where the benchmark's recipe says)")  # fmt: skip
    images("--beton", type=Path, help="file that FFCV wrote, at the model's image size")
    add("--classes", type=Path, help="class names for --beton, one line per label")
    add("--model", required=True, help="model whose transform to use")
    add("--dataset", default="imagenet_rib", help="benchmark (default: %(default)s)")
    add("--workers", type=at_least(0), default=0, help="processes (default: all cores)")
    add("--partial", action="store_true",
        help="accept missing images and skip unreadable ones (default: stop)")  # fmt: skip
    add("--yes", action="store_true", help="encode all of IN-C without asking")


@command("data", "compare a pretrained model with its published accuracies", imports_torch=True)
def verify(parser: Parser) -> None:
    add = parser.add_argument
    add("model", help=MODEL)
    _settings(parser)
    add("--campaign", default="imagenet_rib",
        help="campaign whose datasets to use (default: %(default)s)")  # fmt: skip
    add("--tolerance", type=float, default=0.3,
        help="allowed difference from the published accuracy, in percentage points (default: 0.3)"
        )  # fmt: skip


@command("your models", "evaluate checkpoints, or a campaign, on your images", imports_torch=True)
def evaluate(parser: Parser) -> None:
    add = parser.add_argument
    _settings(parser)
    source = parser.add_mutually_exclusive_group(required=True).add_argument
    source("--models", nargs="+", type=existing_path, metavar="FILE", help=CHECKPOINTS)
    source("--campaign", metavar="NAME",
        help="finished campaign, of which all models are evaluated; repeat its settings"
        )  # fmt: skip
    add("--arch",
        help="architecture of all models: a timm name, or open_clip:NAME (default: from the "
        "cell.json or config.json next to the checkpoint)")  # fmt: skip
    add("--sets", nargs="+", type=named_images, required=True, metavar="[NAME=]FOLDER",
        help="dataset: folder of <class>/<image>, webdataset or parquet files, or a pack"
        )  # fmt: skip
    add("--alphas", type=alphas,
        help="weights for interpolating two models: 0:1:0.1 or 0,0.5,1 (default: none)"
        )  # fmt: skip
    add("--classes", type=Path, metavar="FILE",
        help=f"{CLASS_NAMES}, or a cell.json (default: from files next to the checkpoints, or "
        "ImageNet-1K's for 1000 outputs)")  # fmt: skip
    add("--mask", choices=MASKS, default="none",
        help="possible predictions: all of the head's classes (none, default), the dataset's "
        "(present), or as the recipe of the dataset NAME says of published accuracies (benchmark)"
        )  # fmt: skip
    add("--intervals", action="store_true", help="add 95%% intervals over images")
    _out(parser, "CSV file (default: accuracy.csv; of a campaign, in its report's folder)", "FILE")


@command("your models", "merge checkpoints into one model for timm", runs="export:merge",
         imports_torch=True)  # fmt: skip
def merge(parser: Parser) -> None:
    add = parser.add_argument
    add("method", type=merge_method, help=f"{', '.join(MERGES)}, or your YAML file")
    add("models", nargs="+", type=existing_path, metavar="FILE", help=CHECKPOINTS)
    _settings(parser, "setting, such as method.alpha=0.3")
    add("--base", type=existing_path, metavar="FILE",
        help="pretrained model of all checkpoints; soups also average it (default: none)"
        )  # fmt: skip
    add("--holdout", type=existing_path, metavar="FOLDER",
        help="images that choose a greedy soup or an alpha: folder of <class>/<image>, or a pack"
        )  # fmt: skip
    add("--arch", help="architecture of all models (default: from files next to them)")
    add("--classes", type=Path, help=CLASS_NAMES)
    _out(parser, "folder for the model", required=True)


@command("your models", "write a model as a folder for timm or open_clip")
def export(parser: Parser) -> None:
    add = parser.add_argument
    add("source", metavar="CAMPAIGN | CELL",
        help="finished campaign, or folder of runs/store/cells")  # fmt: skip
    _settings(parser, THE_CAMPAIGNS)
    add("--method", help="method of the table, or `pretrained`")
    add("--downstream", help="downstream dataset of the model")
    add("--setting", help="setting, if the campaign varies one, such as train.epochs=2")
    add("--alpha", type=float, help="alpha of WiSE-FT, if the campaign has several")
    add("--seed", type=int, help="training seed, if the campaign has several")
    add("--classes", type=Path, help=CLASS_NAMES)
    _out(parser, "folder for the model", required=True)


@command("machine", "check this machine")
def doctor(parser: Parser) -> None:
    _runs(parser, Path)  # which may not exist yet


@command("machine", "measure how fast a model trains and evaluates here", imports_torch=True)
def bench(parser: Parser) -> None:
    add = parser.add_argument
    add("model", help=MODEL)
    _settings(parser)
    add("--batch", type=batch_sizes, default="64,256", help="batch sizes (default: %(default)s)")
    add("--methods", default="fine_tune,ewc,lwf",
        help="methods that train, by name or YAML file (default: %(default)s)")  # fmt: skip
    add("--steps", type=at_least(1), default=20,
        help="steps per timed epoch (default: %(default)s)")  # fmt: skip
    add("--pack", type=Path, help="encoded dataset in runs/packs (default: random pixels)")
    add("--json", type=Path, help="file for the rows and the machine (default: none)")


@command("machine", "write a completion script for a shell", runs="recipes:complete")
def completion(parser: Parser) -> None:
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), help="your shell")
