import math

import pytest
import torch

from planimeter.errors import InputError
from planimeter.models.fully_connected import fully_connected
from planimeter.prior import fully_connected_kernel, hidden_layers, nngp_kernel


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
    net = fully_connected(9, [4, 5, 6])
    assert hidden_layers(net) == 3
    expected = fully_connected_kernel(x, depth=3, sigma_b=0.3)
    assert torch.equal(nngp_kernel(net, x, sigma_b=0.3), expected)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Tanh()), "'1' is Tanh"),
        (torch.nn.Sequential(torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 1)), "'0' is BatchNorm1d"),
        (torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.ReLU()), "end in a Linear"),
        (torch.nn.Sequential(torch.nn.Linear(3, 1, bias=False)), "no bias"),
        (torch.nn.Transformer(8, 2), "Transformer"),
    ],
)
def test_other_architectures_are_refused_by_name(model, message):
    with pytest.raises(InputError, match=message):
        nngp_kernel(model, torch.rand(2, 3))


def test_bad_inputs_are_refused():
    x = torch.rand(3, 4)
    with pytest.raises(InputError, match="inputs of 4 numbers against inputs of 5"):
        fully_connected_kernel(x, torch.rand(2, 5))
    x[1, 2] = float("nan")
    with pytest.raises(InputError, match="input 1 has values"):
        fully_connected_kernel(x)
    with pytest.raises(InputError, match="takes 4 numbers an input, x has 5"):
        nngp_kernel(fully_connected(4), torch.rand(2, 5))
    with pytest.raises(InputError, match="sigma_w must be positive"):
        fully_connected_kernel(torch.rand(3, 4), sigma_w=float("nan"))
    with pytest.raises(InputError, match="depth"):
        fully_connected_kernel(torch.rand(3, 4), depth=-1)
