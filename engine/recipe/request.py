"""A user's request, from which all cells of a grid are resolved in the same way."""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass

from engine.recipe import catalogue, checks, resolve
from engine.recipe.catalogue import VARIANT
from engine.recipe.schema import Recipe


@dataclass(frozen=True)
class Request:
    """A recipe's name and the words that change it."""

    name: str
    overrides: tuple[str, ...] = ()

    def for_needs(self, cell: Recipe) -> Request:
        """The request by which the methods that a cell needs are resolved: in the cell's variant,
        whatever the campaign says of these methods' variants, and without the cell's options."""
        words, variant = (
            catalogue.without_options(self.overrides),
            f"{VARIANT}={cell.method.variant}",
        )
        return Request(self.name, tuple(words if variant in words[-1:] else [*words, variant]))

    @functools.cache  # noqa: B019  # a request lives as long as the process
    def recipe(self, method: str | None = None, downstream: str | None = None) -> Recipe:
        """The recipe of a cell, as `resolve.load`; the cells of a method on several sets differ in
        the set alone, and only the first is resolved from its layers."""
        first = _first_of_method.get((self, method)) if downstream is not None else None
        if first is not None:
            recipe = dataclasses.replace(first, downstream=downstream)
            checks.check(recipe)
            return recipe
        recipe = resolve.load(self.name, self.overrides, method=method, downstream=downstream)
        if downstream is not None:
            _first_of_method[self, method] = recipe
        return recipe


_first_of_method: dict[tuple[Request, str | None], Recipe] = {}
