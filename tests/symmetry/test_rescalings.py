"""Rescaling a state: dtypes, factors, composition."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from planimeter.errors import InputError
from planimeter.symmetry import Rescalings, find_rescalings

from .networks import conv_net, images, randomised, state_of


def parts():
    model = randomised(conv_net())
    return find_rescalings(model, images()), state_of(model)


def test_a_factor_and_its_inverse_give_the_state_back():
    rescalings, state = parts()
    factors = rescalings.neuron_factors(torch.Generator().manual_seed(0), 10.0)
    there = rescalings.apply(state, factors)
    back = rescalings.apply(there, [1 / f for f in factors])
    for name, tensor in state.items():
        torch.testing.assert_close(
            back[name], tensor.detach(), check_dtype=True, rtol=1e-14, atol=0
        )


def test_layer_and_neuron_factors_agree_where_all_are_equal():
    rescalings, state = parts()
    one = rescalings.apply(state, [3.0] * len(rescalings))
    many = rescalings.apply(state, [torch.full((r.channels,), 3.0) for r in rescalings])
    assert all(torch.equal(one[n], many[n]) for n in state)


def test_weights_and_bias_are_multiplied_and_the_next_weights_divided():
    rescalings, state = parts()
    new = rescalings[0].apply(state, torch.tensor([1.0, 2.0, 4.0, 8.0]))
    by = torch.tensor([1.0, 2.0, 4.0, 8.0]).double()
    torch.testing.assert_close(new["0.bias"], by * state["0.bias"].detach())
    torch.testing.assert_close(new["3.0.weight"], state["3.0.weight"].detach() / by[:, None, None])


def test_dtypes_gradients_and_the_old_state_are_kept():
    rescalings, state = parts()
    state = {n: t.detach().float().requires_grad_(t.requires_grad) for n, t in state.items()}
    before = {n: t.detach().clone() for n, t in state.items()}
    new = rescalings.apply(state, [2.0] * len(rescalings))
    for name, tensor in state.items():
        assert new[name].dtype == torch.float32
        assert new[name].requires_grad == tensor.requires_grad
        assert new[name].is_leaf
        assert torch.equal(tensor, before[name])


@given(st.integers(0, 100), st.floats(1.0, 1e3))
def test_factors_are_within_the_spread_and_repeatable(seed, spread):
    rescalings = FOUND
    draw = [
        rescalings.neuron_factors(torch.Generator().manual_seed(seed), spread) for _ in range(2)
    ]
    assert all(torch.equal(a, b) for a, b in zip(*draw, strict=True))
    for factor, rescaling in zip(draw[0], rescalings, strict=True):
        assert factor.shape == (rescaling.channels,)
        assert bool(((factor >= 1 / spread / 1.001) & (factor <= spread * 1.001)).all())


FOUND = parts()[0]


@pytest.mark.parametrize(
    ("factor", "message"),
    [
        (0.0, "positive factors, got 0"),
        (-1.0, "positive factors, got -1"),
        (float("nan"), "positive factors"),
        (torch.ones(3), "a number or 4 factors"),
    ],
)
def test_wrong_factors_are_refused(factor, message):
    rescalings, state = parts()
    with pytest.raises(InputError, match=message):
        rescalings[0].apply(state, factor)


def test_a_wrong_number_of_factors_and_a_wrong_state_are_refused():
    rescalings, state = parts()
    with pytest.raises(InputError, match="3 rescalings take as many factors, got 1"):
        rescalings.apply(state, [1.0])
    with pytest.raises(InputError, match=r"no tensor '0\.weight'"):
        rescalings[0].apply({}, 2.0)
    with pytest.raises(InputError, match="spread"):
        rescalings.layer_factors(torch.Generator(), 0.5)


def test_rescalings_are_a_sequence():
    rescalings, _ = parts()
    assert len(rescalings) == len(list(rescalings)) == 3
    assert rescalings[-1].name == "6 → 8"
    assert isinstance(rescalings, Rescalings)
