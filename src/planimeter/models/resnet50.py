"""The 50-layer residual network of He et al., with the parameter names of its public weights."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from planimeter.errors import InputError

_STAGES = ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2))
_EXPANSION = 4


def resnet50(
    classes: int = 1000, *, small_images: bool = False, generator: torch.Generator | None = None
) -> ResNet50:
    r"""ResNet-50: 23,508,032 parameters and a linear layer from 2048 features.

    A stem, then four stages of 3, 4, 6 and 3 bottleneck blocks, global average pooling and a
    linear layer. A block computes

    .. math:: y = \mathrm{ReLU}(F(x) + s(x)),

    where F is a 1 x 1, a 3 x 3 (which has the stride) and a 1 x 1 convolution to four times the
    channels, each with BatchNorm; s is the identity, or a strided 1 x 1 convolution with BatchNorm
    where the shape changes. Names of parameters are those of torchvision's `resnet50`.

    Arguments:
        classes: number of outputs, at least 1.
        small_images: for 32 x 32 images, a 3 x 3 stem without stride and pooling, as in the
            networks for CIFAR; otherwise a strided 7 x 7 convolution and max pooling, for 224.
        generator: of the initial weights; None takes torch's own. Convolutions are normal with
            variance 2 / fan_out, the linear layer uniform as torch's layers are.

    Raises:
        InputError: no class.

    Source: He et al. 2015, Deep residual learning for image recognition, Table 1.
    """
    if classes < 1:
        raise InputError(f"the network needs at least 1 class, got {classes}")
    return ResNet50(classes, small_images, generator)


class ResNet50(nn.Module):
    """See `resnet50`. No operation is in place, so torch.func can differentiate and map it."""

    def __init__(self, classes: int, small_images: bool, generator: torch.Generator | None) -> None:
        super().__init__()
        size, stride = (3, 1) if small_images else (7, 2)
        self.conv1 = _convolution(3, 64, size, stride, generator)
        self.bn1 = nn.BatchNorm2d(64)
        self.relu = nn.ReLU()
        self.maxpool = nn.Identity() if small_images else nn.MaxPool2d(3, stride=2, padding=1)
        channels, stages = 64, []
        for width, blocks, stage_stride in _STAGES:
            strides = [stage_stride] + [1] * (blocks - 1)
            layers = []
            for stride in strides:
                layers.append(_Bottleneck(channels, width, stride, generator))
                channels = _EXPANSION * width
            stages.append(nn.Sequential(*layers))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.fc = nn.utils.skip_init(nn.Linear, channels, classes)
        bound = channels**-0.5
        with torch.no_grad():
            self.fc.weight.uniform_(-bound, bound, generator=generator)
            self.fc.bias.uniform_(-bound, bound, generator=generator)

    def forward(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n classes"]:
        """Logits of the classes."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        logits: Tensor = self.fc(x.mean(dim=(2, 3)))
        return logits


class _Bottleneck(nn.Module):
    def __init__(
        self, inputs: int, width: int, stride: int, generator: torch.Generator | None
    ) -> None:
        super().__init__()
        outputs = _EXPANSION * width
        self.conv1 = _convolution(inputs, width, 1, 1, generator)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _convolution(width, width, 3, stride, generator)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = _convolution(width, outputs, 1, 1, generator)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        self.downsample: nn.Module | None = None
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                _convolution(inputs, outputs, 1, stride, generator), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        residual = self.relu(self.bn1(self.conv1(x)))
        residual = self.relu(self.bn2(self.conv2(residual)))
        residual = self.bn3(self.conv3(residual))
        shortcut = x if self.downsample is None else self.downsample(x)
        result: Tensor = self.relu(residual + shortcut)
        return result


def _convolution(
    inputs: int, outputs: int, size: int, stride: int, generator: torch.Generator | None
) -> nn.Module:
    # Not initialised twice, which would also draw from torch's generator where another is given.
    layer = nn.utils.skip_init(
        nn.Conv2d, inputs, outputs, size, stride=stride, padding=size // 2, bias=False
    )
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu", generator=generator)
    return layer
