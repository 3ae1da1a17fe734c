"""What each method trains, by name, beside what the benchmark's released code trains.

Read in main.py of the released code (commit e0a7e78). `model` there is timm's ViT or torchvision's
ResNet, whose names timm's has too.

- none, ewc, lwf, LPFT: every parameter.
- HeadOnly: on a ViT, what is outside `blocks` and `patch_embed`; on a ResNet, `fc`.
- lora: of the blocks the factors alone; `patch_embed` and `head` are frozen, the rest trains.
- Prompter: the optimizer has the prompt's parameters alone. The prompt is four borders there, one
  tensor here.
"""

import copy

import pytest
import timm

from engine.methods.base import Trained
from engine.recipe.campaigns import methods_of
from engine.recipe.methods import METHODS
from engine.recipe.overrides import parsed
from engine.recipe.resolve import load_recipe
from helpers.untrained import untrained

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
NETS = {
    "vit": ("vit_tiny_patch16_224", SMALL),
    "clip": ("vit_base_patch16_clip_224", SMALL),
    "resnet": ("resnet18", {}),
}
TOKENS = ["cls_token", "pos_embed", "norm.weight", "norm.bias"]
NORM_PRE = ["norm_pre.weight", "norm_pre.bias"]
HEAD = ["head.weight", "head.bias"]
FACTORS = [f"blocks.{block}.attn.qkv.low_rank.{name}" for block in (0, 1) for name in "AB"]
RELEASED = {
    ("vit", "linear_probe"): [*TOKENS, *HEAD],
    ("vit", "lora"): [*TOKENS, *FACTORS],
    ("clip", "linear_probe"): [*TOKENS, *NORM_PRE, *HEAD],
    ("clip", "lora"): [*TOKENS, *NORM_PRE, *FACTORS],
    ("resnet", "linear_probe"): ["fc.weight", "fc.bias"],
}
EVERYTHING = ("fine_tune", "ewc", "lwf", "lp_ft")


@pytest.mark.parametrize("kind", NETS)
def test_each_method_trains_what_the_released_code_trains(kind):
    arch, size = NETS[kind]
    net = timm.create_model(arch, num_classes=5, **size)
    trained = {}
    for key in methods_of("imagenet_rib_released"):
        cell = load_recipe("imagenet_rib_released", parsed([f"model.arch={arch}"]), method=key)
        method = METHODS.find(cell.method.module).Method(cell.method)
        if isinstance(method, Trained) and (kind, key) != ("resnet", "lora"):  # ViTs only, as there
            method.prepare(copy.deepcopy(net), untrained(net, cell))
            trained[key] = {n for n, p in method.named_parameters() if p.requires_grad}
    everything = {name for name, _ in net.named_parameters()}
    expected = {key: everything for key in EVERYTHING}
    expected |= {key: {*names} for (of, key), names in RELEASED.items() if of == kind}
    expected = {key: {f"net.{name}" for name in names} for key, names in expected.items()}
    assert trained == expected | {"visual_prompt": {"prompt"}}
