"""Kernels of the users' own modules: against brute force, finite networks, and what is refused."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from planimeter.errors import InputError
from planimeter.prior import fully_connected_kernel, nngp_kernel

W, B = 2.0, 0.25  # sigma_w^2, sigma_b^2
SIGMAS = {"sigma_w": math.sqrt(W), "sigma_b": math.sqrt(B)}


def images(n, channels=2, size=4, seed=0):
    return torch.randn(
        n, channels, size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


# -- brute force: the covariance of all pairs of positions of all pairs of images, by loops --------


def products(x):
    flat = x.flatten(2)
    return torch.einsum("ncp,mcq->nmpq", flat, flat) / x.shape[1]


def convolved(k, size, kernel, stride=1, padding=0, dilation=1):
    out = (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
    taps = [(a * dilation, b * dilation) for a in range(kernel) for b in range(kernel)]
    result = torch.zeros(*k.shape[:2], out * out, out * out, dtype=k.dtype)
    for p in range(out * out):
        for q in range(out * out):
            for dy, dx in taps:
                y, x = p // out * stride - padding + dy, p % out * stride - padding + dx
                v, u = q // out * stride - padding + dy, q % out * stride - padding + dx
                if all(0 <= i < size for i in (y, x, v, u)):
                    result[:, :, p, q] += k[:, :, y * size + x, v * size + u]
    return B + W / kernel**2 * result, out


def rectified(k):
    n, positions = len(k), k.shape[-1]
    variance = torch.stack([k[i, i].diagonal() for i in range(n)])
    norms = (variance[:, None, :, None] * variance[None, :, None, :]).sqrt()
    t = (k / norms).clamp(-1, 1).acos()
    assert t.shape == (n, n, positions, positions)
    return norms * (t.sin() + (math.pi - t) * t.cos()) / (2 * math.pi)


def pooled(k, size, kernel, stride, padding=0, *, counts_padding=True):
    out = (size + 2 * padding - kernel) // stride + 1
    means = torch.zeros(out * out, size * size, dtype=k.dtype)
    for p in range(out * out):
        for a in range(kernel):
            for b in range(kernel):
                y, x = p // out * stride - padding + a, p % out * stride - padding + b
                if 0 <= y < size and 0 <= x < size:
                    means[p, y * size + x] = 1
        means[p] /= kernel**2 if counts_padding else means[p].sum()
    return means @ k @ means.T, out


def read_out(k):
    return B + W * k.diagonal(dim1=2, dim2=3).mean(-1)


@pytest.mark.parametrize(
    "how",
    [
        {"kernel": 3, "padding": 1},
        {"kernel": 3, "stride": 2, "padding": 1},
        {"kernel": 2, "dilation": 2},
        {"kernel": 1, "padding": 2},
        {"kernel": 2, "stride": 3, "padding": 1},
    ],
)
def test_convolutions_agree_with_explicit_sums(how):
    x = images(3)
    conv = {"kernel_size" if key == "kernel" else key: value for key, value in how.items()}
    flat = nn.Sequential(nn.Conv2d(2, 3, **conv), nn.ReLU(), nn.Flatten(), nn.LazyLinear(1))
    everywhere = nn.Sequential(
        nn.Conv2d(2, 3, **conv), nn.ReLU(), nn.Conv2d(3, 3, 2, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 1),
    )  # fmt: skip
    flat(x.float())
    k, size = convolved(products(x), 4, **how)
    k = rectified(k)
    torch.testing.assert_close(nngp_kernel(flat, x, **SIGMAS), read_out(k), rtol=1e-7, atol=1e-9)
    k, size = convolved(k, size, 2, padding=1)
    k, _ = pooled(rectified(k), size, size, size)
    torch.testing.assert_close(
        nngp_kernel(everywhere, x, **SIGMAS), read_out(k), rtol=1e-7, atol=1e-9
    )


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "counts"),
    [(2, 2, 0, True), (3, 1, 1, True), (3, 2, 1, False), (2, 1, 0, True), (3, 3, 1, False)],
)
def test_pooling_between_convolutions_agrees_with_explicit_sums(kernel, stride, padding, counts):
    x = images(3, size=5)
    net = nn.Sequential(
        nn.Conv2d(2, 3, 2), nn.ReLU(),
        nn.AvgPool2d(kernel, stride, padding, count_include_pad=counts),
        nn.Conv2d(3, 3, 2, padding=1), nn.ReLU(), nn.Flatten(), nn.LazyLinear(1),
    )  # fmt: skip
    net(x.float())
    k, size = convolved(products(x), 5, 2)
    k, size = pooled(rectified(k), size, kernel, stride, padding, counts_padding=counts)
    k, _ = convolved(k, size, 2, padding=1)
    expected = read_out(rectified(k))
    torch.testing.assert_close(nngp_kernel(net, x, **SIGMAS), expected, rtol=1e-7, atol=1e-9)
    other = images(2, size=5, seed=1)
    together = nngp_kernel(net, torch.cat([x, other]), **SIGMAS)
    torch.testing.assert_close(nngp_kernel(net, x, other, **SIGMAS), together[:3, 3:])


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of a grid, by one of the ways to write it."""

    def __init__(self, channels, way="permute", **settings):
        super().__init__(channels, **settings)
        self.way = way

    def forward(self, x):
        if self.way == "movedim":
            return super().forward(x.movedim(1, -1)).movedim(-1, 1)
        if self.way == "transpose":
            return super().forward(x.transpose(1, 3)).transpose(1, 3)
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("way", ["permute", "movedim", "transpose"])
@pytest.mark.parametrize("pools", [False, True])
def test_layer_norm_over_channels_gives_every_position_the_same_variance(way, pools):
    x = images(3)
    end = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 1)]
    if not pools:
        end = [nn.Flatten(), nn.LazyLinear(1)]
    net = nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), ChannelNorm(3, way, eps=0.0), nn.ReLU(),
        nn.Conv2d(3, 3, 2), nn.ReLU(), *end,
    )  # fmt: skip
    net(x.float())
    k, size = convolved(products(x), 4, 3, padding=1)
    deviations = torch.stack([k[i, i].diagonal() for i in range(3)]).sqrt()
    k = k / deviations[:, None, :, None] / deviations[None, :, None, :]
    k, size = convolved(rectified(k), size, 2)
    k = rectified(k)
    if pools:
        k, _ = pooled(k, size, size, size)
    torch.testing.assert_close(nngp_kernel(net, x, **SIGMAS), read_out(k), rtol=1e-7, atol=1e-9)


