"""Export figures and tables for papers: CSV, Parquet, LaTeX, SVG and PDF."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from pathlib import Path

import pandas
import vl_convert

from engine.measures.tables import write_csv
from engine.report import charts, columns
from engine.report.section import Figure, Section, Table
from loaders.files.root import Root

WIDTH = 480  # of a figure's plot, in CSS pixels
PADDING = {"top": 32, "right": 16, "bottom": 16, "left": 16}  # names slant above heat maps
FIGURES = "figures"  # the folder
LONGEST = 200  # rows of a table that is exported to LaTeX
# LaTeX's special characters, and characters that pdfTeX's fonts lack.
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


def write(folder: Path, sections: Sequence[Section], *, drawn: bool = False) -> None:
    """Write every table as CSV and Parquet with all columns, and as LaTeX with the displayed ones
    unless it is too long; and every figure's numbers as CSV. drawn: also write figures as SVG and
    PDF; 0.1 to 0.2 s each. Raises DamagedFile if a folder in it is a link."""
    root = Root(folder)
    for table in (table for section in sections for table in section.tables):
        place = folder / "tables" / table.name
        write_csv(place.with_suffix(".csv"), table.numbers, charts.DIGITS, root)
        root.write(place.with_suffix(".parquet"), table.numbers.to_parquet(index=False))
        if len(table.data) <= LONGEST:
            root.write(place.with_suffix(".tex"), latex(table).encode())
    for figure in (figure for section in sections for figure in section.figures):
        place = folder / FIGURES / figure.name
        write_csv(place.with_suffix(".csv"), figure.data, charts.DIGITS, root)
        if drawn:
            root.write(place.with_suffix(".svg"), svg(figure))
            root.write(place.with_suffix(".pdf"), vl_convert.vegalite_to_pdf(_spec(figure)))


@functools.cache  # the page shows it too
def svg(figure: Figure) -> bytes:
    """The figure as SVG, with names in full."""
    return vl_convert.vegalite_to_svg(_spec(figure)).encode()


def _spec(figure: Figure) -> charts.Spec:
    parts = ("axis", "axisTop", "legend", "header")
    whole = {part: charts.CONFIG[part] | {"labelLimit": 0} for part in parts}
    whole["legend"] |= {"columnPadding": 24}
    # A viewer may have a wider font than the one that the figure was laid out with.
    config = charts.CONFIG | whole
    return charts.drawn(figure, WIDTH) | {"config": config, "padding": PADDING}


def latex(table: Table) -> str:
    """The table for LaTeX's booktabs, with the page's formatting, caption and label."""
    shown = columns.shown(table.data)
    cells = {of.name: [text.translate(LATEX) for text in of.texts] for of in shown}
    best = table.data[[name for name in table.best if name in cells]]
    for name in map(str, best.dropna(axis=1, how="all")):
        place = table.data[name].argmax()
        cells[name][place] = f"\\textbf{{{cells[name][place]}}}"
    style = pandas.DataFrame(cells).style.hide(axis="index")
    return "% \\usepackage{booktabs}\n" + style.relabel_index(
        [re.sub("[{}]", r"\g<0>\g<0>", of.head.translate(LATEX)) for of in shown],  # it formats
        axis="columns",
    ).to_latex(
        column_format="".join("r" if of.is_numeric else "l" for of in shown),
        hrules=True,
        position_float="centering",
        caption=table.caption.translate(LATEX),
        label=f"tab:{table.name}",
    )
