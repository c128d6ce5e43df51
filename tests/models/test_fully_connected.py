import math

import pytest
import torch

from planimeter.errors import InputError
from planimeter.models.fully_connected import fully_connected


def test_the_network_of_the_paper():
    net = fully_connected(784)
    assert sum(p.numel() for p in net.parameters()) == 785 * 40 + 41 * 40 + 41
    assert net(torch.rand(3, 1, 28, 28)).shape == (3, 1)


def test_weights_have_the_variances_of_the_prior():
    net = fully_connected(400, [500], sigma_w=1.5, sigma_b=0.3)
    assert float(net[1].weight.std()) == pytest.approx(1.5 / math.sqrt(400), rel=0.01)
    assert float(net[1].bias.std()) == pytest.approx(0.3, rel=0.15)


def test_the_seed_alone_decides():
    torch.manual_seed(0)
    one = fully_connected(4, seed=3)
    torch.manual_seed(1)
    for p, q in zip(one.parameters(), fully_connected(4, seed=3).parameters(), strict=True):
        assert torch.equal(p, q)


def test_widths_must_be_positive():
    with pytest.raises(InputError, match=r"\[4, 0, 1\]"):
        fully_connected(4, [0])
