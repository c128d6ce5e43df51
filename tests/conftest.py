"""Fixtures that several folders of tests share."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from sklearn.datasets import load_digits

from planimeter.landscape import LossLandscape
from planimeter.study.spec import Study, parse_study

settings.register_profile("planimeter", deadline=None)  # a timing is never a test
settings.load_profile("planimeter")


@pytest.fixture(autouse=True)
def _needs(request: pytest.FixtureRequest) -> None:
    """Data-hungry tests say why they cannot run; they never pass unseen."""
    if marker := request.node.get_closest_marker("data"):
        name, folder = next(iter(marker.args), "mnist"), os.environ.get("PLANIMETER_DATA")
        places = [Path(root) for root in (folder, "/usr/share/datasets") if root]
        if not any((place / name).is_dir() for place in places):
            pytest.skip(f"PLANIMETER_DATA does not name a folder with {name}/")


@pytest.fixture(autouse=True)
def _blocks_from_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small matrices have too few columns for block products ever to be tried."""
    monkeypatch.setattr("planimeter.products.products.SINGLES", 0)


@pytest.fixture
def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """scikit-learn's digits 0-4 against 5-9, shuffled, rows of norm 8 (so x.x/d = <x, x>/|x|^2)."""
    pixels, labels = load_digits(return_X_y=True)
    order = np.random.RandomState(0).permutation(len(labels))
    unit = pixels[order] / np.linalg.norm(pixels[order], axis=1, keepdims=True)
    return torch.from_numpy(8 * unit), torch.from_numpy((labels[order] >= 5).astype(int))


@pytest.fixture
def small_net() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(5, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3)
    ).double()


@pytest.fixture
def small_data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(41, 5, generator=generator, dtype=torch.float64)
    return inputs, torch.randint(0, 3, (41,), generator=generator)


@pytest.fixture
def small_landscape(small_net, small_data) -> LossLandscape:
    return LossLandscape(small_net, torch.nn.functional.cross_entropy, small_data)


SMALL_STUDY = """\
title: small
data: {name: digits, train: 30, test: 30}
model: {hidden: [10]}
training: {batch_size: 16, max_epochs: 300}
grid:
  optimisers:
    - {name: adam, lr: 0.01}
    - {name: sgd, lr: 0.1}
  attack: [0, 10]
  repetitions: 3
measures:
  trace: {probes: 5}
  keskar_sharpness: {method: sgd, epochs: 3}
prior: {particles: 50, runs: 2}
statistics: {bootstrap: 100}
figures: [log_prior, trace, keskar_sharpness]
"""


@pytest.fixture
def small_study() -> Study:
    return parse_study(SMALL_STUDY, "small.yaml")


@pytest.fixture
def small_study_file(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(SMALL_STUDY)
    return path
