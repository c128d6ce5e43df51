import pytest
import torch

from planimeter.curvature import diagonal, frobenius_norm, trace
from planimeter.errors import InputError
from planimeter.operator import CurvatureOperator


def test_exact_with_as_many_probes_as_coordinates(small_landscape):
    hessian = small_landscape.hessian()
    dense = hessian.dense()
    exact = trace(hessian, probes=hessian.size)
    assert exact.stderr == 0
    assert exact.value == pytest.approx(float(dense.trace()), rel=1e-12)
    assert frobenius_norm(hessian, probes=1000).value == pytest.approx(
        float(dense.norm()), rel=1e-12
    )


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_standard_error_is_honest(sign):
    a = torch.randn(60, 60, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    matrix = sign * (a @ a.T)  # the negative definite one is where a peer stops too early
    operator = CurvatureOperator.from_dense(matrix)
    for estimate, exact in (
        (lambda seed: trace(operator, probes=30, seed=seed), float(matrix.trace())),
        (lambda seed: frobenius_norm(operator, probes=30, seed=seed), float(matrix.norm())),
    ):
        scores = torch.tensor([(e.value - exact) / e.stderr for e in map(estimate, range(200))])
        # Student's t of few degrees of freedom, narrowed by the widened error; 200 draws know it
        # to 7 %. The mean carries the small bias of the square root.
        assert 0.7 < float(scores.std()) < 1.25
        assert abs(float(scores.mean())) < 0.4


def test_one_probe_is_refused():
    with pytest.raises(InputError, match="standard error"):
        trace(CurvatureOperator.from_dense(torch.eye(6)), probes=1)


@pytest.mark.parametrize("method", ["hutchinson", "hutch++", "xtrace"])
def test_every_method_is_right_within_its_error(operator_with, method):
    spectrum = 10 * 0.9 ** torch.arange(150.0)
    operator, exact = operator_with(spectrum), float(spectrum.sum())
    estimates = [trace(operator, probes=60, method=method, seed=seed) for seed in range(40)]
    assert all(e.products == 60 for e in estimates)
    inside = sum(abs(e.value - exact) <= 2.6 * e.stderr for e in estimates)
    assert inside >= 37


def test_subspaces_pay_off_where_few_eigenvalues_dominate(operator_with):
    operator = operator_with(torch.cat([torch.full((5,), 100.0), torch.full((195,), 0.1)]))
    plain, deflated, left_out = (
        trace(operator, probes=60, method=m).stderr for m in ("hutchinson", "hutch++", "xtrace")
    )
    assert max(deflated, left_out) < 0.02 * plain


@pytest.mark.parametrize("method", ["hutch++", "xtrace"])
@pytest.mark.parametrize("rank", [0, 3])
def test_matrices_of_lower_rank_than_the_subspace(operator_with, method, rank):
    spectrum = torch.cat([torch.full((rank,), 2.0), torch.zeros(100 - rank)])
    estimate = trace(operator_with(spectrum), probes=40, method=method)
    assert estimate.value == pytest.approx(2.0 * rank, abs=1e-9)
    assert estimate.stderr < 1e-6


@pytest.mark.parametrize("method", ["hutchinson", "hutch++", "xtrace"])
def test_a_tolerance_stops_early_or_says_that_it_was_not_met(operator_with, method):
    operator = operator_with(torch.linspace(0.5, 1.5, 300))
    met = trace(operator, probes=250, method=method, tolerance=0.05)
    assert met.converged
    assert met.products < 250
    assert met.stderr <= 0.05 * met.value
    missed = trace(operator, probes=20, method=method, tolerance=1e-6)
    assert not missed.converged
    assert "NOT CONVERGED" in str(missed)


def test_diagonals(small_landscape, operator_with):
    hessian = small_landscape.hessian()
    torch.testing.assert_close(diagonal(hessian).values, hessian.dense().diagonal())
    operator = operator_with(torch.linspace(-1, 3, 300))
    estimate = diagonal(operator, probes=200, seed=1)
    scores = (estimate.values - operator.dense().diagonal()) / estimate.stderr
    assert 0.85 < float(scores.std()) < 1.15
    assert estimate.products == 200


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "guess"}, "no trace method 'guess'"),
        ({"tolerance": -1.0}, "negative"),
        ({"probes": 4, "method": "xtrace"}, "at least 6"),
    ],
)
def test_misuse_is_explained(operator_with, options, message):
    with pytest.raises(InputError, match=message):
        trace(operator_with(torch.arange(30.0)), **options)
