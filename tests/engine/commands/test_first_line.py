"""A command says what it does before it imports what takes seconds."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import grids
import pytest

ROOT = Path(__file__).resolve().parents[3]


def ended(folder: Path, module: str, words: Sequence[str]) -> tuple[int, list[str]]:
    """Exit code and error lines where the import of torch ends the program."""
    (folder / "torch.py").write_text("raise SystemExit(7)\n")
    environment = grids.environment() | {"PYTHONPATH": f"{folder}:{ROOT}", "RANK": ""}
    del environment["RANK"]
    command = [sys.executable, "-m", module, *words, f"runs={folder}"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    return done.returncode, done.stderr.splitlines()


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["campaign", "emoji"], "reading the campaign emoji ..."),
        (["plan", "emoji"], "counting the operations of emoji ..."),
        (["train", "recipe=emoji/ewc"], "reading the recipe emoji/ewc ..."),
    ],
)
def test_a_line_comes_before_torch(words: list[str], line: str, tmp_path: Path) -> None:
    assert ended(tmp_path, "engine.cli", words) == (7, [line])


@pytest.mark.parametrize("module", ["engine.cli", "engine.launch"])
def test_most_mistakes_are_told_without_torch(module: str, tmp_path: Path) -> None:
    start = ["train"] * (module == "engine.cli")
    code, (line,) = ended(tmp_path, module, [*start, "recipe=emoji/ewc", "train.epoch=1"])
    assert code == 2 and line.startswith("error: ") and "unknown key 'train.epoch'" in line


LATE = {
    "encode imagenet_a --source /nowhere --model resnet18": "--source /nowhere: there is no such",
    "encode imagenet_q --source / --model resnet18": "'imagenet_q' is no set of ImageNet-RIB",
    "download imagenet_a --to x": "add --accept to accept these terms",
    "download imagenet_q --to x": "there is no source of 'imagenet_q'",
    "export emoji --method soup --out new": "holds no finished run of emoji",
    "evaluate --models / --sets /nowhere": "--sets: there is no /nowhere",
    "evaluate --models /nowhere --sets /tmp": "--models: there is no /nowhere",
    "distance twemojis": "'twemojis' is no set of emoji; did you mean 'twemoji'?",
    "report a=b": "there is no campaign 'a=b'",
    "campaign a=b/c.yaml --dry-run": "there is no recipe file a=b/c.yaml",
}


def test_arguments_are_checked_before_torch(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom engine import cli\n"
        "for words in sys.argv[1:]: print(cli.main(words.split()), file=sys.stderr)"
    )
    (tmp_path / "torch.py").write_text("raise SystemExit(7)\n")
    done = subprocess.run(
        [sys.executable, "-c", code, *LATE], cwd=tmp_path,
        env={"PYTHONPATH": f"{tmp_path}:{ROOT}"},
        capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=60,
    )  # fmt: skip
    errors = [line for line in done.stderr.splitlines() if line == "2" or line[:7] == "error: "]
    assert errors[1::2] == ["2"] * len(LATE), done.stderr
    for error, message in zip(errors[::2], LATE.values(), strict=True):
        assert message in error


def test_a_campaign_is_planned_without_torch() -> None:
    """And without numbers: what a row needs stands beside its options."""
    code = (
        "import sys\nfrom engine.grid import campaign\nplan = campaign.plan('emoji', (), 1)\n"
        "print(*plan.rows['soup'].needs, {'torch', 'timm', 'pandas'} & {*sys.modules})"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "fine_tune ewc lwf set()"
