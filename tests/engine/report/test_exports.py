"""Files for papers: the numbers of tables and figures, read back."""

import json
import re

import pandas
import pytest

from engine.campaigns.record import MethodRow, MissingColumn
from engine.report import charts, columns, exports, finish, sections
from engine.report.results import of_campaign
from engine.report.section import Figure, Section, Table
from helpers import made_results, reports
from helpers.stores import SETS


@pytest.fixture(scope="module")
def written(report):
    path, results = report
    return path.parent, sections.of(results)


def test_every_table_is_there_as_csv_parquet_and_latex(written):
    folder, sections_written = written
    names = {table.name: table for section in sections_written for table in section.tables}
    files = {path.name for path in (folder / "tables").iterdir()}
    assert files == {f"{name}.{kind}" for name in names for kind in ("csv", "parquet", "tex")}
    for name, table in names.items():
        place = folder / "tables" / name
        parquet = pandas.read_parquet(place.with_suffix(".parquet"))
        pandas.testing.assert_frame_equal(parquet, table.numbers.reset_index(drop=True))
        csv = pandas.read_csv(place.with_suffix(".csv"), keep_default_na=False)
        assert list(csv) == list(table.numbers) and len(csv) == len(table.data)
        text = place.with_suffix(".tex").read_text()
        rows = [line for line in text.splitlines() if line.endswith(r"\\")]
        ends = {len(re.findall(r"(?<!\\)&", row)) for row in rows}
        assert ends == {len(columns.shown(table.data)) - 1} and len(rows) == 1 + len(table.data)


def test_tables_name_methods_as_the_other_files_do(written):
    folder, _ = written
    keys = ["model", "method", "variant", "alpha"]
    mri = pandas.read_csv(folder / "mri.csv").query("headline")
    ranking = pandas.read_csv(folder / "tables" / "ranking.csv")
    both = mri.merge(ranking, on=keys, suffixes=("", "_of_table"))
    assert len(both) == len(mri) == len(ranking) and {*mri["method"]} >= {"fine_tune", "wise_ft"}
    assert (both["mRI_pts"] == both["mRI_pts_of_table"]).all()
    pairs = pandas.read_csv(folder / "comparisons.csv").query("evaluated_on.isna()")
    names = {"change_pts": "difference_pts"}
    numbers = pandas.read_csv(folder / "tables" / "all-numbers.csv").rename(columns=names)
    numbers = numbers.query("downstream == 'all' and evaluated_on == 'others'")
    both = pairs.merge(numbers, on=[*keys, "against_method", "against_alpha", "difference_pts"])
    assert len(both) == len(pairs) == 3


def test_titles_with_settings_become_keys():
    few, many = (f"optimizer.lr={lr},train.epochs=1" for lr in (0.1, 0.2))
    cells = [("lite0", "pretrained", "", None, "", "", on, 50.0) for on in (*SETS, "up")]
    cells += [
        ("lite0", "lwf", "released", alpha, setting, down, on, 60.0)
        for alpha, setting in ((None, few), (0.3, many))
        for down in SETS
        for on in SETS
    ]
    results = made_results.of_cells(cells)
    titles = ["pretrained", *results.shown["method"], "LwF (released), epochs 1", "LwF", "mine"]
    table = results.with_keys(pandas.DataFrame({"method": titles, "x_pts": range(6)}))
    assert table.to_csv(index=False).splitlines() == [
        "method,variant,alpha,setting,x_pts",
        "pretrained,,,,0",
        'lwf,released,,"optimizer.lr=0.1,train.epochs=1",1',
        'lwf,released,0.3,"optimizer.lr=0.2,train.epochs=1",2',
        "lwf,released,,train.epochs=1,3",
        "lwf,,,,4",
        "mine,,,,5",
    ]


