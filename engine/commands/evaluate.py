"""`rib evaluate`: your own checkpoints, or a finished campaign's rows, on your own sets."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

from engine.machine import quiet

AMONG = {
    "none": "among all of the head's classes",
    "present": "among the classes of the set (--mask present)",
    "benchmark": "among the set's classes on IN-A, IN-R and ObjectNet, elsewhere among all "
    "(--mask benchmark)",
}


def add(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "evaluate", help="your own checkpoints, or a campaign's models, on your own sets"
    )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as in a recipe")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--models", nargs="+", metavar="FILE", help="checkpoints, or folders of cells or of timm"
    )
    source.add_argument(
        "--campaign", metavar="NAME",
        help="all rows of a finished campaign; key=value words are those that it was run with",
    )  # fmt: skip
    parser.add_argument(
        "--arch", help="of all models: timm's name, or open_clip:NAME for what open_clip saved; "
        "by default what the cell.json, or timm's config.json, beside the checkpoint says",
    )  # fmt: skip
    parser.add_argument(
        "--sets", nargs="+", required=True, metavar="[NAME=]FOLDER",
        help="<set> with <class>/<image> below, or a pack",
    )  # fmt: skip
    parser.add_argument("--alphas", help="interpolate two models: 0:1:0.1, or 0,0.5,1")
    parser.add_argument(
        "--classes", type=Path, metavar="FILE",
        help="the head's class names in its order, a line each, or another model's cell.json; by "
        "default what lies beside the checkpoints says, or ImageNet-1K's wnids for 1000 outputs",
    )  # fmt: skip
    parser.add_argument(
        "--mask", choices=tuple(AMONG), default="none",
        help="which answers are possible: all of the head's classes (default), those that the set "
        "holds, or as the accuracies on IN-A, IN-R and ObjectNet are published",
    )  # fmt: skip
    parser.add_argument("--intervals", action="store_true", help="95%% intervals over images")
    parser.add_argument(
        "--out", "--csv", type=Path, metavar="FILE",
        help="default: accuracy.csv, or accuracy-on-SET.csv in the campaign's report",
    )  # fmt: skip
    parser.add_argument("--force", action="store_true", help="replace that file if it is there")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    quiet.libraries()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    from engine.evaluation import zoo

    places, words = zoo.named(arguments.sets)
    if not places:
        raise ValueError(f"--sets: there is no folder {words[0]}")
    if arguments.campaign:
        _campaign(arguments, places, words)
    else:
        _models(arguments, places, words)


def _models(arguments: argparse.Namespace, sets: dict[str, Path], words: Sequence[str]) -> None:
    from engine.data import descriptions
    from engine.evaluation import zoo
    from engine.machine import ranks

    out = arguments.out or Path("accuracy.csv")
    _refuse_overwriting([out], arguments.force)
    alphas = zoo.parse_alphas(arguments.alphas) if arguments.alphas else None
    places, more = _paths(arguments.models)
    if not places:
        raise ValueError(f"--models: there is no file {more[0]}")
    models = [descriptions.file_of(place) for place in places]
    beside = descriptions.beside(models, arguments.arch)
    arch, described = descriptions.model_of(beside, arguments.arch)
    listed = arguments.classes and descriptions.listed(arguments.classes)
    resolved = zoo.resolve(arch, [*described, *arguments.overrides, *words, *more])
    rows = zoo.evaluated(
        resolved,
        models,
        sets,
        ranks.start(resolved.device),
        classes=listed or descriptions.classes_of(beside),
        alphas=alphas,
        mask=arguments.mask,
        intervals=arguments.intervals,
    )
    if ranks.rank() == 0:
        zoo.write_csv(out, rows)
        if alphas is not None:
            print(f"(1 - alpha) {models[0]} + alpha {models[1]}, {resolved.model.arch}")
        unsure = ", ± half its 95% interval over source images" if arguments.intervals else ""
        print(f"percent top-1 {AMONG[arguments.mask]}{unsure}\n\n{zoo.table(rows)}")
        print(f"\ntable  {out.resolve()}")
    ranks.stop()


def _campaign(arguments: argparse.Namespace, sets: dict[str, Path], words: Sequence[str]) -> None:
    from engine.grid import own_sets, record
    from engine.machine import ranks
    from engine.measures import rows as tables
    from engine.recipe.request import Request
    from engine.report import own_set

    for option in ("arch", "alphas", "classes"):
        if getattr(arguments, option):
            raise ValueError(f"--{option} is for --models; leave it out with --campaign")
    overrides = (*arguments.overrides, *words)
    run = record.find(arguments.campaign, overrides)
    files = {name: arguments.out or run.report / f"accuracy-on-{name}.csv" for name in sets}
    _refuse_overwriting(files.values(), arguments.force)
    request = Request(arguments.campaign, overrides)
    rows = own_sets.evaluate(
        run,
        request,
        sets,
        ranks.start(request.recipe().device),
        mask=arguments.mask,
        intervals=arguments.intervals,
    )
    if ranks.rank() == 0:
        for file in dict.fromkeys(files.values()):
            of_file = [row for row in rows if files[row.evaluated_on] == file]
            tables.write(file, own_sets.OnUsersSet, of_file)
        for name in sets:
            of_set = [row for row in rows if row.evaluated_on == name]
            print(own_set.text(of_set, run.record.sets, run.record.methods))
            print(f"\ntable  {files[name].resolve()}\n")
        if arguments.intervals:
            print("The 95% interval of every change, over source images, is in the table's file.")
        print(f"RI and mRI of {run.report.parent.name} stay as they are: its own sets make them.")
    ranks.stop()


def _refuse_overwriting(files: Iterable[Path], force: bool) -> None:
    """Raise ValueError for a file that exists, before any work is done."""
    for file in files:
        if file.exists() and not force:
            raise ValueError(
                f"{file} is there already: --force replaces it, --out FILE writes elsewhere"
            )


def _paths(words: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Paths, and the key=value words that argparse took for more of them."""
    settings = [word for word in words if "=" in word and not Path(word).exists()]
    return [Path(word) for word in words if word not in settings], settings
