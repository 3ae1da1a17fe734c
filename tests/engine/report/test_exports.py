"""Files for papers: the numbers of tables and figures, read back."""

from __future__ import annotations

import re

import pandas
import pytest
import reports

from engine.report import display, exports, finish, sections, tables
from engine.report.section import Section, Table


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    run = reports.finished(tmp_path_factory.mktemp("runs"))
    results = tables.results(run)
    finish.write(run, results, figures=True)
    return run.report, sections.of(results)


def test_every_table_is_there_as_csv_and_parquet(written):
    folder, sections_written = written
    names = {table.name: table for section in sections_written for table in section.tables}
    files = {path.name for path in (folder / "tables").iterdir()}
    assert files == {f"{name}.{kind}" for name in names for kind in ("csv", "parquet", "tex")}
    for name, table in names.items():
        parquet = pandas.read_parquet(folder / "tables" / f"{name}.parquet")
        pandas.testing.assert_frame_equal(parquet, table.data.reset_index(drop=True))
        csv = pandas.read_csv(folder / "tables" / f"{name}.csv", keep_default_na=False)
        assert list(csv) == list(table.data) and len(csv) == len(table.data)
    ranking = pandas.read_csv(folder / "tables/ranking.csv")
    pandas.testing.assert_series_equal(ranking["mRI"], names["ranking"].data["mRI"], rtol=1e-7)


def test_every_figure_is_there_as_csv_svg_and_pdf(written):
    folder, sections_written = written
    names = {figure.name for section in sections_written for figure in section.figures}
    for name in names:
        path = folder / "figures" / name
        assert path.with_suffix(".svg").read_text().startswith("<svg")
        assert path.with_suffix(".pdf").read_bytes().startswith(b"%PDF")
        assert len(pandas.read_csv(path.with_suffix(".csv"))) > 0
    assert len(list((folder / "figures").iterdir())) == 3 * len(names)


def test_latex_is_escaped_and_shows_what_the_page_shows():
    data = pandas.DataFrame({"method": ["[a]_b & 50%", "α ~^\\{}$#"], "x": [-1.0, None]})
    table = Table("t", "", data, {"x": "signed1"})
    lines = exports.latex(table).splitlines()
    head, *rows = [line for line in lines if line.endswith(r"\\")]
    assert lines[1] == r"\begin{tabular}{lr}" and head == r"method & x \\"
    assert rows[0] == r"{[}a{]}\_b \& 50\% & $-$1.0 \\"
    assert rows[1] == (
        r"$\alpha$ \textasciitilde{}\textasciicircum{}\textbackslash{}\{\}\$\# & -- \\"
    )


def test_every_row_of_latex_has_all_columns(written):
    folder, sections_written = written
    for section in sections_written:
        for table in section.tables:
            text = (folder / "tables" / f"{table.name}.tex").read_text()
            rows = [line for line in text.splitlines() if line.endswith(r"\\")]
            columns = len(display.columns(table))
            assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {columns - 1}


def test_a_csv_has_numbers_with_eight_digits(tmp_path):
    data = pandas.DataFrame({"x": [1 / 3, 1e-12, None]})
    exports.write_tables(tmp_path, [Section("a", "A", tables=[Table("t", "", data)])])
    assert (tmp_path / "tables/t.csv").read_text() == 'x\n0.33333333\n1e-12\n""\n'