@pytest.mark.slow
def test_no_text_of_a_record_forges_a_line_or_steers_a_terminal(tmp_path):
    forged = "FT\nerror: forged\r\x1b[31m\u2028"
    row = MethodRow("fine_tune", {"method.variant": "original", "optimizer.name": forged})
    run = reports.finished(
        tmp_path,
        methods={"fine_tune": forged, "ewc": "EWC", "wise_ft": "WiSE-FT"},
        settings={"Command": forged, forged: [forged]},
        rows=[row],
        missing=[MissingColumn("flat", forged)],
    )
    folder = finish.write(run, of_campaign(run)).parent
    for file in folder.rglob("*.*"):
        if file.suffix in (".csv", ".tex", ".txt", ".json", ".bib"):
            text = file.read_bytes().decode()
            assert not re.search("[\x00-\x09\x0b-\x0c\x0e-\x1f\x7f-\x9f\u2028]", text), file
            assert "error: forged" not in [line[:13] for line in text.splitlines()], file
    assert r"FT\nerror: forged\r\x1b[31m\u2028" in (folder / "table.txt").read_text("utf-8")


def test_every_figure_is_there_as_csv_svg_and_pdf_and_in_words(written):
    folder, sections_written = written
    figures = [figure for section in sections_written for figure in section.figures]
    for figure in figures:
        path = folder / "figures" / figure.name
        svg = path.with_suffix(".svg").read_text()
        assert svg.startswith("<svg") and svg.count("<path") + svg.count("<text") > 5
        assert path.with_suffix(".pdf").read_bytes().startswith(b"%PDF")
        assert len(pandas.read_csv(path.with_suffix(".csv"))) > 0
        assert len(figure.alt) > 20 and figure.caption
        fields = set(re.findall('"field": "([^"]*)"', json.dumps(figure.spec)))
        assert fields <= set(figure.data), (figure.name, fields - set(figure.data))
    assert len(list((folder / "figures").iterdir())) == 3 * len(figures)


def test_latex_is_escaped_and_shows_what_the_page_shows():
    data = pandas.DataFrame({"method": ["[a]_b & 50%", "α ~^\\{}$#"], "x[1]_pts": [-1.0, None]})
    lines = exports.latex(Table("t", "", data, ["x[1]_pts"])).splitlines()
    head, *rows = [line for line in lines if line.endswith(r"\\")]
    assert r"\begin{tabular}{lr}" in lines and head == r"method & x{[}1{]} \\"
    assert rows[0] == r"{[}a{]}\_b \& 50\% & \textbf{$-$1.0} \\"
    assert rows[1] == (
        r"$\alpha$ \textasciitilde{}\textasciicircum{}\textbackslash{}\{\}\$\# & -- \\"
    )


def test_a_csv_has_numbers_with_eight_digits(tmp_path):
    data = pandas.DataFrame({"x": [1 / 3, 1e-12, None]})
    exports.write(tmp_path, [Section("a", "A", tables=[Table("t", "", data)])])
    assert (tmp_path / "tables/t.csv").read_text() == 'x\n0.33333333\n1e-12\n""\n'


def test_the_papers_table_has_a_caption_a_label_and_the_best_in_bold(written):
    folder, sections_written = written
    (table,) = [t for section in sections_written for t in section.tables if t.name == "ri"]
    text = (folder / "tables/ri.tex").read_text()
    assert r"\caption{RI in points, by downstream dataset" in text
    assert r"\label{tab:ri}" in text
    best = table.data.loc[table.data["mRI_pts"].idxmax()]
    (row,) = [line for line in text.splitlines() if line.startswith(str(best["method"]))]
    assert rf"& \textbf{{{best['mRI_pts']:+.1f} {{[}}" in row


def test_a_figure_for_papers_has_whole_names(tmp_path):
    names = ["a-method-whose-name-no-axis-of-the-page-would-leave-whole", "a-set-of-such-a-name"]
    names[1] *= 2
    data = pandas.DataFrame([[*names, 1.0]], columns=["method", "set", "x_pts"])
    specs = {
        "bars": charts.bars(data, "x_pts"),
        "heat": charts.heat(data, "set", "method", "x_pts"),
        "curve": charts.curve(data, "x_pts", "x_pts", "method"),
    }
    figures = [Figure(name, "", "", data, spec) for name, spec in specs.items()]
    exports.write(tmp_path, [Section("a", "A", figures=figures)], drawn=True)
    for name in specs:
        svg = (tmp_path / f"figures/{name}.svg").read_text()
        assert all(f">{of}</text>" in svg for of in names[: 1 + (name == "heat")]), name
