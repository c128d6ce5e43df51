"""The networks and data that the curvature benchmarks run on."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from torch import Tensor, nn

from planimeter.data import load, normalise
from planimeter.models.loading import load_checkpoint
from planimeter.models.resnet import resnet20

Workload = tuple[nn.Module, Tensor, Tensor]
NAMES = ("MLP", "CNN", "ResNet-20", "transformer")
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def workload(name: str, rows: int | None = None) -> Workload:
    """A model in eval mode, inputs and targets; `rows` for fewer than the usual number."""
    torch.manual_seed(0)
    if name == "MLP":
        count = rows or 500
        model: nn.Module = nn.Sequential(
            nn.Linear(784, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 2)
        )
        return model.eval(), torch.rand(count, 784), torch.randint(0, 2, (count,))
    if name == "CNN":
        count = rows or 2000
        model = nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(64, 128, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
            nn.Flatten(), nn.Linear(128, 10),
        )  # fmt: skip
        return model.eval(), torch.rand(count, 3, 32, 32), torch.randint(0, 10, (count,))
    if name == "ResNet-20":
        return _resnet(rows or 256)
    count = rows or 32
    return Transformer().eval(), torch.randint(0, 1000, (count, 32)), torch.randint(0, 10, (count,))


def _resnet(rows: int) -> Workload:
    """The public checkpoint on CIFAR-10 training images; random weights and images without them."""
    model = resnet20()
    folder = os.environ.get("PLANIMETER_DATA")
    checkpoint = Path(folder or ".").parent / "checkpoints" / "resnet20-12fca82f.th"
    if folder and checkpoint.is_file():
        load_checkpoint(model, checkpoint)
        data = load("cifar10")
        return model.eval(), normalise(data.inputs[:rows], MEAN, STD), data.labels[:rows]
    print("no CIFAR-10 or checkpoint under PLANIMETER_DATA: ResNet-20 with random weights")
    return model.eval(), torch.randn(rows, 3, 32, 32), torch.randint(0, 10, (rows,))


class Transformer(nn.Module):
    """Four encoder layers of width 128, about a million parameters with the embedding."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(128, 4, 512, batch_first=True)
        self.embedding = nn.Embedding(1000, 128)
        self.encoder = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
        self.head = nn.Linear(128, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden: Tensor = self.encoder(self.embedding(tokens))
        outputs: Tensor = self.head(hidden.mean(1))
        return outputs
