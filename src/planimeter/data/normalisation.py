"""Inputs shifted and scaled by channel, as many trained networks expect them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from planimeter.errors import InputError


def normalise(
    inputs: Float[Tensor, "n c *size"],
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Float[Tensor, "n c *size"]:
    r"""Shift and scale each channel.

    .. math:: x_{nc} \mapsto (x_{nc} - \mathrm{mean}_c) / \mathrm{std}_c.

    Arguments:
        inputs: rows of c channels; images are (n, c, height, width).
        mean: a number a channel, in the units of the inputs; None for zeros.
        std: a positive number a channel; None for ones.

    Returns:
        New inputs, or the given ones where both are None.

    Raises:
        InputError: not one number a channel, one that is not finite, or a std that is not positive.
    """
    for name, values in (("mean", mean), ("std", std)):
        if values is not None and len(values) != inputs.shape[1]:
            raise InputError(
                f"{name} must be one number a channel, for these inputs {inputs.shape[1]}, got "
                f"{len(values)}: {_text(values)}"
            )
    if mean is not None:
        if not all(math.isfinite(value) for value in mean):
            raise InputError(f"mean must be finite numbers, got {_text(mean)}")
        inputs = inputs - _by_channel(mean, inputs)
    if std is not None:
        if not all(0 < value < math.inf for value in std):
            raise InputError(f"std must be positive, finite numbers, got {_text(std)}")
        inputs = inputs / _by_channel(std, inputs)
    return inputs


def _by_channel(values: Sequence[float], inputs: Tensor) -> Tensor:
    shape = (-1,) + (1,) * (inputs.ndim - 2)
    return torch.tensor(values, dtype=inputs.dtype, device=inputs.device).reshape(shape)


def _text(values: Sequence[float]) -> str:
    return ",".join(f"{value:g}" for value in values)
