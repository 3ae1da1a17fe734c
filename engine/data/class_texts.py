"""What CLIP's text tower reads of a head's classes: words and templates of the benchmark.

Without words in `dataset.words`, a class of ImageNet-1K has OpenAI's, and any other class its own
name, with `_` read as a space.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from engine.data import imagenet
from engine.models.zero_shot import ClassTexts, imagenets_texts
from engine.recipe.schema import Recipe
from engine.recipe.words import read_words

log = logging.getLogger(__name__)
TEMPLATES = ("a photo of a {}.",)  # for other classes than ImageNet's


def class_texts(recipe: Recipe, classes: Sequence[str]) -> ClassTexts:
    """The texts of a head's classes, in order. Logs which classes are read by their names.

    Raises RecipeError as `read_words`.
    """
    dataset, of_imagenet = recipe.dataset, imagenets_texts(recipe.model.weights)
    known = dict(zip(imagenet.wnids(), of_imagenet.words, strict=True))
    templates = of_imagenet.templates if known.keys() >= set(classes) else TEMPLATES
    if dataset.words:
        known |= read_words(Path(dataset.words), classes)
    if unnamed := [name for name in classes if name not in known]:
        log.info(
            "CLIP reads %d of %d classes by their names, such as %s: dataset.words=FILE sets words",
            len(unnamed),
            len(classes),
            unnamed[0],
        )
    words = tuple(known.get(name, name.replace("_", " ")) for name in classes)
    return ClassTexts(words, tuple(dataset.templates) or templates)
