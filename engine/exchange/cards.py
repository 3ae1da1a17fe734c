"""Cards, README.md with metadata, as the Hugging Face Hub reads them. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import jinja2
from huggingface_hub import CardData

from engine.recipe import catalogue
from loaders.files.names import one_line

CARD = "README.md"


def render_card(template: str, metadata: CardData, methods: Iterable[str], **values: object) -> str:
    """The card of a template in this folder, with citations of methods."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        trim_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"line": one_line, "table": _table}
    return environment.get_template(template).render(
        metadata=metadata.to_yaml(), bibtex=catalogue.bibtex(methods), **values
    )


def _table(rows: Sequence[Sequence[str]], heads: Sequence[str]) -> str:
    """A Markdown table. rows, heads: texts of the cells."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(
        f"| {' | '.join(one_line(cell).replace('|', '/') for cell in row)} |" for row in lines
    )
