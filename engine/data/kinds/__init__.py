"""The kinds of datasets, one file each, found by name. `base` defines the interface.

The engine uses their methods and never checks which kind a dataset is.
"""

from __future__ import annotations

from engine.data.kinds.base import Kind
from engine.data.kinds.users import Users
from engine.recipe import kinds
from engine.recipe.modules import is_users
from engine.recipe.schema import DatasetRecipe


def kind_of(benchmark: DatasetRecipe, name: str, *, run_users: bool = False) -> Kind:
    """One dataset of a benchmark. run_users: permission to run a user's file that reads images."""
    dataset = kinds.of_set(benchmark, name)
    if is_users(dataset.kind):
        return Users(dataset, name, run_users)
    module = kinds.find(dataset.kind)
    assert isinstance(dataset, module.Recipe), (dataset.kind, type(dataset))
    return module.Kind(dataset, name)
