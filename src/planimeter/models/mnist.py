"""Small convolutional networks for 28 x 28 images."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from planimeter.models.shapes import check_outputs, image_shape


class LeNet5(nn.Module):
    """See `lenet5`."""

    def __init__(self, channels: int = 1, outputs: int = 10, biases: bool = True) -> None:
        super().__init__()
        layers = [
            ("c1", nn.Conv2d(channels, 6, 5, bias=biases)), ("relu1", nn.ReLU()),
            ("s2", nn.MaxPool2d(2)),
            ("c3", nn.Conv2d(6, 16, 5, bias=biases)), ("relu3", nn.ReLU()), ("s4", nn.MaxPool2d(2)),
            ("c5", nn.Conv2d(16, 120, 5, bias=biases)), ("relu5", nn.ReLU()),
        ]  # fmt: skip
        self.convnet = nn.Sequential(OrderedDict(layers))
        f6, f7 = nn.Linear(120, 84, bias=biases), nn.Linear(84, outputs, bias=biases)
        self.fc = nn.Sequential(OrderedDict([("f6", f6), ("relu6", nn.ReLU()), ("f7", f7)]))

    def forward(self, x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n outputs"]:
        """Logits."""
        if x.shape[-2:] != (32, 32):
            x = torch.nn.functional.interpolate(x, (32, 32), mode="bilinear")
        logits: Tensor = self.fc(self.convnet(x).flatten(1))
        return logits


def lenet5(
    input_shape: Sequence[int] = (1, 28, 28), outputs: int = 10, *, biases: bool = True
) -> LeNet5:
    """LeNet-5 with ReLU and max-pooling, 61,706 parameters; images are resized to 32 x 32.

    Arguments:
        input_shape: channels, height and width.
        outputs: number of outputs.
        biases: False leaves them out of every layer, as rangamani2019 does; 61,470 parameters.

    Raises:
        InputError: inputs are no images, or there is no output.

    Source: LeCun et al. 1998, Figure 2, with today's activations and full connections.
    """
    check_outputs("lenet5", outputs)
    channels, _, _ = image_shape("lenet5", input_shape)
    return LeNet5(channels, outputs, biases)


def convnet(input_shape: Sequence[int] = (1, 28, 28), outputs: int = 10) -> nn.Sequential:
    """Two strided convolutions and two linear layers, 166,406 parameters on MNIST.

    Raises:
        InputError: inputs are no images of at least 4 x 4 pixels, or there is no output.

    Source: Wong and Kolter 2018.
    """
    check_outputs("convnet", outputs)
    channels, height, width = image_shape("convnet", input_shape, smallest=4)
    return nn.Sequential(
        nn.Conv2d(channels, 16, 4, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(16, 32, 4, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(32 * (height // 4) * (width // 4), 100), nn.ReLU(),
        nn.Linear(100, outputs),
    )  # fmt: skip
