"""Batch norms folded into the convolutions before them, for evaluation.

A batch norm with frozen statistics is a scale and a shift for each channel, which the convolution
before it can include. That saves a pass over the activations; results differ by float32 rounding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.fx.proxy import TraceError
from torch.nn.utils.fusion import fuse_conv_bn_weights

# What fx cannot trace raises its TraceError, or any of the other errors when it meets a proxy.
_UNTRACEABLE = (TraceError, TypeError, RuntimeError, ValueError, AttributeError)


class Folded(nn.Module):
    """A network without the batch norms that follow a convolution; `state` makes weights fit it.

    net: in eval mode, changed in place. It stays as it is without `fold`, and where its control
    flow cannot be traced.
    """

    def __init__(self, net: nn.Module, fold: bool = True) -> None:
        super().__init__()
        self.net = net
        # In eval mode, timm's attention with biases caches a tensor that depends on its weights.
        self._caches = any(hasattr(module, "attention_bias_cache") for module in net.modules())
        self._norms = _convolution_of_each_norm(net) if fold else {}
        self._eps: dict[str, float] = {}
        for name, convolution in self._norms.items():
            norm = net.get_submodule(name)
            assert isinstance(norm, nn.BatchNorm2d)
            self._eps[name] = norm.eps
            # timm's batch norms include their activation.
            net.set_submodule(name, getattr(norm, "act", nn.Identity()))
            layer = net.get_submodule(convolution)
            layer.bias = nn.Parameter(layer.weight.new_zeros(len(layer.weight)))  # type: ignore[union-attr]
        places = [name for name, _ in self.named_parameters(remove_duplicate=False)]
        self._is_tied = len(places) > len(list(self.parameters()))
        self._names = {*places, *(name for name, _ in self.named_buffers())}

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def given(self, state: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Outputs for weights that `self.state` returned."""
        if self._caches:
            self.train().eval()  # empties the cache
        # With both off it does not look through the whole network at every batch.
        tied = self._is_tied
        return functional_call(self, dict(state), (x,), tie_weights=tied, strict=tied)

    def state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights that `given` takes, from a state dict of the network before folding.

        It overwrites the kernels. The tensors of a mix are views of one array, so copies of the
        kernels would not free it, and would need the memory of a second model.
        """
        stored = self.net.state_dict().keys()
        state = {n: b for n, b in self.net.named_buffers() if n not in stored} | dict(state)
        for norm, convolution in self._norms.items():
            scale, shift, mean, var = (
                state.pop(f"{norm}.{name}")
                for name in ("weight", "bias", "running_mean", "running_var")
            )
            state.pop(f"{norm}.num_batches_tracked", None)
            kernel = state[f"{convolution}.weight"]
            folded, bias = fuse_conv_bn_weights(
                kernel,
                state.get(f"{convolution}.bias"),
                *(mean, var, self._eps[norm], scale, shift),
            )
            kernel.copy_(folded)
            state[f"{convolution}.bias"] = bias
        state = {f"net.{name}": tensor for name, tensor in state.items()}
        assert self._is_tied or self._names == state.keys(), self._names ^ state.keys()
        return state


def can_fold(net: nn.Module) -> bool:
    """Whether a network in eval mode has a batch norm that `Folded` would fold."""
    return bool(_convolution_of_each_norm(net))


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        is_leaf = isinstance(m, nn.Conv2d | nn.BatchNorm2d | nn.Linear)
        return is_leaf or super().is_leaf_module(m, module_qualified_name)


def _convolution_of_each_norm(net: nn.Module) -> dict[str, str]:
    """Names of batch norms, each with the convolution whose output goes to it alone."""
    kinds = {name: type(module) for name, module in net.named_modules()}
    if not any(issubclass(kind, nn.BatchNorm2d) for kind in kinds.values()):
        return {}
    try:
        calls = [node for node in _Tracer().trace(net).nodes if node.op == "call_module"]
    except _UNTRACEABLE:
        return {}
    counts = Counter(node.target for node in calls)
    once = {node for node in calls if counts[node.target] == 1}
    norms = [node for node in once if issubclass(kinds[node.target], nn.BatchNorm2d)]
    plain = {node for node in once if kinds[node.target] in (nn.Conv2d, Conv2dSame)}
    return {
        norm.target: source.target
        for norm in norms
        if (source := norm.args[0]) in plain
        and len(source.users) == 1
        and net.get_submodule(norm.target).affine
        and net.get_submodule(norm.target).track_running_stats
    }
