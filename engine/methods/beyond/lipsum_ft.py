"""Lipsum-FT: fine-tunes CLIP's vision tower while preserving similarities to random texts.

It adds this penalty to the cross-entropy (Nam et al. 2024):

    weight * sum_k (s i_b t_k - s j_b t_k)^2 / (2 K)

i_b is the unit embedding of an image and j_b its value before training. The t_k are the frozen text
tower's embeddings of K texts of random tokens, and s is CLIP's scale. Like the authors' release,
each step draws K = 80 new texts of 8 tokens, and the weight is 1. Unless training augments images,
j_b is computed once.

As in the release, the head's class embeddings are trained without the scale s, and without a bias.

Differs from the authors' code: our campaigns train ten epochs and keep the last model; the authors
train 50,000 steps of 256 images and keep the best model on validation images.
"""

from __future__ import annotations

import torch
from torch import nn

from engine import models
from engine.machine import ranks
from engine.methods.base import Context, Trained
from engine.methods.beyond.options.lipsum_ft import Recipe
from engine.models import clip
from engine.models.sources import open_clip
from engine.store.cells import Export
from loaders.batches import Batch, on_device


class Method(Trained):
    recipe: Recipe

    def prepare(self, net: nn.Module, context: Context) -> None:
        """Raises ValueError on several ranks, since each would draw its own texts, and for a text
        tower whose vocabulary is not CLIP's."""
        if ranks.world() > 1:
            raise ValueError(
                f"{self.recipe.title} draws the texts of a step for a whole batch, so it trains on "
                "one rank: start it without torchrun, or with --num_gpus 1"
            )
        super().prepare(net, context)
        self.before = context.embedder(context.base, context.target)
        text = open_clip.open_on(context.device, context.recipe.model)
        self.scale = text.logit_scale.detach().exp()
        # DeepSpeed broadcasts parameters as bytes, and a 0-d tensor cannot be viewed as bytes.
        del text.visual, text.logit_scale
        self.text = text.requires_grad_(False).eval()
        self.head_names = models.head_names(context.recipe.model)
        self.head = models.take_head(net, context.recipe.model)
        self.head.weight.data /= self.scale
        self.head.bias.requires_grad_(False)
        name = context.recipe.model.weights.clip
        tokenizer = clip.package().get_tokenizer(name)
        if not hasattr(tokenizer, "sot_token_id"):
            raise ValueError(
                f"{self.recipe.title} draws tokens from CLIP's vocabulary, and {name} uses "
                "another one: choose a CLIP model, or another method"
            )
        self.ends = tokenizer.sot_token_id, tokenizer.eot_token_id
        self.length = tokenizer.context_length

    def train(self, mode: bool = True) -> Method:
        super().train(mode)
        self.text.eval()
        return self

    def texts(self) -> torch.Tensor:
        """Tokens [K, L] (int64) of random texts, on the CPU."""
        first, last = self.ends
        words = torch.randint(first, (self.recipe.texts, self.recipe.tokens))
        tokens = torch.zeros(self.recipe.texts, self.length, dtype=torch.int64)
        tokens[:, 0], tokens[:, 1 + self.recipe.tokens] = first, last
        tokens[:, 1 : 1 + self.recipe.tokens] = words
        return tokens

    def loss(self, batch: Batch) -> torch.Tensor:
        x = self.normalize(batch.images)
        images_BE = self.net(x).float()
        logits_BC = self.grouped(self.scale * self.head(images_BE))
        with torch.no_grad():
            tokens = on_device(self.texts(), x.device)
            texts_KE = self.text.encode_text(tokens, normalize=True).float()
            texts_KE = self.scale * texts_KE
        change_BK = models.logits(images_BE - self.before(batch), texts_KE, None)
        losses_B = self._losses(logits_BC, self.targets(batch))
        return losses_B + self.recipe.weight * change_BK.square().mean(dim=1) / 2

    def export(self) -> Export:
        weight, bias = self.head_names
        head = {weight: self.scale * self.head.weight, bias: self.head.bias}
        return Export(self.net.state_dict() | head)
