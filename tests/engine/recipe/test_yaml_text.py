"""YAML is read in bounded time: what would take for ever, or stands for too much, is refused."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import RecipeError
from engine.recipe import yaml_text
from loaders.files import MOST

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)
MERGE_BOMB = "a0: &a0 {x: 1}\n" + "".join(
    f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "more than 100,000 values"),
        (MERGE_BOMB, "more than 100,000 values"),
        ("a: &a [1, *a]", r"\*a stands inside &a itself"),
        ("a: &a {b: {c: *a}}", r"\*a stands inside &a itself"),
        ("a: *b", "undefined alias"),
        ("[" * 100_000, "more than 16 lists and mappings"),
        ("a: " + "{a: " * 100_000, "more than 16 lists and mappings"),
        ("- " * 100_000, "more than 16 lists and mappings"),
        ("a: " + "1" * 5000, "is not valid YAML: Exceeds the limit"),
        ("a: " + "1:" * 6000 + "1", "more than 10,000 characters"),
        ("a: !!python/object/apply:os.system [id]", "could not determine a constructor"),
        ("a: !!binary aGVsbG8=", "neither text nor a number"),
        ("a: !!set {b, c}", "neither text nor a number"),
        ("1: a", "the key 1 of the file is no text"),
        ("a: {b: {null: 3}}", "the key None of a.b is no text"),
        ("{[a]: b}", "is not valid YAML"),
        ("a: [x, '${oc.env:HOME}']", r"a: `\$\{...\}` is not resolved"),
        ("a: \x00", "is not valid YAML"),
        ('a: "b\\0"', "a: a character that stands in no text"),
        ('a: "\\ud800"', "a: a character that stands in no text"),
        ("a: {b: -0x" + "f" * 9000 + "}", r"a\.b: a number of more than 64 bits"),
        ("a: {b: 1, c: 2, b: 1}", "the key 'b' stands twice"),
    ],
)
def test_it_is_refused_soon_in_a_line_that_names_the_file(
    tmp_path: Path, text: str, message: str
) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(text)
    started = time.monotonic()
    with pytest.raises(RecipeError, match=message) as caught:
        yaml_text.read(file)
    assert time.monotonic() - started < 10
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_no_small_file_is_refused_unread(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.yaml"
    os.mkfifo(pipe)
    with (tmp_path / "large.yaml").open("wb") as file:
        file.truncate(1 << 40)  # sparse
    for path, message in (
        (pipe, "pipe.yaml is a pipe, a device or a folder, not a file"),
        (Path("/dev/zero"), "/dev/zero is a pipe"),
        (tmp_path, "not a file"),
        (tmp_path / "large.yaml", f"large.yaml has more than {MOST:,} bytes"),
    ):
        with pytest.raises(RecipeError, match=message):
            yaml_text.read(path)


def test_aliases_and_dates_are_plain_values() -> None:
    text = "a: &a {b: [1, 2.5, true, null]}\nc: *a\nd: {<<: *a, e: 2026-13-01}"
    shared = {"b": [1, 2.5, True, None]}
    expected = {"a": shared, "c": shared, "d": {**shared, "e": "2026-13-01"}}
    assert yaml_text.parse(text, "x") == expected


WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**64), 2**64) | st.floats(allow_nan=False) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=40, deadline=None)
@given(VALUES)
def test_what_yaml_writes_is_read_as_pyyaml_reads_it(values: object) -> None:
    text = yaml.safe_dump(values, allow_unicode=True)
    if "${" in text:
        return
    try:
        assert yaml_text.parse(text, "x") == values
    except RecipeError as error:
        assert "lists and mappings inside each other" in str(error)
