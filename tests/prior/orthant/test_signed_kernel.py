import pytest
import torch

from planimeter.errors import InputError
from planimeter.prior.orthant import signed_kernel
from planimeter.prior.orthant.signed_kernel import (
    as_signed,
    check_kernel,
    check_memory,
    dense,
    rounding_of,
)


def covariance(n, seed=0):
    a = torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return a @ a.T + 0.1 * torch.eye(n)


def twins():
    """Input 3 repeats input 1, and input 5 is minus input 0."""
    kernel = covariance(6)
    transform = torch.eye(6, dtype=torch.float64)
    transform[3] = 0.0
    transform[3, 1] = 1.0
    transform[5] = 0.0
    transform[5, 0] = -2.0
    return transform @ kernel @ transform.T


@pytest.mark.parametrize("noise", [0.0, 0.7])
def test_panels_are_rows_of_the_signed_correlation(noise):
    kernel = covariance(9)
    signs = torch.tensor([1.0, -1, 1, 1, -1, -1, 1, -1, 1], dtype=torch.float64)
    noisy = kernel + noise * torch.eye(9)
    scale = signs / noisy.diagonal().sqrt()
    expected = noisy * scale * scale[:, None]
    found = check_kernel(kernel, 9, noise).signed(signs)
    torch.testing.assert_close(dense(found), expected)
    torch.testing.assert_close(found.rows(2, 5, 7), expected[2:5, :7])
    some = torch.tensor([0, 3, 8])
    torch.testing.assert_close(found.rows_at(some), expected[some])
    torch.testing.assert_close(found.diagonal(), torch.ones(9, dtype=torch.float64))
    vector = torch.randn(9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(found.times(vector), expected @ vector)


def test_repeated_inputs_are_left_out_and_their_signs_compared():
    checked = check_kernel(twins(), 6)
    assert checked.index.tolist() == [0, 1, 2, 4]
    assert checked.twin.tolist() == [0, 1, 2, 1, 4, 0]
    consistent = torch.tensor([1.0, 1, 1, 1, 1, -1], dtype=torch.float64)
    assert checked.contradiction(consistent) is None
    assert checked.contradiction(torch.tensor([1.0, 1, 1, -1, 1, -1]).double()) == (1, 3)
    assert checked.contradiction(torch.ones(6, dtype=torch.float64)) == (0, 5)
    torch.testing.assert_close(
        dense(checked.signed(consistent)), dense(check_kernel(twins(), 6).distinct)
    )
    vector = torch.arange(4, dtype=torch.float64)
    torch.testing.assert_close(checked.distinct.times(vector), dense(checked.distinct) @ vector)
    some = torch.tensor([1, 3])
    torch.testing.assert_close(checked.distinct.rows_at(some), dense(checked.distinct)[some])


def test_the_leading_part_is_that_of_the_leading_kernel():
    part, alone = check_kernel(twins(), 6).leading(4), check_kernel(twins()[:4, :4], 4)
    assert part.index.tolist() == alone.index.tolist() == [0, 1, 2]
    assert part.twin.tolist() == alone.twin.tolist()
    torch.testing.assert_close(dense(part.distinct), dense(alone.distinct))


def test_a_slightly_asymmetric_kernel_is_averaged():
    kernel = covariance(5)
    skewed = kernel.clone()
    skewed[1, 3] += 1e-8
    skewed[3, 1] -= 1e-8
    found = dense(check_kernel(skewed, 5).distinct)
    torch.testing.assert_close(found, found.T, rtol=1e-15, atol=1e-15)
    torch.testing.assert_close(found, dense(check_kernel(kernel, 5).distinct))


def test_a_single_precision_kernel_is_read_as_it_is():
    kernel = covariance(5).float()
    torch.testing.assert_close(
        dense(check_kernel(kernel, 5).distinct), dense(check_kernel(kernel.double(), 5).distinct)
    )
    assert check_kernel(kernel, 5).distinct.kernel.data_ptr() == kernel.data_ptr()


@pytest.mark.parametrize("large", [1.0, 1e8, 1e-8])
def test_symmetry_is_asked_of_each_entry_beside_its_own_variances(large):
    kernel = torch.eye(4, dtype=torch.float64)
    kernel[0, 0] = kernel[1, 1] = large
    kernel[2, 3], kernel[3, 2] = 0.9, -0.9
    with pytest.raises(InputError, match=r"not symmetric: entries \(2, 3\) and \(3, 2\) differ"):
        check_kernel(kernel, 4)
    kernel[2, 3] = kernel[3, 2] = 0.9
    kernel[0, 1], kernel[1, 0] = 0.5 * large, 0.5 * large * (1 + 1e-9)
    assert not check_kernel(kernel, 4).distinct.symmetric


def test_a_copy_of_a_float32_kernel_has_the_digits_of_float32():
    kernel = covariance(6)
    assert rounding_of(kernel) == torch.finfo(torch.float64).eps
    for copy in (kernel.float(), kernel.float().double(), torch.tensor(kernel.float().numpy())):
        assert rounding_of(copy) == torch.finfo(torch.float32).eps
    # Numbers written by hand and whole numbers are exact, whatever holds them.
    for exact in (torch.eye(5), torch.full((5, 5), 0.5), 1000.0 * torch.arange(9.0).reshape(3, 3)):
        assert rounding_of(exact.double()) == torch.finfo(torch.float64).eps


def test_almost_equal_outputs_are_not_the_same_where_others_tell_them_apart():
    """Correlation 1 - 5e-15, and rows that differ by 1e-7: in float64 two variables."""
    x = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x[4] = x[0] + 1e-7
    kernel = torch.exp(-torch.cdist(x, x).square() / 8)
    assert check_kernel(kernel, 5).twin.tolist() == [0, 1, 2, 3, 4]
    x[4] = x[0] + 1e-15
    kernel = torch.exp(-torch.cdist(x, x).square() / 8)
    assert check_kernel(kernel, 5).twin.tolist() == [0, 1, 2, 3, 0]


def test_a_plain_matrix_is_taken_as_it_is():
    kernel = covariance(4)
    torch.testing.assert_close(dense(as_signed(kernel)), kernel)


def test_what_does_not_fit_is_refused_with_both_figures(monkeypatch):
    monkeypatch.setattr(signed_kernel, "free_memory", lambda device: 3 * 10**9)
    check_memory(torch.device("cpu"), 10_000, 2 * 10**9)
    with pytest.raises(InputError, match=r"20000 inputs needs 6\.4 GB.*3\.0 GB are free on cpu"):
        check_memory(torch.device("cpu"), 20_000, 64 * 10**8)