def test_layers_on_channels_that_are_last_are_convolutions_with_one_tap():
    """A block of ConvNeXt but for its depthwise convolution, in either order of axes."""

    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.LayerNorm(4)
            self.up, self.down, self.end = nn.Linear(4, 6), nn.Linear(6, 4), nn.Linear(4, 1)

        def forward(self, x):
            x = self.stem(x)
            y = self.down(F.gelu(self.up(self.norm(x.permute(0, 2, 3, 1)))))
            return self.end((x + y.permute(0, 3, 1, 2)).mean((-2, -1)))

    class First(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.norm = nn.Conv2d(2, 4, 3, padding=1), ChannelNorm(4)
            self.up, self.down, self.end = nn.Conv2d(4, 6, 1), nn.Conv2d(6, 4, 1), nn.Linear(4, 1)

        def forward(self, x):
            x = self.stem(x).movedim(1, 3)
            y = self.down(F.gelu(self.up(self.norm(x.movedim(3, 1)))))
            return self.end((x + y.movedim(1, 3)).mean((1, 2)))

    x = images(3)
    torch.testing.assert_close(nngp_kernel(Last(), x), nngp_kernel(First(), x))


# -- laws ------------------------------------------------------------------------------------------


class Written(nn.Module):
    """A network of functions and methods, on inputs that it normalises and flattens itself."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(12, 4), nn.Linear(4, 2)
        self.register_buffer("mean", torch.full((3, 1, 1), 0.5))

    def forward(self, x):
        x = ((x - self.mean) / 0.25).view(x.size(0), -1)
        return self.two(F.dropout(self.one(x).relu(), 0.5, self.training))


def test_functions_and_methods_count_like_modules():
    x = torch.rand(5, 3, 2, 2, dtype=torch.float64)
    expected = fully_connected_kernel((x - 0.5) / 0.25, depth=1)
    torch.testing.assert_close(nngp_kernel(Written(), x), expected, rtol=1e-12, atol=1e-12)
    assert nngp_kernel(Written(), x[:1]).shape == (1, 1)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 1)

    def forward(self, x):
        h = self.first(x)
        return self.third(torch.relu(h + 0.5 * self.second(torch.relu(h))))


def test_in_place_operations_count_like_others():
    x = torch.randn(4, 3, dtype=torch.float64)
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 1))
    assert torch.equal(nngp_kernel(net, x), fully_connected_kernel(x, depth=1))


def test_a_residual_branch_adds_its_covariance():
    x = torch.randn(5, 4, dtype=torch.float64)
    h = fully_connected_kernel(x, depth=0, **SIGMAS)
    k = h + 0.25 * fully_connected_kernel(x, depth=1, **SIGMAS)
    expected = B + W * rectified(k[:, :, None, None])[..., 0, 0]
    torch.testing.assert_close(nngp_kernel(Residual(), x, **SIGMAS), expected)


@settings(deadline=None, max_examples=8)
@given(st.integers(0, 2**31), st.integers(1, 5))
def test_kernels_of_images_are_symmetric_and_positive_semidefinite(seed, n):
    net = nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1), nn.GELU(), nn.AvgPool2d(2), nn.Conv2d(3, 3, 2), nn.ReLU(),
        nn.Flatten(), nn.LayerNorm(3), nn.Linear(3, 1),
    )  # fmt: skip
    kernel = nngp_kernel(net, images(n, seed=seed))
    assert torch.equal(kernel, kernel.T)
    assert float(torch.linalg.eigvalsh(kernel)[0]) > -1e-9 * float(kernel.diagonal().max())


def test_layer_norm_after_a_linear_layer_forgets_the_length_of_the_input():
    net = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3, eps=0.0), nn.ReLU(), nn.Linear(3, 1))
    x = torch.randn(4, 4, dtype=torch.float64)
    kernel = nngp_kernel(net, x, sigma_b=0.0)
    torch.testing.assert_close(kernel, nngp_kernel(net, 7 * x, sigma_b=0.0))
    torch.testing.assert_close(kernel.diagonal(), torch.ones(4, dtype=torch.float64))


# -- finite networks -------------------------------------------------------------------------------


class Features(nn.Module):
    """Layers of a width, and a linear layer that makes the module one with a kernel."""

    def __init__(self, width, kind):
        super().__init__()
        self.body = BODIES[kind](width)
        self.end = nn.LazyLinear(1, bias=False)

    def forward(self, x):
        return self.end(self.body(x).flatten(1))


class Erf(nn.Module):
    def __init__(self, width=0):
        super().__init__()

    def forward(self, x):
        return torch.erf(x)


class PreNorm(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(8, c), nn.LayerNorm(c), nn.Linear(c, c)

    def forward(self, x):
        h = self.first(x.flatten(1))
        return F.leaky_relu(h + self.second(self.norm(F.gelu(h))), 0.1)


def vector(*layers):
    return lambda c: nn.Sequential(
        nn.Flatten(), nn.Linear(8, c), *[layer(c) for layer in layers], nn.Linear(c, c), nn.ReLU()
    )


def image(*layers):
    return lambda c: nn.Sequential(
        nn.Conv2d(2, c, 2, padding=1),
        *[layer(c) for layer in layers],
        nn.Conv2d(c, c, 1),
        nn.ReLU(),
    )


BODIES = {
    "relu, layer norm": vector(lambda c: nn.ReLU(), nn.LayerNorm),
    "layer norm, erf": vector(nn.LayerNorm, lambda c: Erf()),
    "tanh": vector(lambda c: nn.Tanh()),
    "pre-norm residual": PreNorm,
    "strided, gelu": image(lambda c: nn.GELU(), lambda c: nn.Conv2d(c, c, 2, stride=2), Erf),
    "average pooling": image(lambda c: nn.ReLU(), lambda c: nn.AvgPool2d(2, 1)),
    "layer norm over positions": image(lambda c: nn.ReLU(), lambda c: nn.GroupNorm(1, c)),
    "layer norm over channels": image(ChannelNorm, lambda c: nn.GELU()),
    "relu, layer norm over channels": image(lambda c: nn.ReLU(), ChannelNorm),
    "global pooling": lambda c: nn.Sequential(
        nn.Conv2d(2, c, 2, padding=1), nn.SiLU(), nn.AdaptiveAvgPool2d(1)
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", BODIES)
def test_finite_networks_approach_the_kernel_as_they_widen(kind):
    """Second moments of features, within 4 standard errors and a term that falls as 1/width."""
    x = images(3, size=2).float()
    small = Features(4, kind)
    small(x)
    kernel = nngp_kernel(small, x, variances={"end.weight": 1.0}, **SIGMAS)
    generator = torch.Generator().manual_seed(0)
    scale = float(kernel.diagonal().max())
    for width, networks in ((64, 80), (256, 30), (1024, 12)):
        net = BODIES[kind](width)
        found = []
        for _ in range(networks):
            for layer in net.modules():
                if isinstance(layer, nn.Linear | nn.Conv2d):
                    fan_in = layer.weight[0].numel()
                    layer.weight.data.normal_(0, math.sqrt(W / fan_in), generator=generator)
                    layer.bias.data.normal_(0, math.sqrt(B), generator=generator)
            with torch.no_grad():
                h = net(x).flatten(1).double()
            found.append(h @ h.T / h.shape[1])
        moments = torch.stack(found)
        stderr = moments.std(0) / math.sqrt(networks)
        excess = (moments.mean(0) - kernel).abs() - 4 * stderr
        assert float(excess.max()) < 2 * scale / width
        assert float(stderr.max()) < 0.05 * scale  # else nothing would have been seen


# -- what is refused -------------------------------------------------------------------------------


class Moved(nn.Module):
    """Channels last, and left there."""

    def forward(self, x):
        return x.permute(0, 2, 3, 1)


class Calls(nn.Module):
    """A network that is a function of a few layers."""

    def __init__(self, function):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 1)
        self.shift = nn.Parameter(torch.zeros(4))
        self.function = function

    def forward(self, x):
        return self.function(self, x)


REFUSED = {
    "BatchNorm1d": nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)),
    "Softmax": nn.Sequential(nn.Linear(4, 3), nn.Softmax(1), nn.Linear(3, 1)),
    "shares 'a.weight'": Calls(lambda m, x: m.c(torch.relu(m.a(torch.relu(m.a(x)))))),
    "multiplies two tensors": Calls(lambda m, x: m.c(m.a(x) * torch.sigmoid(m.b(x)))),
    "scaled_dot_product_attention": Calls(
        lambda m, x: m.c(F.scaled_dot_product_attention(m.a(x), m.b(x), x))
    ),
    "not Gaussian": Calls(lambda m, x: m.c(torch.tanh(m.b(x) + torch.relu(m.a(x))))),
    "correlated": Calls(lambda m, x: m.c((h := m.a(x)) + torch.relu(h))),
    "adds a parameter": Calls(lambda m, x: m.c(torch.relu(m.a(x) + m.shift))),
    "operation 'mul'": Calls(lambda m, x: m.c(F.linear(x, m.a.weight * 2))),
    "mixes the rows": Calls(lambda m, x: m.c(m.a(x).reshape(-1).reshape(1, -1)[:, :4])),
    "end in a Linear": nn.Sequential(nn.Linear(4, 3), nn.ReLU()),
    "a view is read later": Calls(lambda m, x: m.c(((h := m.a(x)).view(-1, 4).relu_(), h)[1])),
    "input in place": Calls(lambda m, x: m.c(x.mul_(2))),
    "no weights": nn.ReLU(),
    "'cumsum'": Calls(lambda m, x: m.c(m.a(x).cumsum(1))),
    "depends on other rows": Calls(lambda m, x: m.c(x - x.mean(0))),
    "one output tensor": Calls(lambda m, x: (m.a(x), m.c(x))),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_networks_without_a_limit_are_refused_by_name(reason):
    with pytest.raises(InputError, match=reason):
        nngp_kernel(REFUSED[reason], torch.rand(2, 4))


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.MaxPool2d(2), "MaxPool2d"),
        (nn.Linear(3, 3), "several: flatten"),
        (nn.Conv2d(4, 4, 2, groups=2), "2 groups"),
        (nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular"), "'pad'|Conv2d"),
        (nn.InstanceNorm2d(4), "InstanceNorm2d"),
        (nn.GroupNorm(2, 4), "more than one group"),
        (nn.LayerNorm(3), r"does not normalise over all features.*nor over the channels"),
        (nn.Sequential(Moved(), nn.Conv2d(3, 4, 1)), "channels were moved: move them back"),
        (nn.Sequential(Moved(), nn.AvgPool2d(2)), "channels were moved: move them back"),
        (nn.Sequential(Moved(), nn.GroupNorm(1, 3)), "channels were moved: move them back"),
        (nn.AdaptiveAvgPool2d(2), "windows of different sizes"),
        (nn.ConvTranspose2d(4, 4, 2), "ConvTranspose2d"),
        (nn.AvgPool2d(2, ceil_mode=True), "AvgPool2d"),
    ],
)
def test_layers_of_images_without_a_limit_are_refused_by_name(layer, reason):
    net = nn.Sequential(nn.Conv2d(2, 4, 2), layer, nn.Flatten(), nn.LazyLinear(1))
    x = images(2).float()
    net(x)
    with pytest.raises(InputError, match=reason):
        nngp_kernel(net, x)
