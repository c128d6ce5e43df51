r"""Directions in the space of parameters along which a loss is looked at.

A Gaussian direction means nothing by itself, because a ReLU network whose layers are rescaled
against each other is the same function at another :math:`\theta`. With :math:`d_{ij}` the
direction's part for the j-th filter of layer i,

.. math:: d_{ij} \leftarrow \frac{d_{ij}}{\|d_{ij}\|}\, \|\theta_{ij}\|,

it is measured by the size of the weights that it changes (Li et al. 2018, Section 4). The
eigenvectors of the Hessian are the directions of the largest curvature, and have unit length.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvTransposeNd

from planimeter.curvature import top_eigenvalues
from planimeter.errors import InputError, MeasurementWarning
from planimeter.landscape import LossLandscape
from planimeter.printing import short_repr

NORMALISATIONS = ("filter", "layer", "none")
"""Norms taken over from the weights: of each filter, of each tensor, or none."""
VECTORS = ("zero", "scaled")
"""Biases and norm parameters stay where they are, or move as one filter a tensor."""

_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


@dataclass(frozen=True)
class Direction:
    """A direction, and what figures and records call it.

    Arguments:
        vector: (P,), float64, of the length that a distance of 1 stands for.
        name: what it is, in a few words.
        seed: of its random numbers; None where there are none.
        curvature: v'Hv where v is an eigenvector of the Hessian H; None for other directions.
    """

    vector: Float[Tensor, " P"]
    name: str = "given direction"
    seed: int | None = None
    curvature: float | None = None

    def __repr__(self) -> str:
        return short_repr(self)


def random_direction(
    landscape: LossLandscape,
    seed: int = 0,
    normalisation: str = "filter",
    *,
    vectors: str = "zero",
) -> Direction:
    r"""A Gaussian direction with the norms of the weights.

    .. math:: d_{ij} \leftarrow d_{ij}\, \|\theta_{ij}\| / \|d_{ij}\|, \qquad d \sim N(0, I).

    A filter is what makes one output: a row of a linear layer, a kernel over all input channels of
    a convolution (transposed and grouped ones included). Where all its weights are zero, so is the
    direction.

    Arguments:
        landscape: whose parameters, P of them, give the norms.
        seed: of the Gaussian numbers, drawn on the CPU so that every device sees the same ones.
        normalisation: "filter", "layer" (one norm a tensor), or "none" for d as it was drawn,
            biases included.
        vectors: biases and parameters of normalisation layers: "zero" as in the paper, or "scaled"
            to the norm of their tensor.

    Returns:
        The direction, float64, on the landscape's device.

    Raises:
        InputError: `normalisation` or `vectors` is unknown, or the direction is zero: all
            parameters are biases, or all weights are zero.

    Source: Li, Xu, Taylor, Studer, Goldstein 2018 (arXiv 1712.09913), Section 4.
    """
    if normalisation not in NORMALISATIONS:
        raise InputError(
            f"no normalisation {normalisation!r}; there are {', '.join(NORMALISATIONS)}"
        )
    if vectors not in VECTORS:
        raise InputError(
            f"no treatment {vectors!r} of biases and norm parameters; there are "
            f"{', '.join(VECTORS)}"
        )
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(landscape.num_parameters, generator=generator, dtype=torch.float64)
    drawn = drawn.to(landscape.device)
    if normalisation == "none":
        return Direction(drawn, f"Gaussian direction, seed {seed}", seed)
    owners = _owners(landscape.model)
    parts = []
    sizes = [p.numel() for p in landscape.parameters.values()]
    for (name, weight), part in zip(landscape.parameters.items(), drawn.split(sizes), strict=True):
        owner, theta = owners[name], weight.double()
        if theta.ndim <= 1 or isinstance(owner, _NORMS):
            scaled = _matched(part, theta.reshape(-1), (0,)) if vectors == "scaled" else 0 * part
        elif normalisation == "layer":
            scaled = _matched(part, theta.reshape(-1), (0,))
        else:
            filters, within = _filters(theta, owner)
            scaled = _matched(part.reshape(filters.shape), filters, within)
        parts.append(scaled.reshape(-1))
    vector = torch.cat(parts)
    if not bool(vector.any()):
        raise InputError(
            "the direction is zero: every parameter is a bias or of a normalisation layer "
            "(vectors='scaled' moves them), or all weights are zero"
        )
    return Direction(vector, f"{normalisation}-normalised random direction, seed {seed}", seed)


def eigenvector_directions(
    landscape: LossLandscape,
    k: int = 1,
    *,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Direction]:
    r"""Unit eigenvectors :math:`H v_i = \lambda_i v_i` of the k largest eigenvalues of the Hessian.

    The sign of an eigenvector is arbitrary; here its component of largest magnitude is positive.

    Arguments:
        landscape: whose Hessian.
        k: how many, 1 to P.
        seed: of the start vector of the Lanczos recurrence.
        progress: called after each product with the products done and the most there can be.

    Returns:
        The directions, largest eigenvalue first, with their eigenvalues as `curvature`. One that
        did not converge comes with a MeasurementWarning.

    Raises:
        InputError: k is not between 1 and P.
    """
    pairs = top_eigenvalues(landscape.hessian(), k, seed=seed, progress=progress)
    directions = []
    for i, vector in enumerate(pairs.vectors.T):
        value = float(pairs.values[i])
        if not bool(pairs.converged[i]):
            warnings.warn(
                f"eigenvector {i + 1} did not converge: eigenvalue {value:.6g}, residual "
                f"{float(pairs.residuals[i]):.1e}",
                MeasurementWarning,
                stacklevel=2,
            )
        sign = torch.sign(vector[vector.abs().argmax()])
        name = f"eigenvector {i + 1} of the Hessian, λ = {value:.4g}"
        directions.append(Direction(sign * vector / vector.norm(), name, seed, value))
    return directions


def _owners(model: nn.Module) -> dict[str, nn.Module]:
    """The module that holds each parameter, by the parameter's full name."""
    return {
        f"{prefix}.{name}" if prefix else name: module
        for prefix, module in model.named_modules()
        for name, _ in module.named_parameters(recurse=False)
    }


def _filters(theta: Tensor, owner: nn.Module) -> tuple[Tensor, tuple[int, ...]]:
    """The weights, and the dimensions over which one filter extends.

    A transposed convolution keeps (inputs, outputs of a group, ...), so that its outputs are not
    the first dimension.
    """
    if isinstance(owner, _ConvTransposeNd):
        grouped = theta.reshape(owner.groups, -1, *theta.shape[1:])
        return grouped, (1, *range(3, grouped.ndim))
    return theta, tuple(range(1, theta.ndim))


def _matched(direction: Tensor, theta: Tensor, within: tuple[int, ...]) -> Tensor:
    """The direction with the norms that theta has over the dimensions `within`."""
    own = torch.linalg.vector_norm(direction, dim=within, keepdim=True)
    wanted = torch.linalg.vector_norm(theta, dim=within, keepdim=True)
    return direction * (wanted / own)
