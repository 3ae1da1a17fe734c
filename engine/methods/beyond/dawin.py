"""DaWin's output ensemble: weighs each member by its confidence on the image.

    p = sum_m w_m p_m,  w_m = exp(-H_m) / sum_k exp(-H_k)

p_m are member m's probabilities for an image, and H_m is their entropy (Oh et al. 2025, the dynamic
output ensemble of their release). Their main method averages weights instead of outputs, with the
same w_m, and so builds a model for each image.

Differs from the authors' code: the temperature is 1, and the prediction for an image does not
depend on other images; the authors divide logits by constants near 1 for their CLIP models, and
shift the w_m by statistics of the whole test set.
"""

from __future__ import annotations

from engine.methods.beyond import ensemble
from engine.methods.beyond.options.dawin import Recipe


class Method(ensemble.Method):
    recipe: Recipe
    weights = "entropy"
