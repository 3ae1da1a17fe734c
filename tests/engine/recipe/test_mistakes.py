"""Recipes: every mistake is named in one line, with its file and a remedy."""

import re

import pytest

from engine import recipe
from engine.errors import RecipeError
from engine.recipe import parsed


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("emoji/ewx", "", "no recipe 'emoji/ewx'; did you mean 'emoji/ewc'?"),
        ("emoji/flyp", "", "'emoji/flyp'; emoji has no row flyp: give recipe=emoji method=flyp"),
        ("nowhere.yaml", "", "no recipe file nowhere.yaml"),
        ("emoji/ewc", "train.epoch=1", "unknown key 'train.epoch'; did you mean 'train.epochs'?"),
        ("emoji/ewc", "train.lr=1", "did you mean 'optimizer.lr'?"),
        ("emoji/ewc", "batchsize=1", "did you mean 'train.batch_size' or 'evaluate.batch_size'"),
        ("emoji/ewc", "temperature=1", "unknown key 'temperature'; valid: campaign, dataset,"),
        ("emoji/ewc", "model=efficientnet", "did you mean 'efficientnet_lite0'?"),
        ("emoji/ewc", "downstream=twemojy", "not a dataset of emoji; did you mean 'twemoji'?"),
        ("emoji/ewc", "method.module=ewq", "unknown method module 'ewq'; did you mean 'ewc'?"),
        ("emoji/ewc", "device=gpu", "device='gpu' is not valid; did you mean 'cpu'?"),
        ("emoji/ewc", "dataset.background=rgb(0,0,256)", "give a colour's name, or rgb(R,G,B)"),
        ("emoji/ewc", "train.epochs=many", "train.epochs='many' must be a whole number of"),
        ("emoji/ewc", "train.epochs=", "train.epochs has no value: it must be a whole number"),
        ("emoji/ewc", "optimizer.lr=.nan", "command line: optimizer.lr=nan must be a number ab"),
        ("emoji/ewc", "optimizer.betas=[0.9,1]", "must be a list, each a number of at least 0 and"),
        ("emoji/ewc", "train.freeze_batchnorm=1", "train.freeze_batchnorm=1 must be true or fal"),
        ("emoji/ewc", "train.warmup_steps=1" + "0" * 20, "train.warmup_steps=1"),
        ("emoji/ewc", "runs=", "runs='' must be a string, not an empty one"),
        ("emoji/ewc", "train.epochs=[1", "override 'train.epochs=[1' is not valid YAML"),
        ("emoji/ewc", "train.epochs", "not an override: write key=value"),
        ("emoji/ewc", f"{'a.' * 20}a=1", "is not an override"),
        ("emoji/ewc", "dataset.holdout=1", "holdout=1 must be a number of at least 0 and below 1"),
        ("emoji/ewc", "dataset.sets=[a,b]", "unknown emoji style 'a'; valid: "),
        ("emoji/ewc", "dataset.sets=[twemoji,twemoji]", "dataset.sets names twemoji twice"),
        ("emoji/ewc", "dataset.sets=[twemoji,'a{b}']", "a string that can be part of a path"),
        ("emoji/ewc", "dataset.train_sets=[twemoji]", "dataset.train_sets names twemoji twice"),
        ("emoji/ewc", "dataset.sets=[twemoji,upstream]", "unknown emoji style 'upstream'"),
        ("imagenet_rib/ewc", "dataset.sets=[imagenet_r,imagenet_val]", "names imagenet_val twice"),
        ("imagenet_rib/ewc", "model.head.fit_on=imagenet_r", "never evaluated; did you mean 'ima"),
        ("emoji/ewc", f"model.name={'x' * 101}", "use at most 100 bytes, without slashes"),
        ("emoji/ewc", "model.image_size=999999", "of at least 1 and at most 4096"),
        ("emoji/ewc", "model.mean=[0,0,2]", "at least 0 and at most 1, 3 of them or null"),
        ("emoji/ewc", "evaluate.cka=3", "evaluate.cka=3: CKA needs at least 4 images"),
        ("emoji/ewc", "evaluate.calibration=on dataset.holdout=0", "fits a temperature on"),
        (
            "imagenet_rib/ewc",
            "dataset.classes=100",
            "dataset.classes=100 applies to emoji-RIB only",
        ),
        ("emoji/ewc", "dataset.shots=1 dataset.portion=0.5", "both select training images"),
        ("emoji/ewc", "trackers=[wandp]", "unknown tracker 'wandp'; did you mean 'wandb'?"),
        ("emoji/soup", "method.members=[]", "method.members is empty"),
        ("emoji/greedy_soup", "dataset.holdout=0", "images; set dataset.holdout above 0"),
        ("emoji/visual_prompt", "model.image_size=2", "0 px does not fit an image of 2 px"),
        (
            "emoji",
            "methods=[ewc,flyp]",
            "has no method 'flyp'; a file adds it: `extends: emoji` an",
        ),
        ("emoji", "methods=[ewc,ewcc]", "methods: emoji has no method 'ewcc'; did you mean"),
        ("emoji", "methods=[ewc,lwf,ewc]", "methods names ewc twice"),
        ("emoji/ewc", f"{'a' * 200_000}=1", f"unknown key '{'a' * 149}; "),
        (
            "emoji/ewc",
            "method.title=a\x01b",
            "method.title='a\\x01b' contains a control character: write",
        ),
        (
            "emoji",
            "methods=ewc",
            "methods names no methods of emoji: give a list, as in methods=[fine_tune,",
        ),
    ],
)
def test_mistake_on_the_command_line(name, words, message):
    with pytest.raises(RecipeError, match=re.escape(message)) as caught:
        recipe.load(name, parsed(words.split()))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1\nb: 2", "is not valid YAML"),
        ("", "must contain `key: value` lines"),
        ("campaign: emoji\nmethod: ewc\ntrain: 3", "train must contain `key: value` lines"),
        ("campaign: emoji\nmethod: ewc\nseed: two", "seed='two' must be a whole number"),
        ("model: vit_tiny_random\nmethod: ewc", "names no dataset: add `dataset=NAME`"),
        ("model: vit_tiny_random\ndataset: emoji\nmethod: ewc", "downstream has no value"),
        ("campaign: emoji\nmethod: {name: a, title: A}", "method.module has no value"),
        ("methods: [ewc]\nmodel: vit_tiny_random\ndataset: emoji", "methods must contain"),
    ],
)
def test_mistake_in_a_file_names_it(tmp_path, text, message):
    file = tmp_path / "own.yaml"
    file.write_text(text)
    with pytest.raises(RecipeError, match=re.escape(message)) as caught:
        recipe.load(str(file))
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)


def test_mistake_in_a_named_part_names_that_file(tmp_path):
    model = tmp_path / "model.yaml"
    model.write_text("name: m\narch: test_vit\nimage_sise: 32\n")
    with pytest.raises(RecipeError, match=r"did you mean 'model\.image_size'") as caught:
        recipe.load("emoji/ewc", parsed([f"model={model}"]))
    assert str(model) in str(caught.value)


def test_methods_of_what_is_no_campaign(tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text("campaign: emoji\nmethod: ewc\n")
    with pytest.raises(RecipeError, match="is not a campaign: add `methods:`"):
        recipe.methods_of(str(file))
