"""CLIP on any classes: heads, methods and cells follow `dataset.class_names` and templates."""

import json
import re
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors.torch import save_file

from engine import cli
from engine.campaigns.make_plan import make_plan
from engine.data import imagenet
from engine.data.sets import class_texts
from engine.errors import RecipeError
from engine.models.sources import open_clip as zero_shot
from engine.recipe.overrides import parsed
from engine.recipe.resolve import load_recipe
from helpers import campaigns, tiny_clip
from helpers.grids import CLASSES, FEW, Grid
from helpers.twins import assert_near
from helpers.user_checkpoints import rows

CLIP_MODEL = """\
name: clip
arch: open_clip:tiny-clip
image_size: 32
weights: {{source: open_clip, clip: tiny-clip, path: {}}}
"""
WORDS = "class,name\ncross,red cross\nsquare,  box \n"


@pytest.fixture
def campaign(folder: Path, clip_words: list[str], tmp_path: Path) -> Path:
    """The file of a campaign of the random CLIP on the drawn shapes."""
    (tmp_path / "clip.yaml").write_text(CLIP_MODEL.format(tmp_path / "clip.safetensors"))
    (tmp_path / "mine.yaml").write_text(
        f"extends: {folder}/shapes.yaml\nmodel: clip.yaml\n"
        "methods: {flyp: {}, lipsum_ft: {}}\n"
    )
    return tmp_path / "mine.yaml"


def test_the_head_is_open_clips_of_words_in_templates(
    grid: Grid, open_clip: ModuleType, clip_words: list[str], tmp_path: Path, caplog
):
    """Of a benchmark with three classes, beside open_clip's text tower in float64."""
    (tmp_path / "words.csv").write_text(WORDS)
    few = [*clip_words, "method=fine_tune"]
    few += ["dataset.upstream=few", "dataset.sets=[upstream]", "downstream=few"]
    given = [
        f"dataset.class_names={tmp_path}/words.csv",
        f"dataset.templates={json.dumps(['my {}', '{}!'])}",
    ]
    with caplog.at_level("INFO"):
        base = grid.builder(*few, *given).base
    assert caplog.text.count("CLIP reads 1 of 3 classes by their names, such as ring:") == 1
    model = tiny_clip.drawn(open_clip).double()
    tokens = open_clip.get_tokenizer(tiny_clip.NAME)
    words = {"cross": "red cross", "ring": "ring", "square": "box"}
    head = []
    for name in FEW:
        texts = [f"my {words[name]}", f"{words[name]}!"]
        features = torch.nn.functional.normalize(model.encode_text(tokens(texts)), dim=1).mean(0)
        head.append(model.logit_scale.exp() * features / features.norm())
    expected = torch.stack(head).detach()
    assert_near(base.state()["head.weight"], expected, rtol=1e-5, atol=1e-5)
    plain = grid.builder(*few).base
    assert plain.name != base.name
    expected = tiny_clip.head(open_clip, model, FEW).T
    assert_near(plain.state()["head.weight"], expected, rtol=1e-5, atol=1e-5)


def test_of_imagenet_words_templates_and_names_of_models_are_as_without_texts(open_clip):
    resolved = load_recipe("imagenet_rib", parsed(["model=vit_b16_clip_openai_zero_shot"]))
    texts = class_texts(resolved, imagenet.wnids())
    names, templates = open_clip.IMAGENET_CLASSNAMES, open_clip.OPENAI_IMAGENET_TEMPLATES
    sentences = [t.format(words) for words in texts.words for t in texts.templates]
    assert sentences == [template(name) for name in names for template in templates]
    assert texts.key(resolved.model.weights) == {}
    part = class_texts(resolved, imagenet.wnids()[5:7])  # of a benchmark with two of the classes
    assert part.words == tuple(names[5:7]) and part.templates == texts.templates
    mixed = class_texts(resolved, ["n01440764", "grey_wren"])
    assert mixed.words == ("tench", "grey wren") and mixed.templates == ("a photo of a {}.",)


def test_names_of_cells_follow_what_the_text_tower_reads(grid, clip_words, tmp_path):
    (tmp_path / "words.csv").write_text(WORDS)
    words = f"dataset.class_names={tmp_path}/words.csv"
    fitted = [*clip_words, "model.head.fit=true", "model.weights.templates=simple"]
    for model, method, differs in (
        (clip_words, "fine_tune", True),
        (fitted, "fine_tune", False),  # no text tower made the head
        (fitted, "flyp", True),  # its captions
        ([], "fine_tune", False),  # of timm
    ):
        keys = [grid.builder(*model, f"method={method}", *more).key() for more in ([], [words])]
        assert (keys[0] != keys[1]) == differs, (model, method)


