"""Files and trees that are none, or not what they seem, recipes and words with values or letters
changed at random: each command works, or a line says why, and soon."""

import copy
import functools
import operator
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import cli
from helpers.endings import ended
from helpers.grids import VIT
from helpers.imagenet_trees import draw
from helpers.user_checkpoints import checkpoint

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
VALUES: list[Any] = [
    *(None, True, "", " ", "x" * 9000, "a\nb", "a/b", "..", "é\U0001f600", "${seed}", "{a: b}"),
    *(-1, 0, 999_999, 10**30, 10**400, 1e308, float("inf"), float("nan"), "1e-5", "1_000", "0x10"),
    *([], {}, [[]], [None], [1, [2]], {"a": {"b": []}}, {"name": 1}, ["a"] * 2000, "x.py"),
    *({str(number): number for number in range(300)}, "/dev/zero", "x.yaml", "\0", "\ud800"),
]


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


def places(values: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value."""
    if at:
        yield at
    listed = enumerate(values) if isinstance(values, list) else ()
    for key, value in values.items() if isinstance(values, dict) else listed:
        yield from places(value, (*at, key))


PLACES = list(places(RECIPE))
MANY = settings(max_examples=20, derandomize=True)


def with_value(place: tuple[Any, ...], value: Any) -> dict[str, Any]:
    recipe = copy.deepcopy(RECIPE)
    functools.reduce(operator.getitem, place[:-1], recipe)[place[-1]] = value
    return recipe


def resolves_or_says_why(text: bytes) -> None:
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "recipe.yaml"
        file.write_bytes(text)
        ended(cli.main, ["train", f"recipe={file}", "--print"])
        ended(cli.main, ["report", str(file), f"runs={place}"])


@pytest.mark.slow
@MANY
@given(st.sampled_from(PLACES), st.sampled_from(VALUES))
def test_a_value_of_another_kind(place, value):
    text = yaml.safe_dump(with_value(place, value), allow_unicode=True)
    resolves_or_says_why(text.encode(errors="surrogatepass"))


@pytest.mark.slow
@MANY
@given(st.data())
def test_a_recipe_with_letters_changed(data):
    text = yaml.safe_dump(RECIPE)
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 40)))
    junk = data.draw(st.text("[]{}&*!|>-:,#'\"%@\t\n\\ a1é", max_size=30))
    times = data.draw(st.integers(1, 500))
    resolves_or_says_why((text[:start] + junk * times + text[end:]).encode())


@pytest.mark.slow
@MANY
@given(st.sampled_from(PLACES), st.sampled_from(VALUES), st.sampled_from([".", "..", "[", "="]))
def test_a_word_of_the_command_line(place, value, dot):
    word = f"{dot.join(map(str, place))}={value}".replace("\0", "\1")
    ended(cli.main, ["train", "recipe=emoji/ewc", word, "--print"])
    ended(cli.main, ["report", "emoji", word, "runs=/nowhere"])
