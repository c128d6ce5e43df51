"""The Frobenius and spectral norms of all layers of a network, computed once for all measures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from planimeter.errors import NotApplicableError
from planimeter.estimate import Estimate
from planimeter.flatness.layers import Layer, Layers, free_layers
from planimeter.flatness.shared import shared
from planimeter.flatness.spectral_norms import circular_spectral_norm, spectral_norm
from planimeter.landscape import LossLandscape
from planimeter.printing import short_repr


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

    def __repr__(self) -> str:
        return short_repr(self)

    def estimate(self, value: float, what: str) -> Estimate:
        """A function of these norms, with what is behind them."""
        iterative = [e.method for e in self.spectral if e.products]
        worst = max(iterative, key=lambda text: float(text.rsplit(" ", 1)[1]), default="")
        return Estimate(
            value,
            method="; ".join(filter(None, [what, self.note, worst and f"worst layer: {worst}"])),
            products=sum(e.products for e in self.spectral),
            converged=all(e.converged for e in self.spectral),
            seed=next((e.seed for e in self.spectral if e.products), None),
        )


def layer_norms(
    landscape: LossLandscape, *, circular: bool = False, tolerance: float = 1e-4, seed: int = 0
) -> LayerNorms:
    """Frobenius and spectral norms of all layers, computed once for all measures of a run.

    Arguments:
        landscape: whose network is measured; its data only gives the sizes of inputs.
        circular: the norms of convolutions with circular padding, by FFT (Sedghi et al. 2019),
            in place of those with the network's own padding, by Lanczos.
        tolerance: relative residual of Lanczos.
        seed: of its start vector.

    Raises:
        NotApplicableError: see `linear_layers` and `circular_spectral_norm`.
    """

    def compute() -> LayerNorms:
        found = free_layers(landscape)
        return norms_of(found, found.layers, circular, tolerance, seed)

    return shared(landscape, compute, "layer_norms", circular, tolerance, seed)


def norms_of(
    found: Layers, layers: tuple[Layer, ...], circular: bool, tolerance: float, seed: int
) -> LayerNorms:
    """The norms of given layers, see `layer_norms`; `found` says what they were found among."""
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


def log_product(names: Sequence[str], norms: Sequence[float]) -> float:
    """Twice the sum of logarithms.

    Raises:
        NotApplicableError: a norm is zero; names the layer.
    """
    for name, norm in zip(names, norms, strict=True):
        if not norm > 0:
            raise NotApplicableError(f"layer {name!r} has norm {norm:g}: no product of norms")
    return 2.0 * sum(map(math.log, norms))
