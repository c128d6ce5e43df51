r"""The random weights that a prior is about.

The Gaussian initialisation, under which wide networks converge to the analytic kernels, is

.. math:: W \sim N(0, \sigma_w^2/\mathrm{fan\_in}), \qquad b \sim N(0, \sigma_b^2)

for every linear and convolutional layer; normalisation layers start at scale 1 and shift 0.
Source: Lee et al. 2018; zhang2021, Section 5.2.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from planimeter.errors import InputError

_WEIGHTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMALISING = (_NormBase, nn.LayerNorm, nn.GroupNorm)


def gaussian_initialisation(sigma_w: float, sigma_b: float) -> Callable[[nn.Module], None]:
    r"""What draws :math:`W \sim N(0, \sigma_w^2/\mathrm{fan\_in}), b \sim N(0, \sigma_b^2)`.

    Arguments:
        sigma_w: standard deviation of a weight times the root of its fan-in, positive.
        sigma_b: standard deviation of a bias, at least 0.

    Returns:
        a function that gives a module new weights in place, from torch's generator.

    Raises:
        InputError: a deviation is out of range, or (when called) a layer is of another kind; its
            parameters are named.
    """
    check_deviations(sigma_w, sigma_b)

    def initialise(module: nn.Module) -> None:
        deviations = gaussian_deviations(module, sigma_w, sigma_b)
        for layer in module.modules():
            if isinstance(layer, _NORMALISING):
                layer.reset_parameters()
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                if name in deviations:
                    parameter.normal_(0.0, deviations[name])

    return initialise


def gaussian_deviations(module: nn.Module, sigma_w: float, sigma_b: float) -> dict[str, float]:
    """The standard deviation of each parameter by name; those of normalisation layers are absent.

    Raises:
        InputError: a parameter belongs to a layer of another kind, which is named.
    """
    deviations: dict[str, float] = {}
    for prefix, layer in module.named_modules():
        own = dict(layer.named_parameters(prefix, recurse=False))
        if not own or isinstance(layer, _NORMALISING):
            continue
        if not isinstance(layer, _WEIGHTED):
            raise InputError(
                f"{', '.join(own)} belong to a {type(layer).__name__}, whose Gaussian "
                f"initialisation is not defined here (linear, convolutional and normalisation "
                f"layers have one): pass your own initialise(module)"
            )
        for name in own:
            is_weight = name.rpartition(".")[2] == "weight"
            fan_in = layer.weight[0].numel()
            deviations[name] = sigma_w / math.sqrt(fan_in) if is_weight else sigma_b
    return deviations


def reset_all_parameters(module: nn.Module) -> None:
    """New weights in place by every layer's own `reset_parameters`, from torch's generator.

    Raises:
        InputError: layers with parameters lack the method; the parameters are named.
    """
    layers = [
        (layer, [name for name, _ in layer.named_parameters(prefix, recurse=False)])
        for prefix, layer in module.named_modules()
    ]
    without = [
        name
        for layer, names in layers
        for name in names
        if not callable(getattr(layer, "reset_parameters", None))
    ]
    if without:
        raise InputError(
            f"{', '.join(without)} cannot be drawn again: the layer has no reset_parameters; pass "
            f"initialise(module), or a function that makes a new network"
        )
    for layer, names in layers:
        if names:
            layer.reset_parameters()


def check_deviations(sigma_w: float, sigma_b: float) -> None:
    """Refuse what is no standard deviation.

    Raises:
        InputError: sigma_w is not positive, or sigma_b negative, or one is not finite.
    """
    if not (0 < sigma_w < math.inf and 0 <= sigma_b < math.inf):
        raise InputError(f"sigma_w must be positive and sigma_b at least 0: {sigma_w}, {sigma_b}")
