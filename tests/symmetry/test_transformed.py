"""Landscapes of one function at several parameters."""

import dataclasses

import pytest
import torch
from torch import nn

from planimeter.errors import InputError
from planimeter.landscape import LossLandscape
from planimeter.models.resnet import cifar_resnet
from planimeter.symmetry import Rescalings, alpha_scaling, find_rescalings, rescaled

from .networks import randomised

cross_entropy = nn.functional.cross_entropy


def image_landscape(dtype=torch.float64):
    model = randomised(cifar_resnet(8)).to(dtype)
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(6, 3, 32, 32, generator=generator), torch.arange(6)
    return LossLandscape(model, cross_entropy, data, batch_size=4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_loss_stays_while_parameters_and_buffers_move(dtype):
    landscape = image_landscape(dtype)
    rescalings = find_rescalings(landscape.model, next(landscape.batches())[0])
    factors = rescalings.neuron_factors(torch.Generator().manual_seed(0), 3.0)
    other = rescaled(landscape, rescalings, factors)
    assert other.loss() == pytest.approx(landscape.loss(), rel=1e-5)
    assert float((other.theta - landscape.theta).norm()) > 1
    assert not torch.equal(other.state["bn1.running_var"], landscape.state["bn1.running_var"])
    assert other.dtype == dtype
    assert torch.equal(landscape.state["bn1.running_var"], landscape.model.bn1.running_var)


def test_a_wrong_rescaling_is_refused(small_landscape):
    rescalings = find_rescalings(small_landscape.model, torch.zeros(1, 5, dtype=torch.float64))
    wrong = dataclasses.replace(rescalings[0], scalings=rescalings[0].scalings[:-1])
    with pytest.raises(InputError, match=r"differ by [\d.]+ of their norm, 1e-10 is allowed"):
        rescaled(small_landscape, Rescalings((wrong,)), [2.0])


def test_the_check_of_float32_finds_small_errors(small_net, small_data):
    landscape = LossLandscape(small_net.float(), cross_entropy, small_data)
    rescalings = find_rescalings(small_net, torch.zeros(1, 5))
    rescaled(landscape, rescalings, [100.0])
    wrong = dataclasses.replace(rescalings[0], scalings=rescalings[0].scalings[:-1])
    with pytest.raises(InputError, match="1e-05 is allowed in float32"):
        rescaled(landscape, Rescalings((wrong,)), [1.0001])


def test_alpha_scaling_multiplies_a_layer_and_divides_the_next(small_landscape):
    other = alpha_scaling(small_landscape, "0", 5.9)
    old, new = small_landscape.state, other.state
    torch.testing.assert_close(new["0.weight"], 5.9 * old["0.weight"])
    torch.testing.assert_close(new["0.bias"], 5.9 * old["0.bias"])
    torch.testing.assert_close(new["2.weight"], old["2.weight"] / 5.9)
    torch.testing.assert_close(new["2.bias"], old["2.bias"])


def test_curvature_moves_as_the_chain_rule_says(small_landscape):
    """With theta' = A theta the Hessian is A^-1 H A^-1."""
    other = alpha_scaling(small_landscape, "0", 3.0)
    scale = torch.ones(small_landscape.num_parameters, dtype=torch.float64)
    scale[:36], scale[36:54] = 3.0, 1 / 3
    expected = small_landscape.hessian().dense() / scale[:, None] / scale[None, :]
    torch.testing.assert_close(other.hessian().dense(), expected)


def test_alpha_scaling_says_which_layers_there_are(small_landscape):
    with pytest.raises(
        InputError, match=r"no rescaling of layer '2' was found; these can be: 0 \('2': its output"
    ):
        alpha_scaling(small_landscape, "2", 2.0)
