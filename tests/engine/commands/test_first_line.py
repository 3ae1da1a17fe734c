"""A command says what it does before it imports what takes seconds."""

import sys
from pathlib import Path

from helpers.processes import ROOT, run

LATE = (  # of engine/mistakes.txt
    "encode imagenet_a --images /nowhere --model resnet18",
    "download imagenet_a --to x",
    "export emoji --method soup --out new",
    "evaluate --models / --sets /nowhere",
    "distance twemojis",
    "report a=b",
    "campaign a=b/c.yaml --dry-run",
)
LINES = {
    "campaign emoji": "reading the campaign emoji ...",
    "plan emoji": "counting the operations of emoji ...",
    "train recipe=emoji/ewc": "reading the recipe emoji/ewc ...",
}


def test_a_campaign_is_planned_without_torch():
    """And without numbers: what a row needs stands beside its options. Nor does its kind of data
    set need them, which says whether images have to be encoded."""
    code = (
        "import sys\nfrom engine.campaigns.make_plan import make_plan\n"
        "from engine.data.kinds import kind_of\nplan = make_plan('emoji', (), 1)\n"
        "assert kind_of(plan.recipe.dataset, 'upstream').is_drawn\n"
        "print(*plan.rows['soup'].needs, {'torch', 'timm', 'pandas'} & {*sys.modules})"
    )
    done = run([sys.executable, "-c", code])
    assert done.stdout.strip() == "fine_tune ewc lwf set()", done.stderr


def test_the_options_of_every_method_are_read_without_torch():
    """And are those of the method: the rest of its file runs when the method is built."""
    code = (
        "import sys\nfrom engine.recipe import catalogue, modules, overrides, resolve\n"
        "names = catalogue.names('methods')\n"
        "given = overrides.parsed(['dataset.holdout=0.25'])  # which greedy soups take\n"
        "cells = [resolve.load_recipe('imagenet_rib_clip', given, method=name) for name in names]\n"
        "read = {cell.method.module: type(cell.method) for cell in cells}\n"
        "print('torch' in sys.modules, read.keys() == modules.names().keys())\n"
        "print(all(modules.find(name).Recipe is each for name, each in read.items()))"
    )
    done = run([sys.executable, "-c", code])
    assert done.stdout.split() == ["False", "True", "True"], done.stderr


def shown(folder: Path, code: str, *commands: str) -> list[str]:
    """Error output of Python where torch cannot be imported; each command's ends with its code."""
    (folder / "torch.py").write_text("raise SystemExit(7)\n")
    command = [sys.executable, "-c", code, *commands]
    return run(command, folder, PYTHONPATH=f"{folder}:{ROOT}").stderr.splitlines()


def test_a_line_comes_before_torch(tmp_path):
    code = (
        "import sys\nfrom engine import cli\nfor words in sys.argv[1:]:\n"
        "    try: cli.main(words.split())\n    except SystemExit as end: assert end.code == 7\n"
    )
    assert shown(tmp_path, code, *LINES) == [*LINES.values()]


def test_mistakes_are_told_before_torch(tmp_path):
    code = (
        "import sys\nfrom engine import cli\n"
        "for words in sys.argv[1:]: print(cli.main(words.split()), file=sys.stderr)"
    )
    lines = shown(tmp_path, code, *LATE)
    ends = [line[:7] for line in lines if line == "2" or line[:7] == "error: "]
    assert ends == ["error: ", "2"] * len(LATE), lines
