"""Whose artwork and weights these are, and under which licences."""

from __future__ import annotations

import pandas

from engine.report.section import Section, Table
from engine.report.tables import Results


def section(results: Results) -> Section | None:
    if not results.record.credits:
        return None
    data = pandas.DataFrame(results.record.credits)
    table = Table("credits", "Sources, authors and licences.", data)
    return Section("credits", "Credits", tables=[table])
