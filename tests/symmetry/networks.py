"""Small networks that the tests of symmetries share."""

import torch
import torch.nn.functional as F
from torch import nn


def conv_net():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.LeakyReLU(0.1),
        nn.MaxPool2d(2),
        nn.Sequential(nn.Conv2d(4, 6, 3, padding=1, bias=False), nn.ReLU(), nn.Dropout()),
        nn.AvgPool2d(2),
        nn.Flatten(),
        nn.Linear(6 * 3 * 3, 5),
        nn.ReLU(),
        nn.Linear(5, 3),
    )


def grouped_net():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, groups=4, bias=False),
        nn.PReLU(),
        nn.Conv2d(4, 6, 1, groups=2),
        nn.ReLU(),
        nn.ConvTranspose2d(6, 4, 2, groups=2),
        nn.ReLU(),
        nn.Upsample(scale_factor=2),
        nn.PixelShuffle(2),
        nn.Conv2d(1, 3, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


class LeNet(nn.Module):
    """Activations by function, in three spellings."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 5, padding=2), nn.Conv2d(6, 8, 3)
        self.fc1, self.fc2, self.fc3 = nn.Linear(32, 12), nn.Linear(12, 7), nn.Linear(7, 3)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(torch.relu(self.conv2(x)), 2)
        x = F.dropout(self.fc1(x.view(x.size(0), -1)).relu_(), training=self.training)
        return self.fc3(torch.clamp(self.fc2(x), min=0))


class Dense(nn.Module):
    """Concatenation, weights and biases that are no modules, a gate, and a chunk."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 3), nn.Linear(7, 5), nn.Linear(12, 6)
        self.gate, self.weight = nn.Linear(6, 6), nn.Parameter(torch.randn(6, 4))
        self.bias, self.last = nn.Parameter(torch.randn(4)), nn.Linear(2, 2)

    def forward(self, x):
        one = torch.cat([x, self.a(x).relu()], -1)
        two = torch.cat([one, F.relu(self.b(one))], -1)
        y = self.c(two).relu()
        y = y * torch.sigmoid(self.gate(y))
        left, right = torch.relu(y @ self.weight + self.bias).chunk(2, -1)
        return self.last(left + 0.5 * right)


class Branching(nn.Module):
    """Takes another way for some inputs."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, x):
        y = self.first(x)
        return self.last(y if y.sum() > 0 else y.relu())


class Residual(nn.Module):
    """A stream that two layers write into, the second one in place."""

    def __init__(self, width=6):
        super().__init__()
        self.enter, self.inner = nn.Linear(4, width), nn.Linear(width, 5)
        self.outer, self.leave = nn.Linear(5, width), nn.Linear(width, 2)

    def forward(self, x):
        stream = self.enter(x).relu()
        stream += self.outer(self.inner(stream).relu())
        return self.leave(stream)


def randomised(model, seed=0):
    """Random weights, biases and running statistics, in float64."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if not tensor.is_floating_point():
                continue
            drawn = torch.randn(tensor.shape, generator=generator)
            fan_in = max(1, tensor[0].numel()) if tensor.ndim > 1 else 1
            tensor.copy_(drawn.abs() + 0.1 if name.endswith("var") else drawn * fan_in**-0.5)
    return model.double()


def images(rows=5, side=14):
    return torch.randn(rows, 1, side, side, generator=torch.Generator().manual_seed(1)).double()


def vectors(rows=5):
    return torch.randn(rows, 4, generator=torch.Generator().manual_seed(1)).double()


def state_of(model):
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def outputs(model, state, inputs):
    with torch.no_grad():
        return torch.func.functional_call(model, state, (inputs,))
