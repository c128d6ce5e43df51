r"""Multilayer perceptrons as torch initialises them, and logistic regression.

.. math:: h(x) = W_L\,\sigma(W_{L-1} \cdots \sigma(W_1 x + b_1) \cdots) + b_L, \qquad
          \sigma = \mathrm{ReLU}, \qquad
          W_{ij}, b_i \sim U(-\mathrm{fan\_in}^{-1/2}, \mathrm{fan\_in}^{-1/2}),

with L = 1 for logistic regression. (`planimeter.models.fully_connected` draws its weights from the
Gaussian prior instead.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from planimeter.errors import InputError


def mlp(
    input_shape: Sequence[int] = (1, 28, 28),
    outputs: int = 10,
    *,
    hidden: Sequence[int] = (512, 256),
    biases: bool = True,
) -> nn.Sequential:
    """A fully connected ReLU network with torch's own initial weights, from its generator.

    Arguments:
        input_shape: of one input; images are flattened.
        outputs: number of outputs.
        hidden: widths of the hidden layers. granziol2020's networks for MNIST are (10, 100),
            (5, 200, 50), (15, 150) and (512, 256).
        biases: whether layers have them.

    Raises:
        InputError: a width is not positive.

    Source: granziol2020.
    """
    widths = [math.prod(input_shape), *hidden, outputs]
    if min(widths) < 1:
        raise InputError(f"layer widths must be positive, got {widths}")
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out, bias=biases), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def logistic_regression(
    input_shape: Sequence[int] = (1, 28, 28), outputs: int = 10
) -> nn.Sequential:
    """One linear layer with biases: softmax regression, 7,850 parameters on MNIST.

    Source: granziol2020.
    """
    return mlp(input_shape, outputs, hidden=())


def rangamani_mlp(input_shape: Sequence[int] = (1, 28, 28), outputs: int = 10) -> nn.Sequential:
    """Five hidden layers of 512 units and no biases, 1,455,104 parameters on MNIST.

    Source: rangamani2019; its initial weights are not known, these are torch's.
    """
    return mlp(input_shape, outputs, hidden=(512,) * 5, biases=False)
