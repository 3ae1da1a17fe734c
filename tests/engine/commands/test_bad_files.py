"""Files and trees that are none, or not what they seem: each command names them, and soon."""

import os
from pathlib import Path

import pytest

from engine import cli
from helpers.endings import ended
from helpers.grids import VIT
from helpers.imagenet_trees import draw
from helpers.user_checkpoints import checkpoint


def pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def device(path: Path) -> Path:
    path.symlink_to("/dev/zero")
    return path


def endless(path: Path) -> Path:
    with path.open("wb") as file:
        file.truncate(1 << 40)  # sparse
    return path


@pytest.mark.parametrize("special", [pipe, device, endless])
def test_a_file_that_is_none_is_named_and_not_read(special, folder, tmp_path):
    for suffix in ("yaml", "json", "py", "txt", "safetensors", "pth", "tar", "jsonl", "parquet"):
        special(tmp_path / f"x.{suffix}")
    x, sets = str(tmp_path / "x"), str(folder / "images" / "few")
    evaluate = ["evaluate", "--arch", "test_vit", "--sets", sets, "--out", f"{x}.csv", "--models"]
    for words in (
        ("train", f"recipe={x}.yaml"),
        ("train", "recipe=emoji/ewc", f"method.module={x}.py", "--print"),
        ("train", "recipe=emoji/ewc", f"model={x}.yaml", "--print"),
        ("campaign", f"{x}.yaml", "--dry-run"),
        ("campaign", f"{folder}/shapes.yaml", f"dataset={x}.yaml", "--dry-run"),
        ("report", f"{x}.yaml"),
        ("plan", f"{x}.yaml"),
        ("compare", f"{x}.jsonl", f"{x}.parquet"),
        ("compare", f"{x}.parquet", f"{x}.jsonl"),
        (*evaluate, f"{x}.pth"),
        (*evaluate, f"{x}.safetensors"),
        (*evaluate, f"{x}.safetensors", "--classes", f"{x}.txt"),
        (*evaluate, f"{x}.safetensors", "--classes", f"{x}.json"),
        (*evaluate[:-1], "--models", f"{x}.pth", "--sets", f"{x}.tar"),
        ("encode", "imagenet_a", "--images", f"{x}.tar", "--model", "vit_tiny_random"),
    ):
        code, line = ended(cli.main, words)
        if special is endless and words[-1] == "--print" and f"method.module={x}.py" in words:
            assert code == 0  # a user's file is not read where its recipe is only shown
            continue
        assert code == 2 and f"{x}." in line, line


@pytest.mark.parametrize(
    ("name", "message"), [("x" * 255, ""), ("a{b}'\"\n:", "head lacks: 'a{b}")]
)
def test_a_class_of_any_name_is_evaluated_or_named(name, message, tmp_path):
    weights = checkpoint(tmp_path / "w.safetensors", seed=0, classes=2)
    root = tmp_path / "few"
    for place in ("bar", name):
        draw(root / place / "0.png", [0])
    (tmp_path / "classes.txt").write_text(f"bar\n{'x' * 255}\n")
    words = ["--models", str(weights), "--arch", VIT, "--sets", str(root), "--mask", "present"]
    words += ["--classes", f"{tmp_path}/classes.txt", "--out", f"{tmp_path}/out.csv"]
    code, line = ended(cli.main, ["evaluate", f"runs={tmp_path / 'runs'}", "device=cpu", *words])
    assert message in line and (code == 2) == bool(message)
