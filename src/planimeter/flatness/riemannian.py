r"""The scale-invariant sharpness of rangamani2019, on the manifold of layer-wise rescalings.

With the metric :math:`g_\theta(\eta, \zeta) = \sum_i \langle \eta_i, \zeta_i \rangle /
\|\theta_i\|_F^2`, a block i for every weight and every bias tensor, and
:math:`D = \mathrm{blockdiag}(\|\theta_i\|_F^2 I)`,

.. math:: S = \lambda_{\max}(D^{1/2} H D^{1/2}).

Layer-wise rescalings :math:`\theta_i \to c_i \theta_i` leave it unchanged, neuron-wise ones do not.
A block of zero norm (biases that were never trained) is a point where the metric has no value: it
is left out, and the method says so.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from planimeter.curvature import top_eigenvalues, trace
from planimeter.errors import NotApplicableError
from planimeter.estimate import Estimate
from planimeter.flatness.measure_type import Measure
from planimeter.landscape import LossLandscape
from planimeter.operator import CurvatureOperator

Progress = Callable[[int, int], None]


def rangamani(
    landscape: LossLandscape,
    *,
    normalised: bool = False,
    horizontal: bool = False,
    levi_civita: bool = False,
    tolerance: float = 1e-3,
    max_products: int | None = None,
    seed: int = 0,
    progress: Progress = lambda done, total: None,
) -> Estimate:
    r"""The largest eigenvalue of the Riemannian Hessian.

    Arguments:
        normalised: :math:`S / (2 + 2L)`, as the authors print it.
        horizontal: project to the directions that are no rescalings,
            :math:`\eta_i - (c_i - \bar c)\theta_i` with
            :math:`c_i = \langle \eta_i, \theta_i \rangle / \|\theta_i\|^2` and their mean.
        levi_civita: the exact Hessian form also where the gradient is not zero,
            :math:`D^2 L(\eta,\eta) - \sum_i \langle \partial_i L, \Gamma(\eta,\eta)_i \rangle`,
            :math:`\Gamma(\eta,\eta)_i = -2 c_i \eta_i + (\|\eta_i\|^2/\|\theta_i\|^2) \theta_i`.
        tolerance, max_products: of the Lanczos search.
        seed: of its start.

    Raises:
        NotApplicableError: all parameters are zero.

    Source: rangamani2019 (the terms away from a critical point are derived here).
    """
    blocks = _Blocks(landscape)
    hessian = landscape.hessian()
    slope = landscape.gradient() if levi_civita else None
    root = blocks.norms[:, None]

    def product(v: Float[Tensor, "P k"]) -> Float[Tensor, "P k"]:
        eta = root * v
        if horizontal:
            eta = blocks.horizontal(eta)
        curved = hessian.product(eta)
        if slope is not None:
            curved = curved - blocks.bent(eta, slope)
        if horizontal:
            curved = blocks.horizontal(curved, transposed=True)
        return root * curved

    operator = replace(hessian, product=product, name="Riemannian Hessian", restrict=None)
    pairs = top_eigenvalues(
        operator,
        1,
        tolerance=tolerance,
        max_products=max_products,
        multiplicities=False,
        seed=seed,
        progress=progress,
    )
    found = pairs.first()
    words = [found.method]
    words += ["S/(2+2L)"] if normalised else []
    words += ["horizontal"] if horizontal else []
    words += ["with Levi-Civita terms"] if levi_civita else []
    value = found.value / (2 + 2 * landscape.loss()) if normalised else found.value
    return replace(found, value=value, method=", ".join(words + blocks.left_out))


def rangamani_trace(
    landscape: LossLandscape,
    *,
    probes: int = 100,
    tolerance: float = 0.0,
    seed: int = 0,
    progress: Progress = lambda done, total: None,
) -> Estimate:
    r"""The trace of the Riemannian Hessian, :math:`\sum_i \|\theta_i\|_F^2 \, \mathrm{tr} H_i`.

    Arguments:
        probes, tolerance, seed: of the trace (`planimeter.curvature.trace`).

    Source: rangamani2019.
    """
    blocks = _Blocks(landscape)
    operator = landscape.hessian().scaled(blocks.norms**2)
    found = trace(operator, probes=probes, tolerance=tolerance, seed=seed, progress=progress)
    return replace(found, method=", ".join([found.method, *blocks.left_out]))


def block_norms(landscape: LossLandscape) -> Float[Tensor, " P"]:
    """The norm of the parameter tensor that each coordinate belongs to.

    Raises:
        NotApplicableError: all parameters are zero.
    """
    return _Blocks(landscape).norms


class _Blocks:
    """The parameter tensors as parts of a flat vector, and their norms."""

    def __init__(self, landscape: LossLandscape) -> None:
        operator: CurvatureOperator = landscape.hessian()
        self.theta = landscape.theta
        self.parts = list(operator.blocks.values())
        sizes = [float(self.theta[part].norm()) for part in self.parts]
        if not any(sizes):
            raise NotApplicableError("every parameter is zero: its norm gives no scale")
        pairs = list(zip(self.parts, sizes, strict=True))
        self.norms = torch.cat([torch.full_like(self.theta[part], n) for part, n in pairs])
        zero = [name for name, n in zip(operator.blocks, sizes, strict=True) if n == 0]
        self.live = [part for part, n in pairs if n > 0]
        self.left_out = [f"without {', '.join(zero)} (zero norm)"] if zero else []

    def horizontal(
        self, eta: Float[Tensor, "P k"], transposed: bool = False
    ) -> Float[Tensor, "P k"]:
        """eta_i - (c_i - mean c) theta_i, or the transpose of that map."""
        result = eta.clone()
        along = []
        for part in self.live:
            theta = self.theta[part]
            square = theta.square().sum()
            dot = theta @ eta[part]
            along.append(dot if transposed else dot / square)
        mean = torch.stack(along).mean(0)
        for part, c in zip(self.live, along, strict=True):
            theta = self.theta[part]
            own = (c - mean) / theta.square().sum() if transposed else c - mean
            result[part] -= theta[:, None] * own
        return result

    def bent(self, eta: Float[Tensor, "P k"], slope: Float[Tensor, " P"]) -> Float[Tensor, "P k"]:
        """The symmetric matrix of the Levi-Civita terms, times eta."""
        result = torch.zeros_like(eta)
        for part in self.live:
            theta, g, e = self.theta[part], slope[part], eta[part]
            square = theta.square().sum()
            # <g, -2 c eta + (|eta|^2/|theta|^2) theta> as a quadratic form in eta.
            result[part] = (
                -(theta[:, None] * (g @ e) + g[:, None] * (theta @ e)) + (g @ theta) * e
            ) / square
        return result


MEASURES = (
    Measure(
        "rangamani",
        "scale-invariant sharpness S",
        "S",
        "λ_max(D^(1/2) H D^(1/2)), D = blockdiag(‖θ_i‖²)",
        "rangamani2019",
        "sharpness",
        frozenset({"layer"}),
        rangamani,
        rangamani,
        by_layer=True,
    ),
    Measure(
        "rangamani_normalised",
        "scale-invariant sharpness S/(2+2L)",
        "S/(2+2L)",
        "λ_max(D^(1/2) H D^(1/2)) / (2 + 2L)",
        "rangamani2019",
        "sharpness",
        frozenset({"layer"}),
        partial(rangamani, normalised=True),
        rangamani,
        by_layer=True,
    ),
    Measure(
        "rangamani_trace",
        "trace of the scaled Hessian",
        "Σ‖θ_i‖²tr H_i",
        "Σ_i ‖θ_i‖² tr H_i",
        "rangamani2019",
        "sharpness",
        frozenset({"layer"}),
        rangamani_trace,
        rangamani_trace,
        {"probes": 8},
        by_layer=True,
    ),
)
