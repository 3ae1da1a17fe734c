"""The kinds of datasets for `dataset.kind`, one class per file. The engine uses their methods and
never checks which kind a dataset is."""

from engine.data.kinds.base import Kind
from engine.data.kinds.emoji import Emoji
from engine.data.kinds.folder import Folder
from engine.data.kinds.imagenet import ImageNet
from engine.recipe.schema import DatasetRecipe

__all__ = ["Emoji", "Folder", "ImageNet", "Kind", "kind_of"]
KINDS: dict[str, type[Kind]] = {"emoji": Emoji, "folder": Folder, "imagenet": ImageNet}


def kind_of(dataset: DatasetRecipe) -> Kind:
    """The kind of a recipe's datasets."""
    return KINDS[dataset.kind](dataset)
