"""The sections of the report, a module each, in the order of the page."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.report.section import Section
    from engine.report.tables import Results

SECTIONS: tuple[Callable[[Results], Section | None], ...] = ()
