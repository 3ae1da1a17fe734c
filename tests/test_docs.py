"""What the documents name is there: files, recipes, options of commands."""

import importlib.metadata
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from bench import reference
from engine import cli
from engine.commands import arguments
from engine.recipe.resolve import load_recipe

ROOT = Path(__file__).parents[1]
DOCUMENTS = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]


def texts() -> Iterator[tuple[str, str]]:
    """Of each document, its code blocks, and the text around them."""
    for document in DOCUMENTS:
        text = document.read_text()
        blocks = re.findall(r"^```(?:\w*)\n(.*?)^```", text, re.M | re.S)
        rest = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
        yield "".join(blocks).replace("\\\n", " "), rest


def commands(program: str) -> list[str]:
    """What follows `program` in the lines of code blocks; a trailing comment and the file that
    takes the output are cut off."""
    lines = [re.split(r" # | > ", line)[0] for block, _ in texts() for line in block.splitlines()]
    found = (re.search(rf"(?:^|\s)(?:{program})\s+(.*)", line) for line in lines)
    return sorted({match[1].strip() for match in found if match})


def mentions() -> list[str]:
    """What follows `rib` in words that the text sets as code."""
    codes = (" ".join(code.split()) for _, text in texts() for code in re.findall("`(.+?)`", text))
    return sorted({code.removeprefix("rib ") for code in codes if code.startswith("rib ")})


USERS_FILE = re.compile(r"\b\w+\.yaml")
LAUNCHED = [f"train {words}" for words in commands(r"engine/launch\.py")]


@pytest.mark.parametrize("line", [*commands("^rib"), *LAUNCHED])
def test_commands_in_the_documents_parse_and_their_recipes_resolve(line, monkeypatch):
    for check in ("existing_folder", "existing_path", "existing_images"):
        monkeypatch.setattr(arguments, check, Path)  # the files are the reader's
    parsed = cli.parse(shlex.split(line))
    name = getattr(parsed, "name", "")
    if line.startswith("train "):
        name = next(iter(parsed.words), "").removeprefix("recipe=")
    is_ready_made = name not in ("", "NAME") and not USERS_FILE.search(line)
    if line.startswith(("train ", "campaign ")) and is_ready_made:
        load_recipe(name, parsed.overrides)


@pytest.mark.parametrize("line", mentions())
def test_commands_in_the_text_have_such_options(line):
    name, *words = line.split()
    known = arguments.build_parser([name])[1][name].format_help()
    assert all(word in known for word in words if word.startswith("--"))


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files_and_documents_are_in_the_site(document):
    links = re.findall(r"\]\(([^)#\s]+)", document.read_text())
    places = [document.parent / link for link in links if "://" not in link]
    assert not [str(place) for place in places if not place.exists()]
    navigation = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    assert document.parent == ROOT or document.name in navigation


@pytest.mark.slow
def test_every_key_and_argument_of_the_reference_has_a_meaning():
    rows = [line for text in reference.pages().values() for line in text.splitlines()]
    keys = [line for line in rows if line.startswith("| `")]
    assert len(keys) > 250
    assert not [line for line in keys if line.endswith(("|  |", "||"))]


@pytest.mark.slow
def test_the_reference_is_of_todays_code():
    committed = {path.name: path.read_text("utf-8") for path in reference.PAGES.iterdir()}
    assert committed == reference.pages(), "run `make docs` and commit docs/reference"


def test_every_requirement_is_pinned_but_those_that_fit_the_machine():
    texts = importlib.metadata.requires("rib-engine") or []
    needed = [line for line in map(Requirement, texts) if "bench" not in str(line.marker)]
    names = {canonicalize_name(requirement.name) for requirement in needed}
    lines = (ROOT / "constraints.txt").read_text().split()
    pinned = {canonicalize_name(line.partition("==")[0]) for line in lines}
    assert names - pinned <= {"torch", "torchvision", "triton", "onnx"}


def test_targets_of_make_in_the_documents_are_there():
    named = set[str]()
    for block, text in texts():
        named.update(re.findall(r"^make ([a-z0-9-]+)", block, re.M))
        named.update(re.findall("`make ([a-z0-9-]+)", text))
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert named <= targets, named - targets


def test_the_table_of_helpers_has_a_row_for_each_module():
    helpers = ROOT / "tests" / "helpers"
    rows = re.findall(r"^\| `(\w+)` \|", (helpers / "README.md").read_text(), re.M)
    assert rows == sorted({path.stem for path in helpers.glob("*.py")} - {"__init__"})


def test_the_reference_shows_how_a_method_differs_from_its_authors_code():
    text = (
        "X: does it.\n\nA formula.\n\nDiffers from the authors' code: one\nthing; another.\n\nMore."
    )
    assert reference.difference(text) == "one thing; another."
    assert reference.difference("X: does it.") == ""
    (row,) = [
        r for r in reference.pages()["methods.md"].splitlines() if r.startswith("| `lines` |")
    ]
    assert row.endswith("on validation images of the task and of a control task. |")
