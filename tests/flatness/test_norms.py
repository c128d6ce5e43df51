import itertools
import math

import pytest
import torch
from torch import nn

from planimeter.errors import InputError, NotApplicableError
from planimeter.flatness import measure, norms
from planimeter.flatness.folding import folded
from planimeter.flatness.layers import linear_layers, run_with
from planimeter.flatness.norms import (
    distance_from_init,
    empirical_fisher_rao_norm,
    fisher_rao_norm,
    fro_over_spec,
    frobenius_product,
    frobenius_sum,
    l2_norm,
    path_norm,
    spectral_distance_from_init,
    spectral_product,
    spectral_sum,
)
from planimeter.flatness.spectral_norms import circular_spectral_norm, spectral_norm
from planimeter.landscape import LossLandscape
from planimeter.models.resnet import cifar_resnet

CE = nn.functional.cross_entropy


def landscape_of(net, shape, rows=6, classes=3, **options):
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(rows, *shape, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, classes, (rows,), generator=generator)
    return LossLandscape(net.double(), CE, (inputs, targets), **options)


def dense(apply, shape):
    """The matrix of a linear map, by what it makes of unit vectors."""
    size = math.prod(shape)
    return apply(torch.eye(size, dtype=torch.float64).reshape(size, *shape)).flatten(1).T


def relative(old, new):
    return pytest.approx(old, rel=new)


CONVOLUTIONS = [
    (nn.Conv2d(2, 3, 3), (2, 6, 6)),
    (nn.Conv2d(2, 3, 3, padding=1), (2, 5, 7)),
    (nn.Conv2d(4, 6, 3, padding=1, stride=2, groups=2), (4, 7, 8)),
    (nn.Conv2d(3, 3, (5, 2), padding=(2, 1), stride=(3, 1)), (3, 9, 6)),
    (nn.Conv2d(2, 4, 3, padding=2, dilation=2), (2, 8, 8)),
    (nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular"), (2, 6, 6)),
    (nn.Conv2d(2, 4, 3, padding="same", padding_mode="reflect"), (2, 6, 6)),
    (nn.Conv1d(2, 4, 3, padding=1, stride=2), (2, 11)),
    (nn.Conv3d(1, 2, 3, padding=1), (1, 4, 4, 5)),
    (nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1, groups=2), (4, 4, 5)),
    (nn.ConvTranspose1d(3, 2, 4, stride=3), (3, 6)),
]


