"""The exact diagonal Fisher information for about the cost of one backward pass.

F_i = E_x E_y (d log p(y | x) / d theta_i)^2 needs the gradient of each example. In eval mode an
example's loss depends on its own input only, so one backward pass of the summed loss computes the
output gradients of all examples at each operator. A rule per operator turns these and the
operator's input into sums of squares, without storing the whole gradient of any example.
`TorchFunctionMode` intercepts operators, not modules, so fused activations, functional calls and
bare parameters (cls_token, LayerScale) need no special treatment.

A parameter that is used in any other way, or more than once, falls back to torch.func.vmap(grad) on
small chunks, and a log line names it.

Sources: Kirkpatrick et al. 2017 (EWC); Kunstner et al. 2019 (model against data labels); Rochette
et al. 2019 (the grouped convolution).
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from kernels.distill import check_labels, check_targets
from kernels.fisher.per_example import ELEMENTWISE, RULES, expand_over_batch, sum_of_squares

_log = logging.getLogger(__name__)
Squares = Callable[[Tensor], Tensor]
_CHUNK = 8  # images per vmap: their gradients of a parameter are in memory together
_AT_ONCE = 64  # images per pass: a batch may be the joint batch of many GPUs


def fisher_diagonal(
    model: nn.Module,
    batches: Iterable[Tensor | tuple[Tensor, Tensor]],
    *,
    labels: Literal["model", "data"] = "model",
    mask: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """Returns the mean over images of (d log p(y|x) / d theta)^2 for each trainable parameter, by
    name.

    batches: images [B, ...], or (images, int64 labels [B]) if `labels="data"`, on the model's
    device. labels: "model" draws y from the model's own softmax (the Fisher), "data" takes the
    given labels (the empirical Fisher). mask: bool [C], True for the classes in use. generator: for
    the draws; a CPU generator gives the same labels on any device, up to rounding.

    Raises ValueError if there are no images, if labels are missing, if the mask does not fit, if
    batch statistics couple the examples, and for a model with gradient checkpointing. On the CPU it
    also raises for labels that are out of range or masked (as `kernels.distill.distill_loss` does),
    and for logits from which no label can be drawn.
    """
    if labels not in ("model", "data"):
        raise ValueError(f'labels must be "model" or "data", not {labels!r}')
    accumulator = FisherAccumulator(model, mask=mask, generator=generator)
    for batch in batches:
        images, given = (batch, None) if isinstance(batch, Tensor) else batch
        if labels == "data" and given is None:
            raise ValueError('labels="data" needs batches of (images, labels)')
        accumulator.update(images, given if labels == "data" else None)
    return accumulator.mean()


class FisherAccumulator:
    """Sums squared per-example gradients batch by batch; `mean()` divides by the number of images.

    After an update, `fallback` names the parameters that went through vmap(grad). The model's mode,
    its `.grad` fields and `requires_grad` flags are unchanged.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        mask: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        self.model = model
        self.mask = mask
        self.generator = generator
        self.images = 0
        self.fallback: frozenset[str] = frozenset()
        self._parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        self._sums = {
            name: torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32))
            for name, p in self._parameters.items()
        }

    def update(self, images: Tensor, labels: Tensor | None = None) -> None:
        """Adds a batch [B, ...] of any size.

        labels: int64 [B], or None to draw them from the model. Raises ValueError as
        `fisher_diagonal` does.
        """
        if len(images) == 0:
            return
        training = {module: module.training for module in self.model.modules()}
        self.model.eval()
        try:
            if self.images == 0 and len(images) > 1:
                # With one image, no other dimension equals B by chance.
                self._name_fallback(self._forward(images[:1])[1].unhandled())
            uniform = None if labels is not None else self._uniform(len(images), images.device)
            for start in range(0, len(images), _AT_ONCE):
                part = slice(start, start + _AT_ONCE)
                given, drawn = (t if t is None else t[part] for t in (labels, uniform))
                self._update(images[part], given, drawn)
        finally:
            for module, mode in training.items():
                module.training = mode
        self.images += len(images)

    def skip(self, images: int) -> None:
        """Skips a batch of images that another process takes.

        It still draws the random numbers of the batch's labels, so the labels of later batches do
        not depend on which process takes which batch.
        """
        self._uniform(images, next(self.model.parameters()).device)

    @property
    def sums(self) -> dict[str, Tensor]:
        """Sums over all images so far, by parameter name, in the parameters' shapes."""
        return self._sums

    def mean(self) -> dict[str, Tensor]:
        """Returns the diagonal by parameter name, in the parameters' shapes, fp32 or wider.

        Raises ValueError if there were no images.
        """
        if self.images == 0:
            raise ValueError("no images: the Fisher information needs at least one")
        return {name: total / self.images for name, total in self._sums.items()}

    def _update(self, images: Tensor, labels: Tensor | None, uniform: Tensor | None) -> None:
        """Adds images in one pass, with given labels or labels drawn by numbers of `_uniform`."""
        logits, mode = self._forward(images)
        check_targets(labels, self.mask, *logits.shape)
        if labels is None:
            assert uniform is not None
            labels = self._draw(logits, uniform)
        elif not labels.is_cuda:
            check_labels(labels, logits.shape[1], self.mask)
        self._name_fallback(mode.unhandled())
        mode.discard(self.fallback)
        loss = F.cross_entropy(self._masked(logits), labels, reduction="sum")
        if mode.leaves and loss.requires_grad:
            with _refused_checkpointing():
                torch.autograd.grad(loss, mode.leaves, allow_unused=True)
        if self.fallback:
            self._add_by_vmap(images, labels)

    def _forward(self, images: Tensor) -> tuple[Tensor, _Recorder]:
        if images.is_floating_point():
            images = images.detach().requires_grad_()
        recorder = _Recorder(self._parameters, self._sums, images)
        with torch.enable_grad(), _refused_checkpointing(), recorder as mode:
            return self.model(images), mode

    def _masked(self, logits: Tensor) -> Tensor:
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return logits if self.mask is None else logits.masked_fill(~self.mask, float("-inf"))

    def _draw(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """Inverse-CDF sampling in float64, so that a CPU generator works for any device."""
        cdf = self._masked(logits.detach()).double().softmax(1).cumsum(1)
        if not cdf.is_cuda and (none := cdf[:, -1].isnan()).any():
            raise ValueError(
                f"sample {int(none.nonzero()[0])} of the batch: no label can be drawn from the "
                "model's logits, which are NaN, infinite or all masked"
            )
        return torch.searchsorted(cdf, uniform.to(cdf) * cdf[:, -1:], right=True).squeeze(1)

    def _uniform(self, images: int, device: torch.device) -> Tensor:
        """float64 [images, 1] in [0, 1), which draw the labels."""
        device = device if self.generator is None else self.generator.device
        return torch.rand(images, 1, dtype=torch.float64, device=device, generator=self.generator)

    def _name_fallback(self, names: frozenset[str]) -> None:
        if new := sorted(names - self.fallback):
            _log.info("computing the Fisher by vmap(grad), which is slower: %s", ", ".join(new))
        self.fallback |= names

    def _add_by_vmap(self, images: Tensor, labels: Tensor) -> None:
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        rest = {n: p.detach() for p, n in names.items() if n not in self.fallback}
        parameters = {name: self._parameters[name].detach() for name in self.fallback}
        # functional_call's own tying replaces a module with two names twice and does not restore
        # it, so each place that holds a parameter is listed once here.
        places = {
            f"{path}.{place}".lstrip("."): names[parameter]
            for path, module in self.model.named_modules()
            for place, parameter in module.named_parameters(recurse=False, remove_duplicate=False)
        }

        def loss(parameters: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
            values = parameters | rest
            placed = {place: values[name] for place, name in places.items()}
            logits = torch.func.functional_call(
                self.model, placed, (image[None],), tie_weights=False
            )
            return F.cross_entropy(self._masked(logits), label[None])

        per_example = torch.func.vmap(torch.func.grad(loss), in_dims=(None, 0, 0))
        for chunk in zip(images.split(_CHUNK), labels.split(_CHUNK), strict=True):
            for name, gradient in per_example(parameters, *chunk).items():
                self._sums[name] += gradient.to(self._sums[name].dtype).square().sum(0)


class _Recorder(TorchFunctionMode):
    """Runs the forward pass with detached parameters, and hooks a rule to each use of a parameter.

    Since parameters are detached, autograd computes no weight gradients. Only tensors that depend
    on the images require grad, which distinguishes activations from tensors computed from
    parameters.
    """

    def __init__(
        self, parameters: dict[str, nn.Parameter], sums: dict[str, Tensor], images: Tensor
    ) -> None:
        super().__init__()
        self._names = {id(p): name for name, p in parameters.items()}
        self._sums = sums
        self._batch = len(images)
        self._uses = dict.fromkeys(parameters, 0)
        self._refused: set[str] = set()
        self._discarded: frozenset[str] = frozenset()
        self.leaves = [images] if images.requires_grad else []

    def unhandled(self) -> frozenset[str]:
        """Parameters used by no rule, used twice, or never seen (for example in scripted code)."""
        return frozenset(self._refused | {name for name, uses in self._uses.items() if uses != 1})

    def discard(self, names: frozenset[str]) -> None:
        self._discarded = names

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.batch_norm:
            _refuse_batch_statistics(*args, **kwargs)
        names = {
            self._names[id(leaf)] for leaf in tree_leaves((args, kwargs)) if id(leaf) in self._names
        }
        if not names:
            return func(*args, **kwargs)
        name = getattr(func, "__name__", "")
        if name == "__get__" and not isinstance(func(*args), Tensor):
            return func(*args)
        positional = any(id(a) in self._names for a in args)
        if name in ELEMENTWISE and len(names) == 1 and positional:
            return self._elementwise(func, args, kwargs, names)
        squares = self._squares(func, args, kwargs)
        args, kwargs = tree_map(self._detach, (args, kwargs))
        out = func(*args, **kwargs)
        if not isinstance(out, Tensor) or out.ndim < 2 or len(out) != self._batch:
            squares = {}
        elif squares and not out.requires_grad:
            out = self._leaf(out)
        for name in names:
            self._record(name, squares.get(name), out)
        return out

    def _squares(self, func: Any, args: tuple[Any, ...], kwargs: Any) -> dict[str, Squares]:
        """Rules by name, for the tracked parameters that the rule for `func` covers."""
        if func not in RULES:
            return {}
        covered: Iterator[tuple[Tensor | None, Squares]] = RULES[func](*args, **kwargs)
        return {self._names[id(p)]: rule for p, rule in covered if id(p) in self._names}

    def _elementwise(self, func: Any, args: tuple[Any, ...], kwargs: Any, names: set[str]) -> Any:
        """theta (+ or *) activations: each example gets a copy of theta, which has its own
        gradient.
        """
        (name,) = names
        position = next(i for i, a in enumerate(args) if id(a) in self._names)
        other = args[1 - position] if len(args) == 2 else None
        expanded = None
        if isinstance(other, Tensor) and other.requires_grad and len(other) == self._batch:
            expanded = expand_over_batch(args[position].detach(), other)
        args = tree_map(self._detach, args)
        if expanded is None:
            self._record(name, None, args[position])
            return func(*args, **kwargs)
        expanded = self._leaf(expanded)
        shape = args[position].shape
        self._record(name, lambda g: sum_of_squares(g).reshape(shape), expanded)
        return func(*args[:position], expanded, *args[position + 1 :], **kwargs)

    def _record(self, name: str, squares: Squares | None, out: Tensor) -> None:
        self._uses[name] += 1
        if squares is None:
            self._refused.add(name)
        elif out.requires_grad:
            out.register_hook(lambda gradient: self._add(name, squares, gradient))

    def _add(self, name: str, squares: Squares, gradient: Tensor) -> None:
        if name in self._discarded:
            return
        # In the thread of a GPU's backward pass, any autocast becomes fp16 autocast.
        with torch.autocast("cuda" if gradient.is_cuda else "cpu", enabled=False):
            self._sums[name] += squares(gradient).to(self._sums[name].dtype)

    def _detach(self, value: Any) -> Any:
        return value.detach() if id(value) in self._names else value

    def _leaf(self, tensor: Tensor) -> Tensor:
        """Returns a copy that gradients reach and that later in-place operators may change."""
        leaf = tensor.detach().requires_grad_()
        self.leaves.append(leaf)
        return leaf.clone()


@contextlib.contextmanager
def _refused_checkpointing() -> Iterator[None]:
    """Raises ValueError for gradient checkpointing: the recorder does not see the second forward
    pass.
    """
    why = (
        "the exact Fisher does not support gradient checkpointing, which runs parts of a model "
        "again in the backward pass: turn it off (timm: model.set_grad_checkpointing(False))"
    )
    try:
        with torch.autograd.graph.disable_saved_tensors_hooks(why):
            yield
    except RuntimeError as error:
        if why in str(error) or "use_reentrant=True" in str(error):
            raise ValueError(why) from error
        raise


def _refuse_batch_statistics(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    *_: Any,
    **__: Any,
) -> None:
    if training and input.requires_grad:  # BiT and NFNets standardise weights by batch_norm
        raise ValueError(
            f"batch_norm over {list(input.shape)} uses the batch's own statistics, which couple "
            "the examples: give the layer running statistics (track_running_stats=True)"
        )
