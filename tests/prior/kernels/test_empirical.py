import math
from importlib import import_module

import pytest
import torch
from torch import nn

from planimeter.errors import InputError
from planimeter.models.fully_connected import fully_connected
from planimeter.models.resnet import resnet20
from planimeter.models.resnet50 import resnet50
from planimeter.prior import (
    empirical_kernel,
    fully_connected_kernel,
    gaussian_initialisation,
)

SIGMA_W, SIGMA_B = 1.4, 0.3
SETTINGS = {"sigma_w": SIGMA_W, "sigma_b": SIGMA_B, "groups": 0}
GAUSSIAN = gaussian_initialisation(SIGMA_W, SIGMA_B)


@pytest.fixture
def x():
    return torch.randn(20, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def net(width=15):
    return fully_connected(6, [width, width]).double()


def test_is_the_formula_of_the_paper(x):
    made = []

    def make():
        made.append(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 2)).double())
        return made[-1]

    found = empirical_kernel(make, x, networks=7, batch_size=8, **SETTINGS)
    features = [network[0](x).relu().detach() for network in made]
    expected = SIGMA_W**2 / (7 * 5) * sum(a @ a.T for a in features) + SIGMA_B**2
    assert torch.allclose(found.kernel, expected, rtol=1e-12, atol=0)
    assert (found.layer, found.width, found.networks) == ("2", 5, 7)
    assert found.groups.shape == (0, 20, 20)


def test_batches_panels_and_blocks_of_rows_change_nothing(x, monkeypatch):
    settings = SETTINGS | {"groups": 4, "initialise": GAUSSIAN, "networks": 12}
    whole = empirical_kernel(net(), x, **settings)
    module = import_module("planimeter.prior.kernels.empirical")
    monkeypatch.setattr(module, "_PANEL", 1)
    monkeypatch.setattr(module, "_ROW_BYTES", 3 * 8 * 20)
    pieces = empirical_kernel(net(), x, batch_size=7, **settings)
    assert torch.allclose(whole.kernel, pieces.kernel, rtol=1e-12, atol=0)
    assert torch.allclose(whole.groups, pieces.groups, rtol=1e-12, atol=0)
    assert torch.allclose(whole.groups.mean(0), whole.kernel, rtol=1e-12, atol=0)


def test_converges_to_the_analytic_kernel(x):
    found = empirical_kernel(
        net(256), x, networks=200, initialise=GAUSSIAN, **(SETTINGS | {"groups": 10})
    )
    analytic = fully_connected_kernel(x, sigma_w=SIGMA_W, sigma_b=SIGMA_B)
    deviations = found.groups.std(dim=0) / math.sqrt(10)
    assert float(((found.kernel - analytic) / deviations).square().mean()) < 4
    assert float((found.kernel - analytic).abs().max() / analytic.max()) < 0.03


def test_seeds_decide_and_nothing_else_changes(x):
    module = net()
    weights = {name: p.clone() for name, p in module.state_dict().items()}
    state = torch.get_rng_state()
    first = empirical_kernel(module, x, networks=10, **SETTINGS)
    torch.manual_seed(99)
    again = empirical_kernel(module, x, networks=10, **SETTINGS)
    torch.set_rng_state(state)
    other = empirical_kernel(module, x, networks=10, seed=1, **SETTINGS)
    assert torch.equal(first.kernel, again.kernel)
    assert not torch.equal(first.kernel, other.kernel)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(p, weights[name]) for name, p in module.state_dict().items())
    assert module.training


def test_a_tenth_of_the_inputs_is_the_default(x):
    assert empirical_kernel(net(), x, **SETTINGS).networks == 2
    assert empirical_kernel(net(), x, **(SETTINGS | {"groups": 5})).networks == 5


def test_few_networks_make_a_kernel_of_low_rank(x):
    """Three networks of width 3, and the biases: at most ten dimensions for twenty inputs."""
    found = empirical_kernel(net(3), x, networks=3, **SETTINGS)
    spectrum = torch.linalg.eigvalsh(found.kernel)
    assert 5 <= int((spectrum > 1e-12 * spectrum[-1]).sum()) <= 10  # units may be dead
    assert empirical_kernel(net(3), x, networks=3, noise=1.0, **SETTINGS).noise == 1.0