class Flat(nn.Module):
    """A layer, with whatever it gives out flattened to logits."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x).flatten(1)[:, :3]


@pytest.mark.parametrize(("module", "shape"), CONVOLUTIONS, ids=lambda v: str(v)[:60])
def test_the_spectral_norm_of_a_convolution_is_that_of_its_matrix(module, shape):
    torch.manual_seed(0)  # the weights of the list depend on which files were imported before
    module.reset_parameters()
    (layer,) = linear_layers(landscape_of(Flat(module), shape)).layers
    matrix = dense(lambda x: module(x) - module(torch.zeros_like(x)), shape).detach()
    exact = float(torch.linalg.matrix_norm(matrix, ord=2))
    found = spectral_norm(layer, tolerance=1e-7)
    assert found.converged
    assert found.value == pytest.approx(exact, rel=1e-10)
    # The default tolerance says that a singular value is as near as half of itself; where no other
    # lies beside the largest, as here, Ritz values do better.
    near = (torch.linalg.svdvals(matrix) - spectral_norm(layer).value).abs().min()
    assert float(near) <= 0.5e-4 * exact
    assert spectral_norm(layer).value == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize(
    ("module", "shape"),
    [
        (nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), (2, 5, 7)),
        (nn.Conv2d(4, 6, 3, padding=1, stride=2, groups=2, padding_mode="circular"), (4, 6, 8)),
        (nn.Conv2d(2, 3, 3, padding=2, dilation=2, padding_mode="circular"), (2, 4, 6)),
        (nn.Conv1d(2, 3, 5, padding=2, stride=3, padding_mode="circular"), (2, 9)),
        (nn.Conv3d(2, 2, 3, padding=1, stride=(1, 2, 1), padding_mode="circular"), (2, 3, 4, 5)),
    ],
    ids=lambda v: str(v)[:60],
)
def test_the_circular_norm_is_that_of_the_circular_matrix(module, shape):
    (layer,) = linear_layers(landscape_of(Flat(module), shape)).layers
    matrix = dense(lambda x: module(x) - module(torch.zeros_like(x)), shape).detach()
    exact = float(torch.linalg.matrix_norm(matrix, ord=2))
    assert circular_spectral_norm(layer).value == pytest.approx(exact, rel=1e-12)


def test_kernels_longer_than_the_grid_wrap_around():
    module = nn.Conv1d(2, 3, 5).double()
    (layer,) = linear_layers(landscape_of(Flat(module), (2, 7))).layers
    small = layer.__class__(**{**layer.__dict__, "input_shape": (2, 3)})
    rows = []
    for at in range(3):
        row = torch.zeros(3, 2, 3, dtype=torch.float64)
        for k in range(5):
            row[:, :, (at + k) % 3] += module.weight[:, :, k].detach()
        rows.append(row.flatten(1))
    exact = float(torch.linalg.matrix_norm(torch.cat(rows), ord=2))
    assert circular_spectral_norm(small).value == pytest.approx(exact, rel=1e-12)


def test_a_circular_transposed_convolution_is_the_transpose():
    up = nn.ConvTranspose2d(3, 4, 2, stride=2, groups=1)  # no overlap: no padding matters
    (layer,) = linear_layers(landscape_of(Flat(up), (3, 3, 4))).layers
    assert circular_spectral_norm(layer).value == relative(spectral_norm(layer).value, 1e-6)


def test_a_stride_that_does_not_divide_the_size_is_refused_by_the_circular_norm():
    net = Flat(nn.Conv2d(1, 3, 3, stride=2))
    with pytest.raises(NotApplicableError, match=r"layer 'layer' has stride \(2, 2\)"):
        spectral_product(landscape_of(net, (1, 7, 7)), circular=True)


def test_a_large_matrix_goes_through_the_iteration():
    torch.manual_seed(0)
    wide = nn.Linear(1100, 1030, bias=False)
    (layer,) = linear_layers(landscape_of(Flat(wide), (1100,))).layers
    found = spectral_norm(layer)
    assert found.converged
    assert found.products > 0
    exact = float(torch.linalg.matrix_norm(layer.weight, ord=2))
    assert found.value == relative(exact, 1e-6)


def test_a_layer_on_a_sequence_has_the_norm_of_its_matrix():
    net = Flat(nn.Linear(4, 3))
    landscape = landscape_of(net, (7, 4))
    exact = math.log(float(torch.linalg.matrix_norm(net.layer.weight.detach(), ord=2)) ** 2)
    assert spectral_product(landscape).value == relative(exact, 1e-12)


def test_a_parametrised_weight_is_the_one_that_multiplies(small_net, small_landscape, small_data):
    before = frobenius_product(small_landscape).value
    nn.utils.parametrizations.weight_norm(small_net[0])
    landscape = LossLandscape(small_net, CE, small_data)
    assert frobenius_product(landscape).value == relative(before, 1e-12)
    assert "not counted" not in frobenius_product(landscape).method
    assert path_norm(landscape).value == relative(path_norm(small_landscape).value, 1e-12)


def test_a_layer_called_twice_counts_once():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.norm = nn.Linear(3, 3), nn.BatchNorm1d(3)

        def forward(self, x):
            return self.layer(self.norm(self.layer(x)))

    net = Twice()
    found = linear_layers(landscape_of(with_statistics(net), (3,)))
    assert [layer.name for layer in found.layers] == ["layer"]
    assert list(found.left) == ["norm"]


def test_an_unfinished_iteration_says_so():
    (layer,) = linear_layers(landscape_of(Flat(nn.Conv2d(3, 9, 3, padding=1)), (3, 9, 9))).layers
    assert not spectral_norm(layer, tolerance=1e-9, max_products=4).converged


# -- BatchNorm --------------------------------------------------------------------------------


def with_statistics(net):
    """BatchNorms with scales, shifts and statistics that are not the identity."""
    generator = torch.Generator().manual_seed(5)
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                tensor.data.uniform_(0.5, 1.5, generator=generator)
    return net


def folded_outputs(landscape, found):
    answers = {name: lambda x, y: x for name in found.folded}
    for layer in found.layers:
        answers[layer.name] = lambda x, y, layer=layer: layer.affine(x)
    return run_with(landscape, answers)


NETWORKS = {
    "convolutions": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 4, 3, groups=2), nn.BatchNorm2d(4), nn.ReLU(),
            nn.ConvTranspose2d(4, 6, 2, groups=2, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
            nn.Flatten(), nn.Linear(150, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3),
        ),
        (2, 6, 6),
        3,
    ),
    "resnet": (lambda: cifar_resnet(8, classes=3), (3, 16, 16), 7),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
def test_folding_leaves_the_outputs_as_they_were(name):
    make, shape, folded = NETWORKS[name]
    torch.manual_seed(0)
    landscape = landscape_of(with_statistics(make()), shape)
    found = linear_layers(landscape)
    assert len(found.folded) == folded
    assert not found.left
    before = run_with(landscape, {})
    assert torch.allclose(folded_outputs(landscape, found), before, rtol=1e-12, atol=1e-12)


class Shortcut(nn.Module):
    """The first layer's output is used before its BatchNorm too."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Linear(5, 4), nn.BatchNorm1d(4)
        self.second, self.norm2, self.last = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)

    def forward(self, x):
        x = self.first(x)
        y = self.norm2(self.second(self.norm(x).relu()))
        return self.last((x + y).relu())


