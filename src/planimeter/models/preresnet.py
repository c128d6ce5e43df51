r"""Residual networks with the activation first: PreResNet, and WideResNet, which is wider.

A convolution to 16 channels, then three stages of n blocks with 16k, 32k and 64k channels (four
times as many between blocks that are bottlenecks), BatchNorm, ReLU, a mean over pixels, and a
linear layer. A block computes

.. math:: y = s(x) + W_m\,a_m(\cdots W_1\,a_1(x)), \qquad
          a_i = \mathrm{ReLU} \circ \mathrm{BatchNorm}_i,

and nothing acts on the stream y itself. In a basic block W_1 and W_2 are 3 x 3 convolutions; in a
bottleneck W_1, W_2, W_3 are 1 x 1, 3 x 3 and 1 x 1. The first block of the second and third stage
has stride 2. The shortcut s is the identity, or a 1 x 1 convolution where the shape changes: of x
in the PreResNets, as in the implementations of them that are used for CIFAR (He et al. take
:math:`a_1(x)` there, and in the very first block), and of :math:`a_1(x)` in WideResNet.

Convolutions have no biases, and weights that are normal with variance 2 / fan_out; the linear layer
is torch's own. All weights come from torch's generator.

Source: He et al. 2016, Identity mappings in deep residual networks; Zagoruyko and Komodakis 2016,
Wide residual networks, Table 1.
"""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor, nn

from planimeter.errors import InputError
from planimeter.models.shapes import check_outputs, image_shape


def preresnet110(input_shape: Sequence[int] = (3, 32, 32), outputs: int = 10) -> PreResNet:
    """`preresnet` of 110 layers in basic blocks, 1,730,522 parameters. Source: He et al. 2016."""
    return preresnet(input_shape, outputs, depth=110)


def preresnet110_bottleneck(
    input_shape: Sequence[int] = (3, 32, 32), outputs: int = 10
) -> PreResNet:
    """`bottleneck_preresnet` of 110 layers, 1,146,842 parameters.

    What is called PreResNet-110 in the code of Izmailov et al. 2018, which granziol2020 builds on.
    """
    return bottleneck_preresnet(input_shape, outputs, depth=110)


def preresnet164(input_shape: Sequence[int] = (3, 32, 32), outputs: int = 10) -> PreResNet:
    """`bottleneck_preresnet` of 164 layers, 1,703,258 parameters. Source: He et al. 2016."""
    return bottleneck_preresnet(input_shape, outputs, depth=164)


def wide_resnet28_10(input_shape: Sequence[int] = (3, 32, 32), outputs: int = 10) -> PreResNet:
    """`wide_resnet` of 28 layers and ten times the width, 36,479,194 parameters."""
    return wide_resnet(input_shape, outputs, depth=28, width=10)


def preresnet(
    input_shape: Sequence[int] = (3, 32, 32), outputs: int = 10, *, depth: int = 20
) -> PreResNet:
    """A PreResNet of `depth` = 6n + 2 layers in basic blocks.

    Raises:
        InputError: no such depth, inputs are no images, or there is no output.
    """
    blocks = _blocks(depth, 6, 2)
    return PreResNet("preresnet", input_shape, outputs, _Basic, blocks, (16, 32, 64))


def bottleneck_preresnet(
    input_shape: Sequence[int] = (3, 32, 32), outputs: int = 10, *, depth: int = 29
) -> PreResNet:
    """A PreResNet of `depth` = 9n + 2 layers in bottleneck blocks.

    Raises:
        InputError: no such depth, inputs are no images, or there is no output.
    """
    blocks = _blocks(depth, 9, 2)
    widths = (64, 128, 256)
    return PreResNet("bottleneck_preresnet", input_shape, outputs, _Bottleneck, blocks, widths)


