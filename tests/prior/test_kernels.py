import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from planimeter.errors import InputError
from planimeter.models.fully_connected import fully_connected
from planimeter.prior import check_kernel_exists, fully_connected_kernel, kernel_tiles, nngp_kernel


@pytest.mark.parametrize(
    ("depth", "sigma_w", "sigma_b"), [(0, 1.3, 0.7), (1, 1.4, 0.2), (2, 1.5, 1.0)]
)
def test_is_the_covariance_of_wide_random_networks(depth, sigma_w, sigma_b):
    x = torch.rand(4, 6, generator=torch.Generator().manual_seed(0))
    outputs = []
    with torch.no_grad():
        for seed in range(2000):
            net = fully_connected(6, [128] * depth, sigma_w=sigma_w, sigma_b=sigma_b, seed=seed)
            outputs.append(net(x).reshape(-1).double())
    h = torch.stack(outputs)
    products = h[:, :, None] * h[:, None, :]
    stderr = products.std(0) / math.sqrt(len(h))
    kernel = fully_connected_kernel(x, depth=depth, sigma_w=sigma_w, sigma_b=sigma_b)
    assert float(((products.mean(0) - kernel) / stderr).abs().max()) < 4


def test_rectangular_and_symmetric_agree():
    x = torch.randn(7, 5, dtype=torch.float64)
    kernel = fully_connected_kernel(x)
    assert torch.equal(kernel, kernel.T)
    torch.testing.assert_close(fully_connected_kernel(x[:3], x), kernel[:3], rtol=1e-7, atol=1e-9)


def test_a_single_input_has_the_recursion_of_the_variance():
    # K(x, x) -> sigma_b^2 + sigma_w^2 K(x, x) / 2, for any depth.
    x = torch.full((1, 10), 0.5)
    variance = 0.25 + 3 * 0.25
    for depth in range(4):
        kernel = fully_connected_kernel(x, depth=depth, sigma_w=math.sqrt(3), sigma_b=0.5)
        assert float(kernel) == pytest.approx(variance, rel=1e-12)
        variance = 0.25 + 1.5 * variance


def test_zero_inputs_without_bias_have_no_variance():
    kernel = fully_connected_kernel(torch.zeros(2, 3), sigma_b=0.0)
    assert torch.equal(kernel, torch.zeros(2, 2, dtype=torch.float64))


def test_a_module_gives_the_kernel_of_its_depth():
    x = torch.rand(5, 1, 3, 3)
    expected = fully_connected_kernel(x, depth=3, sigma_b=0.3)
    assert torch.equal(nngp_kernel(fully_connected(9, [4, 5, 6]), x, sigma_b=0.3), expected)


def test_single_precision_differs_by_rounding():
    x = torch.rand(90, 7, generator=torch.Generator().manual_seed(0))
    single = fully_connected_kernel(x, dtype=torch.float32)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), fully_connected_kernel(x), rtol=2e-6, atol=2e-6)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**31), st.integers(1, 12), st.integers(0, 3), st.floats(0.0, 2.0))
def test_is_symmetric_and_positive_semidefinite(seed, n, depth, sigma_b):
    x = torch.randn(n, 4, generator=torch.Generator().manual_seed(seed))
    kernel = fully_connected_kernel(x, depth=depth, sigma_b=sigma_b)
    assert torch.equal(kernel, kernel.T)
    assert float(torch.linalg.eigvalsh(kernel)[0]) > -1e-12 * float(kernel.diagonal().max())


