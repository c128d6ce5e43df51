"""One meaning of a standard error: value ± 1.96 errors holds the exact number in 93 to 97 of 100.

`COVERED` has a name, a function of a seed that gives an `Estimate` (or a value and its error), and
the exact value. Over SEEDS seeds the share that covers is counted; it may be above 97 %, an error
that is too large, only where the table says so. The bounds leave room for the count's own chance:
a true coverage of 95 % is outside of them once in a thousand.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from torch import nn

from planimeter.curvature import (
    diagonal,
    frobenius_norm,
    log_product,
    spectral_density,
    spectral_summary,
    top_eigenvalues,
    trace,
)
from planimeter.estimate import NORMAL, Estimate
from planimeter.flatness import minimum_sharpness, relative_flatness
from planimeter.flatness.block_traces import block_traces
from planimeter.flatness.over_rescalings import normalized_flat_minima
from planimeter.landscape import LossLandscape
from planimeter.operator import CurvatureOperator

SEEDS = 200
LEAST = 0.95 - 3.3 * math.sqrt(0.95 * 0.05 / SEEDS)


@dataclass(frozen=True)
class Case:
    """A stochastic number and what it estimates."""

    estimate: Callable[[int], Estimate]
    exact: Callable[[], float]
    conservative: bool = False


SPECTRA = {
    "flat": torch.linspace(0.1, 1, 60),
    "1/k": 1 / torch.arange(1, 61),
    "outliers": torch.cat([torch.tensor([10.0, 8, 6, 5, 4]), torch.linspace(0.01, 0.3, 55)]),
    "indefinite": torch.linspace(-1, 2, 60),
}


@cache
def matrix(name: str) -> CurvatureOperator:
    values = SPECTRA[name].double()
    generator = torch.Generator().manual_seed(1)
    basis, _ = torch.linalg.qr(torch.randn(60, 60, generator=generator, dtype=torch.float64))
    return CurvatureOperator.from_dense(basis @ torch.diag(values) @ basis.T)


@cache
def network() -> LossLandscape:
    torch.manual_seed(0)
    inputs = torch.randn(40, 4, dtype=torch.float64)
    labels = (inputs[:, 0] > 0).long() + (inputs[:, 1] > 0.5).long()
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    optimiser = torch.optim.Adam(net.parameters(), lr=0.05)
    for _ in range(60):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(inputs), labels).backward()
        optimiser.step()
    return LossLandscape(net, nn.functional.cross_entropy, (inputs, labels))


@cache
def dense_network() -> CurvatureOperator:
    land = network()
    found = land.hessian()
    return CurvatureOperator(found.size, found.dense().mm, "dense", found.blocks)


def _curvature() -> dict[str, Case]:
    cases = {}
    for name, values in SPECTRA.items():
        total, norm = float(values.sum()), float(values.norm())
        damped = float((values.clamp_min(0) / (values.clamp_min(0) + 0.3)).sum())
        top = matrix(name)
        for method in ("hutchinson", "hutch++", "xtrace"):
            cases[f"trace, {method}, {name}"] = Case(
                lambda seed, m=method, a=top: trace(a, probes=36, method=m, seed=seed),
                lambda total=total: total,
                method == "xtrace",
            )
        for method in ("hutchinson", "hutch++"):
            cases[f"Frobenius norm, {method}, {name}"] = Case(
                lambda seed, m=method, a=top: frobenius_norm(a, probes=36, method=m, seed=seed),
                lambda norm=norm: norm,
            )
        cases |= {
            f"density's trace, {name}": Case(
                lambda seed, a=top: spectral_density(a, steps=5, seed=seed).trace(),
                lambda total=total: total,
            ),
            f"density's norm, {name}": Case(
                lambda seed, a=top: spectral_density(a, steps=6, seed=seed).frobenius_norm(),
                lambda norm=norm: norm,
            ),
            f"density's trace with further probes, {name}": Case(
                lambda seed, a=top: spectral_density(a, steps=5, extra=24, seed=seed).trace(),
                lambda total=total: total,
            ),
            f"density's functional, {name}": Case(
                lambda seed, a=top: spectral_density(a, steps=40, seed=seed).effective_dimension(
                    0.3
                ),
                lambda damped=damped: damped,
            ),
            f"summary's trace, {name}": Case(
                lambda seed, a=top: spectral_summary(a, k=3, steps=6, extra=8, seed=seed).trace,
                lambda total=total: total,
            ),
            f"summary's norm, {name}": Case(
                lambda seed, a=top: (
                    spectral_summary(a, k=3, steps=6, extra=8, seed=seed).frobenius_norm
                ),
                lambda norm=norm: norm,
            ),
        }  # fmt: skip
    return cases


def _entry(seed: int, place: int) -> Estimate:
    found = diagonal(matrix("1/k"), probes=20, seed=seed)
    return Estimate(float(found.values[place]), float(found.stderr[place]))


def _block(seed: int, place: int) -> Estimate:
    found = block_traces(dense_network(), probes=20, seed=seed)
    weights = torch.zeros(len(found.names), dtype=torch.float64)
    weights[place] = 1.0
    return Estimate(*found.combined(weights))


def _flatness() -> dict[str, Case]:
    def exactly(measure: Callable[..., Estimate]) -> Callable[[], float]:
        return lambda: measure(network(), probes=network().num_parameters).value

    def probed(measure: Callable[..., Estimate]) -> Callable[[int], Estimate]:
        return lambda seed: measure(network(), probes=40, seed=seed)

    measures = (relative_flatness, minimum_sharpness, normalized_flat_minima)
    cases = {m.__name__: Case(probed(m), exactly(m), m is normalized_flat_minima) for m in measures}
    for place in (0, 2):
        cases[f"trace of block {place}"] = Case(
            lambda seed, place=place: _block(seed, place),
            lambda place=place: float(
                dense_network()
                .dense()
                .diagonal()[list(dense_network().blocks.values())[place]]
                .sum()
            ),
        )
    for place in (0, 7):
        cases[f"entry {place} of the diagonal"] = Case(
            lambda seed, place=place: _entry(seed, place),
            lambda place=place: float(matrix("1/k").dense()[place, place]),
        )
    return cases


COVERED = _curvature() | _flatness()


@pytest.mark.slow
@pytest.mark.parametrize("name", COVERED)
def test_intervals_cover(name):
    case = COVERED[name]
    exact = case.exact()
    found = [case.estimate(seed) for seed in range(SEEDS)]
    inside = [abs(e.value - exact) <= NORMAL * e.stderr + 1e-9 * abs(exact) for e in found]
    share = sum(inside) / SEEDS
    assert share >= LEAST, f"covers {share:.1%}"
    assert share < 1.0 or case.conservative, f"covers {share:.1%}: the error is too large"


def test_eigenvalues_and_their_log_product_lie_within_their_residuals():
    """They have bounds, not errors."""
    exact = SPECTRA["outliers"].double().sort(descending=True).values[:4]
    for seed in range(5):
        pairs = top_eigenvalues(matrix("outliers"), 4, seed=seed)
        assert bool(((pairs.values - exact).abs() <= pairs.residuals + 1e-9).all())
        bound = float((pairs.residuals / pairs.values).sum())
        found = log_product(pairs)
        assert found.stderr == 0
        assert abs(found.value - float(exact.log().sum())) <= 1.01 * bound + 1e-9
