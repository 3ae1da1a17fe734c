"""The papers of methods, as `recipes/methods.bib` holds them."""

from __future__ import annotations

import re
from collections.abc import Iterable

from engine.recipe import catalogue

FILE = catalogue.ROOT / "methods.bib"
BENCHMARK = "benchmark"
_ENTRY = re.compile(r"^@\w+\{.*?^\}", re.DOTALL | re.MULTILINE)
_METHODS = re.compile(r"^  methods = \{(.*)\},\n", re.MULTILINE)  # no field of BibTeX's


def bibtex(methods: Iterable[str]) -> str:
    """BibTeX of the benchmark and of the papers of these recipes; of others there is none."""
    wanted = {BENCHMARK, *methods}
    entries = _ENTRY.findall(FILE.read_text("utf-8"))
    return "\n\n".join(_METHODS.sub("", each) for each in entries if wanted & methods_of(each))


def methods_of(entry: str) -> set[str]:
    """The recipes that an entry of the file is the paper of."""
    named = _METHODS.search(entry)
    assert named is not None, entry
    return set(named[1].split(", "))
