"""Fully connected ReLU networks with the Gaussian initialisation that the prior is about."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn

from planimeter.errors import InputError


def fully_connected(
    inputs: int,
    hidden: Sequence[int] = (40, 40),
    outputs: int = 1,
    *,
    sigma_w: float = math.sqrt(2.0),
    sigma_b: float = 1.0,
    seed: int = 0,
) -> nn.Sequential:
    r"""A fully connected ReLU network with Gaussian weights and biases.

    .. math:: W \sim N(0, \sigma_w^2 / \mathrm{fan\_in}), \qquad b \sim N(0, \sigma_b^2).

    Arguments:
        inputs: numbers in an input; images of any shape are flattened first.
        hidden: widths of the hidden layers.
        outputs: 1 for a binary network.
        sigma_w, sigma_b: standard deviations; the defaults are zhang2021's.
        seed: of the initial weights.

    Raises:
        InputError: a width is not positive.

    Source: zhang2021, Section 5.2 (784-40-40-1 on MNIST).
    """
    widths = [inputs, *hidden, outputs]
    if min(widths) < 1:
        raise InputError(f"layer widths must be positive, got {widths}")
    generator = torch.Generator().manual_seed(seed)
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in, fan_out in pairwise(widths):
        linear = nn.utils.skip_init(nn.Linear, fan_in, fan_out)
        with torch.no_grad():
            linear.weight.normal_(0.0, sigma_w / math.sqrt(fan_in), generator=generator)
            linear.bias.normal_(0.0, sigma_b, generator=generator)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])
