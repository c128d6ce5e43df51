r"""Exact traces: of the Gauss-Newton matrix, and of the Hessian of piecewise linear networks.

Both need first derivatives alone, those of single rows:

.. math:: \mathrm{tr}\, G = \frac1N \sum_{n,c} \| J_n^T r_{nc} \|^2, \qquad
          \sum_c r_{nc} r_{nc}^T = \nabla^2_h \ell_n.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import nn

from planimeter.curvature.jacobians import curvature_roots, row_derivatives, row_pieces, watched
from planimeter.errors import InputError
from planimeter.estimate import Estimate
from planimeter.landscape import LossLandscape
from planimeter.landscape.convexity import rounding
from planimeter.products.batches import cut_rows

Progress = Callable[[int, int], None]

# Layers whose outputs are piecewise linear in every single parameter.
PIECEWISE_LINEAR = (
    nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding, nn.ReLU, nn.ReLU6, nn.LeakyReLU,
    nn.PReLU, nn.Hardtanh, nn.Threshold, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d,
    nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
    nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d, nn.BatchNorm1d,
    nn.BatchNorm2d, nn.BatchNorm3d, nn.Flatten, nn.Unflatten, nn.Identity, nn.Dropout,
    nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.ZeroPad2d, nn.PixelShuffle, nn.Upsample,
)  # fmt: skip


def gauss_newton_trace(
    landscape: LossLandscape, *, progress: Progress = lambda done, total: None
) -> Estimate:
    r"""The trace of the Gauss-Newton matrix, exact, from first derivatives alone.

    .. math:: \mathrm{tr}\, G = \frac1N \sum_{n,c} \| J_n^T r_{nc} \|^2.

    Costs one derivative for each column of the output curvature's root (C - 1 for the softmax).

    Arguments, errors and source as for `gauss_newton_spectrum`.
    """
    started = time.perf_counter()
    total, weights = 0.0, 0.0
    pieces = row_pieces(landscape)
    for number, (weight, batch) in enumerate(pieces):
        _, roots = curvature_roots(landscape, batch, weight)
        found = row_derivatives(landscape, batch, roots)
        for inputs, g in found.factors.values():
            squares = (g.double() ** 2).sum((1, 2)) * (inputs.double() ** 2).sum(1)
            total += float(squares.sum())
        total += sum(float((block.double() ** 2).sum()) for block in found.blocks.values())
        weights += weight
        progress(number + 1, len(pieces))
    return Estimate(
        total / weights,
        0.0,
        "exact trace of the Gauss-Newton matrix, per-row derivatives",
        dtype=str(landscape.dtype).removeprefix("torch."),
        device=str(landscape.device),
        seconds=time.perf_counter() - started,
    )


def piecewise_linear_trace(
    landscape: LossLandscape, *, progress: Progress = lambda done, total: None
) -> Estimate:
    r"""The trace of the Hessian of a piecewise linear network, exact, from first derivatives.

    The outputs are piecewise linear in every single parameter, so the diagonal of the Hessian is
    that of the Gauss-Newton matrix almost everywhere. It is checked on some coordinates.

    Raises:
        InputError: a layer is not piecewise linear (it is named), a layer is called or a parameter
            is used more than once, or the check fails; and as for `gauss_newton_spectrum`.

    Source: granziol2020, Section 3.
    """
    _refuse_curved(landscape)
    _check_diagonals(landscape)
    found = gauss_newton_trace(landscape, progress=progress)
    return replace(found, method="exact trace of a piecewise linear network, per-row derivatives")


def _refuse_curved(landscape: LossLandscape) -> None:
    """Layers that are not piecewise linear in each parameter, as far as the modules tell."""
    model = landscape.model
    way_out = "use trace(landscape.hessian())"
    for path, module in model.named_modules():
        own = {name for name, _ in module.named_parameters(recurse=False)}
        known = isinstance(module, PIECEWISE_LINEAR)
        leaf = not any(True for _ in module.children())
        if (leaf and not known) or not own <= ({"weight", "bias"} if known else set()):
            raise InputError(
                f"layer {path or 'itself'!r} ({type(module).__name__}) is not known to be "
                f"piecewise linear: {way_out}"
            )
    named = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    if len(named) > len(list(model.parameters())):
        raise InputError(f"a parameter is used in more than one place: {way_out}")
    inputs, targets = next(landscape.batches())

    def has_own(module: nn.Module) -> bool:
        return any(True for _ in module.parameters(recurse=False))

    with torch.no_grad(), landscape.mode(), watched(model, has_own) as calls:
        landscape.forward(landscape.parameters, cut_rows(inputs, slice(1), len(targets)))
    for path, call in calls.items():
        if len(call) > 1:
            raise InputError(f"layer {path!r} is called {len(call)} times: {way_out}")


def _check_diagonals(landscape: LossLandscape, checks: int = 16) -> None:
    """Diagonal elements of Hessian and Gauss-Newton matrix, a few of every tensor.

    Those with the largest gradients, and from the first tensors on, since what is curved anywhere
    in the network curves the dependence on them.
    """
    hessian, ggn = landscape.hessian(), landscape.gauss_newton()
    gradient = landscape.gradient().abs()
    each = max(1, checks // len(hessian.blocks))
    places = torch.cat(
        [
            part.start + gradient[part].topk(min(each, part.stop - part.start)).indices
            for part in list(hessian.blocks.values())[:checks]
        ]
    )
    units = torch.zeros(
        landscape.num_parameters, len(places), dtype=torch.float64, device=landscape.device
    )
    units[places, torch.arange(len(places), device=places.device)] = 1.0
    one, other = ((units * (op @ units)).sum(0) for op in (hessian, ggn))
    slack = torch.finfo(landscape.dtype).eps ** 0.5 * float(other.abs().max())
    apart = float((one - other).abs().max())
    if apart > slack and apart > rounding(landscape, units):
        raise InputError(
            "the diagonals of Hessian and Gauss-Newton matrix differ, so the network is not "
            "piecewise linear in its parameters (a smooth function in its forward method, or a "
            "parameter that is used twice): use trace(landscape.hessian())"
        )
