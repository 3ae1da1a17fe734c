"""Citations of methods' papers, from `recipes/methods.bib`."""

from __future__ import annotations

import re
from collections.abc import Iterable

from engine.recipe import catalogue

FILE = catalogue.ROOT / "methods.bib"
BENCHMARK = "benchmark"
_ENTRY = re.compile(r"^@\w+\{.*?^\}", re.DOTALL | re.MULTILINE)
_METHODS = re.compile(r"^  methods = \{(.*)\},\n", re.MULTILINE)  # a field of ours


def bibtex(methods: Iterable[str]) -> str:
    """BibTeX entries of the benchmark and of these method recipes' papers, if known."""
    wanted = {BENCHMARK, *methods}
    entries = _ENTRY.findall(FILE.read_text("utf-8"))
    return "\n\n".join(_METHODS.sub("", each) for each in entries if wanted & methods_of(each))


def methods_of(entry: str) -> set[str]:
    """The method recipes that an entry is the paper of."""
    named = _METHODS.search(entry)
    assert named is not None, entry
    return set(named[1].split(", "))