@pytest.mark.parametrize("n", [70, 9])  # ranges of rows and columns; lists of pairs
@pytest.mark.parametrize("tile", [1, 300, 2**14])
def test_tiles_and_bands_do_not_change_the_result(n, tile, monkeypatch):
    x = torch.randn(n, 5, generator=torch.Generator().manual_seed(0))
    y = torch.randn(n + 3, 5, generator=torch.Generator().manual_seed(1))
    square, rectangular = fully_connected_kernel(x), fully_connected_kernel(x, y)
    monkeypatch.setattr(kernel_tiles, "TILE", tile)
    monkeypatch.setattr(kernel_tiles, "BAND", 17 * n)
    torch.testing.assert_close(fully_connected_kernel(x), square, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(fully_connected_kernel(x, y), rectangular, rtol=1e-13, atol=1e-13)


def test_threads_are_given_back():
    before = torch.get_num_threads()
    fully_connected_kernel(torch.rand(70, 3))
    assert torch.get_num_threads() == before


def test_a_file_holds_the_same_and_is_taken_up_again(tmp_path, monkeypatch):
    monkeypatch.setattr(kernel_tiles, "BAND", 20 * 70)
    x = torch.randn(70, 5, generator=torch.Generator().manual_seed(0))
    net, path = fully_connected(5), tmp_path / "kernel.npy"
    whole = nngp_kernel(net, x)

    def stop(stage, done, total):
        if done > 45:
            raise KeyboardInterrupt

    seen: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        nngp_kernel(net, x, out=path, progress=stop)
    with pytest.raises(InputError, match="not the beginning of this kernel"):
        nngp_kernel(net, x + 1, out=path)
    found = nngp_kernel(net, x, out=path, progress=lambda *state: seen.append(state[1]))
    assert seen == sorted(seen)
    assert seen[0] == 40
    assert seen[-1] == 70
    assert torch.equal(found, whole)
    assert not (tmp_path / "kernel.npy.progress").exists()
    with pytest.raises(InputError, match="exists"):
        nngp_kernel(net, x, out=path)


def test_what_does_not_fit_is_refused_before_the_start(monkeypatch):
    monkeypatch.setattr(kernel_tiles, "free_memory", lambda device: 10_000)
    with pytest.raises(InputError, match=r"2.88e-05 GB for the result.*1e-05 GB are free.*out="):
        fully_connected_kernel(torch.rand(60, 3))


def test_variances_of_single_parameters():
    net = fully_connected(4, [3])  # flatten, linear, relu, linear
    x = torch.rand(5, 4)
    kernel = nngp_kernel(net, x, variances={"1.weight": 3.0, "3.bias": 0.5})
    hidden = fully_connected_kernel(x, depth=0, sigma_w=math.sqrt(3), sigma_b=1.0)
    std = hidden.diagonal().sqrt()
    t = (hidden / (std[:, None] * std)).clamp(-1, 1).acos()
    cosines = t.sin() + (math.pi - t) * t.cos()
    expected = 0.5 + 2.0 / (2 * math.pi) * std[:, None] * std * cosines
    torch.testing.assert_close(kernel, expected, rtol=1e-7, atol=1e-7)


def test_default_and_measured_variances():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(100, 3000), nn.ReLU(), nn.Linear(3000, 1))
    x = torch.randn(4, 100)
    default = nngp_kernel(net, x, variances="default")
    # The output bias has variance 1/(3 fan-in); one number of it is what is measured.
    named = {"0.weight": 1 / 3, "0.bias": 1 / 300, "2.weight": 1 / 3, "2.bias": 1 / 9000}
    torch.testing.assert_close(default, nngp_kernel(net, x, variances=named))
    measured = nngp_kernel(net, x, variances="measured")
    torch.testing.assert_close(measured, default, rtol=0.05, atol=1e-3)
    with pytest.raises(InputError, match=r"'3.weight'; the parameters are 0.weight, 0.bias"):
        nngp_kernel(net, x, variances={"3.weight": 1.0})
    with pytest.raises(InputError, match="at least 0, got -1"):
        nngp_kernel(net, x, variances={"2.bias": -1.0})
    with pytest.raises(InputError, match="'default', 'measured' or a mapping"):
        nngp_kernel(net, x, variances="init")


def test_layers_without_biases_have_no_bias_variance():
    x = torch.rand(5, 3)
    net = nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.Linear(4, 1, bias=False))
    expected = fully_connected_kernel(x, depth=1, sigma_b=0.0)
    assert torch.equal(nngp_kernel(net, x), expected)


def test_bad_inputs_are_refused():
    x = torch.rand(3, 4)
    with pytest.raises(InputError, match="inputs of 4 numbers against inputs of 5"):
        fully_connected_kernel(x, torch.rand(2, 5))
    x[1, 2] = float("nan")
    with pytest.raises(InputError, match="input 1 has values"):
        fully_connected_kernel(x)
    with pytest.raises(InputError, match="cannot be traced"):
        nngp_kernel(fully_connected(4), torch.rand(2, 5))
    with pytest.raises(InputError, match="sigma_w must be positive"):
        fully_connected_kernel(torch.rand(3, 4), sigma_w=float("nan"))
    with pytest.raises(InputError, match="depth"):
        fully_connected_kernel(torch.rand(3, 4), depth=-1)
    with pytest.raises(InputError, match=r"not torch\.float16"):
        fully_connected_kernel(torch.rand(3, 4), dtype=torch.float16)
    with pytest.raises(InputError, match="no inputs"):
        fully_connected_kernel(torch.rand(0, 4))


def test_existence_is_checked_without_computing():
    check_kernel_exists(fully_connected(4), torch.rand(2, 4))
    with pytest.raises(InputError, match="BatchNorm1d"):
        check_kernel_exists(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), torch.rand(2, 3))
