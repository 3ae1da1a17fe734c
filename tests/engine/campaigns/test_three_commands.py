"""From archives on a server to a report: rib download, rib encode --all, rib campaign."""

import pandas as pd
import pytest

from engine import cli
from engine.recipe.resolve import load_recipe
from helpers import campaigns, grids
from helpers.published_archives import PASSWORD, publish
from helpers.web import serve


@pytest.mark.slow
def test_three_commands_lead_to_a_report(grid, tmp_path, monkeypatch, capsys):
    data, runs = tmp_path / "data", tmp_path / "runs"
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("getpass.getpass", lambda text: PASSWORD)
    with serve() as web:
        published = publish(tmp_path, web)
        published.serve(web, imagenet_r={"cuts": [5000]})
        words = ["all", "--to", str(data), "--from", str(published.of_form), "--accept"]
        assert cli.main(["download", *words, "--sources", str(published.sources)]) == 0
    model = [f"model.arch={grids.VIT}", "model.crop=1.0", f"runs={runs}", "dataset.subsample=100"]
    options = ["--all", "--images", str(data), "--model", "vit_tiny_random", "--partial"]
    assert cli.main(["encode", *options, *model]) == 0
    sets = load_recipe("imagenet_rib").dataset.evaluated_sets
    assert {folder.name.partition("-")[0] for folder in (runs / "packs").iterdir()} == {*sets}
    # Two columns, for the test's time: the third set is only evaluated.
    small = ["train.epochs=1", "train.batch_size=4", "train.warmup_steps=0", "methods=[fine_tune]"]
    small += ["dataset.sets=[imagenet_a,objectnet,imagenet_c]"]
    words = ["campaign", "imagenet_rib", "model=vit_tiny_random", *model, *small, "--cores", "2"]
    campaigns.in_this_process(monkeypatch)
    assert cli.main(words) == 0
    assert "mRI: its mean over 2 downstream datasets" in " ".join(capsys.readouterr().out.split())
    (report,) = runs.glob("imagenet_rib-vit_tiny_random*/report")
    accuracy = pd.read_csv(report / "accuracy.csv", keep_default_na=False)
    assert set(accuracy.evaluated_on) == {"imagenet_val", "imagenet_a", "objectnet", "imagenet_c"}
    assert set(accuracy.downstream) - {""} == {"imagenet_a", "imagenet_c"}
    assert "over 2 downstream datasets" in (report / "index.html").read_text()
