"""VGG-16 for CIFAR, with and without BatchNorm."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from planimeter.models.shapes import check_outputs, image_shape

_STAGES = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))  # channels, convolutions


def vgg16(
    input_shape: Sequence[int] = (3, 32, 32),
    outputs: int = 10,
    *,
    hidden: Sequence[int] = (512, 512),
    dropout: float = 0.5,
) -> nn.Sequential:
    """VGG-16, configuration D, with a classifier for small images; 15,245,130 parameters.

    Thirteen 3 x 3 convolutions with biases and ReLU in five stages, each ended by 2 x 2
    max-pooling (which rounds up where a size is odd), then linear layers with dropout before all
    but the last. Convolutions are normal with variance 2 / fan_out and have biases of zero, linear
    layers are as torch initialises them, all from torch's generator.

    Arguments:
        input_shape: channels, height and width.
        outputs: number of outputs.
        hidden: widths of the hidden linear layers. The paper's 4096 are for ImageNet; granziol2020
            has (512, 512), rangamani2019 (512, 240).
        dropout: share set to zero in training.

    Raises:
        InputError: inputs are no images, or there is no output.

    Source: Simonyan and Zisserman 2015, Table 1; the classifier from the code of Izmailov et al.
    2018, which granziol2020 builds on.
    """
    return _vgg("vgg16", input_shape, outputs, hidden, dropout, batch_norm=False)


def vgg16_bn(
    input_shape: Sequence[int] = (3, 32, 32),
    outputs: int = 10,
    *,
    hidden: Sequence[int] = (512, 512),
    dropout: float = 0.5,
) -> nn.Sequential:
    """`vgg16` with BatchNorm after every convolution, 15,253,578 parameters."""
    return _vgg("vgg16_bn", input_shape, outputs, hidden, dropout, batch_norm=True)


def _vgg(
    name: str,
    input_shape: Sequence[int],
    outputs: int,
    hidden: Sequence[int],
    dropout: float,
    *,
    batch_norm: bool,
) -> nn.Sequential:
    check_outputs(name, outputs)
    channels, height, width = image_shape(name, input_shape)
    features: list[nn.Module] = []
    for stage, convolutions in _STAGES:
        for _ in range(convolutions):
            features.append(_convolution(channels, stage))
            features += [nn.BatchNorm2d(stage), nn.ReLU()] if batch_norm else [nn.ReLU()]
            channels = stage
        features.append(nn.MaxPool2d(2, ceil_mode=True))
        height, width = (height + 1) // 2, (width + 1) // 2
    classifier: list[nn.Module] = []
    for fan_in, fan_out in pairwise([channels * height * width, *hidden]):
        classifier += [nn.Dropout(dropout), nn.Linear(fan_in, fan_out), nn.ReLU()]
    last = hidden[-1] if hidden else channels * height * width
    classifier.append(nn.Linear(last, outputs))
    network = nn.Sequential()
    network.add_module("features", nn.Sequential(*features))
    network.add_module("flatten", nn.Flatten())
    network.add_module("classifier", nn.Sequential(*classifier))
    return network


def _convolution(inputs: int, outputs: int) -> nn.Conv2d:
    layer = nn.Conv2d(inputs, outputs, 3, padding=1)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer
