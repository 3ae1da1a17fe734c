"""Whatever a stranger's file or word is: a command ends soon, with a single clear line, or works."""

from __future__ import annotations

import copy
import io
import itertools
import os
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import campaigns
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from grids import VIT
from imagenet_trees import draw
from own_checkpoints import checkpoint

from engine import cli
from engine.commands import train

folder = campaigns.folder
LIMIT_S = 10
RECIPE: dict[str, Any] = {
    "model": {
        "name": "tiny",
        "arch": "test_vit",
        "image_size": 32,
        "mean": [0.5, 0.5, 0.5],
        "weights": {"source": "random"},
        "head": {"fit": True},
        "published": {"a": 1.5},
    },
    "dataset": {"name": "shapes", "kind": "folder", "root": "images", "sets": ["a", "b"]},
    "downstream": "a",
    "optimizer": {"name": "sgd", "lr": 0.02, "betas": [0.9, 0.99]},
    "train": {"epochs": 2, "batch_size": 12},
    "evaluate": {"split": "holdout"},
    "methods": {"fine_tune": {}, "ewc": {"method": {"lam": 2.0}}, "soup": {}},
}


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Fail what takes longer."""

    def late(number: int, frame: object) -> None:
        raise AssertionError(f"it took more than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def ended(command: Callable[[list[str]], int], words: Sequence[str]) -> tuple[int, str]:
    """Exit code and error line of a command; fails unless it ends as every command should."""
    out, err = io.StringIO(), io.StringIO()
    with at_most(LIMIT_S), redirect_stdout(out), redirect_stderr(err):
        try:
            code = command([*words])
        except SystemExit as end:  # argparse's
            code = int(end.code or 0)
    lines = [line for line in err.getvalue().splitlines() if "error: " in line]
    assert code in (0, 2) and len(lines) == (code == 2), (words, code, err.getvalue())
    assert "Traceback" not in err.getvalue()
    return code, "".join(lines)


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
def test_a_file_that_is_none_is_named_and_not_read(
    special: Callable[[Path], Path], folder: Path, tmp_path: Path
) -> None:
    for suffix in ("yaml", "json", "py", "txt", "safetensors", "pth", "tar"):
        special(tmp_path / f"x.{suffix}")
    x, sets = str(tmp_path / "x"), str(folder / "images" / "few")
    evaluate = ["evaluate", "--arch", "test_vit", "--sets", sets, "--out", f"{x}.csv", "--models"]
    weights = ["model.weights.source=file", f"model.weights.path={x}.pth"]
    for command, *words in (
        (train.launch, f"recipe={x}.yaml"),
        (train.launch, "recipe=emoji/ewc", f"method.module={x}.py", "--print"),
        (train.launch, "recipe=emoji/ewc", f"model={x}.yaml", "--print"),
        (train.launch, f"recipe={folder}/shapes.yaml", f"runs={x}", *weights),
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
        assert code == 2 and f"{x}." in line, line


def deep(root: Path) -> None:
    before = os.getcwd()
    os.chdir(root / "bar")
    for _ in range(300):  # more than 900, and shutil could not remove them again
        os.mkdir("d")
        os.chdir("d")
    os.chdir(before)


def not_utf_8(root: Path) -> None:
    (root / os.fsdecode(b"\xff")).mkdir()
    draw(root / os.fsdecode(b"\xff") / "1.png", [0])


TREES: dict[str, tuple[Callable[[Path], object], str]] = {
    "pipe": (lambda root: pipe(root / "bar" / "1.png"), "neither a file nor a folder"),
    "pipe as a class": (lambda root: pipe(root / "emu"), "neither a file nor a folder"),
    "socket": (lambda root: listener(root / "bar" / "1.png"), "neither a file nor a folder"),
    "device": (lambda root: device(root / "bar" / "1.png"), "neither a file nor a folder"),
    "a sparse image": (lambda root: endless(root / "bar" / "1.png"), "too many for an image"),
    "300 folders": (deep, "more than 64 folders deep"),
    "no UTF-8": (not_utf_8, "is not UTF-8"),
    "a loop": (lambda root: (root / "bar" / "up").symlink_to(root), "is read already"),
    "a bomb": (
        lambda root: (root / "bar" / "1.ppm").write_bytes(b"P6 60000 60000 255\n"),
        "bar/1.ppm (ValueError: more than 89,478,485 pixels",
    ),
    "a class of 255 letters": (lambda root: draw(root / ("x" * 255) / "1.png", [0]), ""),
    "odd names": (lambda root: draw(root / "a{b}'\"\n:" / "1.png", [0]), "head lacks: 'a{b}"),
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("model") / "w.safetensors", seed=0, classes=2)


@pytest.mark.parametrize("name", TREES)
def test_a_tree_is_evaluated_or_named(name: str, weights: Path, tmp_path: Path) -> None:
    make, message = TREES[name]
    root = tmp_path / "few"
    draw(root / "bar" / "0.png", [0])
    make(root)
    (tmp_path / "classes.txt").write_text(f"bar\n{'x' * 255}\n")
    words = ["--models", str(weights), "--arch", VIT, "--sets", str(root), "--mask", "present"]
    words += ["--classes", f"{tmp_path}/classes.txt", "--out", f"{tmp_path}/out.csv"]
    code, line = ended(cli.main, ["evaluate", f"runs={tmp_path / 'runs'}", "device=cpu", *words])
    assert message in line and (code == 2) == bool(message)


VALUES: list[Any] = [
    *(None, True, "", " ", "x" * 9000, "a\nb", "a/b", "..", "é\U0001f600", "${seed}", "{a: b}", "~"),
    *(-1, 0, 999_999, 10**30, 10**400, 1e308, float("inf"), float("nan"), "1e-5", "1_000", "0x10"),
    *([], {}, [[]], [None], [1, [2]], {"a": {"b": []}}, {"name": 1}, ["a"] * 2000, "x.py", "x.yaml"),
    *({str(number): number for number in range(300)}, "/dev/zero", "/dev/zero.yaml", "\0", "\ud800"),
]


def places(values: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value."""
    inside = values.items() if isinstance(values, dict) else enumerate(values)
    return [at] * bool(at) + [
        place
        for key, value in (inside if isinstance(values, dict | list) else ())
        for place in (places(value, (*at, key)) if isinstance(value, dict | list) else [(*at, key)])
    ]


