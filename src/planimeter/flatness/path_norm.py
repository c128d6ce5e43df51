r"""The path norm: the sizes of all paths from an input to an output, put together.

.. math:: \Bigl(\sum_{\text{paths}} \prod_{w \in \text{path}} w^2\Bigr)^{1/2}
          = \Bigl(\sum_k h(1; \theta^2)_k\Bigr)^{1/2},

where :math:`h(1; \theta^2)` is the network with every weight squared, on an input of ones; a bias
is a weight from a constant one. (Neyshabur et al. 2015, arXiv 1503.00036, the l2 path norm.)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from planimeter.errors import NotApplicableError
from planimeter.estimate import Estimate
from planimeter.flatness.layers import Answer, Layer, Layers, first_rows, linear_layers, run_with
from planimeter.landscape import LossLandscape
from planimeter.products.batches import Parameters


def path_norm(landscape: LossLandscape) -> Estimate:
    r"""The l2 path norm, :math:`(\sum_k h(1; \theta^2)_k)^{1/2}`, by one pass in float64.

    BatchNorms are folded, or squared as the scales and shifts that they are; pooling and
    shortcuts stay as they are in the network. Jiang et al.'s measure is its square.

    Arguments:
        landscape: of a network of linear layers and positively homogeneous functions (ReLU,
            leaky ReLU, pooling) on one tensor of inputs.

    Raises:
        NotApplicableError: the network is not homogeneous, takes something else than one tensor
            of floating numbers, or the sum is no finite number.
    """
    inputs, _ = first_rows(landscape)
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
        raise NotApplicableError(
            "the path norm is for networks of one floating tensor: paths start at its numbers"
        )
    found = linear_layers(landscape)
    ones = torch.ones_like(inputs[:1], dtype=torch.float64)
    one, two = (_total(landscape, found, c * ones, biases=False) for c in (1.0, 2.0))
    # Squared weights and positive inputs: every kink is at zero, so h is linear along the ray.
    if not math.isclose(two, 2 * one, rel_tol=1e-6):
        raise NotApplicableError(
            f"the network is not positively homogeneous (with squared weights and no biases, "
            f"doubled inputs multiply the outputs by {two / one if one else math.nan:.4g}, not "
            f"2): paths have no sizes in a network with tanh, sigmoid, GELU or LayerNorm"
        )
    total = _total(landscape, found, ones, biases=True)
    if not (math.isfinite(total) and total >= 0):
        raise NotApplicableError(f"the sum over paths is {total}: no path norm")
    return Estimate(math.sqrt(total), method=f"one pass in float64; {found.note}")


def _total(landscape: LossLandscape, found: Layers, inputs: Tensor, *, biases: bool) -> float:
    """The sum of the outputs with squared parameters."""
    answers: dict[str, Answer] = {name: lambda x, y: x for name in found.folded}
    for layer in found.layers:
        answers[layer.name] = _squared(layer, biases)
    for name, (scale, shift) in found.left.items():
        answers[name] = _squared_scale(scale, shift, biases)
    parameters = dict(landscape.model.named_parameters())
    state: Parameters = {
        name: value.double() ** (2 if name in parameters else 1)
        if value.is_floating_point()
        else value
        for name, value in landscape.state.items()
    }
    _, targets = first_rows(landscape)
    outputs = run_with(landscape, answers, (inputs, targets), state)
    return float(outputs.sum())


def _squared(layer: Layer, biases: bool) -> Answer:
    def answer(x: Tensor, _: Tensor) -> Tensor:
        y = layer.squared()(x)
        return y + layer.along_outputs(layer.bias**2) if biases and layer.bias is not None else y

    return answer


def _squared_scale(scale: Tensor, shift: Tensor, biases: bool) -> Answer:
    def answer(x: Tensor, _: Tensor) -> Tensor:
        shape = (-1, *[1] * (x.ndim - 2))
        y = x * scale.reshape(shape) ** 2
        return y + shift.reshape(shape) ** 2 if biases else y

    return answer
