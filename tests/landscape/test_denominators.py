"""Losses whose rows count differently: any batching gives the derivatives of the whole."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from planimeter import LossLandscape, measure
from planimeter.ensembles.flatness import (
    keskar_sharpness_of_ensemble,
    top_eigenvalue_of_ensemble,
)
from planimeter.errors import InputError, MeasurementWarning
from planimeter.landscape.denominators import known_loss

CLASS_WEIGHTS = torch.tensor([1.0, 5.0, 20.0], dtype=torch.float64)
ROWS = 24


class Tokens(nn.Module):
    """(n, t) token ids to (n, V, t) logits."""

    def __init__(self, turned=True):
        super().__init__()
        self.embed, self.read, self.turned = nn.Embedding(6, 3), nn.Linear(3, 5), turned

    def forward(self, x):
        scores = self.read(torch.tanh(self.embed(x)))
        return scores.transpose(1, 2) if self.turned else scores


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)).double()


def rows(ignored=True):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(ROWS, 4, generator=generator, dtype=torch.float64)
    y = torch.randint(0, 3, (ROWS,), generator=generator).sort()[0]  # classes come one by one
    if ignored:
        y[8:12], y[1::6] = -100, -100  # in batches of 4: one counts nothing
    return x, y


def sentences():
    generator = torch.Generator().manual_seed(2)
    x = torch.randint(0, 6, (ROWS, 5), generator=generator)
    y = torch.randint(1, 5, (ROWS, 5), generator=generator)
    lengths = torch.randint(0, 6, (ROWS,), generator=generator)
    lengths[4:8] = 0
    y[torch.arange(5) >= lengths[:, None]] = 0
    return x, y


def turned(h, y):
    """Summed over tokens that are no padding, and how many those are."""
    return F.cross_entropy(h.transpose(1, 2), y, ignore_index=0, reduction="sum"), (y != 0).sum()


def padded(h, y):
    return F.cross_entropy(h.transpose(1, 2), y, ignore_index=0)


def multi_label(h, y):
    return F.binary_cross_entropy_with_logits(
        h, F.one_hot(y.clamp_min(0), 3).to(h), pos_weight=CLASS_WEIGHTS.to(h)
    )


CASES = {
    "ignored": (network, F.cross_entropy, rows(), {}),
    "weights": (network, nn.CrossEntropyLoss(weight=CLASS_WEIGHTS), rows(False), {}),
    "weights and ignored": (network, nn.CrossEntropyLoss(weight=CLASS_WEIGHTS), rows(), {}),
    "smoothed": (
        network, nn.CrossEntropyLoss(CLASS_WEIGHTS, label_smoothing=0.2), rows(), {}
    ),
    "nll": (
        lambda: nn.Sequential(network(), nn.LogSoftmax(1)),
        partial(F.nll_loss, weight=CLASS_WEIGHTS, ignore_index=0), rows(False), {},
    ),
    "pos_weight": (network, multi_label, rows(False), {}),
    "tokens": (
        lambda: Tokens().double(), partial(F.cross_entropy, ignore_index=0), sentences(), {}
    ),
    "sum and count": (lambda: Tokens(turned=False).double(), turned, sentences(), {}),
    "weight": (
        lambda: Tokens(turned=False).double(), padded, sentences(), {"weight": lambda y: y != 0},
    ),
    "total weight": (
        lambda: Tokens(turned=False).double(), padded, sentences(),
        {"weight": lambda y: (y != 0).sum()},
    ),
}  # fmt: skip


@pytest.fixture(params=CASES)
def case(request):
    make, loss, data, options = CASES[request.param]
    return make(), loss, data, options


def exact(model, loss, data):
    """Loss and Hessian of all rows at once, by autograd alone."""
    names = [name for name, _ in model.named_parameters()]

    def value(*tensors):
        found = loss(
            torch.func.functional_call(model, dict(zip(names, tensors, strict=True)), data[0]),
            data[1],
        )
        return found[0] / found[1] if isinstance(found, tuple) else found

    parameters = tuple(p.detach() for p in model.parameters())
    blocks = torch.autograd.functional.hessian(value, parameters)
    sizes = [p.numel() for p in parameters]
    matrix = torch.cat(
        [torch.cat([b.reshape(m, n) for b, n in zip(row, sizes, strict=True)], 1)
         for row, m in zip(blocks, sizes, strict=True)]
    )  # fmt: skip
    return float(value(*parameters)), matrix


def test_any_batching_gives_the_whole(case):
    model, loss, data, options = case
    value, hessian = exact(model, loss, data)
    whole = LossLandscape(model, loss, data, **options)
    for size, products in ((1, "recompute"), (4, "graph"), (7, "tape"), (ROWS, "tape")):
        landscape = LossLandscape(model, loss, data, batch_size=size, products=products, **options)
        if products == "graph":
            landscape.function.rows = 3
        torch.testing.assert_close(landscape.hessian().dense(), hessian)
        assert landscape.loss() == pytest.approx(value)
        torch.testing.assert_close(landscape.gradient(), whole.gradient())
        for matrix in ("gauss_newton", "empirical_fisher"):
            found = getattr(landscape, matrix)().dense()
            torch.testing.assert_close(found, getattr(whole, matrix)().dense())


def test_rows_that_count_nothing_might_as_well_not_be_there():
    model, (x, y) = network(), rows()
    some = y != -100
    left = LossLandscape(model, F.cross_entropy, (x, y), batch_size=4)
    without = LossLandscape(model, F.cross_entropy, (x[some], y[some]))
    assert left.loss() == pytest.approx(without.loss())
    for matrix in ("hessian", "gauss_newton", "empirical_fisher"):
        found = getattr(left, matrix)().dense()
        torch.testing.assert_close(found, getattr(without, matrix)().dense())
    names = ["relative_flatness_softmax_layer", "fisher_rao_norm", "empirical_fisher_rao_norm",
             "output_margin", "keskar_sharpness", "standard_average_sharpness"]  # fmt: skip
    one, other = measure(left, names), measure(without, names)
    for name in names:
        assert one[name].value == pytest.approx(other[name].value, rel=1e-6), name
    assert left.accuracy() == without.accuracy()


def test_a_weight_is_a_number_of_copies():
    """Class weights 1, 2, 3 are rows that are there once, twice, three times."""
    model, (x, y) = network(), rows(ignored=False)
    weighted = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]).double())
    copies = torch.arange(ROWS).repeat_interleave(y + 1)
    one = LossLandscape(model, weighted, (x, y), batch_size=5)
    other = LossLandscape(model, F.cross_entropy, (x[copies], y[copies]))
    assert one.loss() == pytest.approx(other.loss())
    for matrix in ("hessian", "gauss_newton", "empirical_fisher"):
        torch.testing.assert_close(getattr(one, matrix)().dense(), getattr(other, matrix)().dense())
    assert measure(one, "relative_flatness_softmax_layer")[
        "relative_flatness_softmax_layer"
    ].value == pytest.approx(
        measure(other, "relative_flatness_softmax_layer")["relative_flatness_softmax_layer"].value
    )


def test_drawn_labels_leave_out_what_is_ignored():
    """The mean of Monte-Carlo Fishers over all draws is the Gauss-Newton matrix."""
    torch.manual_seed(0)
    model = Tokens().double()
    data = sentences()
    y = torch.where(data[1] == 0, -100, data[1])
    landscape = LossLandscape(model, F.cross_entropy, (data[0], y), batch_size=4)
    found = landscape.monte_carlo_fisher(samples=64).dense().trace()
    assert float(found) == pytest.approx(float(landscape.gauss_newton().dense().trace()), rel=0.1)


def test_ensembles_weigh_their_rows_too():
    data = rows()
    models = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        models.append(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)).double())
    for loss in (F.cross_entropy, nn.CrossEntropyLoss(weight=CLASS_WEIGHTS)):
        each = [LossLandscape(m, loss, data, batch_size=4) for m in models]
        tops = top_eigenvalue_of_ensemble(each, tolerance=1e-6)
        for landscape, top in zip(each, tops, strict=True):
            exact_top = float(torch.linalg.eigvalsh(landscape.hessian().dense())[-1])
            assert top.value == pytest.approx(exact_top, rel=1e-4)
        together = keskar_sharpness_of_ensemble(each, epochs=3, batch_size=4)
        for landscape, one in zip(each, together, strict=True):
            alone = measure(
                landscape, "keskar_sharpness",
                settings={"keskar_sharpness": {"method": "sgd", "epochs": 3, "batch_size": 4}},
            )["keskar_sharpness"]  # fmt: skip
            assert one.value == pytest.approx(alone.value, rel=1e-6)


def test_data_of_which_no_row_counts_is_refused():
    x, y = rows()
    landscape = LossLandscape(network(), F.cross_entropy, (x, torch.full_like(y, -100)))
    with pytest.raises(InputError, match="every target is ignored"):
        landscape.loss()
    with pytest.raises(InputError, match="every target is ignored"):
        landscape.hessian() @ landscape.theta


def test_weights_that_are_none_are_refused():
    x, y = rows(False)

    def attempt(weight, loss=F.cross_entropy):
        LossLandscape(network(), loss, (x, y), batch_size=5, weight=weight).loss()

    with pytest.raises(InputError, match="it has to give one weight a row"):
        attempt(lambda y: torch.ones(3))
    with pytest.raises(InputError, match="negative or not finite"):
        attempt(lambda y: -torch.ones(len(y)))
    with pytest.raises(InputError, match="not the mean of rows with these weights"):
        attempt(lambda y: y + 1.0)
    with pytest.raises(InputError, match="count that depends on the outputs"):
        attempt(None, lambda h, y: (h.square().sum(), h.square().sum()))
    with pytest.raises(InputError, match=r"pair that is not \(sum, count\)"):
        attempt(None, lambda h, y: (h, y))
    with pytest.raises(InputError, match="not the mean of rows with these weights"):
        attempt(None, lambda h, y: (F.cross_entropy(h, y), len(y)))


@pytest.mark.parametrize(
    ("loss", "ignored"),
    [
        (F.cross_entropy, -100),
        (partial(F.cross_entropy, ignore_index=7), 7),
        (partial(partial(F.nll_loss, ignore_index=7), ignore_index=3), 3),
        (nn.CrossEntropyLoss(ignore_index=255), 255),
        (nn.MSELoss(), None),
    ],
)
def test_losses_of_torch_say_what_they_ignore(loss, ignored):
    assert known_loss(loss).ignored == ignored


def test_what_is_not_of_torch_is_not_known():
    class Own(nn.CrossEntropyLoss):
        pass

    unknown = (lambda h, y: h, Own(), partial(F.cross_entropy, torch.ones(2, 3)),
               nn.BCEWithLogitsLoss(weight=torch.ones(4, 1)))  # fmt: skip
    assert all(known_loss(loss) is None for loss in unknown)


def test_a_sum_over_a_constant_is_the_total_in_any_batching():
    model, data = network(), rows(ignored=False)
    mean = LossLandscape(model, F.cross_entropy, data).hessian().dense()
    for size in (1, 5, ROWS):
        with pytest.warns(MeasurementWarning, match="a sum over rows"):
            landscape = LossLandscape(
                model, lambda h, y: F.cross_entropy(h, y, reduction="sum") / ROWS, data,
                batch_size=size,
            )  # fmt: skip
        torch.testing.assert_close(landscape.hessian().dense(), mean)
    with pytest.raises(InputError, match=f"divide the sum by a constant .* / {ROWS}"):
        LossLandscape(model, nn.CrossEntropyLoss(reduction="sum"), data, batch_size=2)


@pytest.mark.parametrize(
    ("returns", "words"),
    [
        (lambda value: {"loss": value}, "returned a dict.*return that one"),
        (lambda value: (value, {"accuracy": 1.0}), r"a pair that is not \(sum, count\)"),
        (lambda value: (value, 1.0, 2.0), "returned a tuple"),
        (lambda value: value.item(), "returned a float.*drop its .item()"),
        (lambda value: None, "returned a NoneType"),
    ],
)
def test_a_loss_that_returns_something_else_is_refused(returns, words):
    model, rows = nn.Linear(3, 2), (torch.randn(6, 3), torch.randint(0, 2, (6,)))
    with pytest.raises(InputError, match=words):
        LossLandscape(model, lambda h, y: returns(F.cross_entropy(h, y)), rows)
