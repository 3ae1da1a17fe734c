"""Models by timm's, hubs', torchvision's and open_clip's names, and folders of timm's form; what is
stored of the architectures in `recipes/models` is what timm says."""

import json
import re
from pathlib import Path
from types import ModuleType

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from bench.architectures import model_recipes
from engine import cli, models
from engine.cost import flops
from engine.cost.flops import count_network
from engine.cost.work import form_of
from engine.model_files.architectures import installed_config, stored_architectures
from engine.model_files.model_names import architecture
from engine.models import pretrained
from engine.models.clip import ClassTexts
from engine.recipe import image_transform
from engine.recipe.catalogue import ROOT
from engine.recipe.overrides import parsed
from engine.recipe.resolve import load_recipe
from engine.recipe.schema import ModelRecipe
from engine.store.artifacts import Store
from engine.store.tensors import WEIGHTS
from helpers import tiny_clip
from helpers.grids import CLASSES

PLAIN = "mobilenetv3_small_100.lamb_in1k"
PAGE = (ROOT.parent / "docs" / "your-checkpoints.md").read_text("utf-8")
NAMED = PAGE.split("## Names of models\n")[1]
NAMES = {
    "NAME": "test_vit.r160_in1k",  # of no recipe, so that planning counts its operations
    "timm/NAME": "timm/resnet18.tv_in1k",
    "timm:NAME": "timm:resnet18.tv_in1k",
    "hf-hub:timm/NAME": "hf-hub:timm/resnet18.tv_in1k",
    "hf_hub:timm/NAME": "hf_hub:timm/resnet18.tv_in1k",
    "torchvision:NAME": "torchvision:resnet18",
    "torchvision:NAME/IMAGENET1K_V1": "torchvision:resnet18/IMAGENET1K_V1",
    "open_clip:NAME/TAG": "open_clip:ViT-B-32/openai",
    "open_clip:ViT-B-16/openai": "open_clip:ViT-B-16/openai",
    "local-dir:FOLDER": "local-dir:{}",
    "resnet50": "resnet50",
}


def model(name: str, campaign: str = "imagenet_rib") -> ModelRecipe:
    return load_recipe(campaign, parsed([f"model={name}"])).model


@pytest.mark.parametrize("prefix", ["timm/", "timm:", "hf-hub:timm/", "hf_hub:timm/"])
def test_a_name_of_timms_may_be_written_as_hubs_write_it(prefix):
    assert model(prefix + PLAIN) == model(PLAIN)
    assert architecture(prefix + PLAIN) == (PLAIN, {})


@pytest.mark.parametrize(
    ("name", "arch", "size", "crop"),
    [
        ("resnet50", "resnet50.tv2_in1k", 224, 0.965),  # torchvision resizes to 232
        ("resnet50/IMAGENET1K_V1", "resnet50.tv_in1k", 224, None),
        ("regnet_y_800mf", "regnety_008_tv.tv2_in1k", 224, None),
        ("regnet_x_1_6gf", "regnetx_016.tv2_in1k", 224, None),
        ("inception_v3", "inception_v3.tv_in1k", 299, None),
    ],
)
def test_torchvisions_weights_are_those_that_timm_has_of_them(name, arch, size, crop):
    chosen = model(f"torchvision:{name}")
    assert (chosen.arch, chosen.image_size, chosen.crop) == (arch, size, crop)
    assert not chosen.head.fit and model(f"torchvision:{name}", "emoji").head.fit


def test_open_clips_weights_decide_about_the_activation():
    pytest.importorskip("open_clip", reason="the extra [clip]")
    chosen = model("open_clip:ViT-B-16/openai")
    assert (
        chosen.arch == "open_clip:ViT-B-16-quickgelu" and chosen.name == "ViT-B-16-quickgelu.openai"
    )
    assert (chosen.weights.source, chosen.weights.tag) == ("open_clip", "openai")
    tags = {"ViT-B-16/openai": 12.8e9, "ViT-B-16/laion2b_s34b_b88k": 34e9}
    tags |= {"ViT-B-32/datacomp_s_s13m_b4k": 13e6, "ViT-B-32/metaclip_400m": 0}
    assert {tag: model(f"open_clip:{tag}").samples_seen for tag in tags} == tags
    settings = {"model.image_size": 224, "model.weights.tag": "openai"}
    assert architecture("open_clip:ViT-B-16/openai") == (chosen.arch, settings)
    assert architecture("open_clip:ViT-B-16") == ("open_clip:ViT-B-16", {})
    assert "zero-shot head; 224 px, bicubic" in image_transform.choices(chosen)


