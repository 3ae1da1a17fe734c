"""DaWin's output ensemble: a member counts more on images that it is surer of.

With the entropy H_m of member m's probabilities p_m for an image,

    p = sum_m w_m p_m,  w_m = exp(-H_m) / sum_k exp(-H_k)

(Oh et al. 2025, the dynamic output ensemble of their release). Their main method averages weights
in place of outputs by the same shares, which is a model, and a forward pass, for each image. The
release divides logits by temperatures, constants near 1 of its CLIP models, and shifts the shares
by statistics of the whole test set. Here an image's answer depends on no other image, and the
temperature is 1.
"""

from __future__ import annotations

from engine.methods import ensemble
from engine.recipe.options import DaWin as Recipe


class Method(ensemble.Method):
    recipe: Recipe
    weights = "entropy"
