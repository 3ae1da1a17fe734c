"""Options of Lipsum-FT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

from msgspec import Meta

from engine.methods.beyond.options import flyp
from engine.recipe.schema import NotNegative, Number, searched


@dataclass(frozen=True)
class Recipe(flyp.OfCLIP):
    stored_passes: ClassVar[float] = 1.0
    networks = ("network without head",)

    weight: NotNegative = searched(1.0, 10)  # of the regularizer on the energy of random texts
    texts: Number = 80  # per step
    tokens: Annotated[int, Meta(ge=1, le=70)] = 8  # per text, without start and end tokens
