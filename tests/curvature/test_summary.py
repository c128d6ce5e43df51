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
from planimeter.flatness import measure
from planimeter.landscape import LossLandscape
from planimeter.operator import CurvatureOperator


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


BULK = [0.5 * i / 80 for i in range(1, 81)]
COPIES = {
    "pairs": [9.0, 8, 8, 7, 7, 6, 5, 4, 3, 3, 2, 2, 1, *BULK],
    "threes": [9.0, 9, 9, 5, 5, 5, 4, 3, 3, 3, 2, 1, *BULK],
    "nines": [7.0] * 9 + [3.0] * 9 + BULK,
    "all equal": [2.0] * 60,
    "two values": [3.0] * 30 + [1.0] * 30,
    "the last wanted": [5.0, 4, 3, *[2.0] * 20, *BULK],
    "clusters": [5 + 1e-5 * i for i in range(9)] + [3 + 1e-7 * i for i in range(5)] + BULK,
    "both signs": [-9.0, -9, 8, 8, 8, -5, -5, 5, 4, -3, 2, 1, *BULK],
}


@pytest.mark.parametrize("name", COPIES)
def test_an_eigenvalue_counts_as_often_as_it_is_there(name, operator_with):
    values = torch.tensor(COPIES[name], dtype=torch.float64)
    largest = values.abs().sort(descending=True).values[:10]
    for seed in range(3):
        summary = spectral_summary(operator_with(values), k=10, tolerance=1e-4, seed=seed)
        torch.testing.assert_close(summary.eigenpairs.values.abs(), largest, rtol=1e-4, atol=1e-4)
        top = top_eigenvalues(operator_with(values), 8, seed=seed)
        exact = float(values.sort(descending=True).values[:8].log().sum())
        assert log_product(top).value == pytest.approx(exact, abs=1e-3)


def test_the_zero_matrix_and_the_identity():
    for value in (0.0, 1.0):
        operator = CurvatureOperator.from_dense(value * torch.eye(30, dtype=torch.float64))
        summary = spectral_summary(operator, k=5)
        torch.testing.assert_close(summary.eigenpairs.values, torch.full((5,), value).double())
        assert bool(summary.eigenpairs.converged.all())
        assert summary.trace.value == pytest.approx(30 * value)
        assert summary.frobenius_norm.value == pytest.approx(30**0.5 * value)


def test_a_zero_softmax_layer_has_the_second_moment_of_its_inputs_nine_times():
    """At zero weights H = (I/C - 1/C^2) kron E[x x'], whose values come C - 1 times each."""
    torch.manual_seed(0)
    inputs, classes = torch.randn(100, 12, dtype=torch.float64), 10
    layer = torch.nn.Linear(12, classes).double()
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    labels = torch.arange(100) % classes
    landscape = LossLandscape(layer, torch.nn.functional.cross_entropy, (inputs, labels))
    extended = torch.cat([inputs, torch.ones(100, 1, dtype=torch.float64)], 1)
    moments = torch.linalg.eigvalsh(extended.T @ extended / 100).flip(0) / classes
    exact = moments.repeat_interleave(classes - 1)[:20].log().sum()
    found = measure(landscape, settings={"log_product_top_k": {"k": 20}}, names="log_product_top_k")
    assert found["log_product_top_k"].value == pytest.approx(float(exact), abs=1e-2)
    assert found["log_product_top_k"].converged
    summary = spectral_summary(landscape.hessian(), k=20)
    assert log_product(summary.eigenpairs).value == pytest.approx(float(exact), abs=1e-2)


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