class Backwards(nn.Module):
    """Its last layer is registered first, and called by another name."""

    def __init__(self):
        super().__init__()
        self.out, self.first = nn.Linear(8, 1), nn.Linear(6, 8)

    def forward(self, x):
        return self.out(self.first(x).tanh())


def test_the_last_layer_is_the_one_that_runs_last(x):
    module = Backwards().double()
    assert empirical_kernel(module, x, networks=10, **SETTINGS).layer == "out"
    named = empirical_kernel(module, x, networks=10, layer="first", **SETTINGS)
    expected = SIGMA_W**2 * x @ x.T / 6 + SIGMA_B**2
    assert torch.allclose(named.kernel, expected, rtol=1e-12, atol=1e-14)
    with pytest.raises(InputError, match="'last' ran; these did: first, out"):
        empirical_kernel(module, x, layer="last", **SETTINGS)
    with pytest.raises(InputError, match=r"ran no nn\.Linear"):
        empirical_kernel(nn.Sequential(nn.Conv1d(1, 1, 3)), x[:, None], **SETTINGS)
    with pytest.raises(InputError, match="one vector an input"):
        empirical_kernel(nn.Linear(6, 1).double(), x[:, None], **SETTINGS)


def test_tokens_stay_whole_numbers():
    tokens = torch.randint(0, 9, (12, 4), generator=torch.Generator().manual_seed(0))
    module = nn.Sequential(nn.Embedding(9, 5), nn.Flatten(), nn.Linear(20, 30), nn.Linear(30, 1))
    found = empirical_kernel(module, tokens, networks=3, **SETTINGS)
    assert (found.layer, found.width) == ("3", 30)


def test_wrong_numbers_are_refused(x):
    with pytest.raises(InputError, match="at least 3 groups"):
        empirical_kernel(net(), x, groups=2)
    with pytest.raises(InputError, match="noise"):
        empirical_kernel(net(), x, noise=-1.0)
    with pytest.raises(InputError, match="no BatchNorm policy"):
        empirical_kernel(net(), x, batch_norm="train")


def test_batch_norm_policies_differ_and_are_recorded():
    images = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    settings = {"networks": 3, "groups": 0}
    fixed = empirical_kernel(resnet20(), images, initialise=GAUSSIAN, **settings)
    batch = empirical_kernel(
        resnet20(), images, initialise=GAUSSIAN, batch_norm="train-frozen-buffers", **settings
    )
    assert (fixed.layer, fixed.width) == ("linear", 64)
    assert (fixed.batch_norm, batch.batch_norm) == ("eval", "train-frozen-buffers")
    assert not torch.allclose(fixed.kernel, batch.kernel, rtol=0.1)
    assert float(torch.linalg.eigvalsh(fixed.kernel)[0]) > 0


@pytest.mark.data("cifar10")
@pytest.mark.slow
def test_resnet50_on_cifar_images():
    from planimeter.data import load

    images = load("cifar10").inputs[:6]
    found = empirical_kernel(
        lambda: resnet50(1, small_images=True), images, networks=3, groups=3, batch_size=3
    )
    assert (found.layer, found.width) == ("fc", 2048)
    spectrum = torch.linalg.eigvalsh(found.kernel)
    assert float(spectrum[0]) > 0


def test_a_network_that_differentiates_inside_has_its_kernel():
    """An identity that is written as a derivative changes nothing."""

    class Same(torch.nn.Module):
        def forward(self, x):
            h = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(h.square().sum() / 2, h, create_graph=True)
            return slope

    layers = torch.nn.Linear(4, 5), torch.nn.ReLU(), torch.nn.Linear(5, 1)
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    plain, odd = torch.nn.Sequential(*layers), torch.nn.Sequential(Same(), *layers)
    one, two = (empirical_kernel(network, x, networks=8, seed=0) for network in (plain, odd))
    assert torch.equal(one.kernel, two.kernel)
