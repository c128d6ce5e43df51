r"""Covariance of an infinitely wide network's output: the neural-network Gaussian process (NNGP).

For a fully connected ReLU network with weights of variance :math:`\sigma_w^2/\mathrm{fan\_in}` and
biases of variance :math:`\sigma_b^2`,

.. math:: K^0(x, x') = \sigma_b^2 + \sigma_w^2\, x \cdot x' / d, \qquad
          K^{l+1} = \sigma_b^2 + \frac{\sigma_w^2}{2\pi} \sqrt{K^l_{xx} K^l_{x'x'}}
                    \,(\sin t + (\pi - t) \cos t), \quad
          \cos t = \frac{K^l_{xx'}}{\sqrt{K^l_{xx} K^l_{x'x'}}}

(Cho & Saul 2009; Lee et al. 2018; zhang2021, Appendix D).
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from planimeter.errors import InputError


def fully_connected_kernel(
    x: Float[Tensor, n * d],
    x2: Float[Tensor, m * d] | None = None,
    *,
    depth: int = 2,
    sigma_w: float = math.sqrt(2.0),
    sigma_b: float = 1.0,
) -> Float[Tensor, "n m"]:
    """The NNGP kernel of a fully connected ReLU network, in float64.

    Arguments:
        x: (n, ...) inputs, flattened to d numbers each.
        x2: (m, ...) other inputs; None for x itself, which gives an exactly symmetric matrix.
        depth: number of hidden layers, at least 0.
        sigma_w, sigma_b: standard deviations of the initial weights (times the root of fan-in)
            and biases; the defaults are zhang2021's.

    Returns:
        the covariance of the outputs at x and x2.

    Raises:
        InputError: inputs that are not finite or of different sizes, or a negative depth.

    Source: zhang2021, Appendix D.
    """
    if not (0 < sigma_w < math.inf and 0 <= sigma_b < math.inf):
        raise InputError(f"sigma_w must be positive and sigma_b at least 0: {sigma_w}, {sigma_b}")
    if depth < 0:
        raise InputError(f"depth must be at least 0 hidden layers, got {depth}")
    rows = _flat_inputs(x)
    columns = rows if x2 is None else _flat_inputs(x2)
    dimension = rows.shape[1]
    if columns.shape[1] != dimension:
        raise InputError(f"inputs of {dimension} numbers against inputs of {columns.shape[1]}")
    weight, bias = sigma_w**2, sigma_b**2
    kernel = bias + weight * (rows @ columns.T) / dimension
    row_variance = bias + weight * rows.square().sum(1) / dimension
    column_variance = bias + weight * columns.square().sum(1) / dimension
    for _ in range(depth):
        norms = row_variance.sqrt()[:, None] * column_variance.sqrt()
        cosine = torch.where(norms > 0, kernel / norms, 0.0).clamp_(-1.0, 1.0)
        angle = torch.arccos(cosine)
        kernel = norms * (angle.sin() + (math.pi - angle) * cosine)
        kernel = bias + weight / (2 * math.pi) * kernel
        row_variance = bias + weight / 2 * row_variance
        column_variance = bias + weight / 2 * column_variance
    if x2 is None:
        kernel = (kernel + kernel.T) / 2
        kernel.diagonal().copy_(row_variance)
    return kernel


def nngp_kernel(
    model: nn.Module,
    x: Float[Tensor, n * d],
    x2: Float[Tensor, m * d] | None = None,
    *,
    sigma_w: float = math.sqrt(2.0),
    sigma_b: float = 1.0,
) -> Float[Tensor, "n m"]:
    """The kernel of a user's own module in the limit of infinite width.

    Arguments:
        model: an `nn.Sequential` of Flatten, Linear (with biases) and ReLU, ending in Linear.
        x, x2, sigma_w, sigma_b: as for `fully_connected_kernel`. The widths and weights of the
            model play no part: the kernel is that of its architecture.

    Raises:
        InputError: a layer of another kind, which is named.

    Source: zhang2021, Appendix D.
    """
    depth = hidden_layers(model)
    first = next(layer for layer in model.modules() if isinstance(layer, nn.Linear))
    if x[0].numel() != first.in_features:
        raise InputError(
            f"the network takes {first.in_features} numbers an input, x has {x[0].numel()}"
        )
    return fully_connected_kernel(x, x2, depth=depth, sigma_w=sigma_w, sigma_b=sigma_b)


def hidden_layers(model: nn.Module) -> int:
    """Number of hidden layers of a sequential fully connected ReLU network.

    Raises:
        InputError: the module is something else; the first layer that does not fit is named.
    """
    if not isinstance(model, nn.Sequential):
        raise InputError(
            f"the analytic kernel is known for nn.Sequential of Flatten, Linear and ReLU, not for "
            f"{type(model).__name__}"
        )
    layers = [
        (name, layer)
        for name, layer in model.named_children()
        if not isinstance(layer, nn.Flatten | nn.Identity | nn.Dropout)
    ]
    for position, (name, layer) in enumerate(layers):
        wanted = nn.Linear if position % 2 == 0 else nn.ReLU
        if not isinstance(layer, wanted):
            raise InputError(
                f"layer {name!r} is {type(layer).__name__} where {wanted.__name__} is needed: the "
                f"analytic kernel is known for alternating Linear and ReLU, ending in Linear"
            )
        if isinstance(layer, nn.Linear) and layer.bias is None:
            raise InputError(f"layer {name!r} has no bias: use fully_connected_kernel, sigma_b=0")
    if len(layers) % 2 == 0:
        raise InputError("the network must end in a Linear layer")
    return len(layers) // 2


def _flat_inputs(x: Float[Tensor, n * d]) -> Float[Tensor, "n d"]:
    flat = x.detach().to(torch.float64).reshape(len(x), -1)
    bad = (~torch.isfinite(flat)).any(dim=1).nonzero().reshape(-1)
    if len(bad):
        raise InputError(f"input {int(bad[0])} has values that are not finite (NaN or infinity)")
    return flat
