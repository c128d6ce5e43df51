"""value ± 1.96 stderr contains the truth as often as it says, over 200 seeds each."""

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.func import functional_call, vmap

from planimeter.flatness import average_sharpness
from planimeter.flatness.noise_scale import magnitude_noise_scale, noise_scale
from planimeter.landscape import LossLandscape


def trained(widths, activation, steps):
    """A network that fits 60 rows of three classes to some degree."""
    torch.manual_seed(0)
    x = torch.randn(60, widths[0], dtype=torch.float64)
    y = (x[:, :3] + 0.3 * torch.randn(60, 3, dtype=torch.float64)).argmax(1)
    layers = [part for one, two in pairwise(widths) for part in (nn.Linear(one, two), activation())]
    net = nn.Sequential(*layers[:-1]).double()
    optimiser = torch.optim.Adam(net.parameters(), lr=0.02)
    for _ in range(steps):
        optimiser.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimiser.step()
    return LossLandscape(net, nn.functional.cross_entropy, (x, y))


def mean_rise(landscape, scale, count=200_000):
    """The average sharpness by brute force, many networks at a time."""
    x, y = landscape.data.tensors
    names, shapes = zip(*((n, p.shape) for n, p in landscape.parameters.items()), strict=True)
    sizes = [shape.numel() for shape in shapes]
    theta, total = landscape.theta, 0.0
    generator = torch.Generator().manual_seed(12345)

    def loss(flat):
        parts = {n: v.view(s) for n, v, s in zip(names, flat.split(sizes), shapes, strict=True)}
        return nn.functional.cross_entropy(functional_call(landscape.model, parts, x), y)

    for _ in range(count // 2000):
        noise = scale * torch.randn(1000, len(theta), generator=generator, dtype=torch.float64)
        total += float(vmap(loss)(torch.cat([theta + noise, theta - noise])).sum())
    return total / count - landscape.loss()


@pytest.mark.slow
@pytest.mark.parametrize("adaptive", [True, False])
@pytest.mark.parametrize("radius", [None, "large"])
@pytest.mark.parametrize("steps", [15, 150])
def test_average_sharpness(adaptive, radius, steps):
    landscape = trained([4, 8, 3], nn.ReLU, steps)
    radius = None if radius is None else (0.5 if adaptive else 0.3)
    rho = radius or {True: 0.01, False: 0.001}[adaptive]
    found = average_sharpness(landscape, adaptive=adaptive, radius=radius)
    assert f"radius {rho:g}" in found.method
    scale = rho * (landscape.theta.abs() if adaptive else 1.0)
    truth = mean_rise(landscape, scale)
    covered = 0
    for seed in range(200):
        found = average_sharpness(landscape, adaptive=adaptive, radius=radius, seed=seed)
        covered += abs(found.value - truth) <= 1.96 * found.stderr
    assert 0.915 <= covered / 200 <= 0.985


@pytest.mark.slow
@pytest.mark.parametrize("scale", [noise_scale, magnitude_noise_scale])
def test_pac_bayes_noise(scale):
    landscape = trained([4, 8, 3], nn.Tanh, 150)
    truth = scale(landscape, draws=3000, tolerance=0.01, seed=999).value
    covered = 0
    for seed in range(200):
        found = scale(landscape, seed=seed)
        covered += abs(found.value - truth) <= 1.96 * found.stderr
    assert 0.915 <= covered / 200 <= 0.985
