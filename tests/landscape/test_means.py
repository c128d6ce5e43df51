"""Losses that are no mean over rows are found wherever it shows, and measured whole or refused."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from planimeter import LossLandscape
from planimeter.errors import InputError, MeasurementWarning

ROWS = 40


def network(outputs=3):
    torch.manual_seed(0)
    return nn.Linear(4, outputs).double()


def data(labels=None):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(ROWS, 4, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, 3, (ROWS,), generator=generator) if labels is None else labels


def loader(rows, size=5):
    x, y = rows
    return list(zip(x.split(size), y.split(size), strict=True))


def own(**settings):
    """Cross-entropy under a name that says nothing."""
    return lambda h, y: F.cross_entropy(h, y, **settings)


def contrasted(h, y):
    return torch.logsumexp(h @ h.T, 1).mean() - h.gather(1, y[:, None]).mean()


def alternating():
    """Every other row is ignored: equal parts count equal parts."""
    y = data()[1]
    y[1::2] = -100
    return y


def late():
    """Only the last batch of eight ignores anything."""
    y = data()[1]
    y[-1] = -100
    return y


WEIGHTS = torch.tensor([1.0, 5.0, 20.0], dtype=torch.float64)
NO_MEANS = {
    "ignored, every other row": (own(), alternating()),
    "ignored in the last row": (own(), late()),
    "class weights": (own(weight=WEIGHTS), None),
    "class weights, ordered rows": (own(weight=WEIGHTS), data()[1].sort()[0]),
    "contrasted": (contrasted, None),
    "a root of a mean": (lambda h, y: F.cross_entropy(h, y).sqrt(), None),
    "a mean less its mean": (lambda h, y: (h - h.mean(0)).square().mean() + own()(h, y), None),
    "one row only": (lambda h, y: own()(h[:1], y[:1]), None),
}


@pytest.mark.parametrize("name", NO_MEANS)
def test_what_is_no_mean_is_refused_in_batches(name):
    loss, labels = NO_MEANS[name]
    with pytest.raises(InputError, match=r"not a mean over rows: .*let it return \(sum, count\)"):
        LossLandscape(network(), loss, loader(data(labels))).hessian()


@pytest.mark.parametrize("name", NO_MEANS)
def test_what_is_no_mean_is_measured_whole(name):
    loss, labels = NO_MEANS[name]
    model, (x, y) = network(), data(labels)
    with pytest.warns(MeasurementWarning, match="cannot be cut into batches"):
        whole = LossLandscape(model, loss, (x, y))
    with pytest.warns(MeasurementWarning, match="all 40 rows are measured in one"):
        cut = LossLandscape(model, loss, (x, y), batch_size=7)
    expected = float(loss(model(x), y))
    assert whole.loss() == cut.loss() == pytest.approx(expected)
    torch.testing.assert_close(whole.hessian().dense(), cut.hessian().dense())


class Mixing(nn.Module):
    """Its outputs for a row depend on the others."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3).double()

    def forward(self, x):
        h = self.layer(x)
        return h - h.mean(0)


def test_models_that_mix_rows_are_told_from_losses_that_do():
    with pytest.raises(InputError, match="outputs for a row depend on the others"):
        LossLandscape(Mixing(), F.cross_entropy, loader(data()))
    with pytest.warns(MeasurementWarning, match="outputs for a row depend on the others"):
        landscape = LossLandscape(Mixing(), F.cross_entropy, data())
    assert not landscape.function.separable


@pytest.mark.parametrize("size", [1, 3, ROWS])
def test_means_of_ones_own_are_taken_in_any_batches(recwarn, size):
    model, rows = network(), data()

    def focal(h, y):
        p = h.log_softmax(1).gather(1, y[:, None]).exp()
        return -((1 - p) ** 2 * p.log()).mean()

    one, other = (LossLandscape(model, focal, d) for d in (rows, loader(rows, size)))
    torch.testing.assert_close(one.hessian().dense(), other.hessian().dense())
    assert not [w for w in recwarn if isinstance(w.message, MeasurementWarning)]


def test_rows_of_their_own_weights_stay_in_one_batch():
    """A weight for every row is a part of the loss, and has the size of all the data."""
    torch.manual_seed(0)
    weight = torch.rand(ROWS, 1, dtype=torch.float64)
    x, y = data()[0], torch.randint(0, 2, (ROWS, 1)).double()
    loss, model = nn.BCEWithLogitsLoss(weight=weight), network(1)
    with pytest.warns(MeasurementWarning, match="cannot be cut into batches"):
        landscape = LossLandscape(model, loss, (x, y))
    assert landscape.loss() == pytest.approx(float(loss(model(x), y)))
    with pytest.raises(InputError, match="does not take"):
        LossLandscape(model, loss, loader((x, y)))


def test_many_rows_of_a_loss_that_is_no_mean():
    torch.manual_seed(0)
    x, y = torch.randn(3000, 4).double(), torch.randint(0, 3, (3000,))
    with pytest.warns(MeasurementWarning, match="all 3000 rows are measured in one"):
        landscape = LossLandscape(network(), own(weight=WEIGHTS), (x, y))
    assert landscape.loss() == pytest.approx(float(own(weight=WEIGHTS)(network()(x), y)))


def test_a_loss_that_squeezes_may_not_take_one_row():
    x, y = data()

    def squeezed(h, y):
        return -h.squeeze().log_softmax(-1)[torch.arange(len(y)), y].mean()

    with pytest.raises((IndexError, RuntimeError)):
        squeezed(network()(x[:1]), y[:1])
    one = LossLandscape(network(), squeezed, loader((x, y)))
    assert one.loss() == pytest.approx(LossLandscape(network(), F.cross_entropy, (x, y)).loss())


def test_batches_of_one_row_do_not_hide_a_broadcast():
    x, y = data()
    with pytest.raises(InputError, match=r"pass targets\[:, None\]"):
        LossLandscape(
            network(1), lambda h, y: (h - y).square().mean(), loader((x, y.double()), size=1)
        )


def test_class_weights_of_float32_do_not_keep_the_loss_from_float64():
    """1 - p of rows that are fitted well needs it."""
    torch.manual_seed(0)
    x = torch.randn(ROWS, 4)
    single = nn.Linear(4, 3)
    with torch.no_grad():
        single.weight.mul_(40)
    y = single(x).argmax(1)
    weighted = nn.CrossEntropyLoss(weight=WEIGHTS.float())
    found = LossLandscape(single, weighted, (x, y)).loss()
    logits = single(x).detach().double()
    assert found == pytest.approx(float(F.cross_entropy(logits, y, weight=WEIGHTS)), rel=1e-9)
