import pytest
import torch
from torch import nn

from planimeter.curvature import top_eigenvalues
from planimeter.errors import InputError
from planimeter.landscape import LossLandscape
from planimeter.slices import eigenvector_directions, random_direction


class Mixed(nn.Module):
    """Layers of every kind that filters are defined for, and that they are not."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 6, 3, groups=2)
        self.batch_norm = nn.BatchNorm2d(6)
        self.up = nn.ConvTranspose2d(6, 4, 2, groups=2)
        self.layer_norm = nn.LayerNorm([4, 5])
        self.linear = nn.Linear(20, 3)

    def forward(self, x):
        x = self.up(self.batch_norm(self.conv(x)))[:, :, 0]
        return self.linear(self.layer_norm(x).flatten(1))


@pytest.fixture
def mixed() -> LossLandscape:
    generator = torch.Generator().manual_seed(0)
    net = Mixed().double()
    with torch.no_grad():
        for p in net.parameters():
            p.normal_(generator=generator)
    inputs = torch.randn(7, 2, 6, 6, generator=generator).double()
    targets = torch.arange(7) % 3
    return LossLandscape(net, nn.functional.cross_entropy, (inputs, targets))


def parts(landscape, direction):
    sizes = [p.numel() for p in landscape.parameters.values()]
    pieces = direction.vector.split(sizes)
    return {
        name: (piece.reshape(p.shape), p)
        for (name, p), piece in zip(landscape.parameters.items(), pieces, strict=True)
    }


def test_every_filter_has_the_norm_of_its_weights(mixed):
    found = parts(mixed, random_direction(mixed, 3))
    for name in ("conv.weight", "linear.weight"):
        d, theta = found[name]
        torch.testing.assert_close(d.flatten(1).norm(dim=1), theta.flatten(1).norm(dim=1))
    # A transposed convolution has one filter a group's inputs and output.
    d, theta = (t.reshape(2, 3, 2, 2, 2) for t in found["up.weight"])
    torch.testing.assert_close(d.norm(dim=1).flatten(2).norm(dim=2),
                               theta.norm(dim=1).flatten(2).norm(dim=2))  # fmt: skip


def test_biases_and_norm_parameters_stay_unless_scaled(mixed):
    still = [n for n in mixed.parameters if "norm" in n or n.endswith("bias")]
    zero = parts(mixed, random_direction(mixed, 3))
    scaled = parts(mixed, random_direction(mixed, 3, vectors="scaled"))
    for name in still:
        assert not zero[name][0].any()
        torch.testing.assert_close(scaled[name][0].norm(), scaled[name][1].norm())
    assert set(still) == {n for n, (d, _) in zero.items() if not d.any()}


def test_layers_have_their_norm_and_none_is_as_drawn(mixed):
    for name, (d, theta) in parts(mixed, random_direction(mixed, 1, "layer")).items():
        if d.any():
            torch.testing.assert_close(d.norm(), theta.norm(), msg=name)
    drawn = random_direction(mixed, 1, "none").vector
    generator = torch.Generator().manual_seed(1)
    torch.testing.assert_close(
        drawn, torch.randn(len(drawn), generator=generator, dtype=torch.float64)
    )


def test_a_rescaled_relu_network_has_the_same_rescaled_direction(small_landscape):
    # W1 -> 4 W1, W2 -> W2 / 4: the filter-normalised direction scales with the weights.
    theta, d = small_landscape.theta, random_direction(small_landscape, 0).vector
    factors = torch.ones_like(theta)
    factors[:36], factors[36:54] = 4.0, 0.25
    scaled = random_direction(small_landscape.at(factors * theta), 0).vector
    torch.testing.assert_close(scaled, factors * d)


def test_a_filter_of_zeros_stays_zero(small_net, small_data):
    with torch.no_grad():
        small_net[0].weight[2] = 0
    landscape = LossLandscape(small_net, nn.functional.cross_entropy, small_data)
    d, _ = parts(landscape, random_direction(landscape))["0.weight"]
    assert not d[2].any()
    assert d[1].any()


def test_a_seed_is_a_direction_and_leaves_the_global_state(small_landscape):
    state = torch.get_rng_state()
    one, same, other = (random_direction(small_landscape, s).vector for s in (5, 5, 6))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
    assert torch.equal(state, torch.get_rng_state())


def test_eigenvectors_are_unit_and_carry_their_eigenvalues(small_landscape):
    directions = eigenvector_directions(small_landscape, 2)
    dense = torch.linalg.eigvalsh(small_landscape.hessian().dense())
    assert [d.curvature for d in directions] == pytest.approx(dense[[-1, -2]].tolist(), rel=1e-6)
    assert [float(d.vector.norm()) for d in directions] == pytest.approx([1, 1])
    pairs = top_eigenvalues(small_landscape.hessian(), 2)
    for direction, vector in zip(directions, pairs.vectors.T, strict=True):
        assert abs(float(direction.vector @ vector)) == pytest.approx(1)
        assert float(direction.vector[direction.vector.abs().argmax()]) > 0


def test_wrong_input(small_landscape, small_data):
    with pytest.raises(InputError, match="no normalisation 'row'"):
        random_direction(small_landscape, normalisation="row")
    with pytest.raises(InputError, match="no treatment 'copy'"):
        random_direction(small_landscape, vectors="copy")
    net = nn.Sequential(nn.LayerNorm(5)).double()
    vectors = LossLandscape(net, nn.functional.cross_entropy, small_data)
    with pytest.raises(InputError, match="vectors='scaled' moves them"):
        random_direction(vectors)
    assert random_direction(vectors, vectors="scaled").vector.any()