def wide_resnet(
    input_shape: Sequence[int] = (3, 32, 32), outputs: int = 10, *, depth: int = 16, width: int = 4
) -> PreResNet:
    """A WideResNet of `depth` = 6n + 4 layers with `width` times the channels, without dropout.

    (The source counts the three shortcuts' convolutions, and not the linear layer.)

    Raises:
        InputError: no such depth or width, inputs are no images, or there is no output.
    """
    if width < 1:
        raise InputError(f"width {width} of wide_resnet must be at least 1")
    blocks = _blocks(depth, 6, 4)
    widths = (16 * width, 32 * width, 64 * width)
    return PreResNet("wide_resnet", input_shape, outputs, _Wide, blocks, widths)


class PreResNet(nn.Module):
    """See the module. No operation is in place, so torch.func can differentiate and map it."""

    def __init__(
        self,
        name: str,
        input_shape: Sequence[int],
        outputs: int,
        block: type[_Basic] | type[_Bottleneck],
        blocks: int,
        widths: tuple[int, int, int],
    ) -> None:
        super().__init__()
        check_outputs(name, outputs)
        channels, _, _ = image_shape(name, input_shape)
        self.conv1 = _convolution(channels, 16, 3, 1)
        self.layer1 = _stage(block, blocks, 16, widths[0], 1)
        self.layer2 = _stage(block, blocks, widths[0], widths[1], 2)
        self.layer3 = _stage(block, blocks, widths[1], widths[2], 2)
        self.bn = nn.BatchNorm2d(widths[2])
        self.relu = nn.ReLU()
        self.fc = nn.Linear(widths[2], outputs)

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n outputs"]:
        """Logits."""
        x = self.layer3(self.layer2(self.layer1(self.conv1(images))))
        logits: Tensor = self.fc(self.relu(self.bn(x)).mean(dim=(2, 3)))
        return logits


class _Basic(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = _convolution(inputs, outputs, 3, stride)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = _convolution(outputs, outputs, 3, 1)
        self.relu = nn.ReLU()
        self.downsample = _shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        residual = self.conv1(self.relu(self.bn1(x)))
        result: Tensor = self.conv2(self.relu(self.bn2(residual))) + self.downsample(x)
        return result


class _Wide(_Basic):
    def forward(self, x: Tensor) -> Tensor:
        active = self.relu(self.bn1(x))
        residual = self.conv2(self.relu(self.bn2(self.conv1(active))))
        same = isinstance(self.downsample, nn.Identity)
        result: Tensor = residual + self.downsample(x if same else active)
        return result


class _Bottleneck(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        width = outputs // 4
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = _convolution(inputs, width, 1, 1)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = _convolution(width, width, 3, stride)
        self.bn3 = nn.BatchNorm2d(width)
        self.conv3 = _convolution(width, outputs, 1, 1)
        self.relu = nn.ReLU()
        self.downsample = _shortcut(inputs, outputs, stride)

    def forward(self, x: Tensor) -> Tensor:
        residual = self.conv1(self.relu(self.bn1(x)))
        residual = self.conv2(self.relu(self.bn2(residual)))
        result: Tensor = self.conv3(self.relu(self.bn3(residual))) + self.downsample(x)
        return result


def _stage(
    block: type[_Basic] | type[_Bottleneck], blocks: int, inputs: int, outputs: int, stride: int
) -> nn.Sequential:
    first = block(inputs, outputs, stride)
    return nn.Sequential(first, *(block(outputs, outputs, 1) for _ in range(blocks - 1)))


def _shortcut(inputs: int, outputs: int, stride: int) -> nn.Module:
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    # A sequence of one, as in public checkpoints.
    return nn.Sequential(_convolution(inputs, outputs, 1, stride))


def _blocks(depth: int, step: int, rest: int) -> int:
    """Blocks a stage of a network of so many layers."""
    if depth <= rest or (depth - rest) % step:
        sizes = ", ".join(str(step * n + rest) for n in (1, 2, 3))
        raise InputError(f"depth {depth} is not of the form {step}n + {rest}, such as {sizes}")
    return (depth - rest) // step


def _convolution(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Conv2d:
    layer = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer
