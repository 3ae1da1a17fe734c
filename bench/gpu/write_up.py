"""The results of `make gpu` as Markdown, so that nobody types a number.

    python -m bench.gpu.write_up [FOLDER]                            prints it
    python -m bench.gpu.write_up [FOLDER] --into docs/performance.md  between the marks there

A page holds what lies between `BEGIN` and `END`; it is replaced. Results of a CPU go into no page.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.report import RESULTS, markdown

BEGIN, END = "<!-- make gpu: begin -->", "<!-- make gpu: end -->"


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    try:
        text = written(options.folder)
        if options.into is None:
            print(text)
        else:
            options.into.write_text(replaced(options.into, text, options.folder))
    except (ValueError, OSError) as error:
        print(error)
        return 2
    return 0


def written(folder: Path) -> str:
    """A table of each file of results, the summary first. Raises ValueError without a summary."""
    parts = [markdown(_summary(folder)["rows"])]
    for file in sorted(folder.glob("*-*.json")):
        results = json.loads(file.read_text())
        machine, versions = results["machine"], results["machine"]["versions"]
        named = ", ".join(f"{name} {versions[name]}" for name in ("torch", "triton", "timm"))
        parts.append(
            f"**{results['name']}**: {machine['device']}; {named}; commit {machine['commit']}."
        )
        parts += [markdown(results["rows"])] if results["rows"] else []
        parts += [results["message"]] if "message" in results else []
    return "\n\n".join(parts)


def replaced(page: Path, text: str, folder: Path) -> str:
    """The page with the text between its marks. Raises ValueError for a CPU's and for no marks."""
    if _summary(folder)["device"] != "cuda":
        raise ValueError("these are results of a CPU: they show that the stages run, and no more")
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{page} has no lines {BEGIN} and {END}, in this order")
    return f"{before}{BEGIN}\n{text}\n{END}{after}"


def _summary(folder: Path) -> dict:
    file = folder / "summary.json"
    if not file.is_file():
        raise ValueError(f"{folder} has no summary.json; run: make gpu OUT={folder}")
    return json.loads(file.read_text())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.write_up", description=__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=RESULTS / "gpu")
    parser.add_argument("--into", type=Path, help="a page with the marks")
    return parser


if __name__ == "__main__":
    sys.exit(main())
