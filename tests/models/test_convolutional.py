"""AlexNet, All-CNN and VGG: what their layers make of an image, and what training randomises."""

import pytest
import torch
from torch import nn

from planimeter.models.all_cnn import all_cnn
from planimeter.models.cifar_alexnet import cifar_alexnet
from planimeter.models.mnist import lenet5
from planimeter.models.vgg import vgg16, vgg16_bn


def shapes(model, x):
    """Shapes after each layer of a sequence."""
    found = []
    with torch.no_grad():
        for layer in model.eval():
            x = layer(x)
            found.append(tuple(x.shape[1:]))
    return found


def test_alexnet_flattens_to_4096():
    found = shapes(cifar_alexnet(), torch.rand(1, 3, 32, 32))
    assert [s for s in found if len(s) == 3][2::3] == [(64, 16, 16), (64, 8, 8)]
    assert [s for s in found if len(s) == 1] == [(4096,), (384,), (384,), (192,), (192,), (10,)]


def test_all_cnn_averages_six_by_six():
    found = shapes(all_cnn(), torch.rand(1, 3, 32, 32))
    assert found[-3:] == [(10, 6, 6), (10, 1, 1), (10,)]
    convolutions = [m for m in all_cnn().modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 9
    assert not any(isinstance(m, nn.Linear | nn.MaxPool2d) for m in all_cnn().modules())


@pytest.mark.parametrize(("make", "norms"), [(vgg16, 0), (vgg16_bn, 13)])
def test_vgg_has_sixteen_layers_in_five_stages(make, norms):
    model = make()
    kinds = [type(m) for m in model.modules()]
    assert kinds.count(nn.Conv2d) == 13
    assert kinds.count(nn.Linear) == 3
    assert kinds.count(nn.BatchNorm2d) == norms
    found = shapes(model.features, torch.rand(1, 3, 32, 32))
    pooled = [s for s, m in zip(found, model.features, strict=True) if isinstance(m, nn.MaxPool2d)]
    assert pooled == [(64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2), (512, 1, 1)]


def test_vgg_takes_large_images_and_no_hidden_layer():
    assert vgg16((3, 96, 64), hidden=(5,)).classifier[1].in_features == 3 * 2 * 512
    assert vgg16(hidden=()).classifier[-1].in_features == 512


@pytest.mark.parametrize("make", [all_cnn, vgg16])
def test_dropout_acts_in_training_alone_and_can_be_left_out(make):
    x = torch.rand(2, 3, 32, 32)
    settings = {"dropout": 0.0} | ({"input_dropout": 0.0} if make is all_cnn else {})
    torch.manual_seed(0)
    with torch.no_grad():
        noisy, plain = make().train(), make(**settings).train()
        assert not torch.equal(noisy(x), noisy(x))
        assert torch.equal(plain(x), plain(x))


def test_lenet_without_biases_has_none_and_is_homogeneous():
    model = lenet5(biases=False)
    assert not any("bias" in name for name, _ in model.named_parameters())
    x = torch.rand(2, 1, 32, 32)
    torch.testing.assert_close(model(3 * x), 3 * model(x))
