"""Numbers in the documents, written by the campaigns that make them: `python -m bench.documents`.

A block of a page stands between `<!-- numbers: CAMPAIGN NAME ... -->` and `<!-- /numbers -->`. Its
first line has digests of the recipe, of the code that writes the block and of the block's text, by
which a test finds blocks that are older than their recipe or code, and blocks that were edited by
hand. Finished campaigns are not run again.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas

import engine
from engine.campaigns.find_campaign import find_campaign
from engine.campaigns.make_plan import make_plan
from engine.machine.files import write_atomic
from engine.measures.bootstrap import SIGNIFICANT
from engine.measures.tables import rows
from engine.recipe import catalogue
from engine.recipe.catalogue import ROOT
from engine.recipe.overrides import parsed
from engine.recipe.source_code import digest_of_folder
from engine.report import columns, exports, headline, sections, terminal
from engine.report.published import read_published
from engine.report.results import Results, of_campaign
from engine.report.text import listed, p_value, rounded
from loaders.files.durable import short_digest

PROJECT = Path(__file__).parents[1]
BLOCK = re.compile(
    r"^<!-- numbers: (?P<campaign>\S+) (?P<name>\S+)"
    r"(?: recipe (?P<recipe>\w+) code (?P<code>\w+) text (?P<text>\w+))? -->\n"
    r"(?P<quote>.*?)^<!-- /numbers -->\n",
    re.MULTILINE | re.DOTALL,
)
WIDTH = 110  # of lines of prose
SLIDES = "IN-1K+AugReg"  # the pre-training whose published mRIs docs/demo.md compares with


@dataclass(frozen=True)
class Block:
    """A part of a page. quote: its text. code: the module or folder whose sentences or numbers the
    block quotes. figure: how the name of a figure of the report begins, which the block shows as
    docs/figures/NAME.svg; empty for none. words: settings of the campaign that differ from its
    recipe's."""

    page: str
    campaign: str
    name: str
    quote: Callable[[Results], str]
    code: str
    figure: str = ""
    words: tuple[str, ...] = ()


def table(results: Results) -> str:
    """The table that the campaign ends with in the terminal."""
    return f"```\n{terminal.table(results)}\n```\n\n{_wrapped(_run(results))}"


def compared(results: Results) -> str:
    """How far each row is below the one with the highest mRI, with Holm's p."""
    best, pairs = _pairs(results)
    lines = [f"| method | mRI below {best}'s | adjusted p |", "| --- | --- | --- |"]
    for name, pair in sorted(pairs, key=lambda of: -of[1]["difference_pts"]):
        ends = ("difference_pts", "difference_high", "difference_low")
        less, low, high = (rounded(-pair[end]) for end in ends)
        lines.append(f"| {name} | {less} [{low}, {high}] | {p_value(pair['adjusted_p'])} |")
    return f"{best} has the highest mRI{results.one_training}.\n\n" + "\n".join(lines)


def separated(results: Results) -> str:
    """How many rows the one with the highest mRI is significantly ahead of, and which."""
    best, pairs = _pairs(results)
    ahead = [name for name, pair in pairs if pair["adjusted_p"] < SIGNIFICANT]
    text = f"{best} has the highest mRI and is significantly ahead of"
    text += f" {len(ahead)} of the {len(pairs)} others"
    text += f": {listed(ahead)}." if ahead else "."
    return _wrapped(f"*With {results.seeds}:* {text}")


def _pairs(results: Results) -> tuple[str, list[tuple[str, pandas.Series]]]:
    """The row with the highest mRI, and the comparison of each other row with it."""
    best, *others = rows(results.ranked())
    against = results.against(best.arm)
    return best.method, [(row.method, against.loc[row.arm]) for row in others]


def slides(results: Results) -> str:
    """mRI of each row beside that on the slides."""
    data = results.ranked()[["key", "method", "mRI_pts"]]
    slides_mri = read_published(benchmark="imagenet_rib").of(SLIDES).mri
    data = data.assign(on_the_slides_pts=data.pop("key").map(slides_mri))
    return _markdown(data.rename(columns={"mRI_pts": "here_pts"}))


def finding(key: str = "", name: str = "") -> Callable[[Results], str]:
    """The heading of a section and a table of it; without a key the report's first sentence."""

    def quote(results: Results) -> str:
        if not key:
            return _wrapped(f"*This run:* {headline.heading('', results)} {_run(results)}")
        made = {section.key: section for section in sections.of(results)}
        if key not in made:
            raise ValueError(f"the report has no section {key}, only {', '.join(made)}")
        section = made[key]
        shown = [_markdown(each.data) for each in section.tables if each.name == name]
        said = _wrapped(f"*This run:* {section.heading}. {_run(results)}")
        return "\n\n".join([said, *shown])

    return quote


