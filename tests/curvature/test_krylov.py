from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from planimeter.curvature import spectral_density, top_eigenvalues, trace
from planimeter.curvature.side_by_side import top_eigenvalues_side_by_side
from planimeter.errors import InputError
from planimeter.landscape import LossLandscape
from planimeter.operator import CurvatureOperator


@settings(max_examples=40)
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


def test_signs_are_right_when_both_ends_compete(operator_with):
    pairs = top_eigenvalues(operator_with([-10.0, -9.9, 9.8, 5.0, *[0.01] * 20]), 2)
    torch.testing.assert_close(pairs.values, torch.tensor([9.8, 5.0]).double(), rtol=1e-6, atol=0)


def test_a_negative_definite_matrix(operator_with):
    pairs = top_eigenvalues(operator_with([-1.0, -2.0, -3.0, -4.0]), 2)
    torch.testing.assert_close(pairs.values, torch.tensor([-1.0, -2.0]).double())


def test_no_ghost_copies_after_many_steps(operator_with):
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


def test_what_did_not_converge_says_so(operator_with):
    pairs = top_eigenvalues(operator_with(torch.linspace(0, 1, 300).tolist()), 3, max_products=10)
    assert pairs.products == 10
    assert not bool(pairs.converged.any())
    assert "NOT CONVERGED" in str(pairs)


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_convergence_does_not_depend_on_the_scale(scale, operator_with):
    spectrum = torch.linspace(-3, 5, 50)
    one, other = (top_eigenvalues(operator_with(s * spectrum), 3) for s in (1.0, scale))
    assert one.products == other.products
    torch.testing.assert_close(other.values / scale, one.values)


def test_float32_models_stop_at_their_rounding_noise(small_net, small_data):
    landscape = LossLandscape(small_net.float(), torch.nn.functional.cross_entropy, small_data)
    pairs = top_eigenvalues(landscape.hessian(), 2, tolerance=1e-14)
    assert pairs.products < 40
    rounding = torch.finfo(torch.float32).eps * float(pairs.values[0])
    assert float(pairs.residuals.max()) == pytest.approx(rounding, rel=1e-3)
    assert not bool(pairs.converged.any())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("tolerance", [1e-1, 1e-3, 1e-5, 1e-7])
def test_converged_means_within_the_tolerance_asked_for(operator_with, dtype, tolerance):
    operator = replace(operator_with(torch.linspace(1, 9, 60)), dtype=dtype)
    pairs = top_eigenvalues(operator, 3, tolerance=tolerance)
    within = pairs.residuals <= tolerance * pairs.values.abs()
    assert pairs.converged.tolist() == within.tolist()
    rounding = torch.finfo(dtype).eps * float(pairs.values.max())
    assert bool(within.all()) == (rounding <= tolerance * float(pairs.values.min()))


def test_one_that_is_found_side_by_side_converges_by_the_same_rule():
    matrix = torch.diag(torch.linspace(1, 9, 60))
    for dtype in (torch.bfloat16, torch.float32):
        found = top_eigenvalues_side_by_side(
            lambda v: v @ matrix.to(v), 2, 60, dtype=dtype, tolerance=1e-3
        )
        assert found.converged.tolist() == (found.residuals <= 1e-3 * found.values).tolist()
        assert bool(found.converged.all()) == (dtype == torch.float32)


def test_the_same_seed_gives_the_same_bits(small_landscape):
    one, other = (top_eigenvalues(small_landscape.hessian(), 3, seed=5) for _ in range(2))
    assert torch.equal(one.values, other.values)
    assert torch.equal(one.vectors, other.vectors)


@pytest.mark.parametrize("k", [0, 7, 1.5])
def test_k_out_of_range_is_refused(k):
    with pytest.raises(InputError, match=f"k = {k} .*: 1 to 6"):
        top_eigenvalues(CurvatureOperator.from_dense(torch.eye(6)), k)


