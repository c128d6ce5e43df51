import math

import numpy as np
import pytest
import torch
from scipy.stats import chi2_contingency
from torch import nn

from planimeter.errors import InputError
from planimeter.prior.sampling import random_functions
from planimeter.prior.sampling.normals import DeviceNormals
from planimeter.prior.sampling.packing import unpack
from planimeter.prior.sampling.random_functions import (
    BATCH,
    FullyConnectedFunctions,
    ModuleFunctions,
)

SIGMA_W, SIGMA_B = 1.3, 0.4


@pytest.fixture
def x():
    return torch.randn(5, 3, generator=torch.Generator().manual_seed(0))


def naive(x, weights_and_biases):
    """Signs of the outputs of one network in double precision."""
    h = x.double()
    for i, (weights, biases) in enumerate(weights_and_biases):
        h = (h if i == 0 else h.relu()) @ weights.double().T + biases.double()
    return h[:, 0] > 0


@pytest.mark.parametrize("hidden", [(), (6,), (6, 4), (5, 4, 7)])
@pytest.mark.parametrize("sigma_b", [SIGMA_B, 0.0])
def test_functions_are_those_of_networks_with_these_weights(x, hidden, sigma_b):
    functions = FullyConnectedFunctions(x, hidden, SIGMA_W, sigma_b)
    found = unpack(functions.batch(0, 0), len(x))[-len(functions.outputs) :]
    for i in range(0, len(found), 50):
        first = functions.first[i]
        layers = [(first[:, :-1] * SIGMA_W / math.sqrt(3), first[:, -1] * sigma_b)]
        for weights, biases in functions.later:
            scale = SIGMA_W / math.sqrt(weights.shape[2])
            layers.append((weights[i] * scale, -sigma_b * biases[i, :, 0]))
        assert (naive(x, layers).numpy() == found[i]).all()


def histogram(functions, batches, n=5):
    words = np.concatenate([functions.batch(1, i) for i in range(batches)])
    bits = unpack(words, n)
    return np.bincount(bits @ (1 << np.arange(n)), minlength=2**n)


class Opaque(nn.Module):
    """A fully connected network that does not look like one."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3, 6), nn.Linear(6, 4), nn.Linear(4, 1)

    def forward(self, x):
        return self.c(self.b(self.a(x).relu()).relu())


def test_modules_and_the_fast_path_have_the_same_distribution(x):
    fast = histogram(FullyConnectedFunctions(x, (6, 4), SIGMA_W, SIGMA_B), 10)
    slow = histogram(ModuleFunctions(Opaque(), x, SIGMA_W, SIGMA_B), 10)
    table = np.stack([fast, slow])
    assert chi2_contingency(table[:, table.sum(0) > 10]).pvalue > 1e-3


def test_the_distribution_is_that_of_networks_drawn_one_by_one(x):
    rng = np.random.default_rng(0)
    count = 20 * BATCH
    h = x.double().numpy()
    for fan_in, width in ((3, 6), (6, 4), (4, 1)):
        weights = SIGMA_W / math.sqrt(fan_in) * rng.standard_normal((count, width, fan_in))
        biases = SIGMA_B * rng.standard_normal((count, 1, width))
        h = (h if fan_in == 3 else np.maximum(h, 0)) @ weights.transpose(0, 2, 1) + biases
    independent = np.bincount((h[:, :, 0] > 0) @ (1 << np.arange(5)), minlength=32)
    fast = histogram(FullyConnectedFunctions(x, (6, 4), SIGMA_W, SIGMA_B), 20)
    table = np.stack([fast, independent])
    assert chi2_contingency(table[:, table.sum(0) > 10]).pvalue > 1e-3


def test_batches_can_be_drawn_again_in_any_order(x):
    functions = FullyConnectedFunctions(x, (6, 4), SIGMA_W, SIGMA_B)
    third, first = functions.batch(0, 3), functions.batch(0, 1)
    other = FullyConnectedFunctions(x, (6, 4), SIGMA_W, SIGMA_B)
    assert (other.batch(0, 1) == first).all()
    assert (other.batch(0, 3) == third).all()
    assert (first != third).any()
    assert (other.batch(1, 1) != first).any()


def test_with_torchs_normals_the_distribution_is_the_same(x, monkeypatch):
    tabled = histogram(FullyConnectedFunctions(x, (6, 4), SIGMA_W, SIGMA_B), 10)
    monkeypatch.setattr(random_functions, "normals", DeviceNormals)
    functions = FullyConnectedFunctions(x, (6, 4), SIGMA_W, SIGMA_B)
    assert (functions.batch(0, 2) == functions.batch(0, 2)).all()
    table = np.stack([tabled, histogram(functions, 10)])
    assert chi2_contingency(table[:, table.sum(0) > 10]).pvalue > 1e-3


def test_convolutions_are_drawn_and_normalisation_stays():
    net = nn.Sequential(
        nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 1)
    )  # fmt: skip
    before = {name: p.clone() for name, p in net.state_dict().items()}
    images = torch.randn(6, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    found = unpack(ModuleFunctions(net.eval(), images, SIGMA_W, SIGMA_B).batch(0, 0), 6)
    assert 0.45 < found.mean() < 0.55
    assert all(torch.equal(p, before[name]) for name, p in net.state_dict().items())


def test_what_has_no_gaussian_weights_or_several_outputs_is_refused(x):
    with pytest.raises(InputError, match="one number an input"):
        ModuleFunctions(nn.Linear(3, 2), x, 1.0, 1.0)
    with pytest.raises(InputError, match=r"1\.weight belong to a PReLU"):
        ModuleFunctions(nn.Sequential(nn.Linear(3, 1), nn.PReLU()), x, 1.0, 1.0)