EXPERIMENTS = "docs/experiments.md"
TERMINAL, TESTS = "engine/report/terminal.py", "engine/measures/comparisons.py"
HEADLINE, VARIED = "engine/report/headline.py", "engine/report/sections/varied.py"
CHANGES, CURVES = "engine/report/sections/changes.py", "engine/report/sections/curves.py"
TUNING = "engine/report/tuning.py"
CKA, LEAK = "engine/extras/cka", "engine/extras/leak"
WITH_CKA = (
    "extras.cka.images=112",
    "dataset.sets=[fluent-flat,twemoji,noto-mono]",
    "downstreams=[twemoji,noto-mono]",
    "methods=[fine_tune,ewc,lwf,lora]",
)
BLOCKS = (
    Block("docs/demo.md", "emoji", "table", table, TERMINAL),
    Block("docs/demo.md", "emoji", "compared", compared, TESTS),
    Block("docs/demo.md", "emoji", "slides", slides, "engine/report/published.py"),
    Block(EXPERIMENTS, "emoji_disjoint", "leak", finding("leak", "leak"), LEAK, "leak"),
    Block(EXPERIMENTS, "emoji_upstream", "upstream", finding("upstream"), CHANGES, "upstream"),
    Block(EXPERIMENTS, "emoji_fractions", "fractions", finding("varied"), VARIED, "fractions"),
    Block(EXPERIMENTS, "emoji", "cka", finding("cka"), CKA, "cka-depth", WITH_CKA),
    Block(EXPERIMENTS, "emoji_plus", "plus", finding(), HEADLINE, "trade-off"),
    Block(EXPERIMENTS, "emoji_plus", "once", separated, TESTS),
    Block(EXPERIMENTS, "emoji_plus", "seeds", separated, TESTS, words=("seeds=3",)),
    Block(EXPERIMENTS, "emoji_tuned", "tuned", finding("varied", "tuning"), TUNING),
    Block(EXPERIMENTS, "emoji_rates", "rates", finding("varied"), VARIED, "rates"),
    Block(EXPERIMENTS, "emoji_dynamics", "dynamics", finding("dynamics"), CURVES, "dynamics"),
    Block(EXPERIMENTS, "emoji_shots", "shots", finding("varied"), VARIED, "shots"),
    Block(EXPERIMENTS, "emoji_variants", "variants", finding(), HEADLINE, "ranking"),
    Block(EXPERIMENTS, "emoji_vit", "vit", table, TERMINAL),
)


def main(arguments: Sequence[str] | None = None) -> int:
    names = list(dict.fromkeys(block.campaign for block in BLOCKS))
    parser = argparse.ArgumentParser(prog="python -m bench.documents", description=__doc__)
    parser.add_argument("campaigns", nargs="*", metavar="campaign", help=", ".join(names))
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="default: runs")
    options = parser.parse_args(arguments)
    if unknown := sorted(set(options.campaigns) - set(names)):
        parser.error(f"no document quotes {', '.join(unknown)}; choose from {', '.join(names)}")
    chosen = options.campaigns or names
    runs = {(block.campaign, block.words) for block in BLOCKS if block.campaign in chosen}
    for name, more in sorted(runs):
        words = (f"runs={options.runs}", *more)
        engine.campaign(name, *words)
        results = of_campaign(find_campaign(name, parsed(words)))
        write([block for block in BLOCKS if (block.campaign, block.words) == (name, more)], results)
    return 0


def write(blocks: Sequence[Block], results: Results, folder: Path = PROJECT) -> None:
    """Write blocks that quote a campaign, and their figures, into the pages."""
    for block in blocks:
        text = block.quote(results)
        if block.figure:
            figures = [of for section in sections.of(results) for of in section.figures]
            figure = next(of for of in figures if of.name.startswith(block.figure))
            place = f"figures/{block.name}.svg"
            write_atomic(folder / "docs" / place, exports.svg(figure))
            text = f"![{figure.caption.removesuffix('.')}]({place})\n\n{text}"
        page = folder / block.page
        write_atomic(page, replaced(page.read_text("utf-8"), block, f"{text}\n").encode())


def replaced(page: str, block: Block, text: str) -> str:
    """A page with a new text of a block. ValueError where the page has no such block."""
    first = f"<!-- numbers: {block.campaign} {block.name}"
    whole = (
        f"{first} recipe {fingerprint(block.campaign, block.words)} "
        f"code {code_digest(block)} text {short_digest(text)} -->\n{text}<!-- /numbers -->\n"
    )

    def new(found: re.Match[str]) -> str:
        is_block = (found["campaign"], found["name"]) == (block.campaign, block.name)
        return whole if is_block else found[0]

    changed = BLOCK.sub(new, page)
    if whole not in changed:
        raise ValueError(
            f"{block.page} has no lines `{first} -->` and `<!-- /numbers -->`: add them where the "
            "numbers belong"
        )
    return changed


def fingerprint(name: str, words: Sequence[str] = ()) -> str:
    """A digest of what the recipe files say that a campaign is planned from, and of its words."""
    with catalogue.each_file_once() as files:
        make_plan(name, parsed(words))
        read = {str(path.relative_to(ROOT)): said for path, said in files.items()}
        return short_digest({**read, **dict.fromkeys(words)})


def code_digest(block: Block) -> str:
    """A digest of the code whose words and numbers a block quotes, and of the block's function."""
    return short_digest([digest_of_folder(block.code), inspect.getsource(block.quote)])


def _run(results: Results) -> str:
    """On what the jobs of a campaign ran, and when."""
    settings, attempts = results.record.settings, results.record.attempts
    day = time.strftime("%Y-%m-%d", time.gmtime(max(of.started for of in attempts)))
    devices = listed(list(dict.fromkeys(of.device for of in attempts)))
    return (
        f"({listed(results.models)}, {settings['Classes']} classes, {results.seeds}; {devices}, "
        f"torch {settings['Versions']['torch']}, {day}.)"
    )


def _wrapped(text: str) -> str:
    return textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)


def _markdown(data: pandas.DataFrame) -> str:
    shown = columns.shown(data)
    lines = [[of.head for of in shown], ["---"] * len(shown)]
    lines += map(list, zip(*(of.texts for of in shown), strict=True))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    sys.exit(main())