def test_a_batchnorm_beside_a_shortcut_is_not_folded():
    torch.manual_seed(0)
    landscape = landscape_of(with_statistics(Shortcut()), (5,))
    found = linear_layers(landscape)
    assert found.folded == ("norm2",)
    assert list(found.left) == ["norm"]
    assert "1 BatchNorms left out" in frobenius_product(landscape).method
    assert torch.allclose(folded_outputs(landscape, found), run_with(landscape, {}))


def test_a_factor_that_batchnorm_divides_out_is_not_seen():
    torch.manual_seed(0)
    net = with_statistics(NETWORKS["convolutions"][0]())
    before = frobenius_product(landscape_of(net, (2, 6, 6))).value
    with torch.no_grad():
        net[0].weight.mul_(5.0)
        net[0].bias.mul_(5.0)
        net[1].running_mean.mul_(5.0)
        net[1].running_var.add_(net[1].eps).mul_(25.0).sub_(net[1].eps)
    assert frobenius_product(landscape_of(net, (2, 6, 6))).value == relative(before, 1e-12)


def test_the_statistics_of_a_batch_are_refused():
    net = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
    landscape = landscape_of(net, (5,), batch_norm="train-frozen-buffers")
    with pytest.raises(NotApplicableError, match="batch_norm='eval'"):
        frobenius_product(landscape)


# -- products and sums ------------------------------------------------------------------------


def test_norms_of_a_small_network(small_landscape, small_net):
    first, second = (small_net[i].weight.detach() for i in (0, 2))
    fro = [float(w.norm()) ** 2 for w in (first, second)]
    spec = [float(torch.linalg.svdvals(w)[0]) ** 2 for w in (first, second)]
    assert l2_norm(small_landscape).value == relative(float(small_landscape.theta.norm()), 1e-12)
    assert frobenius_product(small_landscape).value == relative(math.log(math.prod(fro)), 1e-12)
    assert spectral_product(small_landscape).value == relative(math.log(math.prod(spec)), 1e-12)
    assert frobenius_sum(small_landscape).value == relative(2 * math.prod(fro) ** 0.5, 1e-12)
    assert spectral_sum(small_landscape).value == relative(2 * math.prod(spec) ** 0.5, 1e-12)
    ratios = sum(f / s for f, s in zip(fro, spec, strict=True))
    assert fro_over_spec(small_landscape).value == relative(ratios, 1e-12)
    assert all(m.compute(small_landscape, seed=0, progress=print).value
               for m in norms.MEASURES if "distance" not in m.name)  # fmt: skip


