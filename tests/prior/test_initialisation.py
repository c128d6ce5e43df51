import math

import pytest
import torch
from torch import nn

from planimeter.errors import InputError
from planimeter.prior.initialisation import gaussian_initialisation, reset_all_parameters


def test_deviations_are_those_asked_for():
    net = nn.Sequential(nn.Conv2d(3, 200, 5), nn.BatchNorm2d(200), nn.Linear(200, 400))
    torch.nn.init.constant_(net[1].weight, 3.0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        gaussian_initialisation(1.5, 0.2)(net)
    for layer, fan_in in ((net[0], 75), (net[2], 200)):
        wanted = 1.5 / math.sqrt(fan_in)
        assert float(layer.weight.detach().std()) == pytest.approx(wanted, rel=0.03)
        assert float(layer.bias.detach().std()) == pytest.approx(0.2, rel=0.2)
    assert float(net[1].weight.detach().max()) == 1.0


def test_every_layer_is_reset():
    net = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Sequential(nn.Linear(4, 1)))
    for p in net.parameters():
        torch.nn.init.constant_(p, 7.0)
    with torch.random.fork_rng():
        reset_all_parameters(net)
    assert not any(bool((p == 7).any()) for p in net.parameters())


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1))
        self.linear = nn.Linear(3, 1)


def test_what_cannot_be_drawn_again_is_named():
    with pytest.raises(InputError, match=r"^gain cannot be drawn again"):
        reset_all_parameters(Scaled())
    with pytest.raises(InputError, match="gain belong to a Scaled"):
        gaussian_initialisation(1.0, 1.0)(Scaled())
    with pytest.raises(InputError, match="sigma_b at least 0"):
        gaussian_initialisation(1.0, -1.0)
