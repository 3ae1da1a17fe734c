"""Blocks of numbers in the documents: as the program wrote them, and of today's recipes."""

import dataclasses

import pytest
import torch

from bench import documents
from bench.documents import BLOCK, BLOCKS, PROJECT, Block
from engine.campaigns.job_states import Attempt
from engine.recipe import catalogue, source_code
from engine.report.results import of_campaign
from engine.store import cells
from helpers import reports
from loaders.files.durable import short_digest

PAGES = {name: (PROJECT / name).read_text("utf-8") for name in {block.page for block in BLOCKS}}
MARKED = {
    (page, found["campaign"], found["name"]): found
    for page, text in sorted(PAGES.items())
    for found in BLOCK.finditer(text)
}
BLOCK_OF = {(block.page, block.campaign, block.name): block for block in BLOCKS}


def test_every_block_has_its_place():
    assert sorted(MARKED) == sorted(BLOCK_OF) and len(BLOCK_OF) == len(BLOCKS)
    for page, text in PAGES.items():
        assert text.count("<!-- numbers:") == len(BLOCK.findall(text)), page


@pytest.mark.parametrize("place", MARKED, ids=" ".join)
def test_numbers_are_as_written_and_of_todays_recipe_and_code(place):
    page, campaign, _ = place
    found, block = MARKED[place], BLOCK_OF[place]
    remedy = f"run `make experiments CAMPAIGNS={campaign}`, which writes {page}"
    assert found["text"] == short_digest(found["quote"]), f"the block was edited: {remedy}"
    recipe = documents.fingerprint(campaign, block.words)
    assert found["recipe"] == recipe, f"the recipe is newer: {remedy}"
    assert found["code"] == documents.code_digest(block), f"{block.code} is newer: {remedy}"


def test_a_block_is_stale_after_a_change_of_its_code_but_not_of_comments(tmp_path, monkeypatch):
    monkeypatch.setattr(source_code, "ROOT", tmp_path)
    block = Block("", "", "", documents.compared, "section.py")
    digests = []
    for code in ('HEADING = "x"', 'HEADING = "x"  # of the page', 'HEADING = "y"'):
        (tmp_path / block.code).write_text(f"{code}\n", "utf-8")
        source_code.digest_of_folder.cache_clear()
        source_code._tree.cache_clear()
        digests.append(documents.code_digest(block))
    written, commented, changed = digests
    assert written == commented != changed
    other = dataclasses.replace(block, quote=documents.separated)
    assert documents.code_digest(other) != changed


def test_a_block_is_replaced_and_the_rest_of_the_page_stays(monkeypatch):
    block = Block("docs/demo.md", "emoji", "first", lambda _: "", "engine/report/terminal.py")
    monkeypatch.setattr(documents, "fingerprint", lambda *_: "f00")
    monkeypatch.setattr(documents, "code_digest", lambda _: "c0d")
    page = (
        "a\n<!-- numbers: emoji first -->\ntyped\n<!-- /numbers -->\nb\n"
        "<!-- numbers: emoji second -->\nother\n<!-- /numbers -->\n"
    )
    text = "12%, and a \\backslash\n"
    once = documents.replaced(page, block, text)
    mark = f"<!-- numbers: emoji first recipe f00 code c0d text {short_digest(text)} -->\n"
    expected = page.replace("<!-- numbers: emoji first -->\ntyped\n", mark + text)
    assert once == expected == documents.replaced(once, block, text)
    with pytest.raises(ValueError, match="has no lines `<!-- numbers: emoji third -->`"):
        documents.replaced(page, dataclasses.replace(block, name="third"), text)


def test_a_fingerprint_is_of_values_and_not_of_comments(tmp_path, monkeypatch):
    for file in catalogue.ROOT.rglob("*.yaml"):
        place = tmp_path / file.relative_to(catalogue.ROOT)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(file.read_bytes())
    before = documents.fingerprint("emoji_upstream")
    monkeypatch.setattr(catalogue, "ROOT", tmp_path)
    monkeypatch.setattr(documents, "ROOT", tmp_path)
    for name, old, new, is_same in (
        ("campaigns/emoji.yaml", "# emoji-RIB", "# Emoji-RIB", True),
        ("campaigns/emoji.yaml", "lr: 3.0e-4", "lr: 1.0e-4", False),
        ("datasets/emoji.yaml", "classes: 112", "classes: 64", False),
        ("campaigns/emoji_shots.yaml", "classes: 40", "classes: 64", True),
    ):
        file = tmp_path / name
        text = file.read_text("utf-8")
        file.write_text(text.replace(old, new), "utf-8")
        assert (documents.fingerprint("emoji_upstream") == before) == is_same, (name, new)
        file.write_text(text, "utf-8")


def test_a_quote_says_where_its_campaign_ran(tmp_path):
    settings = {"Classes": 4, "Versions": cells.versions()}
    attempts = [Attempt("prepare", "prepare", 86_400.0, 86_500.0, "A100")]
    record = reports.finished(tmp_path, settings=settings, attempts=attempts)
    results = of_campaign(record)
    text = documents.finding()(results).replace("\n", " ")
    run = f"A100, torch {torch.__version__}, 1970-01-02.)"
    assert text.startswith("*This run:*") and text.endswith(run)


def test_the_slides_mris_stand_beside_the_demos(tmp_path):
    text = documents.slides(of_campaign(reports.finished(tmp_path)))
    (row,) = [line for line in text.splitlines() if line.startswith("| FT |")]
    assert row.endswith("| +1.3 |")
