"""docs/your-checkpoints.md and the notebook, run on the drawn campaign in place of the demo."""

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import nbformat
import pytest
import timm

from engine import cli
from helpers import campaigns, grids

DOCS = Path(__file__).parents[1] / "docs"
PAGE, NOTEBOOK = DOCS / "your-checkpoints.md", DOCS / "after_the_demo.ipynb"
PROGRAM = "python -c "
# The demo's names, and those of the drawn campaign that take their place.
DRAWN = {
    "twemoji": "outline",
    "tf_efficientnet_lite0": "test_vit",
    "model.image_size=64": "model.image_size=32",
}
folder, finished, grid = campaigns.folder, campaigns.finished, grids.grid


def blocks() -> list[tuple[str, str]]:
    """The page's code with its language; sample output and layouts are left out."""
    text = PAGE.read_text().partition("**CLIP.**")[0]  # a CLIP model takes gigabytes
    found = re.findall(r"^```(\w*)\n(.*?)^```", text, re.M | re.S)
    return [(kind, code) for kind, code in found if kind or code.startswith("rib ")]


@pytest.mark.slow
def test_every_command_of_the_tutorial_runs(folder, finished, monkeypatch, capsys):
    monkeypatch.chdir(finished.parent)
    campaign = str(folder / "shapes.yaml")
    scope: dict[str, Any] = {"timm": timm}
    ran = 0
    for kind, code in blocks():
        for demo, drawn in DRAWN.items():
            code = code.replace(demo, drawn)
        if kind == "python":
            exec(compile(code, str(PAGE), "exec"), scope)
            continue
        for line in code.replace("\\\n", " ").splitlines():
            command = line.partition("  #")[0]
            if command.startswith(PROGRAM):
                exec(shlex.split(command.removeprefix(PROGRAM))[0], {})
            elif command.startswith("rib "):
                words = [campaign if word == "emoji" else word for word in shlex.split(command)[1:]]
                assert cli.main(words) == 0, (command, capsys.readouterr().err)
                ran += 1
            bring_what_the_reader_has(campaign, scope)
    assert ran > 12 and Path("accuracy.csv").is_file() and Path("merged.csv").is_file()


def bring_what_the_reader_has(campaign: str, scope: dict[str, Any]) -> None:
    """The files that the page names as the reader's, as soon as they can be made."""
    if not Path("ft").is_dir():
        return
    names = json.loads(Path("ft/config.json").read_bytes())["label_names"]
    net = timm.create_model("test_vit", num_classes=len(names), img_size=64)
    scope |= {"names": names, "net": net}
    if not Path("runA").is_dir():
        Path("classes.txt").write_text("\n".join(names), "utf-8")
        shutil.copy("ft/model.safetensors", "best.safetensors")
        for name, on in zip(("runA", "runB", "runC"), campaigns.SETS, strict=True):
            words = ["export", campaign, "--method", "fine_tune", "--downstream", on, "--out", name]
            assert cli.main(words) == 0
    if Path("my/style").is_dir() and not Path("my/holdout").is_dir():
        shutil.copytree("my/style", "my/holdout")
        shutil.copytree("my/style", "other/style")


@pytest.mark.slow
def test_every_cell_of_the_notebook_runs(folder, finished, capsys):
    cells = [cell.source for cell in nbformat.read(NOTEBOOK, 4).cells if cell.cell_type == "code"]
    exec(cells[0], of_user := {})
    assert of_user.keys() - {"__builtins__", "__annotations__"} == {"NAME", "SETTINGS"}
    scope = {"NAME": str(folder / "shapes.yaml"), "SETTINGS": [f"runs={finished}"]}
    for source in cells[1:]:
        exec(compile(source, str(NOTEBOOK), "exec"), scope)
    shown = capsys.readouterr().out
    rows = (finished / "shapes" / "report" / "mri.csv").read_text().splitlines()
    head, *rows = [row.split(",") for row in rows]
    for row in (dict(zip(head, row, strict=True)) for row in rows):
        if row["method"] in campaigns.METHODS and row["alpha"] in ("", "0.5"):
            assert scope["mri"][row["method"]] == pytest.approx(float(row["mRI_pts"]), abs=1e-4)
    assert "parameters" in shown
