"""A landscape seen from rescaled parameters, with the proof that the function is the same."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import torch
from torch import Tensor

from planimeter.errors import InputError
from planimeter.landscape import LossLandscape
from planimeter.products.batches import cut_rows
from planimeter.symmetry.finding import find_rescalings
from planimeter.symmetry.rescalings import Rescalings

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
COARSE_TOLERANCE = 3e-2
"""For the dtypes of half the bits."""
CHECKED_BATCHES, CHECKED_ROWS = 2, 256


def rescaled(
    landscape: LossLandscape, rescalings: Rescalings, factors: Sequence[float | Tensor]
) -> LossLandscape:
    r"""The landscape of the same function at rescaled parameters (and BatchNorm buffers).

    Checked on the landscape's own data, up to 256 rows of each of the first two batches:
    :math:`\|h' - h\| \le \tau \|h\|` for the outputs h, with :math:`\tau = 10^{-5}` in float32 and
    :math:`10^{-10}` in float64.

    Arguments:
        landscape: where the network is now.
        rescalings: of its model, from `find_rescalings`.
        factors: one for each rescaling, positive: a scalar, or of shape (channels,).

    Returns:
        A landscape with the same model, loss and data.

    Raises:
        InputError: a factor does not fit (`Rescaling.apply`), or the outputs changed.
    """
    with torch.no_grad():
        other = landscape.with_state(rescalings.apply(landscape.state, factors))
    difference = _relative_difference(landscape, other)
    tolerance = TOLERANCE.get(landscape.dtype, COARSE_TOLERANCE)
    if not difference <= tolerance:
        raise InputError(
            f"the rescaled network computes another function: its outputs differ by "
            f"{difference:.3g} of their norm, {tolerance:g} is allowed in "
            f"{str(landscape.dtype).removeprefix('torch.')}. Factors nearer to 1 or float64 help "
            f"against rounding; if they do not, a rescaling is wrong for this network"
        )
    return other


def alpha_scaling(
    landscape: LossLandscape, layer: str, alpha: float, rescalings: Rescalings | None = None
) -> LossLandscape:
    r"""The alpha-scaling of one layer: its weights and bias times alpha, the next ones' over alpha.

    .. math:: (W_i, b_i, W_{i+1}) \to (\alpha W_i, \alpha b_i, \alpha^{-1} W_{i+1}).

    Arguments:
        landscape: where the network is now.
        layer: name of a module in the model. Layers that can only be rescaled together are.
        alpha: positive.
        rescalings: of the model, if known already.

    Returns:
        The landscape there, checked as in `rescaled`.

    Raises:
        InputError: the layer cannot be rescaled (those that can are named), alpha is not positive,
            or the outputs changed.

    Source: zhang2021, Eq. 1 and Appendix F, Eq. 9; Dinh et al. 2017.
    """
    if rescalings is None:
        inputs, targets = next(landscape.batches())
        example = cut_rows(inputs, slice(2), len(targets))
        rescalings = find_rescalings(landscape.model, example)
    if not any(layer in rescaling.layers for rescaling in rescalings):
        possible = [name for rescaling in rescalings for name in rescaling.layers]
        raise InputError(
            f"no rescaling of layer {layer!r} was found; "
            + (f"these can be: {', '.join(possible)}" if possible else "nor of any other layer")
            + "".join(f" ({reason})" for reason in rescalings.refused if f"{layer!r}" in reason)
        )
    factors = [alpha if layer in rescaling.layers else 1.0 for rescaling in rescalings]
    return rescaled(landscape, rescalings, factors)


def _relative_difference(one: LossLandscape, other: LossLandscape) -> float:
    change, size = 0.0, 0.0
    with torch.no_grad(), one.mode():
        for inputs, targets in islice(one.batches(), CHECKED_BATCHES):
            rows = cut_rows(inputs, slice(CHECKED_ROWS), len(targets))
            before = one.outputs(one.parameters, rows).double()
            after = other.outputs(other.parameters, rows).double()
            change += float((after - before).square().sum())
            size += float(before.square().sum())
    if change == 0:
        return 0.0
    return float("inf") if size == 0 else (change / size) ** 0.5
