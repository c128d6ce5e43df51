r"""The linear maps of a network, with the BatchNorms that follow them multiplied in.

In evaluation mode a BatchNorm is a scale and a shift for each channel, so that

.. math:: \mathrm{BN}(W x + b) = (s W)\, x + s (b - \mu) + \beta, \qquad
          s = \gamma / \sqrt{v + \epsilon},

and a layer is the matrix s W that the network really multiplies by. Norms of W alone can be
anything: whatever factor W has, the BatchNorm divides out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from planimeter.errors import NotApplicableError
from planimeter.landscape import LossLandscape
from planimeter.products.batches import Batch, cut_rows

ROWS = 2
"""Rows of data with which shapes are found and folding is checked."""
Answer = Callable[[Tensor, Tensor], Tensor]
"""What a module gives in place of its own output, from its input and that output."""


@dataclass(frozen=True, eq=False)
class Layer:
    """One linear or convolutional layer.

    Arguments:
        name: of the module in the model.
        module: a Linear, Conv or ConvTranspose module, for stride, padding and groups.
        weight: float64, as the module has it, times the scale of a folded BatchNorm.
        bias: float64 (outputs,), or None.
        input_shape, output_shape: of one row, without the batch axis; of a Linear, its features.
        norm: name of the BatchNorm that was folded, empty where none was.
    """

    name: str
    module: nn.Module
    weight: Tensor
    bias: Tensor | None
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    norm: str = ""

    def __call__(self, x: Float[Tensor, " n *input"]) -> Float[Tensor, " n *output"]:
        """W x, without the bias, in float64."""
        m: Any = self.module
        if isinstance(m, nn.Linear):
            return x @ self.weight.T
        if not isinstance(m, _ConvTransposeNd):
            # Also for circular and reflecting padding, which the functional form does not know.
            convolved: Tensor = m._conv_forward(x, self.weight, None)
            return convolved
        transposes: tuple[Callable[..., Tensor], ...] = (
            torch.nn.functional.conv_transpose1d,
            torch.nn.functional.conv_transpose2d,
            torch.nn.functional.conv_transpose3d,
        )
        geometry: Any = (m.stride, m.padding, m.output_padding, m.groups, m.dilation)
        return transposes[self.weight.ndim - 3](x, self.weight, None, *geometry)

    def affine(self, x: Float[Tensor, " n *input"]) -> Float[Tensor, " n *output"]:
        """W x + b, in float64."""
        return self(x) if self.bias is None else self(x) + self.along_outputs(self.bias)

    def squared(self) -> Layer:
        """The same layer with the square of each weight."""
        return replace(self, weight=self.weight**2)

    def along_outputs(self, vector: Float[Tensor, " c"]) -> Tensor:
        """One number an output channel, to be broadcast over what `__call__` gives."""
        return vector.reshape(-1, *[1] * (self.weight.ndim - 2))

    def scaled(self, scale: Float[Tensor, " c"]) -> Tensor:
        """The weight with each output channel multiplied."""
        if not isinstance(self.module, _ConvTransposeNd):
            return self.weight * scale.reshape(-1, *[1] * (self.weight.ndim - 1))
        # Transposed convolutions keep their outputs on the second axis, group by group.
        groups = self.module.groups
        by_group = self.weight.reshape(groups, -1, *self.weight.shape[1:])
        factors = scale.reshape(groups, 1, -1, *[1] * (self.weight.ndim - 2))
        return (by_group * factors).reshape(self.weight.shape)


@dataclass(frozen=True, eq=False)
class Layers:
    """The linear maps of a network.

    Arguments:
        layers: in the order in which they run.
        left: scale and shift of BatchNorms that follow no layer directly and stay as they are.
        folded: names of the BatchNorms that were multiplied in.
        unseen: matrices and kernels among the parameters that belong to none of `layers`.
    """

    layers: tuple[Layer, ...]
    left: dict[str, tuple[Tensor, Tensor]]
    folded: tuple[str, ...]
    unseen: tuple[str, ...]

    @property
    def note(self) -> str:
        """What was counted and what was not, in a few words."""
        parts = [f"{len(self.layers)} layers"]
        parts += [f"{len(self.folded)} BatchNorms folded"] if self.folded else []
        parts += [f"{len(self.left)} BatchNorms left out"] if self.left else []
        parts += [f"not counted: {', '.join(self.unseen)}"] if self.unseen else []
        return ", ".join(parts)


def linear_layers(landscape: LossLandscape) -> Layers:
    """The linear and convolutional layers that a network calls, with BatchNorms folded.

    They are found by hooks while a few rows of the data run through the network, so any module
    will do that calls its layers as modules. A BatchNorm is folded when the very tensor that a
    layer gave out comes in, the layer is called once, and the network's outputs stay what they
    were. A layer that is called several times counts once, with the input size of its first call.

    Raises:
        NotApplicableError: no layer is called, or BatchNorm uses the batch's statistics.
    """
    calls: dict[str, list[tuple[nn.Module, Tensor, Tensor, Tensor, Tensor | None]]] = {}

    def remember(name: str, module: nn.Module) -> Answer:
        def answer(x: Tensor, y: Tensor) -> Tensor:
            if isinstance(module, _BatchNorm):
                scale, shift = _scale_and_shift(module)
                calls.setdefault(name, []).append((module, x, y, scale, shift))
            else:
                weight, bias = _weight_and_bias(module)
                calls.setdefault(name, []).append((module, x, y, weight, bias))
            return y

        return answer

    modules = dict(landscape.model.named_modules())
    kinds = (nn.Linear, _ConvNd, _BatchNorm)
    watched = {n: remember(n, m) for n, m in modules.items() if isinstance(m, kinds)}
    run_with(landscape, watched)  # fills calls; the tensors in there are alive, so ids are unique
    layers = {
        name: Layer(name, module, weight, bias, *_shapes(module, x, y))
        for name, ((module, x, y, weight, bias), *_) in calls.items()
        if not isinstance(module, _BatchNorm)
    }
    if not layers:
        raise NotApplicableError(
            "the network calls no torch.nn.Linear or convolution module: this measure is made of "
            "the norms of those"
        )
    makers = {id(calls[name][0][2]): name for name in layers if len(calls[name]) == 1}
    candidates, left = {}, {}
    for name, ((module, x, _, scale, shift), *again) in calls.items():
        if not isinstance(module, _BatchNorm):
            continue
        assert shift is not None
        left[name] = (scale, shift)
        maker = makers.get(id(x))
        if maker is not None and not again and _channels_match(layers[maker], x):
            candidates[name] = maker
    folds = {n: _fold(layers[maker], *left[n], n) for n, maker in candidates.items()}
    kept = _faithful(landscape, folds)
    layers |= {layer.name: layer for layer in kept.values()}
    return Layers(
        tuple(layers.values()),
        {name: pair for name, pair in left.items() if name not in kept},
        tuple(kept),
        _unseen(landscape, layers, modules),
    )


def free_layers(landscape: LossLandscape) -> Layers:
    """`linear_layers`, without those whose parameters `LossLandscape.restricted` holds.

    Raises:
        NotApplicableError: as there, or none is left.
    """
    found = linear_layers(landscape)
    layers = tuple(
        layer
        for layer in found.layers
        if not any(name.startswith(f"{layer.name}.") for name in landscape.held)
        or any(name.startswith(f"{layer.name}.") for name in landscape.parameters)
    )
    if not layers:
        raise NotApplicableError("no linear layer or convolution is among these parameters")
    return replace(found, layers=layers)


def run_with(
    landscape: LossLandscape,
    answers: dict[str, Answer],
    batch: Batch | None = None,
    state: dict[str, Tensor] | None = None,
) -> Tensor:
    """The network's outputs while some modules give other outputs than their own.

    Arguments:
        answers: module name to what it gives instead.
        batch: inputs and targets; a few rows of the data where None.
        state: parameters and buffers in place of the landscape's.
    """
    inputs, _ = first_rows(landscape) if batch is None else batch
    with torch.no_grad(), landscape.mode(), _hooked(landscape.model, answers):
        return landscape.outputs(landscape.parameters if state is None else state, inputs)


def first_rows(landscape: LossLandscape) -> Batch:
    """A few rows of the first batch."""
    inputs, targets = next(landscape.batches())
    return cut_rows(inputs, slice(ROWS), len(targets)), targets[:ROWS]


@contextmanager
def _hooked(model: nn.Module, answers: dict[str, Answer]) -> Iterator[None]:
    def hook(answer: Answer) -> Callable[..., Tensor]:
        def after(_: nn.Module, arguments: Any, keywords: Any, output: Tensor) -> Tensor:
            x = arguments[0] if arguments else keywords["input"]
            return answer(x, output)

        return after

    modules = dict(model.named_modules())
    handles = [
        modules[name].register_forward_hook(hook(answer), with_kwargs=True)
        for name, answer in answers.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _weight_and_bias(module: Any) -> tuple[Tensor, Tensor | None]:
    bias = module.bias
    return module.weight.detach().double(), bias if bias is None else bias.detach().double()


def _scale_and_shift(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    if norm.training or norm.running_mean is None or norm.running_var is None:
        raise NotApplicableError(
            "BatchNorm uses the statistics of the batch, so the network has no fixed matrices: "
            "use batch_norm='eval', and BatchNorms that track running statistics"
        )
    mean, scale = norm.running_mean.double(), (norm.running_var.double() + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight.detach().double()
    shift = -mean * scale
    return scale, shift if norm.bias is None else shift + norm.bias.detach().double()


def _shapes(module: nn.Module, x: Tensor, y: Tensor) -> tuple[tuple[int, ...], tuple[int, ...]]:
    if isinstance(module, nn.Linear):
        return (x.shape[-1],), (y.shape[-1],)
    return tuple(x.shape[1:]), tuple(y.shape[1:])


def _channels_match(layer: Layer, y: Tensor) -> bool:
    """BatchNorm's channels are axis 1; a Linear's outputs are the last axis."""
    return y.ndim == 2 if isinstance(layer.module, nn.Linear) else y.ndim == layer.weight.ndim


def _fold(layer: Layer, scale: Tensor, shift: Tensor, norm: str) -> Layer:
    bias = shift if layer.bias is None else scale * layer.bias + shift
    return replace(layer, weight=layer.scaled(scale), bias=bias, norm=norm)


def _faithful(landscape: LossLandscape, folds: dict[str, Layer]) -> dict[str, Layer]:
    """Those of the folded layers with which the network computes what it did.

    Where a layer's output goes elsewhere too (a shortcut before the BatchNorm), the layer cannot
    take the BatchNorm in: only what comes out at the end shows that for every kind of module.
    """
    before = run_with(landscape, {})
    slack = 1e3 * torch.finfo(landscape.dtype).eps * float(before.abs().max())

    def unchanged(some: dict[str, Layer]) -> bool:
        answers: dict[str, Answer] = {norm: lambda x, y: x for norm in some}
        for layer in some.values():
            answers[layer.name] = lambda x, y, layer=layer: layer.affine(x.double()).to(y.dtype)
        return float((run_with(landscape, answers) - before).abs().max()) <= slack

    if unchanged(folds):
        return folds
    return {norm: layer for norm, layer in folds.items() if unchanged({norm: layer})}


def _unseen(
    landscape: LossLandscape, layers: dict[str, Layer], modules: dict[str, nn.Module]
) -> tuple[str, ...]:
    counted = {id(p) for name in layers for p in modules[name].parameters()}
    named = landscape.model.named_parameters()
    return tuple(n for n, p in named if p.ndim >= 2 and id(p) not in counted)
