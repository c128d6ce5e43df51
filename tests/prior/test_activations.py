import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from torch.nn import functional as F

from planimeter.errors import InputError
from planimeter.prior.activations import erf, gelu, relu
from planimeter.prior.hermite import smooth

DUALS = {
    "relu": (relu(), F.relu),
    "leaky": (relu(0.2), lambda z: F.leaky_relu(z, 0.2)),
    "abs": (relu(-1.0), torch.abs),
    "erf": (erf(), torch.erf),
    "gelu": (gelu(), F.gelu),
    "tanh": (smooth("tanh", torch.tanh), torch.tanh),
    "sigmoid": (smooth("sigmoid", torch.sigmoid), torch.sigmoid),
    "silu": (smooth("silu", F.silu), F.silu),
}
SMOOTH = ("erf", "gelu", "tanh", "sigmoid", "silu")


def dual(name, c, v, w):
    c, v, w = (torch.tensor([[value]], dtype=torch.float64) for value in (c, v, w))
    own = DUALS[name][0]
    return float(own.covariance(c, own.prepared(v), own.prepared(w)))


def gauss_hermite(function, c, v, w, nodes=120):
    """E[f(z) f(z')] on a two-dimensional grid of z = sqrt(v) a, z' = its regression on z + b."""
    t, weight = np.polynomial.hermite_e.hermegauss(nodes)
    t, weight = torch.tensor(t), torch.tensor(weight / math.sqrt(2 * math.pi))
    z = math.sqrt(v) * t[:, None]
    other = c / math.sqrt(v) * t[:, None] + math.sqrt(max(w - c * c / v, 0.0)) * t
    return float(weight @ (function(z) * function(other)) @ weight)


def expectation(function, v):
    value, _ = quad(
        lambda z: function(z) * math.exp(-z * z / (2 * v)) / math.sqrt(2 * math.pi * v),
        -40,
        40,
        points=[0],
        epsabs=1e-12,
        limit=400,
    )
    return value


def polar(slope, c, v, w):
    """The same for a piecewise linear function, by angles: the radius integrates to 2."""
    a, b = math.sqrt(v), c / math.sqrt(v)
    d = math.sqrt(max(w - b * b, 0.0))

    def f(z):
        return z if z > 0 else slope * z

    kinks = [math.pi / 2, 3 * math.pi / 2]
    kinks += [(math.atan2(-b, d) + k * math.pi) % (2 * math.pi) for k in (0, 1)]
    value, _ = quad(
        lambda t: f(a * math.cos(t)) * f(b * math.cos(t) + d * math.sin(t)),
        0,
        2 * math.pi,
        points=sorted(kinks),
        epsabs=1e-12,
    )
    return value / math.pi


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize(
    ("v", "w", "rho"), [(1, 1, 0.3), (0.5, 2, -0.8), (2, 2, 0.999), (1, 3, 0.0)]
)
def test_smooth_duals_agree_with_quadrature_in_the_plane(name, v, w, rho):
    c = rho * math.sqrt(v * w)
    expected = gauss_hermite(DUALS[name][1], c, v, w)
    assert dual(name, c, v, w) == pytest.approx(expected, abs=2e-7)


@pytest.mark.parametrize(("name", "slope"), [("relu", 0.0), ("leaky", 0.2), ("abs", -1.0)])
@pytest.mark.parametrize(("v", "w", "rho"), [(1, 1, 0.3), (0.5, 2, -0.8), (2, 2, 0.999), (1, 3, 0)])
def test_piecewise_linear_duals_agree_with_quadrature_by_angle(name, slope, v, w, rho):
    c = rho * math.sqrt(v * w)
    assert dual(name, c, v, w) == pytest.approx(polar(slope, c, v, w), abs=1e-10)


@pytest.mark.parametrize("name", DUALS)
def test_means_agree_with_quadrature(name):
    own, function = DUALS[name]
    for v in (0.3, 2.0):
        expected = expectation(lambda z: float(function(torch.tensor(z, dtype=torch.float64))), v)
        found = own.mean(torch.tensor([v], dtype=torch.float64))
        assert float(found) == pytest.approx(expected, abs=1e-9)


@settings(deadline=None, max_examples=30)
@given(st.sampled_from(sorted(DUALS)), st.floats(0.01, 4), st.floats(0.01, 4), st.floats(-1, 1))
def test_laws_of_every_dual(name, v, w, rho):
    c = rho * math.sqrt(v * w)
    cross, one, two = dual(name, c, v, w), dual(name, v, v, v), dual(name, w, w, w)
    assert cross == pytest.approx(dual(name, c, w, v), abs=1e-9)
    assert cross**2 <= one * two * (1 + 1e-9) + 1e-9
    # Mehler: for equal variances the series has coefficients a_k^2.
    assert dual(name, rho * v, v, v) + dual(name, -rho * v, v, v) >= -1e-9


def test_a_function_without_scale_keeps_it():
    # Positively homogeneous: scaling both inputs scales the covariance.
    for name in ("relu", "leaky", "abs"):
        assert dual(name, 4 * 0.3, 4 * 1.0, 4 * 2.0) == pytest.approx(4 * dual(name, 0.3, 1, 2))


def test_tanh_reaches_its_stated_accuracy_where_correlation_is_worst():
    for v in (0.1, 1.0, 4.0, 9.0):
        expected = expectation(lambda z: math.tanh(z) ** 2, v)
        assert dual("tanh", v, v, v) == pytest.approx(expected, abs=1.1e-8)


def test_variances_that_the_series_cannot_take_are_refused():
    with pytest.raises(InputError, match="tanh is too steep at standard deviations up to 10"):
        dual("tanh", 1.0, 100.0, 1.0)
