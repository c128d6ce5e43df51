"""Losses that bend down somewhere are refused; rows that are fitted well are not."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from planimeter import LossLandscape
from planimeter.curvature import (
    gauss_newton_spectrum,
    gauss_newton_trace,
    piecewise_linear_trace,
)
from planimeter.errors import InputError, NotApplicableError

TRACES = (gauss_newton_trace, lambda s: gauss_newton_spectrum(s).trace(), piecewise_linear_trace)


def saturated(scale, classes, dtype, loss=F.cross_entropy, **options):
    """A linear softmax layer whose rows are fitted the better, the larger the scale."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Linear(2, classes, bias=False).to(dtype)
    with torch.no_grad():
        model.weight.copy_(scale * torch.randn(classes, 2, generator=generator))
    x = torch.randn(30, 2, generator=generator).to(dtype)
    y = model(x).argmax(1)
    return LossLandscape(model, loss, (x, y), **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("classes", [2, 3, 100])
def test_rows_that_are_fitted_well_are_convex(dtype, classes):
    for scale in (0.1, 1, 3, 9, 20, 50, 200, 1e3, 1e5):
        for loss in (F.cross_entropy, lambda h, y: 1e-12 * F.cross_entropy(h, y)):
            landscape = saturated(scale, classes, dtype, loss)
            matrix = landscape.gauss_newton()
            if classes < 100:
                expected = float(matrix.dense().trace())
                for trace in TRACES:
                    assert trace(landscape).value == pytest.approx(
                        expected, rel=1e-3, abs=1e-4 * abs(expected) + 1e-16
                    )


def test_the_softmax_of_three_outputs():
    model = nn.Linear(1, 3, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[9.0], [0.0], [-9.0]]))
    x, y = torch.tensor([[0.8], [0.88]]).double(), torch.zeros(2, dtype=torch.long)
    p = model(x).softmax(1)
    exact = float(((torch.diag_embed(p) - p[:, :, None] * p[:, None]).diagonal(dim1=1, dim2=2)
                   .sum(1) * x[:, 0] ** 2).mean())  # fmt: skip
    for trace in TRACES:
        assert trace(LossLandscape(model, F.cross_entropy, (x, y))).value == pytest.approx(exact)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("dent", [1e-10, 1e-6, 1e-3, 1.0])
@pytest.mark.parametrize("scale", [0.1, 3, 20, 200])
def test_losses_that_bend_down_a_little_are_refused(dtype, dent, scale):
    def dented(h, y):
        return F.cross_entropy(h, y) - dent * h.square().sum(1).mean()

    landscape = saturated(scale, 3, dtype, dented)
    for matrix in (lambda s: s.gauss_newton(), gauss_newton_trace):
        with pytest.raises(NotApplicableError, match="not convex in the outputs"):
            matrix(landscape)


NOT_CONVEX = {
    "a predicted variance": (
        2, lambda h, y: F.gaussian_nll_loss(h[:, :1], y[:, None], F.softplus(h[:, 1:])),
    ),
    "a predicted log-variance": (
        2, lambda h, y: ((h[:, 0] - y).square() * (-h[:, 1]).exp() + h[:, 1]).mean() / 2,
    ),
    "a focal loss": (
        1, lambda h, y: (torch.sigmoid(9 * h[:, 0]) ** 2 * F.softplus(9 * h[:, 0])).mean(),
    ),
    "a robust loss": (1, lambda h, y: (1 + (h[:, 0] - 3 * y).square()).log().mean()),
    "a bilinear loss": (2, lambda h, y: (h[:, 0] * h[:, 1]).mean()),
    "one direction of many": (200, lambda h, y: (h.square().sum(1) - 3 * h[:, 7] ** 2).mean()),
}  # fmt: skip


@pytest.mark.parametrize("name", NOT_CONVEX)
def test_losses_that_are_not_convex_are_refused(name):
    outputs, loss = NOT_CONVEX[name]
    torch.manual_seed(0)
    data = torch.randn(40, 4).double(), torch.randn(40).double()
    landscape = LossLandscape(nn.Linear(4, outputs).double(), loss, data, batch_size=10)
    with pytest.raises(NotApplicableError, match="not convex in the outputs"):
        landscape.gauss_newton()


def test_a_row_in_a_later_batch_is_enough():
    torch.manual_seed(0)
    y = torch.zeros(64).double()
    y[40:] = 9.0  # the robust loss is convex near its targets alone
    x = 0.1 * torch.randn(64, 4).double()
    loader = list(zip(x.split(16), y.split(16), strict=True))
    for data in ((x, y), loader):
        landscape = LossLandscape(
            nn.Linear(4, 1).double(), lambda h, y: (1 + (h[:, 0] - y).square()).log().mean(), data
        )
        with pytest.raises(NotApplicableError, match="not convex"):
            landscape.gauss_newton()


CONVEX = {
    "squares": (F.mse_loss, lambda n: torch.randn(n, 3).double()),
    "Huber": (F.huber_loss, lambda n: torch.randn(n, 3).double()),
    "Poisson": (F.poisson_nll_loss, lambda n: torch.randint(0, 5, (n, 3)).double()),
    "logistic": (F.binary_cross_entropy_with_logits, lambda n: torch.rand(n, 3).double()),
    "soft labels": (F.cross_entropy, lambda n: torch.rand(n, 3).double().softmax(1)),
}


@pytest.mark.parametrize("name", CONVEX)
def test_convex_losses_are_taken(name):
    loss, targets = CONVEX[name]
    torch.manual_seed(0)
    for scale in (1e-8, 1.0, 30.0):
        model = nn.Linear(4, 3).double()
        with torch.no_grad():
            model.weight.mul_(scale)
        landscape = LossLandscape(model, loss, (torch.randn(40, 4).double(), targets(40)))
        values = torch.linalg.eigvalsh(landscape.gauss_newton().dense())
        assert float(values[0]) > -1e-12 * float(values[-1])
        assert gauss_newton_trace(landscape).value == pytest.approx(float(values.sum()))


def test_a_loss_without_a_second_derivative_has_no_such_matrix():
    def ctc(h, y):
        full = torch.full((len(y),), 10), torch.full((len(y),), 3)
        return F.ctc_loss(h.log_softmax(-1).transpose(0, 1), y, *full)

    torch.manual_seed(0)
    data = torch.randn(8, 10, 4), torch.randint(1, 6, (8, 3))
    with pytest.raises(InputError, match="no second derivative"):
        LossLandscape(nn.Linear(4, 6), ctc, data).gauss_newton()
