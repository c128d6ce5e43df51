import pytest
import torch
from torch import nn

from planimeter.models.preresnet import bottleneck_preresnet, preresnet, wide_resnet


@pytest.mark.parametrize(
    ("make", "depth"),
    [(preresnet, 8), (preresnet, 20), (bottleneck_preresnet, 29), (wide_resnet, 16)],
)
def test_layers_are_as_many_as_the_depth_says(make, depth):
    layers = {n: m for n, m in make(depth=depth).named_modules() if hasattr(m, "weight")}
    convolutions = [n for n, m in layers.items() if isinstance(m, nn.Conv2d)]
    if make is wide_resnet:  # which counts its three shortcuts, and not the linear layer
        assert len(convolutions) == depth
    else:
        assert len([n for n in convolutions if "downsample" not in n]) + 1 == depth


@pytest.mark.parametrize("make", [preresnet, bottleneck_preresnet, wide_resnet])
def test_a_block_without_residual_is_its_shortcut(make):
    net = make().eval()
    x = torch.randn(2, net.layer1[1].bn1.num_features, 8, 8)
    last = "conv3" if make is bottleneck_preresnet else "conv2"
    for stage in (net.layer1, net.layer2):
        for block in stage:
            nn.init.zeros_(getattr(block, last).weight)
    assert torch.equal(net.layer1[1](x), x)
    assert net.layer2[0](x).shape[2:] == (4, 4)
    doubled = net.layer2[0](-2 * x) + 2 * net.layer2[0](x)
    # The shortcut of x is linear in x, the shortcut of its activation is not.
    assert bool(doubled.abs().max() < 1e-5) == (make is not wide_resnet)


def test_nothing_acts_on_the_stream():
    """y = s(x) + F(a(x)) with s the identity: where the activation is dead, y - x is a constant."""
    block = preresnet(depth=8).eval().layer1[0]
    nn.init.constant_(block.bn1.weight, 0.0)
    one, two = torch.randn(2, 1, 16, 4, 4)
    torch.testing.assert_close(block(one) - one, block(two) - two)


@pytest.mark.parametrize("make", [preresnet, bottleneck_preresnet, wide_resnet])
def test_initial_convolutions_have_the_variance_of_the_source(make):
    torch.manual_seed(0)
    weight = make().layer3[0].conv2.weight
    assert float(weight.var()) == pytest.approx(2 / (weight.shape[0] * 9), rel=0.1)


def test_width_multiplies_channels():
    assert wide_resnet(width=3).fc.in_features == 192
    assert preresnet().fc.in_features == wide_resnet(width=1).fc.in_features == 64
    assert bottleneck_preresnet().fc.in_features == 256
