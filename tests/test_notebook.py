"""The notebook of the documents, run on the drawn campaign in place of the demo."""

from pathlib import Path

import nbformat
import pytest

from helpers import campaigns, grids

NOTEBOOK = Path(__file__).parents[1] / "docs" / "after_the_demo.ipynb"
folder, finished, grid = campaigns.folder, campaigns.finished, grids.grid


@pytest.mark.slow
def test_every_cell_of_the_notebook_runs(folder, finished, capsys):
    cells = [cell.source for cell in nbformat.read(NOTEBOOK, 4).cells if cell.cell_type == "code"]
    exec(cells[0], of_user := {})
    assert of_user.keys() - {"__builtins__", "__annotations__"} == {"NAME", "WORDS"}
    scope = {"NAME": str(folder / "shapes.yaml"), "WORDS": [f"runs={finished}"]}
    for source in cells[1:]:
        exec(compile(source, str(NOTEBOOK), "exec"), scope)
    shown = capsys.readouterr().out
    rows = (finished / "shapes" / "report" / "mri.csv").read_text().splitlines()
    head, *rows = [row.split(",") for row in rows]
    for row in (dict(zip(head, row, strict=True)) for row in rows):
        if row["method"] in campaigns.METHODS and row["alpha"] in ("", "0.5"):
            assert scope["mri"][row["method"]] == pytest.approx(float(row["mri"]), abs=1e-4)
    assert "parameters" in shown
