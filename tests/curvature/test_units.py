"""A loss times c has c times the curvature, whatever c is, also where float32 cannot square it."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from planimeter.curvature import (
    diagonal,
    frobenius_norm,
    gauss_newton_spectrum,
    gauss_newton_trace,
    log_product,
    piecewise_linear_trace,
    spectral_density,
    spectral_summary,
    top_eigenvalues,
    trace,
)
from planimeter.curvature.side_by_side import top_eigenvalues_side_by_side
from planimeter.curvature.units import UnitProducts, unit_of
from planimeter.ensembles import top_eigenvalue_of_ensemble
from planimeter.flatness import measure
from planimeter.landscape import LossLandscape
from planimeter.operator import CurvatureOperator

SCALES = (1e-30, 1e-21, 1e-9, 1e9, 1e21, 1e30)


def scaled_loss(scale):
    def loss(outputs, targets):
        return scale * F.cross_entropy(outputs, targets)

    return loss


def landscape_of(scale, width=12):
    torch.manual_seed(0)
    inputs = torch.randn(30, 4)
    labels = (inputs[:, 0] > 0).long() + (inputs[:, 1] > 0.5).long()
    net = nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 3))
    return LossLandscape(net, scaled_loss(scale), (inputs, labels))


LINEAR = {
    "top eigenvalues": lambda land: top_eigenvalues(land.hessian(), 5, which="both"),
    "Hutch++": lambda land: trace(land.hessian(), probes=30),
    "to a tolerance": lambda land: trace(land.hessian(), probes=60, tolerance=0.2),
    "XTrace": lambda land: trace(land.hessian(), probes=30, method="xtrace"),
    "exact trace": lambda land: trace(land.hessian(), probes=1000),
    "norm": lambda land: frobenius_norm(land.hessian(), probes=30),
    "diagonal": lambda land: diagonal(land.hessian(), probes=30),
    "density's trace": lambda land: spectral_density(land.hessian(), steps=20, extra=8).trace(),
    "density's norm": lambda land: spectral_density(land.hessian(), extra=8).frobenius_norm(),
    "summary's largest": lambda land: spectral_summary(land.hessian(), k=3).largest,
    "summary's trace": lambda land: spectral_summary(land.hessian(), k=3).trace,
    "exact Gauss-Newton trace": gauss_newton_trace,
    "piecewise linear trace": piecewise_linear_trace,
}  # fmt: skip


def number(found):
    values = getattr(found, "values", getattr(found, "value", None))
    return torch.as_tensor(values, dtype=torch.float64)


def converged(found):
    return torch.as_tensor(getattr(found, "converged", True)).tolist()


@pytest.mark.parametrize("name", LINEAR)
def test_curvature_scales_with_the_loss(name):
    compute = LINEAR[name]
    one = compute(landscape_of(1.0))
    for scale in SCALES:
        other = compute(landscape_of(scale))
        torch.testing.assert_close(number(other) / scale, number(one), rtol=1e-4, atol=1e-5)
        assert converged(other) == converged(one)


def test_logarithms_shift_and_counts_stay():
    one = landscape_of(1.0)
    first = log_product(top_eigenvalues(one.gauss_newton(), 4)).value
    rank = spectral_density(one.hessian()).numerical_rank(1e-2).value
    spectrum = gauss_newton_spectrum(one)
    for scale in SCALES:
        other = landscape_of(scale)
        shift = 4 * torch.tensor(scale, dtype=torch.float64).log()
        found = log_product(top_eigenvalues(other.gauss_newton(), 4)).value - float(shift)
        assert found == pytest.approx(first, abs=1e-4)
        counted = spectral_density(other.hessian()).numerical_rank(1e-2).value
        assert counted == pytest.approx(rank, abs=0.5)
        exact = gauss_newton_spectrum(other).trace().value
        assert exact / scale == pytest.approx(spectrum.trace().value, rel=1e-5)


def test_networks_side_by_side_have_units_of_their_own():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(20, 20, generator=generator)
    scales = torch.tensor([1e-30, 1e-21, 1.0, 0.0, 1e21, 1e30])
    matrices = (a @ a.T) * scales[:, None, None]
    found = top_eigenvalues_side_by_side(
        lambda v: torch.einsum("bij,bj->bi", matrices, v), len(scales), 20, dtype=torch.float32
    )
    top = float(torch.linalg.eigvalsh((a @ a.T).double())[-1])
    torch.testing.assert_close(found.values, top * scales.double(), rtol=1e-3, atol=0.0)
    assert bool(found.converged.all())


def test_an_ensemble_is_scaled_as_its_landscapes_are():
    for scale in (1e-30, 1e30):
        land = landscape_of(scale)
        (found,) = top_eigenvalue_of_ensemble([land])
        alone = top_eigenvalues(land.hessian(), 1)
        assert found.value == pytest.approx(float(alone.values[0]), rel=1e-3)
        assert found.converged


@pytest.mark.parametrize("scale", [1e-20, 1e20])
def test_measures_that_are_linear_in_the_loss_scale_with_it(scale):
    linear = [
        "spectral_norm", "top_eigenvalue", "top_eigenvalue_times_norm", "trace", "frobenius_norm",
        "gauss_newton_top_eigenvalue", "rangamani", "rangamani_trace", "relative_flatness",
        "relative_flatness_normalised", "minimum_sharpness", "adaptive_eigenvalue",
        "adaptive_trace", "adaptive_average_sharpness", "standard_average_sharpness",
        "empirical_fisher_rao_norm",
    ]  # fmt: skip
    one, other = measure(landscape_of(1.0, 6), linear), measure(landscape_of(scale, 6), linear)
    for name in linear:
        assert other[name].value / scale == pytest.approx(one[name].value, rel=1e-3), name
        assert other[name].converged == one[name].converged, name


def test_a_unit_is_a_power_of_two_and_none_where_none_is_needed():
    assert unit_of(torch.tensor([3.0, -7.0])) == 1.0
    assert unit_of(torch.zeros(3)) == 0.0
    assert unit_of(torch.tensor([3e-30])) == 2.0**-98
    matrix = torch.diag(torch.tensor([0.0, 2e-30, 1e-30], dtype=torch.float64))
    products = UnitProducts(CurvatureOperator.from_dense(matrix), torch.float32)
    assert not products(torch.eye(3)[:1]).any()
    assert products.unit == 1.0  # a zero product says nothing of the unit
    images = products(torch.eye(3)[1:])
    assert products.unit < 1e-25
    torch.testing.assert_close(images.double() * products.unit, matrix[1:])


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_float64_has_a_range_too(scale):
    matrix = torch.diag(torch.linspace(1, 9, 40, dtype=torch.float64))
    found = top_eigenvalues(CurvatureOperator.from_dense(scale * matrix), 3)
    torch.testing.assert_close(
        found.values / scale, matrix.diagonal().flip(0)[:3], rtol=1e-4, atol=0.0
    )
    assert bool(found.converged.all())
