"""What the sets look like."""

from __future__ import annotations

import base64

from engine.report.section import Picture, Section
from engine.report.tables import Results


def section(results: Results) -> Section | None:
    png = base64.b64decode(results.record.contact_sheet)
    if not png:
        return None
    alt = f"Samples of {results.record.upstream} and {', '.join(results.record.sets)}"
    return Section(
        "contact-sheet",
        "What the sets look like",
        "Images of every set, of the size that the models see.",
        pictures=[Picture(f"Contact sheet. {alt}.", png)],
    )
