"""A method's context without a store: what `prepare` reads, of random weights and grey images."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn

from engine import models
from engine.data.sets import LabelledSet
from engine.recipe.schema import Recipe


def untrained(net: nn.Module, recipe: Recipe) -> Any:
    """The context of a cell whose set has 10,000 images of classes 0 and 3."""
    labels = np.tile([0, 3], 5000)  # as many images as the Fisher is taken over
    split = (np.arange(len(labels)), np.zeros(0, int))
    of_set = LabelledSet("any", labels, torch.from_numpy(labels), None, *split)
    base = SimpleNamespace(name="base", state=net.state_dict, prompt=lambda: None)
    classes = models.head(net).out_features
    return SimpleNamespace(
        recipe=recipe,
        device=torch.device("cpu"),
        autocast=torch.autocast("cpu", enabled=False),
        target=of_set,
        upstream=of_set,
        base=base,
        cell=lambda *_, **__: base,
        features=lambda *_, **__: torch.zeros(len(labels), models.head(net).in_features),
        logits=lambda *_: lambda index: torch.zeros(len(index), classes),
        fisher=lambda *_: {name: torch.ones(()) for name, _ in net.named_parameters()},
    )
