import pytest
import torch
from torch import nn

from planimeter.errors import NotApplicableError
from planimeter.flatness import measure, rangamani, rangamani_trace
from planimeter.landscape import LossLandscape

F = nn.functional


def bias_net():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 6), nn.ReLU(), nn.Linear(6, 4)
    ).double()
    return model, LossLandscape(
        model, F.cross_entropy, (torch.randn(50, 8).double(), torch.randint(0, 4, (50,)))
    )


def scaled(landscape, factors, neurons=False):
    """W_i -> f_i W_i with biases times all factors so far; or neuron by neuron."""
    parameters = {n: v.clone() for n, v in landscape.parameters.items()}
    names = [n.removesuffix(".weight") for n in parameters if n.endswith("weight")]
    if neurons:
        before = torch.ones(parameters[f"{names[0]}.weight"].shape[1]).double()
        for name, factor in zip(names, factors, strict=True):
            parameters[f"{name}.weight"] *= factor[:, None] / before
            parameters[f"{name}.bias"] *= factor
            before = factor
    else:
        total = 1.0
        for name, factor in zip(names, factors, strict=True):
            total *= factor
            parameters[f"{name}.weight"] *= factor
            parameters[f"{name}.bias"] *= total
    return landscape.at(torch.cat([v.reshape(-1) for v in parameters.values()]))


def dense_measure(landscape):
    """From the dense Hessian and block norms."""
    dense, theta = landscape.hessian().dense(), landscape.theta
    root = torch.cat(
        [
            torch.full_like(theta[p], float(theta[p].norm()))
            for p in landscape.hessian().blocks.values()
        ]
    )
    return root[:, None] * dense * root


def test_layer_rescalings_leave_it_and_neuron_rescalings_do_not():
    _, landscape = bias_net()
    moved = scaled(landscape, [30.0, 0.1, 1 / 3.0])
    assert moved.loss() == pytest.approx(landscape.loss(), rel=1e-12)
    one = rangamani(landscape, tolerance=1e-12)
    two = rangamani(moved, tolerance=1e-12)
    assert one.value == pytest.approx(float(torch.linalg.eigvalsh(dense_measure(landscape))[-1]))
    assert two.value == pytest.approx(one.value, rel=1e-10)
    tops = [measure(at, ["top_eigenvalue"])["top_eigenvalue"].value for at in (landscape, moved)]
    assert max(tops) > 10 * min(tops)
    traces = [rangamani_trace(at, probes=10**4).value for at in (landscape, moved)]
    assert traces[0] == pytest.approx(float(dense_measure(landscape).trace()))
    assert traces[1] == pytest.approx(traces[0], rel=1e-10)
    generator = torch.Generator().manual_seed(3)
    factors = [torch.empty(n).uniform_(0.1, 10, generator=generator).double() for n in (7, 6)]
    by_neuron = scaled(landscape, [*factors, torch.ones(4).double()], neurons=True)
    assert by_neuron.loss() == pytest.approx(landscape.loss(), rel=1e-12)
    assert abs(rangamani(by_neuron).value / one.value - 1) > 0.1


def test_the_authors_print_it_divided():
    _, landscape = bias_net()
    whole, divided = rangamani(landscape), rangamani(landscape, normalised=True)
    assert divided.value == pytest.approx(whole.value / (2 + 2 * landscape.loss()))


def test_horizontal_directions_exclude_the_rescalings():
    """Against the dense projection, orthogonal in the metric."""
    _, landscape = bias_net()
    theta, parts = landscape.theta, list(landscape.hessian().blocks.values())
    root = torch.cat([torch.full_like(theta[p], float(theta[p].norm())) for p in parts])
    # In coordinates eta / |theta_i| the metric is the dot product and theta_i a unit vector.
    units = torch.zeros(len(theta), len(parts)).double()
    for i, part in enumerate(parts):
        units[part, i] = theta[part] / theta[part].norm()
    mixed = torch.eye(len(parts)).double() - 1 / len(parts)
    keep = torch.eye(len(theta)).double() - units @ mixed @ units.T
    dense = keep @ (root[:, None] * landscape.hessian().dense() * root) @ keep
    found = rangamani(landscape, horizontal=True, tolerance=1e-10)
    assert found.value == pytest.approx(float(torch.linalg.eigvalsh(dense)[-1]), rel=1e-8)
    assert found.value <= rangamani(landscape, tolerance=1e-10).value * (1 + 1e-9)


def test_levi_civita_terms_are_the_second_derivative_along_geodesics():
    """In log-norm coordinates a block's geodesics are curves of the cylinder metric."""
    _, landscape = bias_net()
    theta, g = landscape.theta, landscape.gradient()
    parts = list(landscape.hessian().blocks.values())
    dense = landscape.hessian().dense()
    terms = torch.zeros_like(dense)
    for part in parts:
        t, s = theta[part], g[part]
        square = float(t @ t)
        own = torch.outer(t, s) + torch.outer(s, t) - float(t @ s) * torch.eye(len(t)).double()
        terms[part, part] = own / square
    root = torch.cat([torch.full_like(theta[p], float(theta[p].norm())) for p in parts])
    exact = torch.linalg.eigvalsh(root[:, None] * (dense - terms * 1.0) * root)[-1]
    # D^2 L(e, e) - <g, -2 c e + |e|^2/|t|^2 t> = e'(H + (t g' + g t')/|t|^2 - <g,t>/|t|^2) e
    signs = torch.linalg.eigvalsh(root[:, None] * (dense + terms) * root)[-1]
    found = rangamani(landscape, levi_civita=True, tolerance=1e-10).value
    assert found == pytest.approx(float(signs), rel=1e-8)
    assert abs(float(exact) - float(signs)) > 1e-3
    # The rescaling direction of one block is a geodesic t -> e^s t: its second derivative is there.
    part = parts[0]
    eta = torch.zeros_like(theta)
    eta[part] = theta[part]

    def loss(s):
        moved = theta.clone()
        moved[part] = theta[part] * torch.tensor(s).double().exp()
        return landscape.at(moved).loss()

    h = 1e-3
    second = (loss(h) - 2 * loss(0.0) + loss(-h)) / h**2
    assert float(eta @ (dense + terms) @ eta) == pytest.approx(second, rel=1e-4)


def test_blocks_of_zero_norm_are_left_out():
    model, landscape = bias_net()
    with torch.no_grad():
        model[2].bias.zero_()
    found = rangamani(LossLandscape(model, F.cross_entropy, next(iter(landscape.batches()))))
    assert "without 2.bias (zero norm)" in found.method
    nothing = landscape.at(torch.zeros_like(landscape.theta))
    with pytest.raises(NotApplicableError, match="every parameter is zero"):
        rangamani(nothing)
