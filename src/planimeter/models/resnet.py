"""The residual networks of He et al. for CIFAR, with the shortcuts that have no parameters."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from planimeter.errors import InputError
from planimeter.models.shapes import image_shape


def cifar_resnet(
    depth: int,
    *,
    classes: int = 10,
    channels: int = 3,
    generator: torch.Generator | None = None,
) -> CifarResNet:
    r"""A residual network of `depth` = 6n + 2 layers for 32 x 32 colour images.

    A convolution, then three stages of n blocks with 16, 32 and 64 channels, global average
    pooling and a linear layer. A block computes

    .. math:: y = \mathrm{ReLU}(F(x) + s(x)),

    where F is two 3 x 3 convolutions with BatchNorm. The shortcut s is the identity, or between
    stages takes every second pixel and adds channels of zeros (option A).

    Arguments:
        depth: 20, 32, 44, 56, ...; any 6n + 2.
        classes: number of outputs.
        channels: of the images.
        generator: of the initial weights, normal with variance 2 / fan_in; None takes torch's own.

    Raises:
        InputError: no such depth, or no class.

    Source: He et al. 2015, Deep residual learning for image recognition, Section 4.2.
    """
    if depth < 8 or depth % 6 != 2:
        raise InputError(f"depth {depth} is not of the form 6n + 2, such as 20, 32, 44 or 56")
    if classes < 1:
        raise InputError(f"the network needs at least 1 class, got {classes}")
    return CifarResNet((depth - 2) // 6, classes, channels, generator)


def resnet20(input_shape: Sequence[int] = (3, 32, 32), outputs: int = 10) -> CifarResNet:
    """`cifar_resnet(20)`, with 269,722 parameters."""
    channels, _, _ = image_shape("resnet20", input_shape)
    return cifar_resnet(20, classes=outputs, channels=channels)


def resnet32(input_shape: Sequence[int] = (3, 32, 32), outputs: int = 10) -> CifarResNet:
    """`cifar_resnet(32)`, with 464,154 parameters."""
    channels, _, _ = image_shape("resnet32", input_shape)
    return cifar_resnet(32, classes=outputs, channels=channels)


def resnet56(input_shape: Sequence[int] = (3, 32, 32), outputs: int = 10) -> CifarResNet:
    """`cifar_resnet(56)`, with 853,018 parameters."""
    channels, _, _ = image_shape("resnet56", input_shape)
    return cifar_resnet(56, classes=outputs, channels=channels)


class CifarResNet(nn.Module):
    """See `cifar_resnet`. No operation is in place, so torch.func can differentiate and map it."""

    def __init__(
        self, blocks: int, classes: int, channels: int, generator: torch.Generator | None
    ) -> None:
        super().__init__()
        self.conv1 = _convolution(channels, 16, 1, generator)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.layer1 = _stage(16, 16, blocks, generator)
        self.layer2 = _stage(16, 32, blocks, generator)
        self.layer3 = _stage(32, 64, blocks, generator)
        self.linear = nn.utils.skip_init(nn.Linear, 64, classes)
        nn.init.kaiming_normal_(self.linear.weight, generator=generator)
        nn.init.zeros_(self.linear.bias)

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n classes"]:
        """Logits of the classes."""
        x = self.relu(self.bn1(self.conv1(images)))
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(x.mean(dim=(2, 3)))
        return logits


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, generator: torch.Generator | None) -> None:
        super().__init__()
        self.stride = 1 if inputs == outputs else 2
        self.conv1 = _convolution(inputs, outputs, self.stride, generator)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = _convolution(outputs, outputs, 1, generator)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        # As many zero channels before the old ones as after them: trained weights rely on it.
        self.padding = (0, 0, 0, 0, (outputs - inputs) // 2, (outputs - inputs) // 2)

    def forward(self, x: Tensor) -> Tensor:
        residual = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        shortcut = x if self.stride == 1 else F.pad(x[:, :, ::2, ::2], self.padding)
        result: Tensor = self.relu(residual + shortcut)
        return result


def _stage(
    inputs: int, outputs: int, blocks: int, generator: torch.Generator | None
) -> nn.Sequential:
    first = _Block(inputs, outputs, generator)
    return nn.Sequential(first, *(_Block(outputs, outputs, generator) for _ in range(blocks - 1)))


def _convolution(
    inputs: int, outputs: int, stride: int, generator: torch.Generator | None
) -> nn.Module:
    # Not initialised twice, which would also draw from torch's generator where another is given.
    layer = nn.utils.skip_init(nn.Conv2d, inputs, outputs, 3, stride=stride, padding=1, bias=False)
    nn.init.kaiming_normal_(layer.weight, generator=generator)
    return layer
