"""FLYP: fine-tunes CLIP with its pretraining loss, on images and captions.

Both towers minimise CLIP's contrastive loss over the batch (Goyal et al. 2023, section 3). An
image's caption is the words of its class in a randomly drawn template. With unit embeddings i_b of
images and t_b of captions, and the scale s, which is trained too,

    loss_b = (-log softmax_c(s i_b t_c)[b] - log softmax_c(s i_c t_b)[b]) / 2

Two images of the same class in a batch count as different pairs, as in the paper. A class of
several outputs has the words of a random one, whatever `dataset.class_reduction`, because the loss
has no logits of classes. The trained model is the vision tower with the zero-shot head of the tuned
text tower.

Differs from the authors' code: an image's caption is drawn anew in each step; the authors list each
image with 80 captions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from engine import models
from engine.machine import ranks
from engine.methods.base import Context, Trained
from engine.methods.beyond.options.flyp import Recipe
from engine.models import clip
from engine.models.sources import open_clip
from engine.store.cells import Export
from loaders.batches import Batch, on_device


class Method(Trained):
    recipe: Recipe

    def prepare(self, net: nn.Module, context: Context) -> None:
        """Raises ValueError on several ranks, since each would contrast only its own images."""
        if ranks.world() > 1:
            raise ValueError(
                f"{self.recipe.title} contrasts all images of a batch with one another, so it "
                "trains on one rank: start it without torchrun, or with --num_gpus 1"
            )
        super().prepare(net, context)
        models.take_head(net, context.recipe.model)  # `export` has one of the tuned text tower
        self.head_names = models.head_names(context.recipe.model)
        self.text = open_clip.open_on(context.device, context.recipe.model)
        del self.text.visual  # `net` is the vision tower
        # DeepSpeed broadcasts parameters as bytes, and a 0-d tensor cannot be viewed as bytes.
        self.log_scale_1 = nn.Parameter(self.text.logit_scale.detach()[None])
        del self.text.logit_scale
        self.clip = context.recipe.model.weights.clip
        self.tokenize = clip.package().get_tokenizer(self.clip)
        self.texts = context.sets.class_texts
        self.labels_N = context.target.labels
        members = context.target.members
        rows = [] if members is None else members.tolist()
        self.outputs = {row[0]: list(dict.fromkeys(row)) for row in rows}  # by grouped class

    def captions(self, index: np.ndarray) -> list[str]:
        """Captions of images at `index` [b]: words of the class in a template, both random."""
        sentences = []
        for label in self.labels_N[index].tolist():
            outputs = self.outputs.get(label, [label])
            output, template = torch.rand(2).tolist()  # torch's generator has the cell's seed
            template = self.texts.templates[int(template * len(self.texts.templates))]
            words = self.texts.words[outputs[int(output * len(outputs))]]
            sentences.append(template.format(words))
        return sentences

    def pairs(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Normalised images [b, 3, H, W] and the tokens [b, L] of their captions."""
        x = self.normalize(batch.images)
        return x, on_device(self.tokenize(self.captions(batch.index)), x.device)

    def loss(self, batch: Batch) -> torch.Tensor:
        return contrastive(similarities(self.net, self.text, self.log_scale_1, *self.pairs(batch)))

    def export(self) -> Export:
        weight, bias = self.head_names
        was_training = self.text.training
        self.text.eval().logit_scale = self.log_scale_1[0].detach()  # open_clip reads it here
        head = open_clip.head(self.text, self.clip, self.texts)
        del self.text.logit_scale
        self.text.train(was_training)
        bias_C = head.new_zeros(len(head))
        return Export(self.net.state_dict() | {weight: head, bias: bias_C})


def embeddings(
    net: nn.Module, text: Any, x_BCHW: torch.Tensor, tokens_BL: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Unit embeddings [b, E] (float32) of images and of captions. net: without its head."""
    images_BE = net(x_BCHW).float()
    return images_BE, text.encode_text(tokens_BL, normalize=True).float()


def similarities(
    net: nn.Module, text: Any, log_scale_1: torch.Tensor, *pairs: torch.Tensor
) -> torch.Tensor:
    """Scaled similarities [b, b] (float32) of each image (row) to each caption (column)."""
    images_BE, texts_BE = embeddings(net, text, *pairs)
    return models.logits(log_scale_1.exp() * images_BE, texts_BE, None)


def contrastive(logits_BB: torch.Tensor) -> torch.Tensor:
    """CLIP's loss [b] of each pair."""
    return (matched(logits_BB) + matched(logits_BB.T)) / 2


def matched(logits_BB: torch.Tensor) -> torch.Tensor:
    """Cross-entropy [b] of each row, whose class is its own number."""
    return F.cross_entropy(
        logits_BB, torch.arange(len(logits_BB), device=logits_BB.device), reduction="none"
    )
