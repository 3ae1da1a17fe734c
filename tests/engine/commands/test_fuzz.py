"""Recipes and words with values or letters changed at random: they work, or a line says why."""

import copy
import functools
import operator
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


def places(values: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value."""
    if at:
        yield at
    listed = enumerate(values) if isinstance(values, list) else ()
    for key, value in values.items() if isinstance(values, dict) else listed:
        yield from places(value, (*at, key))


PLACES = list(places(RECIPE))
MANY = settings(max_examples=20, derandomize=True)
pytestmark = pytest.mark.slow


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


@MANY
@given(st.sampled_from(PLACES), st.sampled_from(VALUES))
def test_a_value_of_another_kind(place, value):
    text = yaml.safe_dump(with_value(place, value), allow_unicode=True)
    resolves_or_says_why(text.encode(errors="surrogatepass"))


@MANY
@given(st.data())
def test_a_recipe_with_letters_changed(data):
    text = yaml.safe_dump(RECIPE)
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 40)))
    junk = data.draw(st.text("[]{}&*!|>-:,#'\"%@\t\n\\ a1é", max_size=30))
    times = data.draw(st.integers(1, 500))
    resolves_or_says_why((text[:start] + junk * times + text[end:]).encode())


@MANY
@given(st.sampled_from(PLACES), st.sampled_from(VALUES), st.sampled_from([".", "..", "[", "="]))
def test_a_word_of_the_command_line(place, value, dot):
    word = f"{dot.join(map(str, place))}={value}".replace("\0", "\1")
    ended(cli.main, ["train", "recipe=emoji/ewc", word, "--print"])
    ended(cli.main, ["report", "emoji", word, "runs=/nowhere"])
