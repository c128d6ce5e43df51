"""The small "AlexNet" for CIFAR-10 on which the scale-invariant measure was tried."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from planimeter.models.shapes import check_outputs, image_shape


def cifar_alexnet(input_shape: Sequence[int] = (3, 32, 32), outputs: int = 10) -> nn.Sequential:
    """Two 5 x 5 convolutions of 64 channels and three linear layers, 1,756,426 parameters.

    Both convolutions are padded by 2 and followed by ReLU and 3 x 3 max-pooling of stride 2,
    padded by 1: 32 pixels become 16 and then 8, which makes the first linear layer
    64 * 8 * 8 = 4096 inputs wide. Then 384, 192 and the outputs. Weights are initialised as torch
    does it.

    Raises:
        InputError: inputs are no images, or there is no output.

    Source: rangamani2019, from the authors' code.
    """
    check_outputs("cifar_alexnet", outputs)
    channels, height, width = image_shape("cifar_alexnet", input_shape)
    for _ in range(2):  # a padded 3 x 3 pooling of stride 2 rounds up
        height, width = (height + 1) // 2, (width + 1) // 2
    return nn.Sequential(
        nn.Conv2d(channels, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, stride=2, padding=1),
        nn.Conv2d(64, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, stride=2, padding=1),
        nn.Flatten(), nn.Linear(64 * height * width, 384), nn.ReLU(),
        nn.Linear(384, 192), nn.ReLU(), nn.Linear(192, outputs),
    )  # fmt: skip
