"""The file of `dataset.class_names`: what CLIP's text tower reads for a class."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from engine.did_you_mean import closest
from engine.errors import RecipeError
from engine.machine.files import read_csv_rows


def read_words(path: Path, classes: Collection[str] = ()) -> dict[str, str]:
    """The words of each class that the file names.

    classes: those that it may name; empty if they are unknown. Raises RecipeError, naming file and
    line, for another class, a class given twice or without words, and as `read_csv_rows`.
    """
    words: dict[str, str] = {}
    for line, row in read_csv_rows(path, "class,name", "dataset.class_names"):
        if fault := _fault(row, words, classes):
            raise RecipeError(f"{path}, line {line}: {fault}")
        name, of_class = row
        words[name] = of_class.strip()
    return words


def _fault(row: Sequence[str], before: Collection[str], classes: Collection[str]) -> str:
    """What is wrong with a row after the classes `before`; empty if nothing is."""
    if len(row) != 2:
        return "write a class and its words, as in `wren,Eurasian wren`"
    name, words = row
    if not words.strip():
        return f"{name!r} has no words: write some, or leave the line out"
    if name in before:
        return f"{name!r} is given twice: leave one of the lines out"
    if classes and name not in classes:
        close = closest(name, classes)
        return f"the model's head has no class {name!r}{f' (is it {close!r}?)' if close else ''}"
    return ""
