import pytest
import torch
from torch import nn

from planimeter.errors import NotApplicableError
from planimeter.flatness import measure, relative_flatness, relative_flatness_by_layer
from planimeter.flatness.block_traces import input_deviations
from planimeter.flatness.relative import relative_flatness_of_softmax_layer
from planimeter.landscape import LossLandscape

F = nn.functional


def exactly(landscape, name):
    """The double sum over neurons, from the dense Hessian."""
    part = landscape.hessian().blocks[name]
    w = landscape.parameters[name].flatten(1)
    dense = landscape.hessian().dense()[part, part].reshape(*w.shape, *w.shape)
    return float(torch.einsum("st,sjtj->", w @ w.T, dense))


def conv_net():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 3)
    ).double()
    data = torch.randn(30, 2, 3, 3).double(), torch.randint(0, 3, (30,))
    return model, LossLandscape(model, F.cross_entropy, data)


def test_all_layers_at_once_are_the_double_sums():
    _, landscape = conv_net()
    found = relative_flatness_by_layer(landscape, probes=10**4)
    names = [n for n in found if n != "sum"]
    assert names == ["0.weight", "3.weight", "5.weight"]
    for name in names:
        assert found[name].value == pytest.approx(exactly(landscape, name), rel=1e-10)
        assert found[name].stderr == 0
    assert found["sum"].value == pytest.approx(sum(found[n].value for n in names), rel=1e-10)


def test_probes_agree_within_their_error():
    _, landscape = conv_net()
    exact = relative_flatness(landscape, probes=10**4).value
    found = [relative_flatness(landscape, probes=60, seed=seed) for seed in range(20)]
    assert sum(abs(e.value - exact) < 2 * e.stderr for e in found) >= 17


def test_the_softmax_layer_has_a_closed_form():
    _, landscape = conv_net()
    found = relative_flatness_of_softmax_layer(landscape)
    assert found.value == pytest.approx(exactly(landscape, "5.weight"), rel=1e-10)


def test_neurons_may_be_rescaled_once_features_are_normalised():
    _, landscape = conv_net()
    factors = torch.tensor([0.1, 3.0, 10.0, 0.5, 2.0]).double()
    parameters = {n: v.clone() for n, v in landscape.parameters.items()}
    parameters["3.weight"] *= factors[:, None]
    parameters["3.bias"] *= factors
    parameters["5.weight"] /= factors
    moved = landscape.at(torch.cat([v.reshape(-1) for v in parameters.values()]))
    assert moved.loss() == pytest.approx(landscape.loss(), rel=1e-12)
    plain, normalised = (
        [
            relative_flatness(at, normalise_features=on, probes=10**4).value
            for at in (landscape, moved)
        ]
        for on in (False, True)
    )
    assert abs(plain[1] / plain[0] - 1) > 0.01
    assert normalised[1] == pytest.approx(normalised[0], rel=1e-10)


def test_deviations_of_the_inputs_of_layers():
    model, landscape = conv_net()
    x, _ = next(iter(landscape.batches()))
    found = input_deviations(landscape, ["0.weight", "3.weight"])
    expected = x.movedim(1, -1).reshape(-1, 2).std(0, unbiased=False)
    torch.testing.assert_close(found["0.weight"], expected)
    hidden = model[:3](x).detach()
    torch.testing.assert_close(found["3.weight"], hidden.std(0, unbiased=False))


def test_where_it_does_not_apply():
    model = nn.Sequential(nn.Linear(3, 2), nn.Tanh()).double()
    data = torch.randn(9, 3).double(), torch.randint(0, 2, (9,))
    with pytest.raises(NotApplicableError, match="not the network's"):
        measure(LossLandscape(model, F.cross_entropy, data), ["relative_flatness_softmax_layer"])
    squares = LossLandscape(model, F.mse_loss, (data[0], torch.randn(9, 2).double()))
    with pytest.raises(NotApplicableError, match="closed form is that of the cross-entropy"):
        measure(squares, ["relative_flatness_softmax_layer"])
