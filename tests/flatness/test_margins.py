import math

import numpy as np
import pytest
import torch
from torch import nn

from planimeter.errors import InputError, NotApplicableError
from planimeter.flatness.margins import (
    MEASURES,
    frobenius_over_margin,
    inverse_margin,
    margins,
    output_margin,
    path_norm_over_margin,
    spectral_complexity,
    spectral_over_margin,
)
from planimeter.flatness.norms import (
    fro_over_spec,
    frobenius_product,
    path_norm,
    spectral_product,
)
from planimeter.landscape import LossLandscape
from planimeter.losses import binary_cross_entropy

CE = nn.functional.cross_entropy


class Identity(nn.Module):
    """Outputs are the inputs, so margins can be chosen."""

    def __init__(self):
        super().__init__()
        self.one = nn.Parameter(torch.ones(1, dtype=torch.float64))

    def forward(self, x):
        return self.one * x


def chosen_margins(values):
    """A landscape whose rows have these margins, two classes."""
    outputs = torch.stack([torch.zeros_like(values), values], dim=1)
    return LossLandscape(Identity(), CE, (outputs, torch.ones(len(values), dtype=torch.long)))


@pytest.fixture
def fitted(small_net, small_data):
    """A landscape in which nothing is misclassified: the labels are the network's own."""
    inputs, _ = small_data
    return LossLandscape(small_net, CE, (inputs, small_net(inputs).argmax(1)), batch_size=9)


def test_margins_against_loops(small_landscape, small_net, small_data):
    for margin, x, y in zip(margins(small_landscape), *small_data, strict=True):
        h = small_net(x).tolist()
        others = [value for c, value in enumerate(h) if c != y]
        assert float(margin) == pytest.approx(h[y] - max(others), rel=1e-12)


def test_one_output_is_the_second_of_two(small_data):
    inputs, labels = small_data
    labels = labels.clamp(max=1)
    torch.manual_seed(0)
    one, two = nn.Linear(5, 1).double(), nn.Linear(5, 2).double()
    with torch.no_grad():
        two.weight[0], two.bias[0] = 0.0, 0.0
        two.weight[1], two.bias[1] = one.weight[0], one.bias[0]
    binary = LossLandscape(one, binary_cross_entropy, (inputs, labels))
    assert torch.allclose(margins(binary), margins(LossLandscape(two, CE, (inputs, labels))))


def test_the_tenth_percentile_is_an_order_statistic():
    values = torch.randperm(250, generator=torch.Generator().manual_seed(0)).double() + 1
    assert output_margin(chosen_margins(values)).value == 25.0
    assert output_margin(chosen_margins(values), quantile=0.5).value == 125.0
    assert output_margin(chosen_margins(values[:1])).value == float(values[0])


def test_the_error_is_that_of_the_bootstrap():
    values = np.random.default_rng(0).exponential(size=60)
    found = output_margin(chosen_margins(torch.from_numpy(values)))
    resamples = np.random.default_rng(1).choice(values, size=(40_000, 60))
    lowest = np.sort(resamples, axis=1)[:, 5]
    assert found.stderr == pytest.approx(lowest.std(), rel=0.02)


def test_the_error_is_that_over_data_sets():
    """Uniform margins: the k-th of N has the standard deviation of a beta variable."""
    n, k = 2000, 200
    exact = math.sqrt(k * (n - k + 1) / ((n + 1) ** 2 * (n + 2)))
    rng = np.random.default_rng(0)
    errors = [
        output_margin(chosen_margins(torch.from_numpy(rng.uniform(size=n)))).stderr
        for _ in range(30)
    ]
    assert np.mean(errors) == pytest.approx(exact, rel=0.1)


def test_quotients(fitted):
    gamma = output_margin(fitted).value
    assert gamma > 0
    log = 2 * math.log(gamma)
    inverse = inverse_margin(fitted)
    assert inverse.value == pytest.approx(gamma**-2)
    assert inverse.stderr / inverse.value == pytest.approx(2 * output_margin(fitted).stderr / gamma)
    spectral = spectral_over_margin(fitted)
    assert spectral.value == pytest.approx(spectral_product(fitted).value - log)
    assert spectral.stderr == pytest.approx(2 * output_margin(fitted).stderr / gamma)
    assert "order statistic 5 of 41 rows" in spectral.method
    assert frobenius_over_margin(fitted).value == pytest.approx(
        frobenius_product(fitted).value - log
    )
    assert spectral_complexity(fitted).value == pytest.approx(
        spectral.value + math.log(fro_over_spec(fitted).value)
    )
    assert path_norm_over_margin(fitted).value == pytest.approx(path_norm(fitted).value / gamma)


def test_claimed_invariances_hold(fitted, small_net):
    before = {m.name: m.compute(fitted, seed=0, progress=print).value for m in MEASURES}
    data = tuple(torch.cat(part) for part in zip(*fitted.batches(), strict=True))
    for kind, rows, factor in (("layer", slice(None), 3.0), ("neuron", slice(0, 1), 5.0)):
        with torch.no_grad():
            small_net[0].weight[rows] *= factor
            small_net[0].bias[rows] *= factor
            small_net[2].weight[:, rows] /= factor
        landscape = LossLandscape(small_net, CE, data)
        for m in MEASURES:
            same = m.compute(landscape).value == pytest.approx(before[m.name], rel=1e-9)
            assert same == (kind in m.invariant_to), (m.name, kind)
        before = {m.name: m.compute(landscape).value for m in MEASURES}


def test_a_negative_margin_is_reported_but_nothing_is_divided_by_it(small_landscape):
    assert output_margin(small_landscape).value < 0
    for measure in MEASURES:
        if measure.name != "output_margin":
            with pytest.raises(NotApplicableError, match=r"the margin is -.* at quantile 0.1"):
                measure.compute(small_landscape)


def test_targets_that_are_no_classes_are_refused(small_net, small_data):
    inputs, _ = small_data
    targets = torch.zeros(41, 3, dtype=torch.float64)
    landscape = LossLandscape(small_net, nn.functional.mse_loss, (inputs, targets))
    with pytest.raises(NotApplicableError, match="needs classes: the loss is one of numbers"):
        output_margin(landscape)
    one = nn.Linear(5, 1).double()
    halves = inputs, targets[:, :1] + 0.5
    landscape = LossLandscape(one, nn.functional.binary_cross_entropy_with_logits, halves)
    with pytest.raises(NotApplicableError, match="the targets have to be 0 and 1"):
        output_margin(landscape)


def test_quantiles_lie_between_0_and_1(small_landscape):
    with pytest.raises(InputError, match="quantile must lie between 0 and 1, got 10"):
        output_margin(small_landscape, quantile=10)
