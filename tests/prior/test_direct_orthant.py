import math

import pytest
import torch

from planimeter.errors import InputError
from planimeter.prior.direct_orthant import direct_log_orthant


def factor(rho, n):
    kernel = torch.full((n, n), rho, dtype=torch.float64)
    kernel.diagonal().fill_(1.0)
    return torch.linalg.cholesky(kernel)


@pytest.mark.parametrize("n", [1, 5, 33, 100])
def test_counts_what_is_known_exactly(n):
    found = direct_log_orthant(factor(0.5, n), samples=50_000, panel=16)
    assert abs(found.log_z + math.log(n + 1)) < 4 * found.stderr
    assert found.stderr == pytest.approx(math.sqrt(n / 50_000), rel=0.1)
    assert found.log_z == pytest.approx(math.log(found.hits / found.samples))


def test_the_standard_error_is_honest():
    exact, values, stated = -math.log(31), [], []
    for seed in range(100):
        found = direct_log_orthant(factor(0.5, 30), samples=2000, seed=seed)
        values.append(found.log_z)
        stated.append(found.stderr)
    spread = float(torch.tensor(values).std())
    assert spread == pytest.approx(sum(stated) / 100, rel=0.25)
    assert abs(sum(values) / 100 - exact) < 4 * spread / 10 + 0.02


def test_no_hit_is_no_value():
    with pytest.raises(InputError, match=r"none of 100 draws.*below 3\.0e-02"):
        direct_log_orthant(factor(0.0, 40), samples=100)
