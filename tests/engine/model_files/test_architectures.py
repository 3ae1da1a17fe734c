"""What `recipes/architectures.json` says of the models in `recipes/models` is what timm says."""

import json

import pytest

from bench.architectures import model_recipes
from engine.cost import flops
from engine.cost.flops import count_network
from engine.cost.work import form_of
from engine.model_files.architectures import installed_config, stored_architectures
from engine.recipe.schema import ModelRecipe


@pytest.mark.slow
@pytest.mark.parametrize("model", model_recipes(), ids=lambda model: model.name)
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
