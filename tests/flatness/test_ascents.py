import math

import pytest
import torch
from torch import nn

from planimeter.flatness import keskar_sharpness, worst_case_sharpness
from planimeter.flatness.ascents import Ball, ascend, directions_for, starts
from planimeter.flatness.at_points import losses_at, output_directions
from planimeter.landscape import LossLandscape
from planimeter.models.fully_connected import fully_connected

CE = nn.functional.cross_entropy


def two_hills(z):
    """Heights 1 and 2 on either side; the gradient at the centre leads to the lower one."""
    values, slopes = torch.zeros(len(z)), torch.zeros_like(z)
    for height, place, width in ((1.0, -0.5, 0.5), (2.0, 0.9, 0.35)):
        at = torch.tensor([place, 0.0])
        part = height * torch.exp(-((z - at) ** 2).sum(1) / (2 * width**2))
        values += part
        slopes += -part[:, None] * (z - at) / width**2
    return values.double(), slopes


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_higher_of_two_hills_is_found_though_the_gradient_leads_to_the_lower(norm):
    ball = Ball(norm, 1.0)
    (centre,), (slope,) = two_hills(torch.zeros(1, 2))
    draws = torch.Generator().manual_seed(0)
    turned = torch.tensor([[1.0, 0.1], [0.1, 1.0], [-1.0, 0.2]])
    assert directions_for(10) == 3
    alone = ascend(two_hills, float(centre), starts(ball, slope, turned, 1, draws), ball, 30)
    several = ascend(two_hills, float(centre), starts(ball, slope, turned, 10, draws), ball, 30)
    assert slope[0] < 0
    assert math.isinf(alone.gap)
    top = float(two_hills(torch.tensor([[0.9, 0.0]]))[0])
    assert several.best == pytest.approx(top, rel=0.01)
    assert several.best >= alone.best
    assert list(several.curve) == sorted(several.curve)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_points_stay_in_the_ball_and_are_steepest_there(norm):
    ball, draws = Ball(norm, 0.7), torch.Generator().manual_seed(0)
    slopes = torch.randn(5, 8, generator=draws)
    order = 2 if norm == "l2" else math.inf
    inside = ball.project(3 * torch.randn(200, 8, generator=draws))
    assert float(inside.norm(order, dim=1).max()) <= 0.7 * (1 + 1e-6)
    best = (ball.steepest(slopes) * slopes).sum(1)
    assert bool((best[:, None] >= slopes @ inside.T - 1e-6).all())


def landscape(net, classes=3, **options):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, 6, generator=generator)
    y = torch.randint(0, classes, (60,), generator=generator)
    return LossLandscape(net, CE, (x, y), **options)


@pytest.mark.parametrize("batch_size", [60, 17])
def test_stacked_points_are_points(batch_size):
    chain = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    one = landscape(chain.double(), batch_size=batch_size)
    points = one.theta + 0.1 * torch.randn(7, one.num_parameters).double()
    with one.mode():
        values, slopes = losses_at(one)(points)
    for point, value, slope in zip(points, values, slopes, strict=True):
        loss, gradient = one.at(point).loss_and_gradient()
        assert float(value) == pytest.approx(loss, rel=1e-12)
        torch.testing.assert_close(slope, gradient, rtol=1e-9, atol=1e-12)


def test_output_directions_do_not_depend_on_batches_and_have_the_outputs_covariance():
    net = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    one, other = landscape(net), landscape(net, batch_size=7)
    draws = torch.Generator().manual_seed(5)
    found = output_directions(one, None, 3000, draws)
    torch.testing.assert_close(output_directions(other, None, 3, draws), found[:3])
    x = one.data.tensors[0].double()
    leaves = {name: p.requires_grad_() for name, p in net.named_parameters()}
    rows = torch.autograd.functional.jacobian(
        lambda *p: torch.func.functional_call(net, dict(zip(leaves, p, strict=True)), (x,)),
        tuple(leaves.values()),
    )
    jacobian = torch.cat([part.reshape(180, -1) for part in rows], 1)
    exact, sampled = jacobian.T @ jacobian, found.T @ found / len(found)
    assert float((sampled - exact).norm() / exact.norm()) < 0.1  # 0.055 on average


@pytest.mark.parametrize("zeta", [1e-3, 1e-2])
def test_more_starts_only_raise_and_one_has_never_converged(zeta):
    one = landscape(fully_connected(6, (9, 5), 3, seed=1))
    single = keskar_sharpness(one, zeta=zeta, restarts=0)
    several = keskar_sharpness(one, zeta=zeta)
    assert not single.converged
    assert math.isinf(single.gap)
    assert several.value >= single.value * (1 - 1e-3)
    assert several.converged == (several.gap <= 0.02 and several.residual <= 0.01)
    alone = worst_case_sharpness(one, restarts=0)
    assert not alone.converged
    assert worst_case_sharpness(one).value >= alone.value * (1 - 1e-3)


def test_a_slow_stochastic_ascent_is_caught_by_the_others():
    """The curve is flat, because nearly nothing moves in so few epochs."""
    one = landscape(fully_connected(6, (9, 5), 3, seed=1))
    slow = keskar_sharpness(one, method="sgd", zeta=1e-1, learning_rate=1e-3, epochs=20)
    assert slow.gap > 0.5
    assert not slow.converged


@pytest.mark.parametrize("scale", [1e-36, 1e-20, 1.0, 1e20, 1e37])
@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_the_steepest_point_does_not_depend_on_the_unit_of_the_loss(scale, norm):
    """Squares of float32 slopes leave its range long before the slopes do."""
    slopes = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    ball = Ball(norm, 0.3)
    torch.testing.assert_close(ball.steepest(scale * slopes), ball.steepest(slopes))
    assert (ball.steepest(torch.zeros(1, 5)) == 0).all()
