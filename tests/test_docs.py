"""What the documents name is there: files, recipes, options of commands."""

from __future__ import annotations

import importlib.metadata
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from engine import cli, recipe

ROOT = Path(__file__).parents[1]
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]


def commands(program: str) -> Iterator[str]:
    """What follows `program` in the lines of all code blocks, a trailing comment cut off."""
    for document in DOCUMENTS:
        for block in re.findall(r"^```(?:\w*)\n(.*?)^```", document.read_text(), re.M | re.S):
            for line in block.replace("\\\n", " ").splitlines():
                if match := re.search(rf"(?:^|\s)(?:{program})\s+(.*)", line.partition(" # ")[0]):
                    yield match[1].strip()


RIB = sorted({line for line in commands("^rib")})
LAUNCHED = sorted({line for line in commands(r"engine/launch\.py|^rib train")})


@pytest.mark.parametrize("line", RIB)
def test_commands_in_the_documents_parse(line: str) -> None:
    words = shlex.split(line)
    arguments = cli.parse(words)
    if words[0] == "campaign":
        recipe.outline(arguments.name, arguments.overrides)


@pytest.mark.parametrize("line", LAUNCHED)
def test_cells_in_the_documents_resolve(line: str) -> None:
    words = shlex.split(line)
    names = [word.partition("=")[2] for word in words if word.startswith("recipe=")]
    for name in filter(lambda name: name and name != "NAME", names):
        recipe.outline(name, [word for word in words if not word.startswith("recipe=")])


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
