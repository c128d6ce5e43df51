import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from planimeter.curvature import density as module
from planimeter.curvature import spectral_density, top_eigenvalues
from planimeter.errors import InputError
from planimeter.operator import CurvatureOperator


def decaying(n=120):
    return 10 * 0.9 ** torch.arange(float(n), dtype=torch.float64) - 0.2


@settings(max_examples=25)
@given(st.integers(2, 30), st.integers(0, 1000))
def test_weights_sum_to_one_and_two_moments_are_exact_for_each_probe(n, seed):
    a = torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    operator = CurvatureOperator.from_dense(a + a.T)
    density = spectral_density(operator, probes=3, steps=n, seed=seed)
    exact = torch.linalg.eigvalsh(a + a.T)
    for nodes, weights in zip(density.nodes, density.weights, strict=True):
        assert float(weights.sum()) == pytest.approx(1.0)
        assert bool((weights >= 0).all())
        # After n steps the nodes are eigenvalues.
        assert float((nodes[:, None] - exact).abs().min(1).values.max()) < 1e-8 * n


@pytest.mark.parametrize("k", [0, 10])
def test_moments_are_trace_and_norm_within_their_errors(operator_with, k):
    operator = operator_with(decaying())
    known = top_eigenvalues(operator, k, which="magnitude", tolerance=1e-8) if k else None
    density = spectral_density(operator, probes=12, steps=20, extra=30, known=known)
    for estimate, exact in (
        (density.trace(), float(decaying().sum())),
        (density.frobenius_norm(), float(decaying().norm())),
    ):
        assert abs(estimate.value - exact) < 4 * estimate.stderr
    spread = density.moment(1).value - density.trace().value / operator.size
    assert abs(spread) < 4 * (density.moment(1).stderr + density.trace().stderr / operator.size)


def test_known_eigenvalues_take_the_variance_away(operator_with):
    operator = operator_with(decaying())
    known = top_eigenvalues(operator, 20, which="magnitude", tolerance=1e-8)
    plain = spectral_density(operator, probes=10, steps=20)
    deflated = spectral_density(operator, probes=10, steps=20, known=known)
    assert deflated.trace().stderr < 0.3 * plain.trace().stderr


def test_functionals_against_all_eigenvalues(operator_with):
    spectrum = decaying()
    density = spectral_density(operator_with(spectrum), probes=20, steps=60)
    cases = (
        (
            density.effective_dimension(0.5),
            float((spectrum.clamp_min(0) / (spectrum.clamp_min(0) + 0.5)).sum()),
        ),
        (density.numerical_rank(0.1), float((spectrum.abs() > 0.1 * spectrum.max()).sum())),
    )
    for estimate, exact in cases:
        assert abs(estimate.value - exact) < 4 * estimate.stderr + 0.02 * exact


def test_the_density_integrates_to_one_and_lies_where_the_eigenvalues_are(operator_with):
    spectrum = torch.cat([torch.linspace(-1, 1, 100), torch.full((20,), 5.0)]).double()
    density = spectral_density(operator_with(spectrum), probes=8, steps=60)
    grid = torch.linspace(-3, 7, 4001, dtype=torch.float64)
    values, errors = density.density(grid, 0.1)
    assert float(values.sum() * 0.0025) == pytest.approx(1.0, abs=1e-3)
    above = float(values[grid > 3].sum() * 0.0025)
    assert above == pytest.approx(20 / 120, abs=4 * float(errors[grid > 3].sum() * 0.0025))
    logs, log_errors = density.log_density(grid, 0.1)
    torch.testing.assert_close(logs.exp(), values)
    assert bool((log_errors >= 0).all())


def test_no_ghosts_after_many_steps(operator_with):
    spectrum = torch.cat([torch.tensor([100.0]), torch.linspace(0, 1, 200)])
    density = spectral_density(operator_with(spectrum), probes=2, steps=120)
    for nodes in density.nodes:
        assert int((nodes > 50).sum()) == 1


@pytest.mark.parametrize("spectrum", [[0.0] * 20, [3.0] * 20, [5.0] + [0.0] * 19])
def test_exhausted_krylov_spaces(operator_with, spectrum):
    density = spectral_density(operator_with(spectrum), probes=4, steps=15, extra=5)
    exact = sum(spectrum)
    error = density.trace()
    assert abs(error.value - exact) <= 4 * error.stderr + 1e-9


def test_all_eigenvalues_known(operator_with):
    operator = operator_with([3.0, 2.0, 1.0])
    density = spectral_density(operator, known=top_eigenvalues(operator, 3), steps=5, extra=4)
    assert density.trace().value == pytest.approx(6.0)
    assert density.trace().stderr == 0
    assert density.frobenius_norm().value == pytest.approx(math.sqrt(14))


def test_the_rest_of_a_low_rank_matrix_keeps_its_sign():
    """Rounding is relative to the large eigenvalues, and must not become nodes at zero."""
    spectrum = torch.cat([1e3 * torch.rand(10).double(), torch.zeros(190).double()]) + 1e-2
    operator = CurvatureOperator.from_dense(torch.diag(spectrum))
    known = top_eigenvalues(operator, 10, which="magnitude", tolerance=1e-6)
    density = spectral_density(operator, known=known, steps=25)
    assert min(float(x.min()) for x in density.nodes) > 0.005
    logs = density.functional(torch.log)
    assert logs.value == pytest.approx(float(spectrum.log().sum()), rel=1e-3)


def test_errors_of_functionals_hold_that_of_the_quadrature(operator_with):
    spectrum = torch.linspace(-3, 3, 200).double()
    exact = float((spectrum.abs() > 1.0).sum())
    found = [
        spectral_density(operator_with(spectrum), probes=6, steps=8, seed=s).numerical_rank(1 / 3)
        for s in range(20)
    ]
    assert sum(abs(e.value - exact) <= 2 * e.stderr for e in found) >= 17


def test_chains_that_do_not_fit_into_memory_run_one_after_the_other(operator_with, monkeypatch):
    operator = operator_with(decaying(40))
    at_once = spectral_density(operator, probes=4, steps=10)
    monkeypatch.setattr(module, "free_memory", lambda device: 0)
    one_by_one = spectral_density(operator, probes=4, steps=10)
    assert len(one_by_one.nodes) == 4
    assert one_by_one.trace().value == pytest.approx(at_once.trace().value, rel=1e-10)
    assert one_by_one.products == at_once.products == 40


def test_misuse_is_explained(operator_with):
    operator = operator_with(torch.arange(6.0))
    with pytest.raises(InputError, match="standard error"):
        spectral_density(operator, probes=1)
    with pytest.raises(InputError, match="steps"):
        spectral_density(operator, steps=1)
    density = spectral_density(operator)
    with pytest.raises(InputError, match="damping"):
        density.effective_dimension(0.0)
    with pytest.raises(InputError, match="tolerance"):
        density.numerical_rank(2.0)
    with pytest.raises(InputError, match="width"):
        density.density(torch.zeros(1), 0.0)
