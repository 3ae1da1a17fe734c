"""Count the parameters and operations of a recipe's network, for models that no table has."""

from __future__ import annotations

from functools import partial

import torch

from engine import models
from engine.cost.flops import elements_of_image, forward_tflops, of_image
from engine.cost.rates import product_tflops
from engine.recipe.schema import ModelRecipe


def count_network(recipe: ModelRecipe) -> tuple[int, int, float, float, float]:
    """Returns the values of a `Network` without its head."""
    size = recipe.image_size
    with torch.device("meta"):
        net = models.create(recipe, 2).eval()
    head, features = models.head(net), partial(models.features, net)
    parameters = sum(p.numel() for p in net.parameters()) - 2 * (head.in_features + 1)
    operations, elements = of_image(features, size), elements_of_image(features, size)
    layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
    share = forward_tflops(net, size, layout) / product_tflops()
    return parameters, head.in_features, operations, elements, share
