"""Folders of images as sets: which images of several sets count as copies of one."""

from __future__ import annotations

from pathlib import Path

import pytest
from imagenet_trees import draw

from engine.data import packs
from engine.recipe.schema import DatasetRecipe


def test_images_of_the_same_name_in_two_sets_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for place in ("a/dog/000.png", "a/cat/1.png", "b/dog/000.png", "b/cat/2.png", "c/dog/9.png"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        draw(tmp_path / place, [0])
    dataset = DatasetRecipe(
        name="mine", kind="folder", root=str(tmp_path), upstream="a", sets=["b", "c", "missing"]
    )
    for name in ("a", "b", "c"):
        packs.LISTED["folder"](dataset, name, tmp_path)
    (record,) = caplog.records
    assert record.getMessage() == (
        "b: images have the class and file name of images in a (1), such as dog/000; they count as "
        "copies of one source image, so rename them if they are not"
    )
