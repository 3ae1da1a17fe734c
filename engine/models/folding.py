"""Batch norms folded into the convolutions before them, for evaluation.

With frozen statistics a batch norm is a scale and a shift a channel, which the convolution before
it can carry: one pass over the activations less for each, and the same up to float32 rounding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from timm.layers.conv2d_same import Conv2dSame
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.fx.proxy import TraceError
from torch.nn.utils.fusion import fuse_conv_bn_weights

# fx has an error of its own for some of what it cannot trace; the rest stumbles over its proxies.
_UNTRACEABLE = (TraceError, TypeError, RuntimeError, ValueError, AttributeError)


class Folded(nn.Module):
    """A network without the batch norms that follow a convolution; `state` makes weights fit it.

    net: in eval mode, changed in place. Left as it is where its control flow cannot be traced, or
    without `fold`.
    """

    def __init__(self, net: nn.Module, fold: bool = True) -> None:
        super().__init__()
        self.net = net
        # timm's attention with biases keeps what it derives from its weights while in eval mode.
        self._derives = any(hasattr(module, "attention_bias_cache") for module in net.modules())
        self._norms = _convolution_of_each_norm(net) if fold else {}
        self._eps: dict[str, float] = {}
        for name, convolution in self._norms.items():
            norm = net.get_submodule(name)
            assert isinstance(norm, nn.BatchNorm2d)
            self._eps[name] = norm.eps
            # timm's batch norms carry their activation.
            net.set_submodule(name, getattr(norm, "act", nn.Identity()))
            own = net.get_submodule(convolution)
            own.bias = nn.Parameter(own.weight.new_zeros(own.weight.shape[0]))  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def given(self, state: Mapping[str, Tensor], x: Tensor) -> Tensor:
        """Outputs for weights that `state` made."""
        if self._derives:
            self.train().eval()
        return functional_call(self, dict(state), (x,), strict=True)

    def state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What `given` takes, from a state dict of the network as it was.

        Its kernels are overwritten: a mix's tensors are views of one row, which would stay beside
        folded copies and take the memory of a second model.
        """
        kept = self.net.state_dict().keys()
        state = {n: b for n, b in self.net.named_buffers() if n not in kept} | dict(state)
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
        return {f"net.{name}": tensor for name, tensor in state.items()}


def can_fold(net: nn.Module) -> bool:
    """Whether a network in eval mode has a batch norm that `Folded` would fold."""
    return bool(_convolution_of_each_norm(net))


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        ours = isinstance(m, nn.Conv2d | nn.BatchNorm2d | nn.Linear)
        return ours or super().is_leaf_module(m, module_qualified_name)


def _convolution_of_each_norm(net: nn.Module) -> dict[str, str]:
    """Names of batch norms, and of the convolutions whose outputs they alone are given."""
    kinds = {name: type(module) for name, module in net.named_modules()}
    if not any(issubclass(kind, nn.BatchNorm2d) for kind in kinds.values()):
        return {}
    try:
        calls = [node for node in _Tracer().trace(net).nodes if node.op == "call_module"]
    except _UNTRACEABLE:
        return {}
    times = Counter(node.target for node in calls)
    once = {node for node in calls if times[node.target] == 1}
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
