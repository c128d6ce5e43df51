import math

import pytest
import torch
from scipy.optimize import brentq
from scipy.stats import norm
from torch import nn

from planimeter.errors import InputError, NotApplicableError
from planimeter.flatness.noise_scale import EPSILON, magnitude_noise_scale, noise_scale
from planimeter.flatness.pac_bayes import (
    MEASURES,
    magnitude_pac_bayes_flatness,
    magnitude_pac_bayes_norm,
    pac_bayes_flatness,
    pac_bayes_norm,
)
from planimeter.landscape import LossLandscape
from planimeter.losses import binary_cross_entropy


@pytest.fixture
def linear():
    """A linear classifier, right on 95 % of the rows."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(300, 8, generator=generator, dtype=torch.float64)
    model = nn.Linear(8, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.linspace(-2, 3, 8))
    labels = (model(inputs).flatten() > 0).long()
    labels[::20] = 1 - labels[::20]
    return LossLandscape(model, binary_cross_entropy, (inputs, labels))


def exact_scale(landscape, widths, drop=0.1):
    """The root of mean Phi(margin / spread) = a - drop, with spread that of z.(c x)."""
    inputs, labels = next(landscape.batches())
    signed = (inputs @ landscape.theta) * (2 * labels - 1)
    spread = (inputs * widths).norm(dim=1)

    def excess(log_sigma):
        chances = norm.cdf((signed / (math.exp(log_sigma) * spread)).numpy())
        return landscape.accuracy() - chances.mean() - drop

    return math.exp(brentq(excess, -7, 4))


@pytest.mark.parametrize("relative", [False, True])
def test_a_linear_classifier_has_a_closed_form(linear, relative):
    """The error stated is the error made: squared z-scores of 25 seeds average to about one."""
    search = magnitude_noise_scale if relative else noise_scale
    widths = linear.theta.abs() + EPSILON if relative else torch.ones(8)
    exact = exact_scale(linear, widths)
    found = [search(linear, draws=24, seed=seed) for seed in range(25)]
    scores = torch.tensor([(f.value - exact) / f.stderr for f in found])
    assert all(f.converged for f in found)
    assert 0.5 < float(scores.square().mean()) < 2.0  # chi-squared: 0.47 to 1.8 in 98 %
    assert abs(float(scores.mean())) < 0.6
    assert float(torch.tensor([f.stderr for f in found]).mean()) < 0.3 * exact


def test_many_draws_find_the_root(linear):
    exact = exact_scale(linear, torch.ones(8))
    found = noise_scale(linear, draws=1000)
    assert found.stderr < 0.03 * exact
    assert abs(found.value - exact) < 3 * found.stderr


def test_sigma_is_a_standard_deviation(linear):
    """Weights and noise ten times as large give the same accuracy."""
    tenfold = linear.at(10 * linear.theta)
    assert noise_scale(tenfold).value == pytest.approx(10 * noise_scale(linear).value, rel=1e-9)
    assert pac_bayes_flatness(tenfold).value == pytest.approx(
        pac_bayes_flatness(linear).value / 100, rel=1e-9
    )
    assert pac_bayes_norm(tenfold).value == pytest.approx(pac_bayes_norm(linear).value, rel=1e-9)


def test_measures_follow_from_sigma(linear):
    sigma, theta = noise_scale(linear), linear.theta
    flatness = pac_bayes_flatness(linear)
    assert flatness.value == pytest.approx(sigma.value**-2)
    assert flatness.stderr / flatness.value == pytest.approx(2 * sigma.stderr / sigma.value)
    square = float(theta @ theta)
    assert pac_bayes_norm(linear).value == pytest.approx(square / 4 * flatness.value)
    own = magnitude_noise_scale(linear)
    assert magnitude_pac_bayes_flatness(linear).value == pytest.approx(own.value**-2)
    assert f"sigma {own.value:.4g}" in magnitude_pac_bayes_flatness(linear).method


def test_the_magnitude_aware_norm_is_half_the_least_divergence(linear):
    theta, sigma = linear.theta, magnitude_noise_scale(linear).value
    posterior = torch.distributions.Normal(theta, sigma * (theta.abs() + EPSILON))

    def divergence(width):
        prior = torch.distributions.Normal(torch.zeros_like(theta), width)
        return float(torch.distributions.kl_divergence(posterior, prior).sum())

    least = min(divergence(torch.tensor(w)) for w in torch.linspace(0.5, 8, 4000).tolist())
    assert magnitude_pac_bayes_norm(linear).value == pytest.approx(least / 2, rel=1e-6)


def test_a_network_against_brute_force(small_net, small_data):
    inputs, _ = small_data
    labels = small_net(inputs).argmax(1)
    landscape = LossLandscape(small_net, nn.functional.cross_entropy, (inputs, labels))
    found = noise_scale(landscape, draws=300)
    generator = torch.Generator().manual_seed(99)
    losses = torch.tensor(
        [
            1 - landscape.at(landscape.theta + found.value * torch.randn(
                landscape.num_parameters, generator=generator, dtype=torch.float64)).accuracy()
            for _ in range(300)
        ]
    )  # fmt: skip
    # Two independent means of 300 draws: the same drop within their joint error.
    assert float(losses.mean()) == pytest.approx(
        0.1, abs=3 * 2**0.5 * float(losses.std()) / 300**0.5
    )


def test_nothing_depends_on_the_size_of_batches(small_net, small_data):
    inputs, _ = small_data
    data = inputs, small_net(inputs).argmax(1)
    whole, parts = (
        LossLandscape(small_net, nn.functional.cross_entropy, data, batch_size=b) for b in (41, 7)
    )
    for measure in MEASURES:
        one, two = (measure.compute(x, seed=1, progress=lambda a, b: None) for x in (whole, parts))
        assert one.value == pytest.approx(two.value, rel=1e-12)
        assert one.seed == 1


def test_progress_counts_to_its_end(linear):
    seen = []
    noise_scale(linear.at(linear.theta), draws=4, progress=lambda *a: seen.append(a))
    assert [done for done, _ in seen[:-1]] == list(range(1, len(seen)))
    assert seen[-1] == (len(seen) - 1, len(seen) - 1)
    assert all(done <= total for done, total in seen)


def test_a_classifier_by_chance_is_refused(linear):
    """Half of the labels: no noise makes it worse than that."""
    inputs, labels = next(linear.batches())
    labels = labels.clone()
    labels[::2] = 1 - labels[::2]
    landscape = LossLandscape(linear.model, binary_cross_entropy, (inputs, labels))
    with pytest.raises(NotApplicableError, match="however large the noise"):
        noise_scale(landscape)


def test_accuracy_below_the_drop_is_refused(linear):
    with pytest.raises(NotApplicableError, match=r"cannot fall by 0\.99"):
        noise_scale(linear, drop=0.99)


def test_a_regression_is_refused(small_net, small_data):
    inputs, _ = small_data
    targets = torch.zeros(41, 3, dtype=torch.float64)
    landscape = LossLandscape(small_net, nn.functional.mse_loss, (inputs, targets))
    with pytest.raises(NotApplicableError, match="needs classes"):
        pac_bayes_flatness(landscape)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"drop": 0.0}, "drop must lie between 0 and 1"),
        ({"draws": 1}, "an error needs at least 2 draws, got 1"),
        ({"tolerance": 0.0}, "tolerance must be positive"),
    ],
)
def test_settings_are_checked(linear, settings, message):
    with pytest.raises(InputError, match=message):
        noise_scale(linear, **settings)
