import pytest
import torch

from planimeter.prior.orthant.in_place import (
    as_float32,
    cholesky_,
    gram_of_lower_,
    invert_lower_,
    panels,
    rounded_,
)


def positive_definite(n, dtype=torch.float64):
    a = torch.randn(n, n, dtype=dtype, generator=torch.Generator().manual_seed(n))
    return a @ a.T / n + torch.eye(n, dtype=dtype)


@pytest.mark.parametrize("n", [1, 7, 64, 65, 200])
@pytest.mark.parametrize("panel", [16, 64])
def test_factor_and_inverse_against_lapack(n, panel):
    matrix = positive_definite(n)
    factor = torch.linalg.cholesky(matrix)
    memory = matrix.data_ptr()
    matrix[tuple(torch.triu_indices(n, n, 1))] = 7.0  # is not read
    assert cholesky_(matrix, panel) == -1
    torch.testing.assert_close(matrix.tril(), factor)
    invert_lower_(matrix, panel)
    torch.testing.assert_close(matrix, torch.linalg.inv(factor))
    gram_of_lower_(matrix, panel)
    torch.testing.assert_close(matrix.tril(), torch.linalg.inv(positive_definite(n)).tril())
    assert matrix.data_ptr() == memory


def test_single_precision_keeps_its_digits():
    matrix = positive_definite(150, torch.float32)
    exact = torch.linalg.inv(torch.linalg.cholesky(matrix.double()))
    cholesky_(matrix, 32)
    invert_lower_(matrix, 32)
    assert matrix.dtype == torch.float32
    assert float((matrix - exact).abs().max()) < 1e-5


def test_single_precision_in_the_same_memory():
    matrix = positive_definite(300)
    exact = matrix.clone()
    half = rounded_(matrix)
    assert half.data_ptr() == matrix.data_ptr()
    torch.testing.assert_close(half, exact.float(), rtol=0, atol=0)
    half = as_float32(matrix)
    half.copy_(exact)
    cholesky_(half)
    torch.testing.assert_close(half.tril(), torch.linalg.cholesky(exact).float())


@pytest.mark.parametrize("bad", [0, 5, 39, 99])
def test_says_where_a_matrix_is_not_positive_definite(bad):
    matrix = torch.eye(100, dtype=torch.float64)
    matrix[bad, bad] = -1.0
    assert cholesky_(matrix, 16) == bad


def test_panels_cover_everything_once():
    assert panels(10, 4) == [(0, 4), (4, 8), (8, 10)]
    assert panels(0) == []