PLACES = places(RECIPE)
numbers = itertools.count()


def with_value(place: tuple[Any, ...], value: Any) -> dict[str, Any]:
    recipe = copy.deepcopy(RECIPE)
    section: Any = recipe
    for key in place[:-1]:
        section = section[key]
    section[place[-1]] = value
    return recipe


def resolves_or_says_why(text: bytes) -> None:
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / f"recipe{next(numbers)}.yaml"  # a request is resolved once a process
        file.write_bytes(text)
        for command, *words in (
            (train.launch, f"recipe={file}", "--print"),
            (cli.main, "metrics", str(file), f"runs={place}"),
        ):
            ended(command, words)


MANY = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)


@pytest.mark.slow
@MANY
@given(st.sampled_from(PLACES), st.sampled_from(VALUES))
def test_a_value_of_another_kind(place: tuple[Any, ...], value: Any) -> None:
    text = yaml.safe_dump(with_value(place, value), allow_unicode=True)
    resolves_or_says_why(text.encode(errors="surrogatepass"))


@pytest.mark.slow
@MANY
@given(st.data())
def test_a_recipe_with_letters_changed(data: st.DataObject) -> None:
    text = yaml.safe_dump(RECIPE)
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 40)))
    junk = data.draw(st.text("[]{}&*!|>-:,#'\"%@\t\n\\ a1é", max_size=30))
    resolves_or_says_why((text[:start] + junk * data.draw(st.integers(1, 500)) + text[end:]).encode())


@pytest.mark.slow
@MANY
@given(st.sampled_from(PLACES), st.sampled_from(VALUES), st.sampled_from([".", "..", "[", "="]))
def test_a_word_of_the_command_line(place: tuple[Any, ...], value: Any, dot: str) -> None:
    word = f"{dot.join(map(str, place))}={value}".replace("\0", "\1")
    ended(train.launch, ["recipe=emoji/ewc", word, "--print"])
    ended(cli.main, ["metrics", "emoji", word, "runs=/nowhere"])
