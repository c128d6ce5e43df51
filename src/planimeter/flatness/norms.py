r"""Norms of a network's weights: products and sums over layers, and distances from the start.

All are of the network with its BatchNorms folded (`planimeter.flatness.folding`), so that a network
and its equivalent without BatchNorm have the same norms. With layers :math:`W_1, \dots, W_d`,
Frobenius norms of the kernels and spectral norms of the linear maps,

.. math:: \log \prod_l \|W_l\|^2, \qquad d \Bigl(\prod_l \|W_l\|^2\Bigr)^{1/d}, \qquad
          \sum_l \|W_l\|_F^2 / \|W_l\|_2^2.

Larger is more complex. Nothing here is divided by the number of rows, as the bounds behind the
measures are: that is a constant within a study on one training set. Source: Jiang et al. 2019
(arXiv 1912.02178), Appendix C.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from planimeter.errors import InputError, NotApplicableError
from planimeter.estimate import Estimate
from planimeter.flatness.entry import entry
from planimeter.flatness.fisher_rao import empirical_fisher_rao_norm, fisher_rao_norm
from planimeter.flatness.folding import folded, folds
from planimeter.flatness.layer_norms import layer_norms, log_product, norms_of
from planimeter.flatness.layers import free_layers
from planimeter.flatness.measure_type import Measure
from planimeter.flatness.path_norm import path_norm
from planimeter.landscape import LossLandscape

Initial = LossLandscape | Mapping[str, Tensor]
"""Where training began: a landscape, or parameters by name."""


def l2_norm(landscape: LossLandscape) -> Estimate:
    r"""The Euclidean norm of the parameters, :math:`\|\theta\|_2`, biases included.

    BatchNorms are folded (`planimeter.flatness.folding`).

    (Jiang et al. 2019, Appendix C, `l2`: there of the weights alone.)

    Raises:
        NotApplicableError: BatchNorm uses the batch's statistics.
    """
    return Estimate(float(folded(landscape).theta.norm()), method=_exact(landscape))


def parameter_count(landscape: LossLandscape) -> Estimate:
    """The number of trainable parameters, tied ones counted once, those of BatchNorms among them:
    nothing is folded, since this is no norm (Jiang et al. 2019, `params`)."""
    return Estimate(float(landscape.num_parameters), method="exact")


def distance_from_init(landscape: LossLandscape, *, initial: Initial | None = None) -> Estimate:
    r"""How far training went, :math:`\|\theta - \theta_0\|_2` (Jiang et al. 2019, `l2-dist`).

    BatchNorms of both networks are folded (`planimeter.flatness.folding`).

    Arguments:
        landscape: after training.
        initial: the landscape before it, or its parameters by name (BatchNorms are then folded
            with the running statistics of the trained network).

    Raises:
        NotApplicableError: `initial` is None, or BatchNorm uses the batch's statistics.
        InputError: its parameters are not those of the network.
    """
    now, before = folded(landscape), folded(_start(landscape, initial))
    if list(now.parameters) != list(before.parameters):
        raise InputError(_OTHER_NORMS)
    return Estimate(float((now.theta - before.theta).norm()), method=_exact(landscape))


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
    now, before = free_layers(landscape), free_layers(_start(landscape, initial))
    if [layer.norm for layer in now.layers] != [layer.norm for layer in before.layers]:
        raise InputError(_OTHER_NORMS)
    moved = tuple(
        replace(one, weight=one.weight - two.weight)
        for one, two in zip(now.layers, before.layers, strict=True)
    )
    norms = norms_of(now, moved, circular, tolerance, seed)
    total = sum(e.value**2 for e in norms.spectral)
    return norms.estimate(total, "sum over layers")


def frobenius_product(landscape: LossLandscape) -> Estimate:
    r"""The log of the product of squared Frobenius norms, :math:`\log \prod_l \|W_l\|_F^2`
    (Jiang et al. 2019, `prod-of-fro`).

    Raises:
        NotApplicableError: see `linear_layers`, or a layer is zero.
    """
    found = free_layers(landscape)
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
    product, depth = frobenius_product(landscape), len(free_layers(landscape).layers)
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


# -- private ----------------------------------------------------------------------------------


_OTHER_NORMS = "the initial network folds other BatchNorms than the trained one"


def _exact(landscape: LossLandscape) -> str:
    return "; ".join(filter(None, ["exact", folds(landscape)]))


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
        return initial.restricted(list(names))
    return landscape.at(torch.cat([given[n].detach().double().reshape(-1) for n in names]))


_LIANG = "Liang et al. 2017, Definition 2"

MEASURES: tuple[Measure, ...] = (
    entry(l2_norm, "norm of the parameters", "‖θ‖₂", "‖θ‖₂", by_layer=True),
    entry(parameter_count, "number of parameters", "P", "P", "layer", "neuron", by_layer=True),
    entry(
        distance_from_init,
        "distance from initialisation",
        "‖θ-θ₀‖₂",
        "‖θ - θ₀‖₂",
        by_layer=True,
    ),
    entry(
        spectral_distance_from_init,
        "spectral distance from initialisation",
        "Σ‖ΔW‖₂²",
        "Σ_l ‖W_l - W_l⁰‖₂²",
        by_layer=True,
    ),
    entry(
        frobenius_product,
        "product of Frobenius norms (log)",
        "Π‖W‖_F²",
        "log Π_l ‖W_l‖_F²",
        "layer",
        by_layer=True,
    ),
    entry(
        spectral_product,
        "product of spectral norms (log)",
        "Π‖W‖₂²",
        "log Π_l ‖W_l‖₂²",
        "layer",
        by_layer=True,
    ),
    entry(
        frobenius_sum,
        "sum of Frobenius norms",
        "Σ‖W‖_F²",
        "d (Π_l ‖W_l‖_F²)^(1/d)",
        "layer",
        by_layer=True,
    ),
    entry(
        spectral_sum,
        "sum of spectral norms",
        "Σ‖W‖₂²",
        "d (Π_l ‖W_l‖₂²)^(1/d)",
        "layer",
        by_layer=True,
    ),
    entry(
        fro_over_spec,
        "Frobenius over spectral norms",
        "Σ‖W‖_F²/‖W‖₂²",
        "Σ_l ‖W_l‖_F² / ‖W_l‖₂²",
        "layer",
        by_layer=True,
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
        by_layer=True,
    ),
    entry(
        empirical_fisher_rao_norm,
        "Fisher-Rao norm with the data's labels",
        "‖θ‖_F̂",
        "(1/N Σ_n (g_n'θ)²)^(1/2)",
        "layer",
        "neuron",
        source=_LIANG,
        by_layer=True,
    ),
)