WRONG = {
    "words,class\n": r"words\.csv, line 1: write the columns there, class,name",
    "class,name\nring\n": r"words\.csv, line 2: write a class and its words",
    "class,name\nring,hoop\nbar,  \n": r"words\.csv, line 3: 'bar' has no words",
    "class,name\nring,hoop\nring,loop\n": r"words\.csv, line 3: 'ring' is given twice",
    "class,name\nring,hoop\nrin,loop\n": r"line 3: .* no class 'rin' \(is it 'ring'\?\)",
    "class,name\nring,\ud800\n": r"words\.csv is not a CSV file in UTF-8",
}


@pytest.mark.parametrize("text", WRONG)
def test_what_is_wrong_with_words_is_named_in_a_dry_run(text, campaign, tmp_path, capsys):
    (tmp_path / "words.csv").write_text(text, "utf-8", errors="surrogatepass")
    words = ["campaign", str(campaign), f"runs={tmp_path}/runs", "--dry-run"]
    assert cli.main([*words, f"dataset.class_names={tmp_path}/words.csv"]) > 0
    assert re.search(WRONG[text], error := capsys.readouterr().err), error


@pytest.mark.parametrize("template", ["a bird", "{} and {}", "{0.__class__} {}", "{{}}"])
def test_a_template_has_one_place_for_the_words(template):
    with pytest.raises(
        RecipeError, match=r"dataset\.templates, number 2: .*must contain \{\} once"
    ):
        load_recipe("emoji", parsed([{"dataset.templates": ["a {}", template]}]))


def test_a_plan_is_named_after_the_words_that_clip_reads(campaign, folder, tmp_path):
    file = tmp_path / "words.csv"

    def digest(name: Path, *words: str) -> str:
        return make_plan(str(name), parsed([f"runs={tmp_path}/runs", *words])).place.name

    names = []
    for text in (WORDS, WORDS.replace("box", "frame")):
        file.write_text(text)
        names.append(digest(campaign, f"dataset.class_names={file}"))
        assert digest(folder / "shapes.yaml", f"dataset.class_names={file}") == digest(
            folder / "shapes.yaml"
        )
    assert len({*names, digest(campaign)}) == 3


@pytest.mark.slow
def test_a_campaign_of_clip_runs_on_the_shapes(grid, campaign, open_clip, tmp_path, capsys):
    """FLYP and Lipsum-FT from images to table; a dry run says how classes are read."""
    (tmp_path / "words.csv").write_text(WORDS)
    words = [str(campaign), f"runs={tmp_path}/runs"]
    assert cli.main(["campaign", *words, "--dry-run"]) == 0
    assert "reads classes by their names" in capsys.readouterr().err
    words.append(f"dataset.class_names={tmp_path}/words.csv")
    assert cli.main(["campaign", *words, "--dry-run"]) == 0
    assert "by their names" not in capsys.readouterr().err
    report = campaigns.run(tmp_path, words[2], "methods=[flyp,lipsum_ft]", name="mine")
    methods = {row["method"] for row in campaigns.rows(report / "accuracy.csv")}
    assert methods == {"pretrained", "flyp", "lipsum_ft"}


def test_a_text_tower_runs_after_all_checks(user_grid, open_clip, monkeypatch):
    for seed, name in enumerate("AB"):
        state = tiny_clip.drawn(open_clip, seed).state_dict()
        save_file(state, user_grid.folder / f"{name}.safetensors")
    tower = {k: v for k, v in state.items() if k.startswith("visual.")}
    head = {"head.weight": torch.zeros(3, 24), "head.bias": torch.zeros(3)}
    save_file(tower | head, user_grid.folder / "T.safetensors")
    monkeypatch.setattr(zero_shot, "head", None)
    for models, classes, message in (
        ("A", ("bar", "bar"), "--classes names bar twice"),
        ("A", FEW, r"outline has 2 classes that the model's head lacks: 'bar'"),
        ("A", None, r"outline has 5 classes that the model's head lacks: 'bar'"),
        ("AT", CLASSES, r"--classes has 5 names, but the head of .*T\.safetensors has 3 outputs"),
    ):
        with pytest.raises(ValueError, match=message):
            rows(user_grid, models, "outline", arch=tiny_clip.ARCH, classes=classes)
