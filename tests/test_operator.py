import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from planimeter.errors import InputError
from planimeter.landscape import LossLandscape
from planimeter.operator import CurvatureOperator


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


def test_restricted_by_parameter_and_by_module(small_landscape):
    parts = {"0.weight": slice(0, 30), "0.bias": slice(30, 36), "2": slice(36, 57)}
    for operator in (
        small_landscape.hessian(),
        small_landscape.gauss_newton(),
        small_landscape.monte_carlo_fisher(2),
        small_landscape.hessian().shifted(0.5),
    ):
        dense = operator.dense()
        for name, part in parts.items():
            torch.testing.assert_close(operator.restricted([name]).dense(), dense[part, part])
        first = operator.restricted(["0"])
        torch.testing.assert_close(first.dense(), dense[:36, :36])
        torch.testing.assert_close(first.restricted(["0.bias"]).dense(), dense[30:36, 30:36])
        torch.testing.assert_close(operator.restricted(["2", "0"]).dense(), dense)


@given(st.floats(-5, 5), st.integers(0, 100))
def test_sums_differences_and_multiples(factor, seed):
    a, b = random_symmetric(6, seed), random_symmetric(6, seed + 1)
    one, other = CurvatureOperator.from_dense(a), CurvatureOperator.from_dense(b)
    identity = torch.eye(6, dtype=torch.float64)
    torch.testing.assert_close((one + factor * other).dense(), a + factor * b)
    torch.testing.assert_close((one - other * factor).dense(), a - factor * b)
    torch.testing.assert_close((-one).shifted(factor).dense(), factor * identity - a)


def test_a_sum_is_as_precise_as_its_coarser_part(small_net, small_data, small_landscape):
    cross_entropy = torch.nn.functional.cross_entropy
    single = LossLandscape(small_net.float(), cross_entropy, small_data).hessian()
    exact = small_landscape.hessian()
    assert (exact + single).dtype == (single - exact).dtype == torch.float32
    with pytest.raises(InputError, match="cannot add"):
        exact + CurvatureOperator.from_dense(torch.eye(3))


def test_rounding_noise_is_about_epsilon(small_net, small_data):
    noise = {}
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        landscape = LossLandscape(
            small_net.to(dtype), torch.nn.functional.cross_entropy, small_data
        )
        hessian = landscape.hessian()
        noise[dtype] = hessian.noise()
        assert 0.01 * hessian.epsilon < noise[dtype] < 30 * hessian.epsilon
    assert noise[torch.bfloat16] > 100 * noise[torch.float32] > 100 * noise[torch.float64]
    zero = CurvatureOperator.from_dense(torch.zeros(3, 3))
    assert zero.noise() == 0


def test_scipy_sees_the_same_matrix(small_landscape):
    from scipy.sparse.linalg import eigsh

    hessian = small_landscape.hessian()
    top = eigsh(hessian.to_scipy(), k=3, which="LA", return_eigenvectors=False)
    expected = torch.linalg.eigvalsh(hessian.dense())[-3:]
    torch.testing.assert_close(torch.tensor(sorted(top)), expected)


def test_scipy_products_of_vectors_columns_and_blocks(small_landscape):
    from scipy.sparse.linalg import lobpcg

    hessian = small_landscape.hessian()
    seen, dense = hessian.to_scipy(), hessian.dense().numpy()
    block = np.random.default_rng(0).standard_normal((hessian.size, 9))
    for v in (block, block[:, :1], block[:, 0]):
        np.testing.assert_allclose(seen @ v, dense @ v, atol=1e-14)
        np.testing.assert_allclose(seen.T @ v, dense @ v, atol=1e-14)
        assert (seen @ v).shape == v.shape
    assert seen.shape == dense.shape
    assert seen.dtype == np.float64
    top, _ = lobpcg(seen, block[:, :3], maxiter=200, tol=1e-9)
    np.testing.assert_allclose(top, np.linalg.eigvalsh(dense)[:-4:-1], atol=1e-8)


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
