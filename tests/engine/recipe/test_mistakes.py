"""Recipes: every mistake is named in one line, with its file and a remedy."""

import re

import pytest

from engine import recipe
from engine.errors import RecipeError


@pytest.mark.parametrize(
    ("name", "word", "message"),
    [
        ("emoji/ewx", "", "no recipe 'emoji/ewx'; did you mean 'emoji/ewc'?"),
        ("nowhere.yaml", "", "no recipe file nowhere.yaml"),
        ("", "", "no recipe ''; valid: emoji/ewc"),
        ("emoji/ewc", "train.epoch=1", "unknown key 'train.epoch'; did you mean 'train.epochs'?"),
        ("emoji/ewc", "trian.epochs=1", "unknown key 'trian'; did you mean 'train'?"),
        ("emoji/ewc", "variant=paper", "'variant'; did you mean 'method.variant'?"),
        ("emoji/ewc", "train.lr=1", "did you mean 'optimizer.lr'?"),
        ("emoji/ewc", "batchsize=1", "did you mean 'train.batch_size' or 'evaluate.batch_size'"),
        ("emoji/ewc", "temperature=1", "unknown key 'temperature'; valid: campaign, dataset,"),
        ("emoji/ewc", "model=efficientnet", "did you mean 'efficientnet_lite0'?"),
        ("emoji/ewc", "campaign=emojis", "no campaign 'emojis'; did you mean 'emoji'?"),
        ("emoji/ewc", "downstream=twemojy", "not a set of emoji; did you mean 'twemoji'?"),
        ("emoji/ewc", "method.module=ewq", "no method module 'ewq'; did you mean 'ewc'?"),
        ("emoji/ewc", "device=gpu", "device='gpu' is not possible; did you mean 'cpu'?"),
        ("emoji/ewc", "dataset.background=rgb(0,0,256)", "give a colour's name, or rgb(R,G,B)"),
        ("emoji/ewc", "train.epochs=many", "train.epochs='many' must be a whole number of"),
        ("emoji/ewc", "train.epochs=", "train.epochs has no value; it must be a whole number"),
        ("emoji/ewc", "train.clip=yes", "the command line: train.clip=True must be a number"),
        ("emoji/ewc", "train.freeze_batchnorm=1", "train.freeze_batchnorm=1 must be true or fal"),
        ("emoji/ewc", "train.warmup_steps=1" + "0" * 20, "train.warmup_steps=1"),
        ("emoji/ewc", "runs=", "runs='' must be a text, not an empty one"),
        ("emoji/ewc", "train=3", "train must hold `key: value` lines, not 3"),
        ("emoji/ewc", "train.epochs=[1", "override 'train.epochs=[1' is not valid YAML"),
        ("emoji/ewc", "train.epochs", "not an override; write key=value"),
        ("emoji/ewc", f"{'a.' * 20}a=1", "is not an override"),
        ("emoji/ewc", "seed=${nope}", "`${...}` is not resolved; write the value itself"),
        ("emoji/ewc", "dataset.holdout=1", "holdout=1 must be a number of at least 0 and below 1"),
        ("emoji/ewc", "dataset.sets=[a,b]", "'a' is no emoji style; valid: "),
        ("emoji/ewc", "dataset.sets=[openmoji]", "downstream='twemoji' is not a set of emoji"),
        ("emoji/ewc", "dataset.sets=[twemoji,twemoji]", "dataset.sets names twemoji twice"),
        ("emoji/ewc", "dataset.sets={a: b}", "dataset.sets={'a': 'b'} must be a list"),
        ("emoji/ewc", "dataset.sets=[[twemoji]]", "[['twemoji']] must be a list, each a text"),
        ("emoji/ewc", "dataset.sets=[twemoji,'a{b}']", "'a{b}' cannot be part of a path"),
        ("emoji/ewc", "dataset.train_sets=[twemoji]", "dataset.train_sets names twemoji twice"),
        ("emoji/ewc", "dataset.train_sets=[oil]", "dataset.train_sets: 'oil' is no emoji style"),
        ("emoji/ewc", "model.name=.x", "model.name: '.x' cannot be part of a path"),
        ("emoji/ewc", f"model.name={'x' * 101}", "use at most 100 bytes, without slashes"),
        ("emoji/ewc", "model.interpolation=banana", "valid: bicubic, bilinear, box, ham"),
        ("emoji/ewc", "model.image_size=999999", "of at least 1 and at most 4096"),
        ("emoji/ewc", "seed=9223372036854775808", "at most 9223372036854775807"),
        ("emoji/ewc", "model.mean=[0.5,0.5]", "[0.5, 0.5] must be a list, each a number"),
        ("emoji/ewc", "model.mean=[0,0,2]", "at least 0 and at most 1, 3 of them or null"),
        ("emoji/ewc", "model.std=[1,1,0]", "[1, 1, 0] must be a list, each a number above 0"),
        ("emoji/ewc", "trackers=[wandp]", "'wandp' is not known; did you mean 'wandb'?"),
        ("emoji/soup", "method.members=[]", "method.members is empty"),
        ("emoji/greedy_soup", "dataset.holdout=0", "hold-out; set dataset.holdout above 0"),
        ("emoji/visual_prompt", "model.image_size=2", "0 px does not fit an image of 2 px"),
        ("emoji/wise_ft", "method.alphas=[0.5,1.5]", "[0.5, 1.5] must be a list, each a number"),
        ("emoji/linear_probe", "method.l2=.inf", "must be a number above 0"),
        ("emoji/lwf", "method.temperature=0", "method.temperature=0 must be a number above 0"),
        ("emoji", "methods=[ewc,ewcc]", "methods: 'ewcc' is no method of emoji; did you mean"),
        ("emoji", "methods=ewc", "methods names no methods of emoji; write methods=[fine_tune,"),
    ],
)
def test_mistake_on_the_command_line(name, word, message):
    with pytest.raises(RecipeError, match=re.escape(message)) as caught:
        recipe.load(name, [word] if word else [])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "word",
    [
        *("seed=-1", "seeds=0", "train.epochs=0", "train.batch_size=0", "train.accumulation=0"),
        *("train.snapshots=-1", "train.checkpoint_minutes=-1", "train.clip=-1"),
        *("train.warmup_steps=-3", "evaluate.batch_size=0", "optimizer.lr=0", "optimizer.lr=-1"),
        *("optimizer.lr=.nan", "optimizer.lr=.inf", "optimizer.momentum=1", "optimizer.eps=-1"),
        *("optimizer.weight_decay=-1", "optimizer.betas=[0.9,1]", "model.image_size=0"),
        *("model.crop=0", "model.projection=-1", "model.head.l2=0", "dataset.renderings=0"),
        *("dataset.source_px=0", "dataset.holdout=-0.1", "method.lam=-1", "method.lam=.nan"),
        "method.fisher_images=-5",
    ],
)
def test_a_number_out_of_range_names_its_key(word):
    key = re.escape(word.partition("=")[0])
    message = rf"^the command line: {key}=.+ must be a .*(of at least|above)"
    with pytest.raises(RecipeError, match=message):
        recipe.load("emoji/ewc", [word])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1\nb: 2", "is not valid YAML"),
        ("\tcampaign: emoji", "is not valid YAML"),
        ("", "must hold `key: value` lines"),
        ("- emoji", "must hold `key: value` lines"),
        ("campaign: emoji\nmethod: ewc\ntrain: {epoch: 3}", "did you mean 'train.epochs'"),
        ("campaign: emoji\nmethod: ewc\ntrain: 3", "train must hold `key: value` lines"),
        ("campaign: emoji\nmethod: ewc\nseed: two", "seed='two' must be a whole number"),
        ("model: vit_tiny_random\nmethod: ewc", "names no dataset; add `dataset=NAME`"),
        ("dataset: emoji\nmethod: ewc", "names no model; add `model=NAME`"),
        ("model: vit_tiny_random\ndataset: emoji", "names no method; add `method=NAME`"),
        ("model: vit_tiny_random\ndataset: emoji\nmethod: ewc", "downstream has no value"),
        ("campaign: emoji\nmethod: ewc\ndataset: folder", "dataset.sets has no value"),
        ("campaign: emoji\nmethod: {name: a, title: A}", "method.module has no value"),
        ("methods: [ewc]\nmodel: vit_tiny_random\ndataset: emoji", "methods must hold"),
        ("methods: {ewc: 3}\nmodel: vit_tiny_random\ndataset: emoji", "(methods.ewc) must hold"),
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
        recipe.load("emoji/ewc", [f"model={model}"])
    assert str(model) in str(caught.value)


def test_methods_of_what_is_no_campaign(tmp_path):
    file = tmp_path / "own.yaml"
    file.write_text("campaign: emoji\nmethod: ewc\n")
    with pytest.raises(RecipeError, match="is no campaign; it needs `methods:`"):
        recipe.methods_of(str(file))