def test_what_is_no_operator_is_refused_with_the_way_out(small_landscape):
    for compute in (top_eigenvalues, trace, spectral_density):
        with pytest.raises(InputError, match=r"its \.hessian\(\) .*, got a LossLandscape"):
            compute(small_landscape)
        with pytest.raises(InputError, match=r"from_dense\(matrix\), got a Tensor"):
            compute(torch.eye(4))


def test_pairs_are_a_sequence(small_landscape):
    pairs = top_eigenvalues(small_landscape.hessian(), 3)
    assert len(pairs) == 3
    assert [float(pair.values[0]) for pair in pairs] == pairs.values.tolist()
    assert str(pairs[-1]).splitlines()[0] == str(pairs).splitlines()[2]
    assert pairs[-1].vectors.shape == (small_landscape.num_parameters, 1)
    with pytest.raises(IndexError):
        pairs[3]


@pytest.mark.parametrize(
    ("spectrum", "expected"),
    [
        ([5.0, 5.0, 5.0, 1.0, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0], [5.0, 5.0, 5.0]),
        ([2.0, 2.0, 2.0, -2.0, -2.0, -2.0], [2.0, 2.0, 2.0]),
        ([-7.0] + [0.0] * 99, [0.0, 0.0, 0.0]),
    ],
)
def test_multiplicities_are_right(spectrum, expected, operator_with):
    pairs = top_eigenvalues(operator_with(spectrum), 3)
    torch.testing.assert_close(pairs.values, torch.tensor(expected).double(), rtol=1e-6, atol=1e-8)
    gram = pairs.vectors.T @ pairs.vectors
    torch.testing.assert_close(gram, torch.eye(3).double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("copies", [1, 2, 3])
def test_copies_are_found_wherever_they_are(copies, operator_with):
    for seed in range(12):
        values = 10 * 0.85 ** torch.arange(120, dtype=torch.float64)
        values[100 : 100 + copies - 1] = values[seed % 9]
        pairs = top_eigenvalues(operator_with(values.tolist()), 10, tolerance=1e-3, seed=seed)
        expected = values.sort(descending=True).values[:10]
        torch.testing.assert_close(pairs.values, expected, rtol=1e-5, atol=1e-5)
        assert bool(pairs.converged.all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_hessian_whose_eigenvalues_are_all_double(dtype):
    torch.manual_seed(0)
    model = torch.nn.Linear(6, 2, bias=False).to(dtype)
    data = (torch.randn(30, 6, dtype=dtype), torch.randn(30, 2, dtype=dtype))
    hessian = LossLandscape(model, torch.nn.functional.mse_loss, data).hessian()
    expected = torch.linalg.eigvalsh(hessian.dense()).flip(0)[:4]
    pairs = top_eigenvalues(hessian, 4, tolerance=1e-6)
    torch.testing.assert_close(pairs.values, expected, rtol=1e-5, atol=1e-6)


def test_rounding_noise_is_not_searched_for_eigenvalues(operator_with):
    pairs = top_eigenvalues(operator_with([5.0] + [0.0] * 99), 3)
    assert bool(pairs.converged.all())
    assert pairs.products < 20
    torch.testing.assert_close(pairs.values, torch.tensor([5.0, 0, 0]).double(), rtol=0, atol=1e-8)


@pytest.mark.parametrize("which", ["largest", "smallest", "both", "magnitude"])
@pytest.mark.parametrize("basis", [None, 24])
def test_every_end_with_and_without_restarts(operator_with, which, basis):
    spectrum = torch.cat([torch.linspace(-4, 3, 150), torch.tensor([-9.0, -7, 8, 6.5])]).double()
    exact = spectrum.sort(descending=True).values
    expected = {
        "largest": exact[:3],
        "smallest": exact[-3:],
        "both": torch.cat([exact[:3], exact[-3:]]),
        "magnitude": torch.tensor([-9.0, 8.0, -7.0]).double(),
    }[which]
    pairs = top_eigenvalues(
        operator_with(spectrum), 3, which=which, basis=basis, tolerance=1e-6, max_products=1000
    )
    assert bool(pairs.converged.all())
    torch.testing.assert_close(pairs.values, expected, rtol=1e-6, atol=1e-6)


def test_restarts_bound_the_memory_and_still_converge(operator_with, monkeypatch):
    import planimeter.curvature.krylov as krylov

    monkeypatch.setattr(krylov, "free_memory", lambda device: 0)
    spectrum = torch.linspace(0, 1, 300) ** 3
    pairs = top_eigenvalues(operator_with(spectrum), 2, tolerance=1e-5, max_products=2000)
    assert bool(pairs.converged.all())
    torch.testing.assert_close(pairs.values, spectrum.double().flip(0)[:2], rtol=1e-5, atol=1e-6)


def test_a_warm_start_saves_products(operator_with):
    one = operator_with([10.0, 9.0, 8.0, 7.0, *torch.linspace(0, 3, 396)])
    noise = operator_with(1e-5 * torch.linspace(-1, 1, 400), seed=1)
    first = top_eigenvalues(one, 4, tolerance=1e-6)
    cold = top_eigenvalues(one + noise, 4)
    warm = top_eigenvalues(one + noise, 4, start=first.vectors)
    assert warm.products < 0.8 * cold.products
    torch.testing.assert_close(warm.values, cold.values, rtol=1e-6, atol=0)


@pytest.mark.parametrize("seed", range(4))
def test_a_start_near_another_eigenvector_misleads_nobody(seed):
    bulk = 1e-3 * torch.randn(398, generator=torch.Generator().manual_seed(seed))
    operator = CurvatureOperator.from_dense(
        torch.diag(torch.cat([torch.tensor([1.0, 0.9]), bulk])).double()
    )
    near = torch.zeros(400)
    near[1] = 1.0
    assert float(top_eigenvalues(operator, 1, start=near).values[0]) == pytest.approx(1.0)
    assert float(top_eigenvalues(operator, 1, start=0 * near).values[0]) == pytest.approx(1.0)


@pytest.mark.parametrize(("k", "count"), [(1, 2), (3, 6), (10, 20)])
def test_both_ends_of_a_multiple_of_the_identity(k, count):
    pairs = top_eigenvalues(CurvatureOperator.from_dense(2 * torch.eye(20)), k, which="both")
    torch.testing.assert_close(pairs.values, torch.full((count,), 2.0).double())


@pytest.mark.parametrize("seed", range(5))
def test_many_restarts_lose_no_orthogonality(seed):
    generator = torch.Generator().manual_seed(seed)
    spectrum = torch.randn(80, generator=generator, dtype=torch.float64) ** 2
    operator = CurvatureOperator.from_dense(torch.diag(spectrum))
    pairs = top_eigenvalues(
        operator, 2, which="smallest", basis=14, tolerance=1e-4, max_products=3000
    )
    assert float((pairs.vectors.T @ pairs.vectors - torch.eye(2).double()).abs().max()) < 1e-8
    assert float(pairs.values.min()) >= 0
    exact = spectrum.sort().values[:2].flip(0)
    torch.testing.assert_close(pairs.values, exact, rtol=1e-2, atol=1e-3)


def test_copies_are_not_looked_for_where_told_so(operator_with):
    operator = operator_with([5.0, 5.0, 4.0, *[0.1] * 30])
    pairs = top_eigenvalues(operator, 2, multiplicities=False)
    torch.testing.assert_close(pairs.values, torch.tensor([5.0, 4.0]).double())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"which": "best"}, "no eigenvalues 'best'"),
        ({"basis": 12}, "too small"),
        ({"start": torch.ones(3)}, "start vectors"),
        ({"max_products": 1}, "max_products = 1"),
    ],
)
def test_misuse_is_explained(operator_with, options, message):
    with pytest.raises(InputError, match=message):
        top_eigenvalues(operator_with(torch.arange(6.0)), 2, **options)


def test_results_carry_their_record(small_landscape):
    pairs = top_eigenvalues(small_landscape.hessian(), 2, seed=3)
    assert (pairs.seed, pairs.dtype, pairs.device) == (3, "float64", "cpu")
    assert pairs.seconds > 0
