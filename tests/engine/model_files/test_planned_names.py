"""Every form of a name in docs/your-checkpoints.md can be planned."""

import re

import pytest
import timm

from engine import cli
from engine.recipe.catalogue import ROOT

PAGE = (ROOT.parent / "docs" / "your-checkpoints.md").read_text("utf-8")
NAMED = PAGE.split("## Names of models\n")[1]
OPEN_CLIP = "open_clip:ViT-B-32/openai"
NAMES = {
    "NAME": "test_vit.r160_in1k",
    "timm/NAME": "timm/test_vit.r160_in1k",
    "timm:NAME": "timm:test_vit.r160_in1k",
    "hf-hub:timm/NAME": "hf-hub:timm/test_vit.r160_in1k",
    "hf_hub:timm/NAME": "hf_hub:timm/test_vit.r160_in1k",
    "torchvision:NAME": "torchvision:resnet18",
    "torchvision:NAME/IMAGENET1K_V1": "torchvision:resnet18/IMAGENET1K_V1",
    "open_clip:NAME/TAG": OPEN_CLIP,
    "open_clip:ViT-B-16/openai": "open_clip:ViT-B-16/openai",
    "local-dir:FOLDER": "local-dir:{}",
    "resnet50": "resnet50",
}


def test_the_table_of_names_is_whole():
    column = [row.split("|")[1] for row in NAMED.splitlines() if row.startswith("| ")]
    forms = {name for cell in column for name in re.findall(r"`([^`]+)`", cell)}
    assert forms - {".yaml"} == NAMES.keys()


@pytest.mark.parametrize("form", NAMES)
def test_every_name_is_planned(form, tmp_path, capsys):
    if "open_clip" in form:
        pytest.importorskip("open_clip", reason="the extra [clip]")
    if "local-dir" in form:
        timm.models.save_for_hf(timm.create_model("test_vit"), tmp_path / "mine")
    name = NAMES[form].format(tmp_path / "mine")
    words = ["plan", "imagenet_rib", f"model={name}", "methods=[fine_tune]", f"runs={tmp_path}"]
    assert cli.main(words) == 0, capsys.readouterr().err


def test_what_open_clip_cannot_build_is_named(tmp_path, capsys):
    """Its text tower is of a package that is not installed."""
    pytest.importorskip("open_clip", reason="the extra [clip]")
    name = "open_clip:roberta-ViT-B-32/laion2b_s12b_b32k"
    words = ["plan", "imagenet_rib", f"model={name}", "methods=[fine_tune]", f"runs={tmp_path}"]
    assert cli.main(words) == 2
    assert "roberta-ViT-B-32" in (error := capsys.readouterr().err) and "transformers" in error
