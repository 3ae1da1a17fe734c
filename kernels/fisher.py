"""The exact diagonal Fisher information of a network, one batch at a time.

F_i = E_x E_y (d log p(y | x) / d theta_i)^2 needs the gradient of each image. `torch.func.vmap` of
`torch.func.grad` computes a few of them at once; memory then holds as many copies of the
parameters. A model that vmap cannot run (its path depends on values, or it has gradient
checkpointing) takes one backward pass per image, and a log line says so.

Sources: Kirkpatrick et al. 2017 (EWC); Kunstner et al. 2019 (model against data labels); EWC-DR,
arXiv 2603.18596 (reversed logits).
"""

from __future__ import annotations

import logging
import warnings

import torch
from torch import Tensor, nn

from kernels.distill import check_labels, check_targets

_log = logging.getLogger(__name__)
Gradients = tuple[Tensor, ...]  # of one image, in the parameters' order
_IMAGES = 8  # at once, at most
_NUMBERS = 1 << 30  # gradients at once, unless those of one image are more


class FisherAccumulator:
    """Sums squared per-image gradients batch by batch; `mean()` divides by the number of images.

    mask: bool [C], True for the classes in use. generator: draws labels; a CPU generator gives the
    same labels on any device, up to rounding. reverse: negate the logits, as EWC-DR does. bf16: run
    the model under bf16 autocast; squares and sums stay fp32. The model's mode, its `.grad` fields
    and `requires_grad` flags are unchanged. `sums`: over all images so far, by parameter name.

    Raises ValueError for a model whose batch norms use the batch's statistics, which couple images.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        mask: Tensor | None = None,
        generator: torch.Generator | None = None,
        reverse: bool = False,
        bf16: bool = False,
    ) -> None:
        for name, module in model.named_modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_var is None:
                raise ValueError(
                    f"{name} normalises by the statistics of the batch, which couple its images: "
                    "give the layer running statistics (track_running_stats=True)"
                )
        self.model = model
        self.generator = generator
        self._reverse = reverse
        self.images = 0
        self._device = next(model.parameters()).device
        self._mask = None if mask is None else mask.to(self._device)
        self._autocast = torch.autocast(self._device.type, torch.bfloat16, enabled=bf16)
        self._parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self.sums = {
            name: torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32))
            for name, p in self._parameters.items()
        }
        self._vmaps = True

    def update(self, images: Tensor, labels: Tensor | None = None) -> None:
        """Adds a batch [B, ...] of any size.

        labels: int64 [B], or None to draw them from the model. Raises ValueError if labels or mask
        do not fit, and on the CPU also for labels that are out of range or masked (as
        `kernels.distill.distill_loss` does) and logits from which no label can be drawn.
        """
        if len(images) == 0:
            return
        training = {module: module.training for module in self.model.modules()}
        self.model.eval()
        try:
            if self.images == 0:
                with torch.no_grad():
                    self._classes = self.model(images[:1]).shape[1]
            check_targets(labels, self._mask, len(images), self._classes)
            if labels is not None and not labels.is_cuda:
                check_labels(labels, self._classes, self._mask)
            targets = self._uniform(len(images)).to(images.device) if labels is None else labels
            self._add(images, targets)
        finally:
            for module, mode in training.items():
                module.training = mode
        self.images += len(images)

    def skip(self, images: int) -> None:
        """Skips a batch of images that another process takes.

        It still draws the random numbers of the batch's labels, so the labels of later batches do
        not depend on which process takes which batch.
        """
        self._uniform(images)

    def mean(self) -> dict[str, Tensor]:
        """Returns the diagonal by parameter name, in the parameters' shapes, fp32 or wider.

        Raises ValueError if there were no images.
        """
        if self.images == 0:
            raise ValueError("no images: the Fisher information needs at least one")
        return {name: total / self.images for name, total in self.sums.items()}

    def _uniform(self, images: int) -> Tensor:
        """float64 [images] in [0, 1), which draw the labels."""
        device = self._device if self.generator is None else self.generator.device
        return torch.rand(images, dtype=torch.float64, device=device, generator=self.generator)

    def _add(self, images: Tensor, targets: Tensor) -> None:
        numbers = max(1, sum(p.numel() for p in self._parameters.values()))
        size = max(1, min(_IMAGES, _NUMBERS // numbers))
        for start in range(0, len(images), size):
            part = slice(start, start + size)
            gradients, mass = self._gradients(images[part], targets[part])
            if not mass.is_cuda and (none := mass.isnan()).any():
                raise ValueError(
                    f"sample {start + int(none.nonzero()[0])} of the batch: no label can be drawn "
                    "from the model's logits, which are NaN, infinite or all masked"
                )
            for each in gradients:
                for total, gradient in zip(self.sums.values(), each, strict=True):
                    gradient = gradient.to(total.dtype)
                    total.addcmul_(gradient, gradient)

    def _gradients(self, images: Tensor, targets: Tensor) -> tuple[list[Gradients], Tensor]:
        """Each image's gradients, and the sums of probabilities [B] that drew the labels."""
        if self._vmaps:
            try:
                return self._by_vmap(images, targets)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:  # if vmap is not the reason, the other way raises it too
                self._vmaps = False
                reason = str(error).partition("\n")[0]
                _log.info("computing the Fisher image by image, which is slower: %s", reason)
        each = [self._of_image(*pair) for pair in zip(images, targets, strict=True)]
        return [gradients for gradients, _ in each], torch.stack([mass for _, mass in each])

    def _by_vmap(self, images: Tensor, targets: Tensor) -> tuple[list[Gradients], Tensor]:
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        values = {name: parameter.detach() for parameter, name in names.items()}
        # functional_call's own tying replaces a module with two names twice and does not restore
        # it, so each place that holds a parameter is listed once here.
        places = {
            f"{path}.{place}".lstrip("."): names[parameter]
            for path, module in self.model.named_modules()
            for place, parameter in module.named_parameters(recurse=False, remove_duplicate=False)
        }

        def loss(trained: dict[str, Tensor], image: Tensor, target: Tensor):
            placed = {place: (values | trained)[name] for place, name in places.items()}
            with self._autocast:
                logits = torch.func.functional_call(
                    self.model, placed, (image[None],), tie_weights=False
                )
            return self._loss(logits, target)

        trained = {name: values[name] for name in self._parameters}
        of_images = torch.func.vmap(torch.func.grad(loss, has_aux=True), in_dims=(None, 0, 0))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
            gradients, mass = of_images(trained, images, targets)
        return list(zip(*gradients.values(), strict=True)), mass

    def _of_image(self, image: Tensor, target: Tensor) -> tuple[Gradients, Tensor]:
        with torch.enable_grad():
            with self._autocast:
                logits = self.model(image[None])
            loss, mass = self._loss(logits, target)
            parameters = tuple(self._parameters.values())
            return torch.autograd.grad(loss, parameters, materialize_grads=True), mass

    def _loss(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of one image, whose target is a label or the number that draws one; and the sum
        of all probabilities.
        """
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self._reverse:
            logits = -logits
        if self._mask is not None:
            logits = logits.masked_fill(~self._mask, float("-inf"))
        if not target.is_floating_point():
            return nn.functional.cross_entropy(logits, target[None]), target.new_zeros(())
        # The distribution's inverse in float64, so that a CPU generator works for any device.
        cumulated = logits.detach().double().softmax(1).cumsum(1)[0]
        label = (cumulated <= target * cumulated[-1]).sum()
        return nn.functional.cross_entropy(logits, label[None]), cumulated[-1]
