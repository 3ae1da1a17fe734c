"""Before its result, a command says what it does, and imports only the slow packages it uses."""

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
SLOW = ("torch", "timm", "torch._dynamo", "deepspeed", "pandas", "scipy", "snakemake", "numba")
USED = {  # by commands that run one after the other: what they and those before them import
    "--help": "",
    "campaign --help": "",
    "recipes": "",
    "status {}": "",
    "campaign emoji --limit 1": "",
    "train emoji/ewc --print": "",
    "report emoji runs={}": "",
    "plan imagenet_rib runs={}": "",
    "export emoji --out {}/new runs={}": "",
    "campaign emoji --dry-run runs={}": "torch",
    # timm imports the last of these
    "campaign imagenet_rib model=resnet50.a1_in1k --dry-run runs={}": "torch timm torch._dynamo",
}
OF_OTHER_JOBS = (
    "pandas scipy engine.otdd kernels.transport engine.cost loaders.benchmarks.emoji "
    "engine.campaigns.make_plan engine.recipe.resolve engine.recipe.catalogue"  # plans
)
CODE = """
import sys
from engine import cli
slow, *commands = sys.argv[1:]
for words in commands:
    try: code = cli.main(words.split())
    except SystemExit as end: code = end.code
    print(code, file=sys.stderr)
    print("imported:", *(name for name in slow.split() if name in sys.modules))
"""


def test_a_command_imports_what_it_uses(tmp_path):
    commands = [words.format(tmp_path, tmp_path) for words in USED]
    done = run([sys.executable, "-c", CODE, " ".join(SLOW), *commands])
    shown = [line for line in done.stdout.splitlines() if line.startswith("imported:")]
    expected = [f"imported: {names}".rstrip() for names in USED.values()]
    assert dict(zip(commands, shown, strict=True)) == dict(zip(commands, expected, strict=True))


def test_a_columns_job_imports_nothing_of_planning_and_other_jobs():
    code = "import sys, engine.campaigns.column_job; print(*{*sys.argv[1:]} & {*sys.modules})"
    done = run([sys.executable, "-c", code, *OF_OTHER_JOBS.split()])
    assert (done.returncode, done.stdout) == (0, "\n"), done.stderr


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
    """And are those of the method, whose own file is imported when the method is built."""
    code = (
        "import sys\nfrom engine.recipe import catalogue, overrides, resolve\n"
        "from engine.recipe.methods import METHODS\n"
        "names = catalogue.names('methods')\n"
        "given = overrides.parsed(['dataset.holdout=0.25'])  # which greedy soups take\n"
        "cells = [resolve.load_recipe('imagenet_rib_clip', given, method=name) for name in names]\n"
        "read = {cell.method.module: type(cell.method) for cell in cells}\n"
        "print('torch' in sys.modules, read.keys() == METHODS.names().keys())\n"
        "print(all(METHODS.find(name).Recipe is each for name, each in read.items()))"
    )
    done = run([sys.executable, "-c", code])
    assert done.stdout.split() == ["False", "True", "True"], done.stderr


def shown(folder: Path, *commands: str) -> list[str]:
    """Errors of commands where torch ends Python with 7, and each command's code."""
    (folder / "torch.py").write_text("raise SystemExit(7)\n")
    command = [sys.executable, "-c", CODE, "", *commands]
    return run(command, folder, PYTHONPATH=f"{folder}:{ROOT}").stderr.splitlines()


def test_a_line_comes_before_torch(tmp_path):
    lines = shown(tmp_path, *LINES)
    assert lines[::2] == [*LINES.values()]
    assert lines[1::2] == ["7", "0", "7"], "rib plan ends without torch"


def test_mistakes_are_told_before_torch(tmp_path):
    lines = shown(tmp_path, *LATE)
    ends = [line[:7] for line in lines if line == "2" or line[:7] == "error: "]
    assert ends == ["error: ", "2"] * len(LATE), lines
