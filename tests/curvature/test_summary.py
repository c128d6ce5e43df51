import pytest
import torch

from planimeter.curvature import (
    diagonal,
    log_product,
    spectral_density,
    spectral_summary,
    top_eigenvalues,
    trace,
)
from planimeter.curvature import frobenius_norm as norm
from planimeter.errors import InputError
from planimeter.operators import CurvatureOperator


def test_a_summary_agrees_with_the_dense_matrix(small_landscape):
    hessian = small_landscape.hessian()
    exact = torch.linalg.eigvalsh(hessian.dense())
    summary = spectral_summary(hessian, k=5, tolerance=1e-6)
    assert summary.largest.value == pytest.approx(float(exact[-1]), rel=1e-5)
    for estimate, value in (
        (summary.trace, float(exact.sum())),
        (summary.frobenius_norm, float(exact.norm())),
    ):
        assert abs(estimate.value - value) <= 4 * estimate.stderr
    assert summary.products == summary.trace.products
    assert "trace" in str(summary)


def test_every_result_says_how_it_was_computed(small_landscape):
    hessian = small_landscape.hessian()
    for result in (
        top_eigenvalues(hessian, 2, seed=3),
        trace(hessian, probes=12, seed=3),
        norm(hessian, probes=12, seed=3),
        diagonal(hessian, probes=10, seed=3),
        spectral_density(hessian, seed=3),
        spectral_summary(hessian, k=2, seed=3),
    ):
        assert (result.seed, result.dtype, result.device) == (3, "float64", "cpu")
        assert result.products > 0
        assert result.seconds > 0


def test_the_smallest_eigenvalue_is_known_or_said_not_to_be(operator_with):
    both = spectral_summary(operator_with([-9.0, 10.0, *torch.linspace(-1, 1, 80)]), k=4)
    assert both.smallest.value == pytest.approx(-9.0, rel=1e-4)
    assert both.smallest.converged
    positive = spectral_summary(operator_with(torch.linspace(0.1, 9, 200)), k=3)
    assert not positive.smallest.converged
    assert 0.09 < positive.smallest.value < 0.5


def test_all_eigenvalues_at_once():
    summary = spectral_summary(CurvatureOperator.from_dense(torch.diag(torch.tensor([3.0, 2, 1]))))
    assert (summary.smallest.value, summary.largest.value) == pytest.approx((1, 3))
    assert summary.smallest.converged
    assert str(summary.trace) == "6"


def test_log_products(operator_with):
    pairs = top_eigenvalues(operator_with([8.0, 4.0, 2.0, -1.0, *[-2.0] * 5]), 3, tolerance=1e-8)
    assert log_product(pairs).value == pytest.approx(float(torch.tensor(64.0).log()))
    pairs = top_eigenvalues(operator_with([8.0, 4.0, -1.0, -2.0]), 3)
    with pytest.raises(InputError, match="only 2 of 3"):
        log_product(pairs)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["hessian", "gauss_newton"])
def test_intervals_cover_in_95_of_100_cases(small_landscape, kind):
    """400 seeds; a true coverage of 95 % gives 93 to 97 % with probability 0.93, and these do."""
    operator = getattr(small_landscape, kind)()
    dense = CurvatureOperator.from_dense(operator.dense())
    size = dense.size
    values = torch.linalg.eigvalsh(dense.dense())
    exact = {"trace": float(values.sum()), "norm": float(values.norm())}
    probes = min(40, size - 1)
    sides = {
        "hutchinson": (lambda s: trace(dense, probes=probes, method="hutchinson", seed=s), "trace"),
        "hutch++": (lambda s: trace(dense, probes=probes, method="hutch++", seed=s), "trace"),
        "xtrace": (lambda s: trace(dense, probes=20, method="xtrace", seed=s), "trace"),
        "norm": (lambda s: norm(dense, probes=probes, method="hutchinson", seed=s), "norm"),
        "summary": (lambda s: spectral_summary(dense, k=4, seed=s).trace, "trace"),
        "summary norm": (lambda s: spectral_summary(dense, k=4, seed=s).frobenius_norm, "norm"),
    }
    for name, (estimate, what) in sides.items():
        found = [estimate(seed) for seed in range(400)]
        inside = sum(abs(e.value - exact[what]) <= 1.96 * e.stderr for e in found)
        assert 372 <= inside <= 388, (name, inside)
