import pytest
import torch

from planimeter.curvature import trace
from planimeter.curvature.xtrace import left_out
from planimeter.operator import CurvatureOperator


def test_the_mean_of_the_terms_with_their_covariance():
    """Against terms made anew for each vector and each pair, which needs no formula."""
    size, count = 60, 9
    generator = torch.Generator().manual_seed(0)
    square = torch.randn(size, size, dtype=torch.float64, generator=generator)
    q, _ = torch.linalg.qr(square)
    matrix = q @ torch.diag(5 * 0.8 ** torch.arange(float(size)).double()) @ q.T
    operator = CurvatureOperator.from_dense((matrix + matrix.T) / 2)
    omega = torch.randn(count, size, dtype=torch.float64, generator=generator).T

    def term(i, *absent):
        others = [k for k in range(count) if k not in (i, *absent)]
        basis, _ = torch.linalg.qr(matrix @ omega[:, others])
        rest = omega[:, i] - basis @ (basis.T @ omega[:, i])
        form = rest @ matrix @ rest * (size - len(others)) / (rest @ rest)
        return float((basis * (matrix @ basis)).sum() + form)

    terms = torch.tensor([term(i) for i in range(count)], dtype=torch.float64)
    covariance = sum(
        (terms[i] - term(i, j)) * (terms[j] - term(j, i)) / (count * (count - 1))
        for i in range(count)
        for j in range(count)
        if i != j
    )
    wider = 2.306004 / 1.959964  # Student's t of 8 degrees of freedom
    expected = wider * float((terms.var() / count + abs(covariance)).sqrt())
    images = operator @ omega
    basis, _ = torch.linalg.qr(images)
    value, stderr = left_out(size, omega, images, basis, operator @ basis)
    assert value == pytest.approx(float(terms.mean()), rel=1e-9)
    assert stderr == pytest.approx(expected, rel=1e-6)


def _spectra():
    k = torch.arange(1.0, 301.0, dtype=torch.float64)
    noise = torch.randn(280, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    return {
        "flat, 10": (torch.linspace(0.5, 1.5, 300), 10),
        "1/k, 8": (1 / k, 8),
        "1/k, 40": (1 / k, 40),
        "1/k^2, 15": (k**-2, 15),
        "1/k^2 of 100, 20": (k[:100] ** -2, 20),
        "exponential, 10": (torch.exp(-k[:150] / 5), 10),
        "exponential, 20": (torch.exp(-k[:150] / 5), 20),
        "slow exponential, 40": (torch.exp(-k / 20), 40),
        "outliers, 8": (torch.cat([10.0 * k[:12], 0.5 + k / 300]), 8),
        "outliers, 20": (torch.cat([10.0 * k[:12], 0.5 + k / 300]), 20),
        "indefinite, 15": (torch.cat([10 * 0.7 ** k[:10], -(0.8 ** k[:10]), 0.05 * noise]), 15),
        "indefinite of 500, 30": (torch.cat([9 / k[:20], -3 / k[:200], 0.05 * noise]), 30),
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", list(_spectra()))
def test_intervals_cover_in_95_of_100_cases(operator_with, name):
    spectrum, vectors = _spectra()[name]
    operator, exact = operator_with(spectrum), float(spectrum.sum())
    found = [trace(operator, probes=2 * vectors, method="xtrace", seed=s) for s in range(400)]
    inside = sum(abs(e.value - exact) <= 1.96 * e.stderr for e in found)
    assert 372 <= inside <= 388, inside
