"""A small task that the tests of training share: three classes, a network with BatchNorm."""

import torch
from torch import nn

from planimeter.training import make_optimiser

SETTINGS = {
    "sgd": {"lr": 0.1, "weight_decay": 1e-3},
    "momentum": {"lr": 0.05},
    "nesterov": {"lr": 0.05},
    "gradient_descent": {"lr": 0.3, "momentum": 0.5},
    "adam": {"lr": 0.01},
    "adamw": {"lr": 0.01, "weight_decay": 0.1},
    "adagrad": {"lr": 0.05},
    "rmsprop": {"lr": 0.005, "momentum": 0.5},
    "padam": {"lr": 0.05, "decoupled": True, "weight_decay": 0.01},
    "sam": {"lr": 0.05},
    "entropy_sgd": {"lr": 0.7, "inner_steps": 4, "thermal_noise": 1e-2},
}


def rows(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 6, generator=generator)
    return inputs, (inputs[:, :3] + 0.3 * inputs[:, 3:]).argmax(1)


def network(dropout=0.0, norm=True, seed=1):
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(seed)
        layers = [nn.Linear(6, 12), nn.BatchNorm1d(12) if norm else nn.Identity(), nn.ReLU()]
        return nn.Sequential(*layers, nn.Dropout(dropout), nn.Linear(12, 3))


def optimiser(model, name="sgd", **settings):
    return make_optimiser(name, model.parameters(), seed=7, **(settings or SETTINGS[name]))


def flat(model):
    return torch.cat([t.detach().reshape(-1).double() for t in model.state_dict().values()])
