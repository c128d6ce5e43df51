import json

import pytest
import torch

from planimeter.curvature import trace
from planimeter.errors import InputError, MeasurementWarning
from planimeter.estimate import Estimate
from planimeter.slices import sharpness_path


@pytest.fixture
def rescaled(small_landscape):
    """W1, b1 -> α W1, α b1 and W2 -> W2 / α: the same function (Dinh et al. 2017)."""

    def at(alpha):
        factors = torch.ones(small_landscape.num_parameters, dtype=torch.float64)
        factors[:36], factors[36:54] = alpha, 1 / alpha
        return small_landscape.at(factors * small_landscape.theta)

    return at


def norm(landscape):
    return Estimate(float(landscape.theta.norm()), 0.25)


def first_block(landscape):
    return Estimate(float(trace(landscape.hessian().restricted(["0.weight"]), seed=0).value))


def test_the_path_of_a_relu_rescaling(rescaled):
    factors = [0.5, 1.0, 4.0]
    path = sharpness_path(rescaled, {"norm": norm, "first layer": first_block}, factors)
    assert path.loss_kept
    assert path.loss_change < 1e-12
    expected = [float(rescaled(alpha).theta.norm()) for alpha in factors]
    assert path.values["norm"].tolist() == expected
    assert path.errors["norm"].tolist() == [0.25] * 3
    # The first layer's block of the Hessian falls with the square of its scale.
    scaled = path.values["first layer"] * path.factors**2
    torch.testing.assert_close(scaled, scaled[[1, 1, 1]], rtol=1e-6, atol=0)
    assert "the loss stays the same" in str(path)
    assert json.loads(json.dumps(path.as_dict()))["factors"] == factors


def test_a_loss_that_changes_is_told(small_landscape):
    with pytest.warns(MeasurementWarning, match="the loss changes along the path"):
        path = sharpness_path(
            lambda alpha: small_landscape.at(alpha * small_landscape.theta),
            {"norm": norm},
            [1.0, 2.0],
        )
    assert not path.loss_kept
    assert "THE LOSS CHANGES" in str(path)


def test_wrong_input(rescaled):
    with pytest.raises(InputError, match="positive and finite, got -1"):
        sharpness_path(rescaled, {"norm": norm}, [1.0, -1.0])
    with pytest.raises(InputError, match="needs factors and measures, got 0, 1"):
        sharpness_path(rescaled, {"norm": norm}, [])
    with pytest.raises(InputError, match="needs factors and measures, got 1, 0"):
        sharpness_path(rescaled, {}, [1.0])
