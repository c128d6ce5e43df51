r"""Output margins, and norms measured against them.

.. math:: \gamma_n = h_{y_n}(x_n) - \max_{c \ne y_n} h_c(x_n),

and the margin :math:`\gamma` of a network is their 10th percentile over the training rows. With
one output, whose sign is the class, :math:`\gamma_n = \pm h`: that of the two outputs (0, h).
(Jiang et al. 2019, arXiv 1912.02178, Appendix C.)
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from scipy.special import betainc
from torch import Tensor

from planimeter.errors import InputError, NotApplicableError
from planimeter.estimate import Estimate
from planimeter.flatness.entry import entry
from planimeter.flatness.measure_type import Measure
from planimeter.flatness.norms import (
    fro_over_spec,
    frobenius_product,
    spectral_product,
)
from planimeter.flatness.path_norm import path_norm
from planimeter.landscape import LossLandscape
from planimeter.landscape.accuracy import Predictions


def margins(landscape: LossLandscape) -> Float[Tensor, " n"]:
    """The margin of every label that counts, float64, in the order of the data.

    Raises:
        NotApplicableError: the targets are not classes.
    """

    def compute() -> Tensor:
        parts = []
        for _, _, (inputs, targets) in landscape.function.pieces():
            outputs = landscape.outputs(landscape.parameters, inputs)
            parts.append(_margins(predictions, outputs, targets))
        return torch.cat(parts)

    predictions = landscape.predictions()
    with torch.no_grad(), landscape.mode():
        result: Tensor = landscape.function.surviving(compute)
    return result


def output_margin(landscape: LossLandscape, *, quantile: float = 0.1) -> Estimate:
    r"""The margin :math:`\gamma` that all but a tenth of the rows exceed; negative when more than
    that are misclassified.

    It is the k-th smallest margin of N, k = N q rounded up. The error is the one that the
    bootstrap over rows would give with infinitely many resamples (Maritz and Jarrett 1978),

    .. math:: \sigma^2 = \sum_i p_i \gamma_{(i)}^2 - \Bigl(\sum_i p_i \gamma_{(i)}\Bigr)^2, \qquad
              p_i = I_{i/N}(k, N-k+1) - I_{(i-1)/N}(k, N-k+1),

    with I the regularised incomplete beta function.

    Arguments:
        landscape: on the training set.
        quantile: q, between 0 and 1.

    Raises:
        InputError: `quantile` is not between 0 and 1.
        NotApplicableError: the targets are not classes.
    """
    if not 0 < quantile < 1:
        raise InputError(f"quantile must lie between 0 and 1, got {quantile}")
    values = np.sort(margins(landscape).cpu().numpy())
    rows = len(values)
    k = min(max(math.ceil(quantile * rows - 1e-9), 1), rows)
    chances = np.diff(betainc(k, rows - k + 1, np.arange(rows + 1) / rows))
    centre = float(chances @ values)
    stderr = math.sqrt(float(chances @ (values - centre) ** 2))
    method = f"order statistic {k} of {rows} rows; error by Maritz and Jarrett over rows"
    return Estimate(float(values[k - 1]), stderr, method)


def inverse_margin(landscape: LossLandscape, *, quantile: float = 0.1) -> Estimate:
    r"""The inverse squared margin, :math:`1/\gamma^2` (Jiang et al. 2019, `inverse-margin`).

    Arguments:
        landscape, quantile: see `output_margin`.

    Raises:
        NotApplicableError: the margin is not positive, or the targets are not classes.
    """
    gamma = _positive_margin(landscape, quantile)
    # Not 1 / (gamma * gamma): a product takes its factors as independent.
    return Estimate(gamma.value**-2, 2 * gamma.stderr * gamma.value**-3, gamma.method)


def spectral_over_margin(
    landscape: LossLandscape,
    *,
    quantile: float = 0.1,
    circular: bool = False,
    tolerance: float = 1e-4,
    seed: int = 0,
) -> Estimate:
    r"""The log of the product of spectral norms over the margin,
    :math:`\log \prod_l \|W_l\|_2^2 / \gamma^2` (Jiang et al. 2019, `prod-of-spec-over-margin`).

    Arguments:
        landscape, quantile: see `output_margin`.
        circular, tolerance, seed: see `spectral_product`.

    Raises:
        NotApplicableError: see `spectral_product` and `inverse_margin`.
    """
    gamma = _positive_margin(landscape, quantile)
    product = spectral_product(landscape, circular=circular, tolerance=tolerance, seed=seed)
    return _with_margin(product - 2 * gamma.log(), gamma)


def frobenius_over_margin(landscape: LossLandscape, *, quantile: float = 0.1) -> Estimate:
    r"""The log of the product of Frobenius norms over the margin,
    :math:`\log \prod_l \|W_l\|_F^2 / \gamma^2` (Jiang et al. 2019, `prod-of-fro-over-margin`).

    Arguments:
        landscape, quantile: see `output_margin`.

    Raises:
        NotApplicableError: see `frobenius_product` and `inverse_margin`.
    """
    gamma = _positive_margin(landscape, quantile)
    return _with_margin(frobenius_product(landscape) - 2 * gamma.log(), gamma)


def spectral_complexity(
    landscape: LossLandscape,
    *,
    quantile: float = 0.1,
    circular: bool = False,
    tolerance: float = 1e-4,
    seed: int = 0,
) -> Estimate:
    r"""The log of the main term of the spectrally normalised margin bound,
    :math:`\log\bigl(\prod_l \|W_l\|_2^2 \sum_l \|W_l\|_F^2 / \|W_l\|_2^2 / \gamma^2\bigr)`
    (Jiang et al. 2019, `spec-orig-main`; Neyshabur et al. 2017, arXiv 1707.09564, Theorem 1).

    Arguments:
        landscape, quantile: see `output_margin`.
        circular, tolerance, seed: see `spectral_product`.

    Raises:
        NotApplicableError: see `spectral_product` and `inverse_margin`.
    """
    over_margin = spectral_over_margin(
        landscape, quantile=quantile, circular=circular, tolerance=tolerance, seed=seed
    )
    ranks = fro_over_spec(landscape, circular=circular, tolerance=tolerance, seed=seed)
    return over_margin + math.log(ranks.value)


def path_norm_over_margin(landscape: LossLandscape, *, quantile: float = 0.1) -> Estimate:
    r"""The path norm over the margin, the root of Jiang et al.'s `path-norm-over-margin`.

    Arguments:
        landscape, quantile: see `output_margin`.

    Raises:
        NotApplicableError: see `path_norm` and `inverse_margin`.
    """
    gamma = _positive_margin(landscape, quantile)
    return _with_margin(path_norm(landscape) / gamma, gamma)


# -- private ----------------------------------------------------------------------------------


def _margins(predictions: Predictions, outputs: Tensor, targets: Tensor) -> Float[Tensor, " n"]:
    outputs = outputs.double()
    if predictions.axis is None:
        h, y = outputs.reshape(-1), targets.reshape(-1)
        if outputs.numel() != len(outputs) or predictions.threshold:
            raise NotApplicableError(
                "this needs classes: of outputs that are labels of their own, or probabilities, "
                "no margin is known"
            )
        return torch.where(y > 0, h, -h)
    h, y = predictions.labelled(outputs, targets)
    own = h.gather(1, y[:, None]).squeeze(1)
    return own - h.scatter(1, y[:, None], -math.inf).amax(dim=1)


def _with_margin(quotient: Estimate, gamma: Estimate) -> Estimate:
    return replace(quotient, method=f"{quotient.method}; margin {gamma}: {gamma.method}")


def _positive_margin(landscape: LossLandscape, quantile: float) -> Estimate:
    gamma = output_margin(landscape, quantile=quantile)
    if not gamma.value > 0:
        raise NotApplicableError(
            f"the margin is {gamma} at quantile {quantile:g}: with so many rows misclassified "
            f"nothing can be measured against it; train further, or take a larger quantile"
        )
    return gamma


MEASURES: tuple[Measure, ...] = (
    entry(
        output_margin,
        "output margin (10th percentile)",
        "γ",
        "10th percentile over rows of h_y - max_{c≠y} h_c",
        "layer",
        "neuron",
        orientation="flatness",
    ),
    entry(inverse_margin, "inverse squared margin", "1/γ²", "1/γ²", "layer", "neuron"),
    entry(
        spectral_over_margin,
        "spectral norms over margin (log)",
        "Π‖W‖₂²/γ²",
        "log Π_l ‖W_l‖₂² / γ²",
        "layer",
    ),
    entry(
        frobenius_over_margin,
        "Frobenius norms over margin (log)",
        "Π‖W‖_F²/γ²",
        "log Π_l ‖W_l‖_F² / γ²",
        "layer",
    ),
    entry(
        spectral_complexity,
        "spectral complexity (log)",
        "spectral complexity",
        "log (Π_l ‖W_l‖₂² Σ_l ‖W_l‖_F²/‖W_l‖₂² / γ²)",
        "layer",
    ),
    entry(
        path_norm_over_margin,
        "path norm over margin",
        "path/γ",
        "(Σ_k h(1; θ²)_k)^(1/2) / γ",
        "layer",
        "neuron",
    ),
)
