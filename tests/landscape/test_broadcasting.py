"""Outputs and targets that torch broadcasts are refused, whatever the loss is."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from planimeter import LossLandscape
from planimeter.errors import InputError
from planimeter.landscape.broadcasting import refuse_broadcasting

POINTWISE = {
    "mse": F.mse_loss,
    "l1": F.l1_loss,
    "smooth_l1": nn.SmoothL1Loss(),
    "huber": F.huber_loss,
    "poisson": F.poisson_nll_loss,
    "own": lambda h, y: (h - y).square().mean(),
    "own sum": lambda h, y: (h - y).square().sum(),
    "own l1": lambda h, y: (h - y).abs().mean(),
    "logistic": lambda h, y: F.softplus(-(2 * y - 1) * h).mean(),
    "log-cosh": lambda h, y: (h - y).cosh().log().mean(),
    "fixed variance": lambda h, y: F.gaussian_nll_loss(h, y, torch.full_like(h, 0.3)),
}


def tensors(*shapes):
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(shape, generator=generator, dtype=torch.float64) for shape in shapes]


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize("loss", POINTWISE.values(), ids=POINTWISE)
@pytest.mark.parametrize(
    ("outputs", "targets"),
    [
        ((6, 1), (6,)),
        ((6,), (6, 1)),
        ((3, 1), (3,)),
        ((6, 6), (6,)),
        ((6, 1, 4, 3), (6, 4, 3)),
        ((4, 4, 1), (4, 4)),
        ((4, 4, 3), (4, 3)),
    ],
)
def test_rows_that_meet_the_targets_of_others_are_refused(loss, outputs, targets):
    for scale in (1e-3, 1.0, 30.0):
        h, y = tensors(outputs, targets)
        with pytest.raises(InputError, match="which torch broadcasts to"):
            refuse_broadcasting(loss, scale * h, y)
        same = torch.full_like(h, 0.3)  # all outputs alike, as of a network of zeros
        with pytest.raises(InputError, match="which torch broadcasts to"):
            refuse_broadcasting(loss, same, y)


def test_the_line_that_mends_it_does():
    h, y = tensors((6, 4), (6,))
    model = nn.Linear(4, 1).double()
    with pytest.raises(InputError, match=r"pass targets\[:, None\].*outputs\.squeeze\(1\)"):
        LossLandscape(model, F.mse_loss, (h, y))
    mended = LossLandscape(model, F.mse_loss, (h, y[:, None]))
    squeezed = LossLandscape(nn.Sequential(model, nn.Flatten(0)), F.mse_loss, (h, y))
    expected = float((model(h)[:, 0] - y).square().mean())
    assert mended.loss() == squeezed.loss() == pytest.approx(expected)
    with pytest.raises(InputError, match=r"targets\.squeeze\(1\)"):
        LossLandscape(nn.Sequential(model, nn.Flatten(0)), F.mse_loss, (h, y[:, None]))


FITTING = {
    "classes": (F.cross_entropy, (9, 3), torch.arange(9) % 3),
    "classes of a place": (F.cross_entropy, (9, 3, 2), (torch.arange(18) % 3).reshape(9, 2)),
    "own classes": (lambda h, y: -h.log_softmax(1).gather(1, y[:, None]).mean(), (9, 3),
                    torch.arange(9) % 3),
    "squeezed": (lambda h, y: (h[:, 0] - y).square().mean(), (9, 1), torch.arange(9.0)),
    "squeezed, one-sided": (lambda h, y: (h[:, 0] - y - 9).abs().mean(), (9, 1), torch.arange(9.0)),
    "two parts": (lambda h, y: F.gaussian_nll_loss(h[:, 0], y, h[:, 1].exp()), (9, 2),
                  torch.arange(9.0)),
    "targets as a set": (lambda h, y: h.square().mean() * y.sum(), (9, 1), torch.arange(9.0)),
    "sets compared": (lambda h, y: (h[:, 0].sort()[0] - y.sort()[0]).square().mean(), (9, 1),
                      torch.arange(9.0)),
    "targets of no use": (lambda h, y: h.square().mean(), (9, 1), torch.arange(9.0)),
    "one column for three": (lambda h, y: (h - y).square().mean(), (9, 3),
                             torch.arange(9.0)[:, None]),
    "contrasted": (lambda h, y: (torch.cdist(h, h) * (y[:, None] == y)).mean(), (9, 3),
                   torch.arange(9) % 3),
    "square": (lambda h, y: -h.log_softmax(1)[torch.arange(len(y)), y].mean(), (3, 3),
               torch.tensor([2, 0, 1])),
}  # fmt: skip


@pytest.mark.parametrize("name", FITTING)
def test_losses_that_do_not_compare_rows_are_left_alone(name):
    loss, shape, targets = FITTING[name]
    (h,) = tensors(shape)
    for outputs in (h, torch.zeros_like(h), 100 * h):
        refuse_broadcasting(loss, outputs, targets)


def test_targets_that_are_all_alike_make_no_difference():
    refuse_broadcasting(POINTWISE["own"], torch.rand(5, 1), torch.ones(5))
