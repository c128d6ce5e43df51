r"""Norms of a network's weights: capacity measures of layers, paths and the Fisher matrix.

With layers :math:`W_1, \dots, W_d` (BatchNorm multiplied in, see `linear_layers`), Frobenius norms
of the kernels and spectral norms of the linear maps,

.. math:: \log \prod_l \|W_l\|^2, \qquad d \Bigl(\prod_l \|W_l\|^2\Bigr)^{1/d}, \qquad
          \sum_l \|W_l\|_F^2 / \|W_l\|_2^2.

Larger is more complex. Nothing here is divided by the number of rows, as the bounds behind the
measures are: that is a constant within a study on one training set. Source: Jiang et al. 2019
(arXiv 1912.02178), Appendix C.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from planimeter.errors import InputError, NotApplicableError
from planimeter.estimate import Estimate
from planimeter.flatness.definition import Measure
from planimeter.flatness.entry import entry
from planimeter.flatness.layers import Layer, Layers, linear_layers
from planimeter.flatness.path_norm import path_norm
from planimeter.flatness.spectral_norms import circular_spectral_norm, spectral_norm
from planimeter.landscape import LossLandscape

Initial = LossLandscape | Mapping[str, Tensor]
"""Where training began: a landscape, or parameters by name."""


@dataclass(frozen=True)
class LayerNorms:
    """The norms of all layers.

    Arguments:
        names: of the layers.
        frobenius: Frobenius norm of each weight matrix or kernel.
        spectral: spectral norm of each layer as a linear map, an `Estimate` each.
        note: what was counted.
    """

    names: tuple[str, ...]
    frobenius: tuple[float, ...]
    spectral: tuple[Estimate, ...]
    note: str

    def estimate(self, value: float, what: str) -> Estimate:
        """A function of these norms, with what is behind them."""
        iterative = [e.method for e in self.spectral if e.products]
        worst = max(iterative, key=lambda text: float(text.rsplit(" ", 1)[1]), default="")
        return Estimate(
            value,
            method="; ".join(filter(None, [what, self.note, worst and f"worst layer: {worst}"])),
            products=sum(e.products for e in self.spectral),
            converged=all(e.converged for e in self.spectral),
        )


def layer_norms(
    landscape: LossLandscape, *, circular: bool = False, tolerance: float = 1e-4, seed: int = 0
) -> LayerNorms:
    """Frobenius and spectral norms of all layers, computed once for a landscape.

    Arguments:
        landscape: whose network is measured; its data only gives the sizes of inputs.
        circular: the norms of convolutions with circular padding, by FFT (Sedghi et al. 2019),
            in place of those with the network's own padding, by Lanczos.
        tolerance: relative residual of Lanczos.
        seed: of its start vector.

    Raises:
        NotApplicableError: see `linear_layers` and `circular_spectral_norm`.
    """
    known = _KNOWN.setdefault(landscape, {})
    key = (circular, tolerance, seed)
    if key not in known:
        found = linear_layers(landscape)
        known[key] = _norms_of(found, found.layers, circular, tolerance, seed)
    return known[key]


def l2_norm(landscape: LossLandscape) -> Estimate:
    r"""The Euclidean norm of the parameters, :math:`\|\theta\|_2`, biases and BatchNorms included.

    (Jiang et al. 2019, Appendix C, `l2`: there of the weights, after folding.)
    """
    return Estimate(float(landscape.theta.norm()), method="exact")


def parameter_count(landscape: LossLandscape) -> Estimate:
    """The number of trainable parameters, tied ones counted once (Jiang et al. 2019, `params`)."""
    return Estimate(float(landscape.num_parameters), method="exact")


def distance_from_init(landscape: LossLandscape, *, initial: Initial | None = None) -> Estimate:
    r"""How far training went, :math:`\|\theta - \theta_0\|_2` (Jiang et al. 2019, `l2-dist`).

    Arguments:
        landscape: after training.
        initial: the landscape before it, or its parameters by name.

    Raises:
        NotApplicableError: `initial` is None.
        InputError: its parameters are not those of the network.
    """
    start = _start(landscape, initial)
    return Estimate(float((landscape.theta - start.theta).norm()), method="exact")


def spectral_distance_from_init(
    landscape: LossLandscape,
    *,
    initial: Initial | None = None,
    circular: bool = False,
    tolerance: float = 1e-4,
    seed: int = 0,
) -> Estimate:
    r"""The sum of squared spectral norms of what training added to each layer,
    :math:`\sum_l \|W_l - W_l^0\|_2^2` (Jiang et al. 2019, `dist-spec-init`).

    Arguments:
        landscape: after training.
        initial: the landscape before it, or its parameters by name (BatchNorms are then folded
            with the running statistics of the trained network).
        circular, tolerance, seed: see `layer_norms`.

    Raises:
        NotApplicableError: `initial` is None, or see `layer_norms`.
        InputError: its parameters are not those of the network.
    """
    now, before = linear_layers(landscape), linear_layers(_start(landscape, initial))
    if [layer.norm for layer in now.layers] != [layer.norm for layer in before.layers]:
        raise InputError("the initial network folds other BatchNorms than the trained one")
    moved = tuple(
        replace(one, weight=one.weight - two.weight)
        for one, two in zip(now.layers, before.layers, strict=True)
    )
    norms = _norms_of(now, moved, circular, tolerance, seed)
    total = sum(e.value**2 for e in norms.spectral)
    return norms.estimate(total, "sum over layers")


def frobenius_product(landscape: LossLandscape) -> Estimate:
    r"""The log of the product of squared Frobenius norms, :math:`\log \prod_l \|W_l\|_F^2`
    (Jiang et al. 2019, `prod-of-fro`).

    Raises:
        NotApplicableError: see `linear_layers`, or a layer is zero.
    """
    found = linear_layers(landscape)
    names = [layer.name for layer in found.layers]
    norms = [float(layer.weight.norm()) for layer in found.layers]
    return Estimate(log_product(names, norms), method=f"exact; {found.note}")


def spectral_product(
    landscape: LossLandscape, *, circular: bool = False, tolerance: float = 1e-4, seed: int = 0
) -> Estimate:
    r"""The log of the product of squared spectral norms, :math:`\log \prod_l \|W_l\|_2^2`, twice
    the log of a Lipschitz constant of a plain ReLU network (Jiang et al. 2019, `prod-of-spec`).

    Arguments:
        landscape, circular, tolerance, seed: see `layer_norms`.

    Raises:
        NotApplicableError: see `layer_norms`, or a layer is zero.
    """
    norms = layer_norms(landscape, circular=circular, tolerance=tolerance, seed=seed)
    values = [e.value for e in norms.spectral]
    return norms.estimate(log_product(norms.names, values), _padding(circular))


def frobenius_sum(landscape: LossLandscape) -> Estimate:
    r"""The least sum of squared Frobenius norms under rescalings of layers that keep their
    product, :math:`d\,(\prod_l \|W_l\|_F^2)^{1/d}` (Jiang et al. 2019, `sum-of-fro`).

    Raises:
        NotApplicableError: see `frobenius_product`.
    """
    product, depth = frobenius_product(landscape), len(linear_layers(landscape).layers)
    return replace(product, value=depth * math.exp(product.value / depth))


def spectral_sum(
    landscape: LossLandscape, *, circular: bool = False, tolerance: float = 1e-4, seed: int = 0
) -> Estimate:
    r"""The least sum of squared spectral norms under rescalings of layers that keep their product,
    :math:`d\,(\prod_l \|W_l\|_2^2)^{1/d}` (Jiang et al. 2019, `sum-of-spec`).

    Arguments:
        landscape, circular, tolerance, seed: see `layer_norms`.

    Raises:
        NotApplicableError: see `spectral_product`.
    """
    product = spectral_product(landscape, circular=circular, tolerance=tolerance, seed=seed)
    norms = layer_norms(landscape, circular=circular, tolerance=tolerance, seed=seed)
    depth = len(norms.names)
    return replace(product, value=depth * math.exp(product.value / depth))


def fro_over_spec(
    landscape: LossLandscape, *, circular: bool = False, tolerance: float = 1e-4, seed: int = 0
) -> Estimate:
    r"""The sum of stable ranks, :math:`\sum_l \|W_l\|_F^2 / \|W_l\|_2^2` (Jiang et al. 2019,
    `fro-over-spec`). For convolutions, the kernel's Frobenius norm over the map's spectral norm,
    which is no rank but what the paper computes.

    Arguments:
        landscape, circular, tolerance, seed: see `layer_norms`.

    Raises:
        NotApplicableError: see `layer_norms`, or a layer is zero.
    """
    norms = layer_norms(landscape, circular=circular, tolerance=tolerance, seed=seed)
    log_product(norms.names, norms.frobenius)
    pairs = zip(norms.frobenius, norms.spectral, strict=True)
    return norms.estimate(sum((f / s.value) ** 2 for f, s in pairs), _padding(circular))


def fisher_rao_norm(landscape: LossLandscape) -> Estimate:
    r"""The length of the parameters in the Fisher metric, :math:`(\theta^T F \theta)^{1/2}`, with F
    the Fisher matrix of labels from the model (the Gauss-Newton matrix).

    For a network without biases and with d layers of a piecewise linear activation,
    :math:`\sum_i \theta_i \partial_i h = d\,h`, so this is
    :math:`d\,(E\, h^T \nabla_h^2 \ell\, h)^{1/2}`. It costs one product.

    Raises:
        InputError: the loss is not convex in the outputs.

    Source: Liang et al. 2017 (arXiv 1711.01530), Definition 2 and Theorem 3.1.
    """
    return _metric_length(landscape, landscape.gauss_newton() @ landscape.theta, "Gauss-Newton")


def empirical_fisher_rao_norm(landscape: LossLandscape) -> Estimate:
    r"""`fisher_rao_norm` with the data's own labels, :math:`(\frac1N \sum_n \langle g_n, \theta
    \rangle^2)^{1/2}`, which vanishes at a minimum that fits them.

    Raises:
        InputError: rows have no gradients of their own.

    Source: Liang et al. 2017 (arXiv 1711.01530), Definition 2, over the training rows.
    """
    product = landscape.empirical_fisher() @ landscape.theta
    return _metric_length(landscape, product, "empirical Fisher")


def log_product(names: tuple[str, ...] | list[str], norms: Any) -> float:
    """Twice the sum of logarithms.

    Raises:
        NotApplicableError: a norm is zero; names the layer.
    """
    for name, norm in zip(names, norms, strict=True):
        if not norm > 0:
            raise NotApplicableError(f"layer {name!r} has norm {norm:g}: no product of norms")
    return 2.0 * sum(map(math.log, norms))


# -- private ----------------------------------------------------------------------------------

_KNOWN: WeakKeyDictionary[LossLandscape, dict[Any, LayerNorms]] = WeakKeyDictionary()


def _norms_of(
    found: Layers, layers: tuple[Layer, ...], circular: bool, tolerance: float, seed: int
) -> LayerNorms:
    if circular:
        spectral = [circular_spectral_norm(layer) for layer in layers]
    else:
        spectral = [spectral_norm(layer, tolerance=tolerance, seed=seed) for layer in layers]
    return LayerNorms(
        tuple(layer.name for layer in layers),
        tuple(float(layer.weight.norm()) for layer in layers),
        tuple(spectral),
        found.note,
    )


def _padding(circular: bool) -> str:
    return "convolutions circular, by FFT" if circular else "convolutions as they are"


def _start(landscape: LossLandscape, initial: Initial | None) -> LossLandscape:
    if initial is None:
        raise NotApplicableError(
            "no initial network: pass initial=, the landscape before training or its parameters "
            "by name"
        )
    names = landscape.parameters
    given = initial.parameters if isinstance(initial, LossLandscape) else initial
    for name, value in names.items():
        if name not in given or given[name].shape != value.shape:
            shape = tuple(given[name].shape) if name in given else "missing"
            raise InputError(
                f"initial parameter {name!r} is {shape}, the network has {tuple(value.shape)}"
            )
    if isinstance(initial, LossLandscape):
        return initial
    return landscape.at(torch.cat([given[n].detach().double().reshape(-1) for n in names]))


def _metric_length(landscape: LossLandscape, product: Tensor, kind: str) -> Estimate:
    square = max(float(landscape.theta @ product), 0.0)
    return Estimate(math.sqrt(square), method=f"{kind}, one product", products=1)


_LIANG = "Liang et al. 2017, Definition 2"

MEASURES: tuple[Measure, ...] = (
    entry(l2_norm, "norm of the parameters", "‖θ‖₂", "‖θ‖₂"),
    entry(parameter_count, "number of parameters", "P", "P", "layer", "neuron"),
    entry(distance_from_init, "distance from initialisation", "‖θ-θ₀‖₂", "‖θ - θ₀‖₂"),
    entry(
        spectral_distance_from_init,
        "spectral distance from initialisation",
        "Σ‖ΔW‖₂²",
        "Σ_l ‖W_l - W_l⁰‖₂²",
    ),
    entry(
        frobenius_product,
        "product of Frobenius norms (log)",
        "Π‖W‖_F²",
        "log Π_l ‖W_l‖_F²",
        "layer",
    ),
    entry(
        spectral_product,
        "product of spectral norms (log)",
        "Π‖W‖₂²",
        "log Π_l ‖W_l‖₂²",
        "layer",
    ),
    entry(frobenius_sum, "sum of Frobenius norms", "Σ‖W‖_F²", "d (Π_l ‖W_l‖_F²)^(1/d)", "layer"),
    entry(
        spectral_sum,
        "sum of spectral norms",
        "Σ‖W‖₂²",
        "d (Π_l ‖W_l‖₂²)^(1/d)",
        "layer",
    ),
    entry(
        fro_over_spec,
        "Frobenius over spectral norms",
        "Σ‖W‖_F²/‖W‖₂²",
        "Σ_l ‖W_l‖_F² / ‖W_l‖₂²",
        "layer",
    ),
    entry(
        path_norm,
        "path norm",
        "path",
        "(Σ_k h(1; θ²)_k)^(1/2)",
        "layer",
        "neuron",
        source="Neyshabur et al. 2015; Jiang et al. 2019, Appendix C",
    ),
    entry(
        fisher_rao_norm,
        "Fisher-Rao norm",
        "‖θ‖_F",
        "(θ'Fθ)^(1/2)",
        "layer",
        "neuron",
        source=_LIANG,
    ),
    entry(
        empirical_fisher_rao_norm,
        "Fisher-Rao norm with the data's labels",
        "‖θ‖_F̂",
        "(1/N Σ_n (g_n'θ)²)^(1/2)",
        "layer",
        "neuron",
        source=_LIANG,
    ),
)
