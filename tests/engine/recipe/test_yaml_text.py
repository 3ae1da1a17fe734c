"""YAML is read in bounded time: what would take for ever, or stands for too much, is refused."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import RecipeError
from engine.recipe import yaml_text

BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "anchors and aliases are not supported"),
        ("- {<<: {a: 1}}\n- {<<: 1, <<: 2}", "the key '<<' is repeated"),
        ("[" * 100_000, "nesting|more than 16 lists and mappings"),
        ("a: " + "1" * 5000, "is not valid YAML: Exceeds the limit"),
        ("a: !!python/object/apply:os.system [id]", "the tag .*os.system is not supported"),
        ("a: {b: {null: 3}}", "the key 'null' is not a string.* line 1, column 9"),
        ('a: "b\\0"', "a character that is not allowed in text"),
        ('a: "\\ud800"', "invalid Unicode|a character that is not allowed in text"),
    ],
)
def test_it_is_refused_soon_in_a_line_that_names_the_file(tmp_path, text, message):
    file = tmp_path / "x.yaml"
    file.write_text(text)
    started = time.monotonic()
    with pytest.raises(RecipeError, match=message) as caught:
        yaml_text.read_yaml(file)
    assert time.monotonic() - started < 10
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1_000", 1000),
        ("yes", True),
        ("~", None),
        ("2026-13-01", "2026-13-01"),
        ("1:30", "1:30"),
        ("010", "010"),
        ("'5'", "5"),
    ],
)
def test_a_value_is_a_number_or_a_text(text, value):
    read = yaml_text.parse_yaml(f"a: {text}", "x")["a"]
    assert read == value and type(read) is type(value)


WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), max_size=8)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**64), 2**64) | st.floats(allow_nan=False) | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=40, deadline=None)
@given(VALUES)
def test_what_is_written_is_read_as_it_was(values):
    text = yaml_text.dump(values)
    try:
        assert repr(yaml_text.parse_yaml(text, "x")) == repr(values)
    except RecipeError as error:
        assert "nested lists and mappings" in str(error)
