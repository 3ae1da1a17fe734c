"""Linear heads in closed form, for datasets with classes of their own.

With pre-logits x_n [D] of N training images and their one-hot labels y_n [C], ridge regression
minimises

    1/N sum_n |W (x_n - m) + p - y_n|^2 + RIDGE v |W|^2

m and p are the means of x and y, and v is the mean variance of the D features, so a head does not
depend on the features' scale or mean. All is computed in float64, and the head in float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from engine.data.sets import LabelledSet
from engine.evaluation import bank
from engine.evaluation.batches import Reader, alone, read_batches, reduced
from engine.models.execution import Form, Function, Model
from engine.recipe.schema import RIDGE
from engine.run import Run
from engine.store.pending import slices


def with_fitted_heads(
    run: Run, models: Sequence[Model], labelled: LabelledSet, reader: Reader, inputs: Function
) -> list[Model]:
    """The models with heads fitted on the training split of a dataset, whose images are read once.

    reader, inputs: as of `batches`.
    """
    cuts = slices(labelled.split("train"), run.recipe.evaluate.batch_size)
    embeds = [([Model(model.embed, lambda x_BD: x_BD)], alone) for model in models]
    kind = Form.of(run.recipe.evaluate, run.device).precision
    classes, grams = len(labelled.pack.classes), [torch.zeros(()) for _ in models]
    pieces = read_batches(run, reader, cuts, f"heads of {labelled.name}")
    for cut, batches in zip(cuts, pieces, strict=True):
        y_BC = F.one_hot(labelled.labels[torch.from_numpy(cut)], classes)
        for k, x_BD in enumerate(reduced(run, inputs, embeds, batches, kind)):
            grams[k] = grams[k].to(x_BD.device) + gram(x_BD, y_BC.to(x_BD.device))
    heads = [bank.head_of(*solved(of_model, classes)) for of_model in grams]
    return [Model(model.embed, head) for model, head in zip(models, heads, strict=True)]


def gram(x_BD: torch.Tensor, y_BC: torch.Tensor) -> torch.Tensor:
    """Inner products, float64 [1 + D + C, 1 + D + C], of the columns of (1, x, y) over images.

    Those of several parts add up.
    """
    columns = [torch.ones_like(x_BD[:, :1]), x_BD, y_BC]
    z_BK = torch.cat([column.double() for column in columns], dim=1)
    return z_BK.T @ z_BK


def solved(gram_KK: torch.Tensor, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The head's weight [C, D] and bias [C], float32, from the `gram` of all training images."""
    mean_K = gram_KK[0] / gram_KK[0, 0]
    covariance_KK = gram_KK / gram_KK[0, 0] - mean_K.outer(mean_K)
    xx_DD, xy_DC = covariance_KK[1:-classes, 1:-classes], covariance_KK[1:-classes, -classes:]
    variance = xx_DD.diagonal().mean()
    # Features that do not vary at all need some penalty too.
    xx_DD.diagonal().add_((RIDGE * variance).clamp(min=torch.finfo(torch.float64).tiny))
    weight_DC = torch.linalg.solve(xx_DD, xy_DC)
    bias_C = mean_K[-classes:] - mean_K[1:-classes] @ weight_DC
    return weight_DC.T.float().contiguous(), bias_C.float()