def test_a_vision_tower_of_timms_says_why_its_head_is_fitted():
    words = ["model=vit_base_patch16_siglip_224.v2_webli", "model.head.fit_on=imagenet_train"]
    chosen = image_transform.choices(load_recipe("imagenet_rib", parsed(words)).model)
    assert "head fitted on imagenet_train, as timm's weights have no text tower" in chosen
    assert "open_clip:NAME/TAG has it, and a zero-shot head" in chosen
    assert model("open_clip:ViT-B-16/laion2b_s34b_b88k").arch == "open_clip:ViT-B-16"


def test_a_tag_of_open_clips_is_loaded_with_its_zero_shot_head(
    open_clip: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog
):
    net = tiny_clip.drawn(open_clip)
    save_file(net.state_dict(), tmp_path / "tiny.safetensors")
    tags = {"drawn": {"file": str(tmp_path / "tiny.safetensors"), "quick_gelu": False}}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, tiny_clip.NAME, tags)
    chosen = model(f"{tiny_clip.ARCH}/drawn")
    texts = ClassTexts(tuple(CLASSES), tuple(tiny_clip.TEMPLATES[:1]))
    with caplog.at_level("INFO"):
        artifact = pretrained.backbone(chosen, Store(tmp_path / "store"), tmp_path, 0, texts=texts)
    assert "open_clip's weights drawn of tiny-clip; zero-shot head; 32 px" in caplog.text
    assert "5 classes in 1 sentences each, such as 'a photo of a bar.'" in caplog.text
    tower = models.create(chosen, 5)
    tower.load_state_dict(load_file(artifact.file(WEIGHTS)))
    images = torch.randn(2, 3, chosen.image_size, chosen.image_size)
    expected = net.encode_image(images, normalize=True) @ tiny_clip.head(open_clip, net)
    torch.testing.assert_close(tower(images), expected, rtol=1e-5, atol=1e-5)


def test_a_folder_of_timms_is_a_model_with_its_transform_and_head(tmp_path):
    net = timm.create_model("test_vit", num_classes=1000)
    config = {"num_classes": 1000, "pretrained_cfg": {"crop_pct": 0.5, "mean": [0.1, 0.2, 0.3]}}
    timm.models.save_for_hf(net, tmp_path / "mine", model_config=config)
    chosen = model(f"local-dir:{tmp_path / 'mine'}")
    assert (chosen.name, chosen.arch, chosen.weights.source) == ("mine", "test_vit", "file")
    assert (chosen.crop, chosen.mean, chosen.head.fit) == (0.5, [0.1, 0.2, 0.3], False)
    arch, settings = architecture(f"local-dir:{tmp_path / 'mine'}")
    assert arch == "test_vit" and settings["model.crop"] == 0.5
    artifact = pretrained.backbone(chosen, Store(tmp_path / "store"), tmp_path, 0)
    assert torch.equal(load_file(artifact.file(WEIGHTS))["head.weight"], net.head.weight)
    # A head of 1000 other classes is not taken for ImageNet's.
    values = json.loads((tmp_path / "mine" / "config.json").read_text())
    for names, is_fitted in ((["dish"] * 1000, True), ([f"n{i:08}" for i in range(1000)], False)):
        (tmp_path / "mine" / "config.json").write_text(json.dumps(values | {"label_names": names}))
        assert model(f"local-dir:{tmp_path / 'mine'}").head.fit == is_fitted


def test_of_a_hub_only_safetensors_are_asked_for(tmp_path, monkeypatch):
    asked = []

    def hub(repo_id: str, filename: str, **_: object) -> str:
        asked.append((repo_id, filename))
        raise OSError("out of reach")

    monkeypatch.setattr(timm.models._hub, "hf_hub_download", hub)
    with pytest.raises(ValueError, match=r"could not load weights .*out of reach"):
        pretrained.fetch(model("timm/resnet18.a1_in1k"), tmp_path)
    assert asked == [("timm/resnet18.a1_in1k", "model.safetensors")]


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


MODELS = model_recipes()
OTHERS = [pytest.param(m, marks=pytest.mark.exhaustive) for k, m in enumerate(MODELS) if k % 5]


@pytest.mark.slow
@pytest.mark.parametrize("model", [*MODELS[::5], *OTHERS], ids=lambda model: model.name)
def test_stored_values_are_those_of_the_installed_timm(model: ModelRecipe, monkeypatch):
    monkeypatch.setattr(flops, "forward_tflops", lambda *_: 1.0)
    remedy = "run `python -m bench.architectures`"
    stored = stored_architectures().get(model.arch)
    assert stored, remedy
    assert stored["config"] == json.loads(json.dumps(installed_config(model.arch))), remedy
    *counts, share = stored["networks"][form_of(model)].values()
    *counted, _ = count_network(model)
    assert counts == counted, remedy
    assert 0 < share < 1
