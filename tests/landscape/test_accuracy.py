"""Accuracy counts the labels that count, along the axis that holds the classes."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from planimeter import LossLandscape, measure, slices
from planimeter.errors import NotApplicableError
from planimeter.training import evaluate


class Given(nn.Module):
    """Outputs that the inputs say, and one parameter."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x):
        return self.factor * x


def tensors(shape, classes, *, places=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    h = torch.randn(shape, generator=generator, dtype=torch.float64)
    places = shape[:1] if places is None else places
    return h, torch.randint(0, classes, places, generator=generator)


def turned(h, y):
    return F.cross_entropy(h.transpose(1, -1), y)


def flattened(h, y):
    return F.cross_entropy(h.flatten(0, 1), y.flatten(), ignore_index=-100)


def shares(landscape):
    """The same number by every way that there is."""
    line = slices.slice_1d(landscape, torch.ones(1), [0.0])
    assert line.accuracy == float(line.accuracies[0]) == landscape.accuracy()
    data = landscape.data.tensors
    on = evaluate(landscape.model, landscape.loss_function, data)
    assert 1 - on.errors / on.rows == pytest.approx(landscape.accuracy())
    return landscape.accuracy()


@pytest.mark.parametrize(
    ("loss", "shape", "places", "axis"),
    [
        (F.cross_entropy, (9, 4), (9,), 1),
        (F.cross_entropy, (9, 4, 5), (9, 5), 1),
        (F.cross_entropy, (9, 4, 4), (9, 4), 1),
        (F.cross_entropy, (9, 4, 3, 2), (9, 3, 2), 1),
        (turned, (9, 5, 4), (9, 5), 2),
        (turned, (9, 4, 4), (9, 4), 2),
        (flattened, (9, 5, 4), (9, 5), 2),
        (flattened, (9, 4, 4), (9, 4), 2),
    ],
)
def test_the_axis_of_the_classes(loss, shape, places, axis):
    h, y = tensors(shape, 4, places=places)
    expected = float((h.argmax(axis) == y).double().mean())
    assert shares(LossLandscape(Given(), loss, (h, y))) == pytest.approx(expected)


@pytest.mark.parametrize("ignored", [-100, 255, 1])
def test_labels_that_are_ignored_are_not_counted(ignored):
    h, y = tensors((9, 4, 5), 4, places=(9, 5))
    y[:, 0], y[3] = ignored, ignored
    counted = y != ignored
    expected = float((h.argmax(1) == y)[counted].double().mean())
    loss = nn.CrossEntropyLoss(ignore_index=ignored)
    for size in (1, 4, 9):
        landscape = LossLandscape(Given(), loss, (h, y), batch_size=size)
        assert shares(landscape) == pytest.approx(expected)
    if ignored != 1:  # what is no class is not counted under any loss
        own = LossLandscape(Given(), lambda h, y: loss(h, y), (h, y))
        assert own.accuracy() == pytest.approx(expected)


def test_margins_leave_ignored_labels_out():
    h, y = tensors((9, 4), 4)
    some = torch.arange(9) % 3 > 0
    left = LossLandscape(Given(), F.cross_entropy, (h, torch.where(some, y, -100)))
    without = LossLandscape(Given(), F.cross_entropy, (h[some], y[some]))
    found = [measure(s, "output_margin")["output_margin"].value for s in (left, without)]
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("loss", "shape", "threshold"),
    [
        (F.binary_cross_entropy_with_logits, (9, 1), 0),
        (F.binary_cross_entropy_with_logits, (9, 3), 0),
        (nn.BCEWithLogitsLoss(pos_weight=torch.tensor(30.0).double()), (9, 3), 0),
        (lambda h, y: F.binary_cross_entropy_with_logits(h, y), (9,), 0),
        (lambda h, y: F.binary_cross_entropy(h, y), (9, 3), 0.5),
        (nn.BCELoss(), (9, 3), 0.5),
        (lambda h, y: (h - y).square().mean(), (9, 1), 0.5),
    ],
)
def test_outputs_that_are_labels_of_their_own(loss, shape, threshold):
    h, y = tensors(shape, 2, places=shape)
    h = torch.sigmoid(h) if threshold else h
    expected = float(((h > threshold) == (y > 0)).double().mean())
    assert shares(LossLandscape(Given(), loss, (h, y.double()))) == pytest.approx(expected)


def test_labels_of_signs():
    h, y = tensors((9, 1), 2, places=(9, 1))
    signs = 2.0 * y.double() - 1
    expected = float(((h > 0) == (y > 0)).double().mean())
    assert shares(LossLandscape(Given(), nn.SoftMarginLoss(), (h, signs))) == expected


def test_probabilities_of_classes():
    h, y = tensors((9, 4), 4)
    landscape = LossLandscape(Given(), F.cross_entropy, (h, F.one_hot(y, 4).double()))
    assert shares(landscape) == pytest.approx(float((h.argmax(1) == y).double().mean()))


def test_numbers_are_no_classes():
    h, _ = tensors((9, 3), 3)
    for loss in (F.mse_loss, nn.HuberLoss(), lambda h, y: (h - y).abs().mean()):
        landscape = LossLandscape(Given(), loss, (h, torch.randn(9, 3).double()))
        with pytest.raises(NotApplicableError, match="this needs classes"):
            landscape.accuracy()
        assert slices.slice_1d(landscape, torch.ones(1), [0.0]).accuracies is None


def test_measures_that_need_no_second_derivative_are_given_without_one():
    def ctc(h, y):
        full = torch.full((len(y),), 10), torch.full((len(y),), 3)
        return F.ctc_loss(h.log_softmax(-1).transpose(0, 1), y, *full)

    torch.manual_seed(0)
    data = torch.randn(8, 10, 4), torch.randint(1, 6, (8, 3))
    landscape = LossLandscape(nn.Linear(4, 6), ctc, data)
    refused = {}
    names = ["keskar_sharpness", "trace", "top_eigenvalue", "l2_norm",
             "standard_average_sharpness", "output_margin", "adaptive_trace"]  # fmt: skip
    found = measure(landscape, names, refused=lambda name, why: refused.update({name: why}))
    assert set(found) | set(refused) == set(names)
    assert {"keskar_sharpness", "l2_norm", "standard_average_sharpness"} <= set(found)
    assert {"trace", "top_eigenvalue", "adaptive_trace"} <= set(refused)
    assert "second derivative" in refused["trace"]
