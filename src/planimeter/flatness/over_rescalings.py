r"""Measures that are minimised over the ways of writing the same function.

Minimum sharpness lets layers be scaled by :math:`\alpha_l > 0`, :math:`\prod_l \alpha_l = 1`, with
traces :math:`t_l` of the weights' blocks of the Hessian and :math:`b_l` of the biases':

.. math:: \min_\alpha \sum_l \frac{t_l}{\alpha_l^2} + \frac{b_l}{\prod_{j \le l} \alpha_j^2}
          \;=\; L \Big( \prod_l t_l \Big)^{1/L} \text{ without biases.}

Normalized flat minima let every neuron be scaled:

.. math:: \sum_l \min_{u, v > 0} \sum_{ij} u_i H^{(l)}_{ij,ij} v_j
          + \sum_{ij} \frac{(W^{(l)}_{ij})^2}{u_i v_j}.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.optimize
import torch
from jaxtyping import Float
from torch import Tensor

from planimeter.curvature.stochastic import identity_columns, rademacher
from planimeter.errors import NotApplicableError
from planimeter.estimate import Estimate, widening
from planimeter.flatness.block_traces import block_traces, weight_names
from planimeter.flatness.measure_type import Measure
from planimeter.landscape import LossLandscape
from planimeter.operator import CurvatureOperator

Progress = Callable[[int, int], None]
GROUPS = 10
"""Groups of probes that the jackknife leaves out in turn."""


def minimum_sharpness(
    landscape: LossLandscape,
    *,
    probes: int = 100,
    seed: int = 0,
    progress: Progress = lambda done, total: None,
) -> Estimate:
    """The least trace of the Hessian over all layer-wise rescalings.

    Arguments:
        probes: products for the traces; from P on, they are exact.
        seed: of the probes.

    Raises:
        NotApplicableError: the network is no chain of positively homogeneous layers (found by
            rescaling it), or the trace of a layer is not positive, so that there is no minimum.

    Source: Ibayashi et al. 2021.
    """
    layers = _chain(landscape)
    traces = block_traces(landscape.hessian(), probes=probes, seed=seed, progress=progress)
    of = dict(zip(traces.names, traces.values.tolist(), strict=True))
    for layer in layers:
        if of[layer.weight] <= 0:
            raise NotApplicableError(
                f"the trace of {layer.weight!r} is {of[layer.weight]:.2g}, not positive: there is "
                f"no minimum over rescalings (at a minimum of the loss with more probes there is)"
            )
    count = len(layers)
    t = np.array([of[layer.weight] for layer in layers])
    b = np.array([max(of.get(layer.bias, 0.0), 0.0) for layer in layers])
    unit = float(t.sum())  # the search has absolute tolerances
    t, b = t / unit, b / unit

    def value(a: np.ndarray) -> tuple[float, np.ndarray]:
        """The objective at logarithms a_l of alpha_l^2, of which the last makes the sum vanish."""
        a = np.append(a, -a.sum())
        weights, biases = t * np.exp(-a), b * np.exp(-np.cumsum(a))
        slope = -weights - np.cumsum(biases[::-1])[::-1]
        return float(weights.sum() + biases.sum()), slope[:-1] - slope[-1]

    start = np.log(t) - np.log(t).mean()
    found = scipy.optimize.minimize(value, start[:-1], jac=True, method="L-BFGS-B", options={
        "ftol": 1e-15, "gtol": 1e-12, "maxiter": 1000,
    }) if count > 1 else None  # fmt: skip
    a = np.append(found.x, -found.x.sum()) if found is not None else np.zeros(1)
    factors = dict.fromkeys(traces.names, 0.0)
    for layer, own, all_before in zip(layers, a, np.cumsum(a), strict=True):
        factors[layer.weight] = math.exp(-own)
        if layer.bias in of and of[layer.bias] > 0:
            factors[layer.bias] = math.exp(-all_before)
    # At the minimum the factors change the value to second order only.
    least, stderr = traces.combined(torch.tensor(list(factors.values())).to(traces.samples))
    slack = unit * float(np.abs(value(a[:-1])[1]).max()) / least if count > 1 else 0.0
    return Estimate(
        least,
        stderr,
        f"{traces.method()}, {count} layers, residual {slack:.1e}",
        traces.products,
        slack < 1e-4,
        None if traces.exact else seed,
    )


def normalized_flat_minima(
    landscape: LossLandscape,
    *,
    matrix: str = "hessian",
    probes: int = 100,
    seed: int = 0,
    progress: Progress = lambda done, total: None,
) -> Estimate:
    """Sharpness plus norm, least over the scales of all neurons, layer by layer.

    Negative entries of the diagonal count as zero; the jackknife over groups of probes takes off
    most of the bias that noise in the diagonal has on a minimum, and gives the error.

    Arguments:
        matrix: "hessian" or "gauss_newton", whose diagonal is taken.
        probes: products for the diagonal; from the number of weights on, it is exact.
        seed: of the probes.

    Raises:
        NotApplicableError: there is no weight matrix or kernel.

    Source: Tsuzuku, Sato and Sugiyama, arXiv 1901.04653 version 1.
    """
    names = weight_names(landscape)
    operator = (
        landscape.hessian() if matrix == "hessian" else landscape.gauss_newton()
    ).restricted(names)
    exact = probes >= operator.size
    groups, spent = _diagonals(operator, probes, seed, exact, progress)

    def total(diagonal: Float[Tensor, " P"]) -> tuple[float, float]:
        least, residual = 0.0, 0.0
        for name, part in operator.blocks.items():
            w = landscape.parameters[name].double()
            h = diagonal[part].reshape(*w.shape[:2], -1).sum(2)
            own, change = least_over_neurons(h, w.square().reshape(*w.shape[:2], -1).sum(2))
            least, residual = least + own, max(residual, change)
        return least, residual

    value, residual = total(groups.mean(0))
    stderr = 0.0
    if not exact:
        count = len(groups)
        left_out = torch.tensor(
            [total((groups.sum(0) - one) / (count - 1))[0] for one in groups], dtype=torch.float64
        )
        bias = (count - 1) * (float(left_out.mean()) - value)
        value -= bias
        spread = float((left_out - left_out.mean()).square().sum())
        # What is left of the bias may be of the size of what was taken off.
        stderr = math.hypot(widening(count) * math.sqrt((count - 1) / count * spread), bias)
    how = "exact diagonal" if exact else f"{spent} probes, jackknife"
    return Estimate(
        value,
        stderr,
        f"{how}, {matrix}, residual {residual:.1e}",
        spent,
        residual < 1e-6,
        None if exact else seed,
    )


def least_over_neurons(
    h: Float[Tensor, "i j"], w: Float[Tensor, "i j"], sweeps: int = 1000
) -> tuple[float, float]:
    """min over u, v > 0 of sum u h v + w / (u v), by minimising in u and in v in turn.

    The problem is convex in the logarithms, so this finds the minimum; returned with the relative
    change of the last sweep. Negative h count as 0.
    """
    h = h.clamp_min(0)
    while True:  # a neuron without either term costs nothing, its scale going to zero or infinity
        rows = (h.sum(1) > 0) & (w.sum(1) > 0)
        columns = (h.sum(0) > 0) & (w.sum(0) > 0)
        if bool(rows.all()) and bool(columns.all()):
            break
        h, w = h[rows][:, columns], w[rows][:, columns]
    if h.numel() == 0:
        return 0.0, 0.0
    v = torch.ones(h.shape[1], dtype=h.dtype, device=h.device)
    value, change = float("inf"), float("inf")
    for _ in range(sweeps):
        u = ((w @ (1 / v)) / (h @ v)).sqrt()
        v = (((1 / u) @ w) / (u @ h)).sqrt()
        # The product of u and v is all that counts: keep both in range.
        scale = (u.log().mean() - v.log().mean()) / 2
        u, v = u * torch.exp(-scale), v * torch.exp(scale)
        now = float(u @ h @ v + (1 / u) @ w @ (1 / v))
        change, value = abs(value - now) / now, now
        if change < 1e-12:
            break
    return value, change


@dataclass(frozen=True)
class _Layer:
    weight: str
    bias: str


def _chain(landscape: LossLandscape) -> list[_Layer]:
    """The layers in order, if scaling them with product one leaves the outputs unchanged."""
    layers = [_Layer(n, n.removesuffix("weight") + "bias") for n in weight_names(landscape)]
    known = {layer.weight for layer in layers} | {layer.bias for layer in layers}
    others = [name for name in landscape.parameters if name not in known]
    why = f"parameter {others[0]!r} belongs to no weight matrix" if others else ""
    if not why:
        factor, parameters = 1.0, dict(landscape.parameters)
        for i, layer in enumerate(layers):
            own = 2.0 if i < len(layers) // 2 else 1.0
            own = 2.0 ** -(len(layers) // 2) if i == len(layers) - 1 else own
            factor *= own
            parameters[layer.weight] = parameters[layer.weight] * own
            if layer.bias in parameters:
                parameters[layer.bias] = parameters[layer.bias] * factor
        inputs, _ = next(iter(landscape.batches()))
        with torch.no_grad(), landscape.mode():
            one = landscape.outputs(landscape.parameters, inputs)
            two = landscape.outputs(parameters, inputs)
        if float((one - two).norm()) > 1e-4 * float(one.norm()):
            why = "scaling its layers in turn changes its outputs"
    if why:
        raise NotApplicableError(f"the network is no chain of homogeneous layers: {why}")
    return layers


def _diagonals(
    operator: CurvatureOperator, probes: int, seed: int, exact: bool, progress: Progress
) -> tuple[Float[Tensor, "g P"], int]:
    """Estimates of the diagonal from groups of probes, or the exact one."""
    if exact:
        found = [(c * (operator @ c)).sum(1) for c in identity_columns(operator, 16)]
        return torch.stack(found).sum(0, keepdim=True), operator.size
    count = min(GROUPS, probes)
    if count < 2:
        raise NotApplicableError(f"an error needs at least 2 probes, got {probes}")
    generator = torch.Generator().manual_seed(seed)
    groups, done = [], 0
    for group in range(count):
        width = probes // count + (group < probes % count)
        z = rademacher(operator, width, generator)
        groups.append((z * (operator @ z)).mean(1))
        done += width
        progress(done, probes)
    return torch.stack(groups), probes


MEASURES = (
    Measure(
        "minimum_sharpness",
        "minimum sharpness",
        "MS",
        "min over layer scales of tr H; without biases L (Π_l tr H_l)^(1/L)",
        "Ibayashi et al. 2021",
        "sharpness",
        frozenset({"layer"}),
        minimum_sharpness,
        minimum_sharpness,
        {"probes": 16},
    ),
    Measure(
        "normalized_flat_minima",
        "normalized flat minima",
        "NFM",
        "Σ_l min_{u,v>0} Σ_ij u_i H_ij,ij v_j + W_ij²/(u_i v_j)",
        "Tsuzuku et al., arXiv 1901.04653v1",
        "sharpness",
        frozenset({"layer", "neuron"}),
        normalized_flat_minima,
        normalized_flat_minima,
        {"probes": 8},
        by_layer=True,
    ),
)