def test_claimed_invariances_hold(small_net, small_data):
    """Layers by 3 and 1/3, then one neuron by 5 and 1/5: the function stays what it is."""
    entries = [m for m in norms.MEASURES if "distance" not in m.name]
    before = {m.name: m.compute(LossLandscape(small_net, CE, small_data)).value for m in entries}
    for kind, rows, factor in (("layer", slice(None), 3.0), ("neuron", slice(0, 1), 5.0)):
        with torch.no_grad():
            small_net[0].weight[rows] *= factor
            small_net[0].bias[rows] *= factor
            small_net[2].weight[:, rows] /= factor
        landscape = LossLandscape(small_net, CE, small_data)
        for m in entries:
            same = m.compute(landscape).value == pytest.approx(before[m.name], rel=1e-9)
            assert same == (kind in m.invariant_to), (m.name, kind)
        before = {m.name: m.compute(landscape).value for m in entries}


def test_distances_from_the_start(small_landscape, small_net):
    start = {name: value + 0.1 for name, value in small_landscape.parameters.items()}
    count = small_landscape.num_parameters
    assert distance_from_init(small_landscape, initial=start).value == relative(
        0.1 * count**0.5, 1e-9
    )
    # Matrices of 0.1 have the one singular value 0.1 sqrt(size).
    found = spectral_distance_from_init(small_landscape, initial=start)
    assert found.value == relative(0.01 * (30 + 18), 1e-9)
    same = small_landscape.at(small_landscape.theta)
    assert distance_from_init(small_landscape, initial=same).value == 0
    assert spectral_distance_from_init(small_landscape, initial=same).value == 0


def test_a_start_has_to_be_given_and_to_fit(small_landscape):
    with pytest.raises(NotApplicableError, match="no initial network: pass initial="):
        distance_from_init(small_landscape)
    with pytest.raises(InputError, match=r"initial parameter '0.weight' is missing"):
        distance_from_init(small_landscape, initial={})


def test_a_network_without_layers_is_refused():
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(5, 3))

        def forward(self, x):
            return x @ self.w

    with pytest.raises(NotApplicableError, match=r"calls no torch.nn.Linear or convolution"):
        frobenius_product(landscape_of(Bare(), (5,)))


def test_a_layer_of_zeros_is_named(small_net, small_data):
    nn.init.zeros_(small_net[2].weight)
    with pytest.raises(NotApplicableError, match="layer '2' has norm 0"):
        spectral_product(LossLandscape(small_net, CE, small_data))


def test_what_is_not_counted_is_said():
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.gate = nn.Linear(5, 3), nn.Parameter(torch.ones(3, 3))

        def forward(self, x):
            return self.linear(x) @ self.gate

    assert "not counted: gate" in frobenius_product(landscape_of(Gated(), (5,))).method


# -- the path norm ----------------------------------------------------------------------------


def test_the_path_norm_is_a_sum_over_paths():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3, bias=False), nn.LeakyReLU(),
        nn.Linear(3, 2),
    )  # fmt: skip
    landscape = landscape_of(with_statistics(net), (3,), classes=2)
    first, second, third = linear_layers(landscape).layers
    total = 0.0
    for k, j, i in itertools.product(range(2), range(3), range(4)):
        tail = float(third.weight[k, j] * second.weight[j, i])
        starts = [*first.weight[i].tolist(), float(first.bias[i])]
        total += sum((tail * start) ** 2 for start in starts)
    total += float(third.bias.square().sum())
    assert path_norm(landscape).value == relative(total**0.5, 1e-12)


