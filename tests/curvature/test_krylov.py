import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from planimeter.curvature import top_eigenvalues
from planimeter.errors import InputError
from planimeter.landscape import LossLandscape
from planimeter.operators import CurvatureOperator


def operator_with(spectrum, seed=0):
    n = len(spectrum)
    generator = torch.Generator().manual_seed(seed)
    q, _ = torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=generator))
    matrix = q @ torch.diag(torch.as_tensor(spectrum, dtype=torch.float64)) @ q.T
    return CurvatureOperator.from_dense((matrix + matrix.T) / 2)


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 40), st.integers(1, 5), st.integers(0, 1000))
def test_an_exact_eigenvalue_lies_within_the_residual(n, k, seed):
    a = torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    matrix = a + a.T
    pairs = top_eigenvalues(CurvatureOperator.from_dense(matrix), min(k, n), seed=seed)
    exact = torch.linalg.eigvalsh(matrix)
    for value, residual in zip(pairs.values, pairs.residuals, strict=True):
        assert float((exact - value).abs().min()) <= float(residual) + 1e-12 * float(
            exact.abs().max()
        )
    actual = (matrix @ pairs.vectors - pairs.vectors * pairs.values).norm(dim=0)
    assert bool((actual <= pairs.residuals + 1e-10).all())


def test_values_of_a_hessian(small_landscape):
    hessian = small_landscape.hessian()
    pairs = top_eigenvalues(hessian, 8, tolerance=1e-8)
    expected = torch.linalg.eigvalsh(hessian.dense()).flip(0)[:8]
    assert bool(pairs.converged.all())
    torch.testing.assert_close(pairs.values, expected, rtol=1e-7, atol=1e-9)


def test_signs_are_right_when_both_ends_compete():
    pairs = top_eigenvalues(operator_with([-10.0, -9.9, 9.8, 5.0, *[0.01] * 20]), 2)
    torch.testing.assert_close(pairs.values, torch.tensor([9.8, 5.0]).double(), rtol=1e-6, atol=0)


def test_a_negative_definite_matrix():
    pairs = top_eigenvalues(operator_with([-1.0, -2.0, -3.0, -4.0]), 2)
    torch.testing.assert_close(pairs.values, torch.tensor([-1.0, -2.0]).double())


def test_no_ghost_copies_after_many_steps():
    spectrum = [100.0, *torch.linspace(0, 1, 400).tolist()]
    pairs = top_eigenvalues(operator_with(spectrum), 4, tolerance=1e-10, max_products=200)
    assert float(pairs.values[0]) == pytest.approx(100.0)
    assert float(pairs.values[1]) < 1.01


def test_an_exhausted_krylov_space_goes_on():
    zero = CurvatureOperator.from_dense(torch.zeros(6, 6))
    assert top_eigenvalues(zero, 3).values.tolist() == [0.0, 0.0, 0.0]
    identity = CurvatureOperator.from_dense(torch.eye(6))
    pairs = top_eigenvalues(identity, 3)
    torch.testing.assert_close(pairs.values, torch.ones(3).double())
    torch.testing.assert_close(pairs.vectors.T @ pairs.vectors, torch.eye(3).double())


def test_what_did_not_converge_says_so():
    pairs = top_eigenvalues(operator_with(torch.linspace(0, 1, 300).tolist()), 3, max_products=10)
    assert pairs.products == 10
    assert not bool(pairs.converged.any())
    assert "NOT CONVERGED" in str(pairs)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_convergence_does_not_depend_on_the_scale(scale):
    spectrum = torch.linspace(-3, 5, 50)
    one, other = (top_eigenvalues(operator_with(s * spectrum), 3) for s in (1.0, scale))
    assert one.products == other.products
    torch.testing.assert_close(other.values / scale, one.values)


def test_float32_models_stop_at_their_rounding_noise(small_net, small_data):
    landscape = LossLandscape(small_net.float(), torch.nn.functional.cross_entropy, small_data)
    pairs = top_eigenvalues(landscape.hessian(), 2, tolerance=1e-14)
    assert bool(pairs.converged.all())


def test_the_same_seed_gives_the_same_bits(small_landscape):
    one, other = (top_eigenvalues(small_landscape.hessian(), 3, seed=5) for _ in range(2))
    assert torch.equal(one.values, other.values)
    assert torch.equal(one.vectors, other.vectors)


@pytest.mark.parametrize("k", [0, 7])
def test_k_out_of_range_is_refused(k):
    with pytest.raises(InputError, match=f"k = {k}"):
        top_eigenvalues(CurvatureOperator.from_dense(torch.eye(6)), k)


@pytest.mark.parametrize(
    ("spectrum", "expected"),
    [
        ([5.0, 5.0, 5.0, 1.0, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0], [5.0, 5.0, 5.0]),
        ([2.0, 2.0, 2.0, -2.0, -2.0, -2.0], [2.0, 2.0, 2.0]),
        ([-7.0] + [0.0] * 99, [0.0, 0.0, 0.0]),
    ],
)
def test_multiplicities_are_right(spectrum, expected):
    pairs = top_eigenvalues(operator_with(spectrum), 3)
    torch.testing.assert_close(pairs.values, torch.tensor(expected).double(), rtol=1e-6, atol=1e-8)
    gram = pairs.vectors.T @ pairs.vectors
    torch.testing.assert_close(gram, torch.eye(3).double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_hessian_whose_eigenvalues_are_all_double(dtype):
    torch.manual_seed(0)
    model = torch.nn.Linear(6, 2, bias=False).to(dtype)
    data = (torch.randn(30, 6, dtype=dtype), torch.randn(30, 2, dtype=dtype))
    hessian = LossLandscape(model, torch.nn.functional.mse_loss, data).hessian()
    expected = torch.linalg.eigvalsh(hessian.dense()).flip(0)[:4]
    pairs = top_eigenvalues(hessian, 4, tolerance=1e-6)
    torch.testing.assert_close(pairs.values, expected, rtol=1e-5, atol=1e-6)


def test_rounding_noise_is_not_searched_for_eigenvalues():
    pairs = top_eigenvalues(operator_with([5.0] + [0.0] * 99), 3)
    assert bool(pairs.converged.all())
    assert pairs.products < 20
    torch.testing.assert_close(pairs.values, torch.tensor([5.0, 0, 0]).double(), rtol=0, atol=1e-8)
