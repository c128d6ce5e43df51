"""The network for CIFAR that has convolutions only: strides in place of pooling."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from planimeter.models.shapes import check_outputs, image_shape

# Output channels, kernel, stride, padding. The seventh convolution is not padded: 8 pixels become
# 6, over which the paper averages.
_LAYERS = (
    (96, 3, 1, 1), (96, 3, 1, 1), (96, 3, 2, 1),
    (192, 3, 1, 1), (192, 3, 1, 1), (192, 3, 2, 1),
    (192, 3, 1, 0), (192, 1, 1, 0),
)  # fmt: skip
_STRIDED = 2


def all_cnn(
    input_shape: Sequence[int] = (3, 32, 32),
    outputs: int = 10,
    *,
    input_dropout: float = 0.2,
    dropout: float = 0.5,
) -> nn.Sequential:
    """All-CNN-C: nine convolutions, ReLUs between them, a mean over pixels; 1,369,738 parameters.

    Arguments:
        input_shape: channels, height and width; at least 9 pixels either way.
        outputs: number of outputs.
        input_dropout: share of the inputs set to zero in training.
        dropout: share set to zero after either strided convolution in training.

    Weights are normal with variance 2 / fan_in and biases zero, from torch's generator. The ReLU
    that the paper puts after the last convolution is left out, so that outputs are logits of any
    sign.

    Raises:
        InputError: inputs are no images of that size, or there is no output.

    Source: Springenberg et al. 2015, Striving for simplicity, Tables 1 and 2.
    """
    check_outputs("all_cnn", outputs)
    channels, _, _ = image_shape("all_cnn", input_shape, smallest=9)
    layers: list[nn.Module] = [nn.Dropout(input_dropout)]
    for width, kernel, stride, padding in _LAYERS:
        layers += [_convolution(channels, width, kernel, stride, padding), nn.ReLU()]
        if stride == _STRIDED:
            layers.append(nn.Dropout(dropout))
        channels = width
    layers += [_convolution(channels, outputs, 1, 1, 0), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*layers)


def _convolution(inputs: int, outputs: int, kernel: int, stride: int, padding: int) -> nn.Conv2d:
    layer = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=padding)
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    return layer