def test_paths_go_through_pooling_and_shortcuts():
    torch.manual_seed(0)
    landscape = landscape_of(with_statistics(Shortcut()), (5,))
    a, b, c = (layer.weight**2 for layer in linear_layers(landscape).layers)
    p, q, r = (layer.bias**2 for layer in linear_layers(landscape).layers)
    scale, shift = (t**2 for t in linear_layers(landscape).left["norm"])
    x = a.sum(1) + p
    h = c @ (x + b @ (scale * x + shift) + q) + r
    assert path_norm(landscape).value == relative(float(h.sum()) ** 0.5, 1e-12)
    # One input of ones, one filter: max-pooling keeps one of the equal values.
    net = nn.Sequential(nn.Conv2d(1, 2, 2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten())
    weight = net[0].weight.detach().double()
    bias = net[0].bias.detach().double()
    expected = float(weight.square().sum() + bias.square().sum()) ** 0.5
    landscape = landscape_of(net, (1, 3, 3), classes=2)
    assert path_norm(landscape).value == relative(expected, 1e-12)


@pytest.mark.parametrize("bend", [nn.Tanh(), nn.GELU(), nn.LayerNorm(4)])
def test_a_network_without_paths_is_refused(bend):
    net = nn.Sequential(nn.Linear(5, 4), bend, nn.Linear(4, 3))
    with pytest.raises(NotApplicableError, match="not positively homogeneous"):
        path_norm(landscape_of(net, (5,)))


# -- Fisher-Rao -------------------------------------------------------------------------------


def test_fisher_rao_of_a_network_without_biases_is_a_moment_of_its_outputs():
    """Liang et al. 2017, Theorem 3.1, with d = 3 layers."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(5, 6, bias=False), nn.ReLU(), nn.Linear(6, 4, bias=False), nn.ReLU(),
        nn.Linear(4, 3, bias=False),
    )  # fmt: skip
    landscape = landscape_of(net, (5,), rows=30)
    inputs, targets = next(landscape.batches())
    h = net(inputs).detach()
    p = h.softmax(1)
    own = nn.functional.one_hot(targets, 3)
    empirical = 3 * float(((p - own) * h).sum(1).square().mean()) ** 0.5
    spread = (p * h.square()).sum(1) - (p * h).sum(1).square()
    assert empirical_fisher_rao_norm(landscape).value == relative(empirical, 1e-10)
    assert fisher_rao_norm(landscape).value == relative(3 * float(spread.mean()) ** 0.5, 1e-10)


def test_nothing_depends_on_the_size_of_batches(small_net, small_data):
    whole, parts = (LossLandscape(small_net, CE, small_data, batch_size=b) for b in (41, 7))
    for m in norms.MEASURES:
        if "distance" not in m.name:
            assert m.compute(whole).value == relative(m.compute(parts).value, 1e-10)


def test_a_network_with_batch_norm_and_its_equivalent_without_have_the_same_values():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(),
        nn.Linear(36, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3),
    )  # fmt: skip
    for module in net:
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for value in (module.weight, module.bias, module.running_mean, module.running_var):
                value.data.uniform_(0.3, 2.0)
    plain = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.Identity(), nn.ReLU(), nn.Flatten(),
        nn.Linear(36, 5), nn.Identity(), nn.ReLU(), nn.Linear(5, 3),
    )  # fmt: skip
    net.double().eval(), plain.double()
    plain[7].load_state_dict(net[7].state_dict())
    for at in (0, 4):
        layer, norm = net[at], net[at + 1]
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        bias = 0.0 if layer.bias is None else layer.bias
        plain[at].weight.data = layer.weight * scale.reshape(-1, *[1] * (layer.weight.ndim - 1))
        plain[at].bias.data = scale * (bias - norm.running_mean) + norm.bias
    one, other = (landscape_of(model, (2, 5, 5), rows=40) for model in (net, plain))
    torch.testing.assert_close(one.loss(), other.loss())
    y = torch.cat([one.forward(one.parameters, x) for x, _ in one.batches()]).argmax(1)
    x = next(one.batches())[0]
    one, other = (LossLandscape(model, CE, (x, y)) for model in (net, plain))
    start = {n: p + 0.1 for n, p in one.parameters.items()}
    names = [
        "l2_norm", "frobenius_product", "spectral_product", "frobenius_sum", "spectral_sum",
        "fro_over_spec", "path_norm", "fisher_rao_norm", "empirical_fisher_rao_norm",
        "pac_bayes_flatness", "magnitude_pac_bayes_flatness", "pac_bayes_norm",
        "magnitude_pac_bayes_norm",
    ]  # fmt: skip
    folded_, expected = measure(one, names), measure(other, names)
    for name in names:
        assert folded_[name].value == pytest.approx(expected[name].value, rel=1e-9), name
    own = {n: p + 0.1 for n, p in one.parameters.items()}
    moved = one.with_state(own)
    far = distance_from_init(one, initial=start).value
    gap = folded(moved).theta - folded(one).theta
    assert far == pytest.approx(float(gap.norm()), rel=1e-12)
    assert list(folded(one).parameters) == list(other.parameters)
    torch.testing.assert_close(folded(one).theta, other.theta)
    assert "2 BatchNorms folded" in folded_["l2_norm"].method
