import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from planimeter.errors import InputError
from planimeter.operators import CurvatureOperator


def random_symmetric(n, seed=0):
    a = torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return a + a.T


@given(st.integers(1, 12), st.integers(0, 100))
def test_products_with_blocks_are_products_with_columns(n, seed):
    matrix = random_symmetric(n, seed)
    operator = CurvatureOperator.from_dense(matrix)
    block = torch.randn(n, 3, dtype=torch.float64)
    torch.testing.assert_close(operator @ block, matrix @ block)
    torch.testing.assert_close(operator.dense(), matrix)


def test_hessians_are_symmetric_and_linear(small_landscape):
    hessian = small_landscape.hessian()
    u, v = torch.randn(2, hessian.size, dtype=torch.float64)
    assert float(u @ (hessian @ v)) == pytest.approx(float(v @ (hessian @ u)), rel=1e-9)
    torch.testing.assert_close(hessian @ (2 * u - v), 2 * (hessian @ u) - hessian @ v)


def test_scaled_and_restricted(small_landscape):
    hessian = small_landscape.hessian()
    dense, d = hessian.dense(), torch.rand(hessian.size, dtype=torch.float64)
    root = torch.diag(d.sqrt())
    torch.testing.assert_close(hessian.scaled(d).dense(), root @ dense @ root)
    layer = hessian.restricted(["2.weight", "0.bias"])
    rows = torch.cat([torch.arange(30, 36), torch.arange(36, 54)])
    torch.testing.assert_close(layer.dense(), dense[rows][:, rows])
    assert layer.blocks == {"0.bias": slice(0, 6), "2.weight": slice(6, 24)}


def test_scipy_sees_the_same_matrix(small_landscape):
    from scipy.sparse.linalg import eigsh

    hessian = small_landscape.hessian()
    top = eigsh(hessian.to_scipy(), k=3, which="LA", return_eigenvectors=False)
    expected = torch.linalg.eigvalsh(hessian.dense())[-3:]
    torch.testing.assert_close(torch.tensor(sorted(top)), expected)


def test_misuse_is_explained(small_landscape):
    hessian = small_landscape.hessian()
    with pytest.raises(InputError, match="has size"):
        hessian @ torch.ones(3)
    with pytest.raises(InputError, match=r"no parameter 'weight'.*2\.weight"):
        hessian.restricted(["weight"])
    with pytest.raises(InputError, match="non-negative"):
        hessian.scaled(-torch.ones(hessian.size))
    with pytest.raises(InputError, match="not symmetric"):
        CurvatureOperator.from_dense(torch.tensor([[0.0, 1.0], [0.0, 0.0]]))
