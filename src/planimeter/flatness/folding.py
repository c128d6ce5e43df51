r"""A network with its BatchNorms folded: the same function, written without them.

In evaluation mode a BatchNorm after a layer is a scale and a shift for each channel,

.. math:: \mathrm{BN}(W x + b) = (s W)\, x + s (b - \mu) + \beta, \qquad
          s = \gamma / \sqrt{v + \epsilon}.

One rule for everything that is made of the sizes of weights (norms, distances from the start,
paths, Fisher-Rao lengths, PAC-Bayes): it speaks of the network with weights s W and biases
s (b - mu) + beta. Whatever factor W has, the BatchNorm divides out, so that a norm of W alone can
be anything; folded, a network with BatchNorm and its equivalent without have the same value. So
do Jiang et al. 2019 and Dziugaite et al. 2020, whose program folds trained and initial network
before any measure. A BatchNorm that follows no layer directly cannot be folded: its scale and shift
count
as the parameters that they are.
"""

from __future__ import annotations

import copy
from functools import partial

from torch import Tensor, nn

from planimeter.errors import NotApplicableError
from planimeter.flatness.layers import Layer, linear_layers
from planimeter.flatness.shared import shared
from planimeter.landscape import LossLandscape
from planimeter.network.modes import batch_norms, evaluation_mode


def folded(landscape: LossLandscape) -> LossLandscape:
    """The landscape of the network without the BatchNorms that follow a layer directly.

    Its parameters are those of the landscape, with weights and biases of folded layers in place of
    the layers' own and of the BatchNorms'. The same landscape where there is none.

    Raises:
        NotApplicableError: BatchNorm uses the batch's statistics, or all parameters belong to
            BatchNorms that are folded into layers whose parameters are held.
    """
    if not batch_norms(landscape.model):
        return landscape
    return shared(landscape, lambda: _folded(landscape), "folded")


def folds(landscape: LossLandscape) -> str:
    """How many BatchNorms `folded` folds and leaves, in words; empty where there are none."""
    if not batch_norms(landscape.model):
        return ""
    found = linear_layers(landscape)
    parts = [f"{len(found.folded)} BatchNorms folded"] if found.folded else []
    parts += [f"{len(found.left)} as they are"] if found.left else []
    return ", ".join(parts)


def _folded(landscape: LossLandscape) -> LossLandscape:
    found = linear_layers(landscape)
    layers = {layer.norm: layer for layer in found.layers if layer.norm}
    if not layers:
        return landscape
    model = copy.deepcopy(landscape.model)
    held, free = set(landscape.held), dict(landscape.parameters)
    fixed = {n: v for n, v in landscape.state.items() if n not in free}
    for norm, layer in layers.items():
        module = model.get_submodule(layer.name)
        weight, bias = layer.weight.to(landscape.dtype), layer.bias
        assert bias is not None
        values = {f"{layer.name}.weight": weight, f"{layer.name}.bias": bias.to(landscape.dtype)}
        counts = _is_free(layer, norm, free, held)
        for name in [n for n in (*free, *fixed) if n.rpartition(".")[0] in (norm, layer.name)]:
            free.pop(name, None)
            fixed.pop(name, None)
        (free if counts else fixed).update(values)
        for name, value in values.items():
            setattr(module, name.rpartition(".")[2], nn.Parameter(value, requires_grad=counts))
        model.set_submodule(norm, nn.Identity())
    order = [name for name, _ in model.named_parameters() if name in free]
    if not order:
        raise NotApplicableError(
            "all these parameters belong to BatchNorms, which are folded into the layers before "
            "them: measure those layers"
        )
    return _with_model(landscape, model, {name: free[name] for name in order}, fixed)


def _is_free(layer: Layer, norm: str, free: dict[str, Tensor], held: set[str]) -> bool:
    """Whether a folded layer is among the parameters; where only its BatchNorm is trained, by that
    one's."""
    own = f"{layer.name}.weight"
    if own in free:
        return True
    return own not in held and any(name.startswith(f"{norm}.") for name in free)


def _with_model(
    landscape: LossLandscape, model: nn.Module, free: dict[str, Tensor], fixed: dict[str, Tensor]
) -> LossLandscape:
    """The landscape of another model on the same data: what was checked of them stays checked."""
    other = copy.copy(landscape)
    other.model, other.parameters, other._fixed = model, free, fixed
    other.mode = partial(evaluation_mode, model, landscape.batch_norm)
    other.held = frozenset(n for n in landscape.held if n in fixed)
    other.num_parameters = sum(p.numel() for p in free.values())
    other.function = copy.copy(landscape.function)
    other.function.forward = other.forward
    other._operators = {}
    return other
