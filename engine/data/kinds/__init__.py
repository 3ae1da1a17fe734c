"""The kinds of data sets that `dataset.kind` names, one class a file. The engine asks a set's kind
about its images, and never which kind it is."""

from engine.data.kinds.base import Kind
from engine.data.kinds.emoji import Emoji
from engine.data.kinds.folder import Folder
from engine.data.kinds.imagenet import ImageNet
from engine.recipe.schema import DatasetRecipe

__all__ = ["Emoji", "Folder", "ImageNet", "Kind", "kind_of"]
KINDS: dict[str, type[Kind]] = {"emoji": Emoji, "folder": Folder, "imagenet": ImageNet}


def kind_of(dataset: DatasetRecipe) -> Kind:
    """The kind of a recipe's data set, which answers for the sets of this recipe."""
    return KINDS[dataset.kind](dataset)
