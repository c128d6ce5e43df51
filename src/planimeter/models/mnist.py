"""Small convolutional networks for 28 x 28 images."""

from __future__ import annotations

from collections import OrderedDict

import torch
from jaxtyping import Float
from torch import Tensor, nn


class LeNet5(nn.Module):
    """LeNet-5 with ReLU and max-pooling, 61,706 parameters; images are resized to 32 x 32.

    Source: LeCun et al. 1998, Figure 2, with today's activations and full connections.
    """

    def __init__(self) -> None:
        super().__init__()
        layers = [
            ("c1", nn.Conv2d(1, 6, 5)), ("relu1", nn.ReLU()), ("s2", nn.MaxPool2d(2)),
            ("c3", nn.Conv2d(6, 16, 5)), ("relu3", nn.ReLU()), ("s4", nn.MaxPool2d(2)),
            ("c5", nn.Conv2d(16, 120, 5)), ("relu5", nn.ReLU()),
        ]  # fmt: skip
        self.convnet = nn.Sequential(OrderedDict(layers))
        head = [("f6", nn.Linear(120, 84)), ("relu6", nn.ReLU()), ("f7", nn.Linear(84, 10))]
        self.fc = nn.Sequential(OrderedDict(head))

    def forward(self, x: Float[Tensor, "n 1 h w"]) -> Float[Tensor, "n 10"]:
        """Logits."""
        if x.shape[-1] != 32:
            x = torch.nn.functional.interpolate(x, (32, 32), mode="bilinear")
        logits: Tensor = self.fc(self.convnet(x).flatten(1))
        return logits


def lenet5() -> LeNet5:
    """LeNet-5."""
    return LeNet5()


def convnet() -> nn.Sequential:
    """Two strided convolutions and two linear layers, 166,406 parameters.

    Source: Wong and Kolter 2018.
    """
    return nn.Sequential(
        nn.Conv2d(1, 16, 4, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(16, 32, 4, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(32 * 7 * 7, 100), nn.ReLU(), nn.Linear(100, 10),
    )  # fmt: skip
