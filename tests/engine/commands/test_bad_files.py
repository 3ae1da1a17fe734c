"""Files and trees that are none, or not what they seem: each command names them, and soon."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from endings import ended
from grids import VIT
from imagenet_trees import draw
from user_checkpoints import checkpoint

from engine import cli


def pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def listener(path: Path) -> Path:
    before = os.getcwd()
    os.chdir(path.parent)  # the path of a socket has at most 108 bytes
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(path.name)
    os.chdir(before)
    return path


def device(path: Path) -> Path:
    path.symlink_to("/dev/zero")
    return path


def endless(path: Path) -> Path:
    with path.open("wb") as file:
        file.truncate(1 << 40)  # sparse
    return path


@pytest.mark.parametrize("special", [pipe, listener, device, endless])
def test_a_file_that_is_none_is_named_and_not_read(special, folder, tmp_path):
    for suffix in ("yaml", "json", "py", "txt", "safetensors", "pth", "tar"):
        special(tmp_path / f"x.{suffix}")
    x, sets = str(tmp_path / "x"), str(folder / "images" / "few")
    evaluate = ["evaluate", "--arch", "test_vit", "--sets", sets, "--out", f"{x}.csv", "--models"]
    for command, *words in (
        (cli.main, "train", f"recipe={x}.yaml"),
        (cli.main, "train", "recipe=emoji/ewc", f"method.module={x}.py", "--print"),
        (cli.main, "train", "recipe=emoji/ewc", f"model={x}.yaml", "--print"),
        (cli.main, "campaign", f"{x}.yaml", "--dry-run"),
        (cli.main, "campaign", f"{folder}/shapes.yaml", f"dataset={x}.yaml", "--dry-run"),
        (cli.main, "metrics", f"{x}.yaml"),
        (cli.main, "plan", f"{x}.yaml"),
        (cli.main, *evaluate, f"{x}.pth"),
        (cli.main, *evaluate, f"{x}.safetensors"),
        (cli.main, *evaluate, f"{x}.safetensors", "--classes", f"{x}.txt"),
        (cli.main, *evaluate, f"{x}.safetensors", "--classes", f"{x}.json"),
        (cli.main, *evaluate[:-1], "--models", f"{x}.pth", "--sets", f"{x}.tar"),
        (cli.main, "encode", "imagenet_a", "--source", f"{x}.tar", "--model", "vit_tiny_random"),
    ):
        code, line = ended(command, words)
        if special is endless and words[-1] == "--print" and f"method.module={x}.py" in words:
            assert code == 0  # a user's file is not read where its recipe is only shown
            continue
        assert code == 2 and f"{x}." in line, line


def not_utf_8(root: Path) -> None:
    (root / os.fsdecode(b"\xff")).mkdir()
    draw(root / os.fsdecode(b"\xff") / "1.png", [0])


TREES: dict[str, tuple[Callable[[Path], object], str]] = {
    "pipe": (lambda root: pipe(root / "bar" / "1.png"), "neither a file nor a folder"),
    "no UTF-8": (not_utf_8, "is not UTF-8"),
    "a bomb": (
        lambda root: (root / "bar" / "1.ppm").write_bytes(b"P6 60000 60000 255\n"),
        "bar/1.ppm (ValueError: more than 89,478,485 pixels",
    ),
    "a class of 255 letters": (lambda root: draw(root / ("x" * 255) / "1.png", [0]), ""),
    "odd names": (lambda root: draw(root / "a{b}'\"\n:" / "1.png", [0]), "head lacks: 'a{b}"),
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("model") / "w.safetensors", seed=0, classes=2)


@pytest.mark.parametrize("name", TREES)
def test_a_tree_is_evaluated_or_named(name, weights, tmp_path):
    make, message = TREES[name]
    root = tmp_path / "few"
    draw(root / "bar" / "0.png", [0])
    make(root)
    (tmp_path / "classes.txt").write_text(f"bar\n{'x' * 255}\n")
    words = ["--models", str(weights), "--arch", VIT, "--sets", str(root), "--mask", "present"]
    words += ["--classes", f"{tmp_path}/classes.txt", "--out", f"{tmp_path}/out.csv"]
    code, line = ended(cli.main, ["evaluate", f"runs={tmp_path / 'runs'}", "device=cpu", *words])
    assert message in line and (code == 2) == bool(message)
