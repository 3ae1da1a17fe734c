"""Figures and tables as files for papers: CSV, Parquet, LaTeX, SVG and PDF."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas
import vl_convert

from engine.machine.files import write_atomic
from engine.measures.rows import inert
from engine.report import display
from engine.report.figures import whole
from engine.report.section import Section, Table

FIGURES, TABLES = "figures", "tables"
WIDTH = 480  # of a figure's plot, in CSS pixels
# All of LaTeX's special characters, and signs that pdfTeX's fonts lack.
LATEX = str.maketrans(
    {
        **{sign: f"\\{sign}" for sign in "&%$#_{}"},
        **{sign: f"{{{sign}}}" for sign in "[]"},  # at a row's start they would be an argument
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "−": "$-$",
        "–": "--",
        "±": r"$\pm$",
        "α": r"$\alpha$",
        "ε": r"$\varepsilon$",
    }
)


def write_tables(folder: Path, sections: Sequence[Section]) -> None:
    """Every table as CSV and Parquet with all its columns, and in LaTeX as it is shown; every
    figure's numbers as CSV."""
    for section in sections:
        for table in section.tables:
            write_csv(folder / TABLES / f"{table.name}.csv", table.data)
            parquet = table.data.to_parquet(index=False)
            write_atomic(folder / TABLES / f"{table.name}.parquet", parquet)
            write_atomic(folder / TABLES / f"{table.name}.tex", latex(table).encode())
        for figure in section.figures:
            write_csv(folder / FIGURES / f"{figure.name}.csv", figure.data)


def write_figures(folder: Path, sections: Sequence[Section]) -> None:
    """Every figure as SVG and PDF, in the light theme; 0.1 to 0.2 s each."""
    for section in sections:
        for figure in section.figures:
            spec = whole(figure, width=WIDTH)
            for part in ("axis", "legend", "header"):
                spec["config"][part]["labelLimit"] = 0  # paper has room for whole names
            svg, pdf = vl_convert.vegalite_to_svg(spec), vl_convert.vegalite_to_pdf(spec)
            write_atomic(folder / FIGURES / f"{figure.name}.svg", svg.encode())
            write_atomic(folder / FIGURES / f"{figure.name}.pdf", pdf)


def latex(table: Table) -> str:
    """The table for LaTeX's booktabs, numbers as the page shows them, with caption and label."""
    columns = display.columns(table)
    cells = [[text.translate(LATEX) for text in column.texts] for column in columns]
    for column, texts in zip(columns, cells, strict=True):
        if column.name in table.best:
            place = int(table.data[column.name].to_numpy().argmax())
            texts[place] = f"\\textbf{{{texts[place]}}}"
    lines = [
        "% \\usepackage{booktabs}",
        "\\begin{table}",
        "\\centering",
        f"\\caption{{{table.caption.translate(LATEX)}}}",
        f"\\label{{tab:{table.name}}}",
        f"\\begin{{tabular}}{{{''.join('r' if column.numeric else 'l' for column in columns)}}}",
        "\\toprule",
        _line(column.head.translate(LATEX) for column in columns),
        "\\midrule",
        *map(_line, zip(*cells, strict=True)),
        "\\bottomrule",
        "\\end{tabular}",
        "\\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _line(cells: Iterable[str]) -> str:
    return " & ".join(cells) + r" \\"


def write_csv(path: Path, data: pandas.DataFrame) -> None:
    """Write a table as CSV, atomically: eight significant digits, and no text that a spreadsheet
    takes for a formula."""
    text = io.StringIO()
    texts = data.select_dtypes(["object", "string"])
    plain = {
        str(name): texts[name].map(lambda v: inert(v) if isinstance(v, str) else v)
        for name in texts
    }
    data = data.assign(**plain)
    data.to_csv(text, index=False, float_format="%.8g", lineterminator="\n")
    write_atomic(path, text.getvalue().encode())
