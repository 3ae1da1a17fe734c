"""What the documents name is there: files, recipes, options of commands."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files(document: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)", document.read_text())
    places = [document.parent / link for link in links if "://" not in link]
    assert not [str(place) for place in places if not place.exists()]


def test_every_document_is_in_the_site() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    missing = [path.name for path in (ROOT / "docs").glob("*.md") if path.name not in navigation]
    assert not missing


def test_every_requirement_is_pinned_but_those_that_fit_the_machine() -> None:
    texts = importlib.metadata.requires("rib-engine") or []
    needed = [line for line in map(Requirement, texts) if "bench" not in str(line.marker)]
    names = {canonicalize_name(requirement.name) for requirement in needed}
    lines = (ROOT / "constraints.txt").read_text().split()
    pinned = {canonicalize_name(line.partition("==")[0]) for line in lines}
    assert names - pinned <= {"torch", "torchvision", "triton", "onnx"}
