"""`rib evaluate`: your own checkpoints on your own sets, alone or interpolated, in one pass."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from engine.machine import quiet


def add(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("evaluate", help="your own checkpoints on your own sets")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as in a recipe")
    parser.add_argument("--models", nargs="+", required=True, metavar="FILE")
    parser.add_argument(
        "--arch", help="of all models: timm's name, or open_clip:NAME for what open_clip saved; "
        "by default what timm's config.json beside the first says",
    )  # fmt: skip
    parser.add_argument(
        "--sets", nargs="+", required=True, metavar="FOLDER",
        help="<set> with <class>/<image> below, or a pack",
    )  # fmt: skip
    parser.add_argument("--alphas", help="interpolate two models: 0:1:0.1, or 0,0.5,1")
    parser.add_argument("--classes", type=Path, help="the head's class names, a line each")
    parser.add_argument("--intervals", action="store_true", help="95%% intervals over images")
    parser.add_argument("--csv", type=Path, default=Path("accuracy.csv"), help="%(default)s")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    quiet.libraries()
    from engine import zoo
    from engine.machine import ranks

    alphas = zoo.parse_alphas(arguments.alphas) if arguments.alphas else None
    models, words = _paths(arguments.models)
    sets, more = _paths(arguments.sets)
    for option, found, asked in (("models", models, words), ("sets", sets, more)):
        if not found:
            raise ValueError(f"--{option}: there is no file {asked[0]}")
    arch, found = (arguments.arch, []) if arguments.arch else zoo.published(models[0])
    wanted = zoo.resolve(arch, [*found, *arguments.overrides, *words, *more])
    rows = zoo.evaluated(
        wanted,
        models,
        sets,
        ranks.start(wanted.device),
        alphas=alphas,
        classes=arguments.classes,
        intervals=arguments.intervals,
    )
    if ranks.rank() == 0:
        zoo.write_csv(arguments.csv, rows)
        if alphas is not None:
            print(f"(1 - alpha) {models[0]} + alpha {models[1]}, {wanted.model.arch}")
        unsure = ", ± half its 95% interval over source images" if arguments.intervals else ""
        print(f"percent top-1{unsure}\n\n{zoo.table(rows)}\n\ntable  {arguments.csv.resolve()}")
    ranks.stop()


def _paths(words: Sequence[str]) -> tuple[list[Path], list[str]]:
    """Paths, and the key=value words that an option with many values took for more of them."""
    settings = [word for word in words if "=" in word and not Path(word).exists()]
    return [Path(word) for word in words if word not in settings], settings
