"""Losses of structures, and of outputs with several entries a row, are tried in every batch too."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from planimeter import LossLandscape
from planimeter.errors import InputError, MeasurementWarning, NotApplicableError

ROWS, LENGTH, WORDS = 12, 5, 7


class Tagger(nn.Module):
    """Tokens to scores: as they are, all tokens one under the other, or among other things."""

    def __init__(self, dress=None):
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.last = nn.Embedding(WORDS, 3).double(), nn.Linear(3, WORDS).double()
        self.dress = dress

    def forward(self, tokens):
        hidden = torch.tanh(self.inner(tokens))
        scores = self.last(hidden)
        return scores if self.dress is None else self.dress(scores, hidden, tokens)


DRESSES = {
    "dict": (lambda s, h, x: {"logits": s, "hidden": h}, lambda h: h["logits"]),
    "tuple with a mask": (lambda s, h, x: (s, x > 0), lambda h: h[0]),
    "object": (lambda s, h, x: SimpleNamespace(scores=s, hidden=h), lambda h: h.scores),
    "tokens under one another": (lambda s, h, x: s.view(-1, WORDS), lambda h: h),
}


def tokens(ignored=True):
    """Labels of which later batches ignore some."""
    x = torch.randint(0, WORDS, (ROWS, LENGTH), generator=torch.Generator().manual_seed(1))
    y = x.roll(-1, 1)
    if ignored:
        y[4:, 2:] = -100
        y[8:, 1:] = -100
    return x, y


def loader(rows, size=4):
    return list(zip(*(part.split(size) for part in rows), strict=True))


def mean(pick, **settings):
    return lambda h, y: F.cross_entropy(pick(h).reshape(-1, WORDS), y.reshape(-1), **settings)


def total(pick):
    summed = mean(pick, reduction="sum")
    return lambda h, y: (summed(h, y), y.ne(-100).sum())


@pytest.mark.parametrize("name", DRESSES)
def test_what_is_no_mean_of_later_batches_is_refused_or_measured_whole(name):
    dress, pick = DRESSES[name]
    model, rows = Tagger(dress), tokens()
    with pytest.raises(InputError, match="not a mean over rows"):
        LossLandscape(model, mean(pick), loader(rows)).hessian()
    with pytest.warns(MeasurementWarning, match="cannot be cut into batches"):
        whole = LossLandscape(model, mean(pick), rows, batch_size=4)
    assert whole.loss() == pytest.approx(mean(pick)(model(rows[0]), rows[1]).item())


@pytest.mark.parametrize("name", DRESSES)
def test_the_ways_out_give_the_derivatives_of_the_whole(recwarn, name):
    dress, pick = DRESSES[name]
    model, rows = Tagger(dress), tokens()
    plain = LossLandscape(Tagger(), lambda h, y: F.cross_entropy(h.mT, y), [rows], weight=counted)
    ways = (
        LossLandscape(model, total(pick), loader(rows)),
        LossLandscape(model, mean(pick), loader(rows), weight=counted),
        LossLandscape(model, mean(pick), loader(tokens(ignored=False))),
    )
    for found in ways[:2]:
        torch.testing.assert_close(found.gradient(), plain.gradient())
        torch.testing.assert_close(found.hessian().dense(), plain.hessian().dense())
    x, y = tokens(ignored=False)
    assert ways[2].loss() == pytest.approx(float(mean(pick)(model(x), y)))
    assert not [w for w in recwarn if isinstance(w.message, MeasurementWarning)]


def counted(labels):
    return labels.ne(-100)


def test_a_batch_statistic_that_a_model_returns_is_found():
    """A load-balancing loss is no mean over rows, and a scalar of its own."""

    def loss(h, y):
        return F.cross_entropy(h[0].mT, y) + h[1]

    model = Tagger(lambda s, h, x: (s, s.softmax(-1).mean((0, 1)).square().sum()))
    with pytest.raises(InputError, match="not a mean over rows"):
        LossLandscape(model, loss, loader(tokens(ignored=False))).hessian()
    penalised = Tagger(lambda s, h, x: (s, s.new_tensor(0.1)))
    x, y = tokens(ignored=False)
    found = LossLandscape(penalised, loss, loader((x, y)))
    assert found.loss() == pytest.approx(float(loss(penalised(x), y)))


def test_outputs_that_are_several_a_row_have_a_gauss_newton_matrix_and_no_fisher_matrix():
    dress, pick = DRESSES["tokens under one another"]
    rows = tokens(ignored=False)
    flat = LossLandscape(Tagger(dress), mean(pick), loader(rows))
    plain = LossLandscape(Tagger(), lambda h, y: F.cross_entropy(h.mT, y), loader(rows))
    torch.testing.assert_close(flat.gauss_newton().dense(), plain.gauss_newton().dense())
    with pytest.raises(NotApplicableError, match=r"return outputs of shape \(rows, ...\)"):
        flat.empirical_fisher()


def test_pairs_of_outputs_are_convex_only_together():
    """(a b - y)^2 is convex in a and in b."""

    class Halves(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.layer = nn.Linear(3, 1).double()

        def forward(self, a, b):
            return torch.cat([self.layer(a), self.layer(b)])

    def loss(h, y):
        a, b = h.squeeze(1).chunk(2)
        return (a * b - y).square().mean()

    a, b, y = torch.randn(8, 3).double(), torch.randn(8, 3).double(), 3 * torch.ones(8).double()
    found = LossLandscape(Halves(), loss, loader((a, b, y)))
    assert found.loss() == pytest.approx(float(loss(Halves()(a, b), y)))
    with pytest.raises(NotApplicableError, match="not convex"):
        found.gauss_newton()


def test_a_count_that_the_model_predicts_is_refused():
    def loss(h, y):
        part = torch.sigmoid(h[1])
        return (part * (h[0] - y).square()).sum(), part.sum()

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2).double()

        def forward(self, x):
            return self.layer(x).unbind(1)

    rows = torch.randn(12, 3).double(), torch.randn(12).double()
    with pytest.raises(InputError, match="a count that depends on the parameters"):
        LossLandscape(Both(), loss, loader(rows))
