"""What both ways of differentiating inherit is found by differences, and named."""

import copy
import warnings

import pytest
import torch
from torch import nn

from planimeter.errors import InputError, MeasurementWarning
from planimeter.landscape import LossLandscape

F = nn.functional
KINDS = ("hessian", "gauss_newton", "empirical_fisher", "monte_carlo_fisher")


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(41, 4, generator=generator, dtype=torch.float64)
    return inputs, torch.randint(0, 3, (41,), generator=generator)


class Between(nn.Module):
    """A network with something in its middle."""

    def __init__(self, middle):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.middle, self.last = nn.Linear(4, 5), middle, nn.Linear(5, 3)
        self.double()

    def forward(self, x):
        return self.last(self.middle(self.first(x).tanh()))


class Called(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, h):
        return self.function(h)


def by_differences(landscape, step=1e-5):
    """The Hessian from gradients."""
    identity = torch.eye(landscape.num_parameters, dtype=torch.float64)
    ahead, behind = (
        torch.stack([landscape.at(landscape.theta + s * e).gradient() for e in identity])
        for s in (step, -step)
    )
    return (ahead - behind) / (2 * step)


# -- second derivatives --------------------------------------------------------------------------


class Once(torch.autograd.Function):
    """exp, which may be differentiated once."""

    @staticmethod
    def forward(ctx, z):
        ctx.save_for_backward(z)
        return z.exp()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, slope):
        return slope * ctx.saved_tensors[0].exp()


class Detaching(torch.autograd.Function):
    """exp, whose slope forgets what it depends on."""

    @staticmethod
    def forward(ctx, z):
        ctx.result = z.detach().exp()
        return ctx.result.clone()

    @staticmethod
    def backward(ctx, slope):
        return slope * ctx.result


class WrongSlope(torch.autograd.Function):
    """g exp(z) as a function of both, with a wrong derivative."""

    @staticmethod
    def forward(ctx, g, z):
        ctx.save_for_backward(g, z)
        return g * z.exp()

    @staticmethod
    def backward(ctx, slope):
        g, z = ctx.saved_tensors
        return slope * z.exp(), 1.1 * slope * g * z.exp()


class Wrong(torch.autograd.Function):
    """exp, whose second derivative is wrong by a tenth."""

    @staticmethod
    def forward(ctx, z):
        ctx.save_for_backward(z)
        return z.exp()

    @staticmethod
    def backward(ctx, slope):
        return WrongSlope.apply(slope, ctx.saved_tensors[0])


@pytest.mark.parametrize("function", [Once, Detaching, Wrong])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_wrong_second_derivative_is_named_and_differences_stand_in(function, dtype, data):
    right = LossLandscape(Between(Called(torch.exp)), F.cross_entropy, data).hessian().dense()
    model = Between(Called(function.apply)).to(dtype)
    landscape = LossLandscape(model, F.cross_entropy, (data[0].to(dtype), data[1]))
    name = f"'{function.__name__}' in 'middle'"
    with pytest.warns(
        MeasurementWarning, match=f"second derivative of the autograd function {name}"
    ):
        found = landscape.hessian().dense()
    torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-7)
    for insisting in ("tape", "graph", "recompute"):
        landscape = LossLandscape(model, F.cross_entropy, landscape.data, products=insisting)
        with pytest.raises(InputError, match=rf"{name}.*products='differences'"):
            landscape.hessian() @ landscape.theta


def test_every_matrix_has_its_witness(data):
    """Once is right for slopes of slopes by its argument, and wrong by the slope it is given."""
    right = LossLandscape(Between(Called(torch.exp)), F.cross_entropy, data)
    landscape = LossLandscape(Between(Called(Once.apply)), F.cross_entropy, data)
    for kind in KINDS:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", MeasurementWarning)
            found = getattr(landscape, kind)().dense()
        torch.testing.assert_close(found, getattr(right, kind)().dense(), rtol=1e-5, atol=1e-8)


def test_the_operation_is_named_and_so_is_the_loss(data):
    class Fused(nn.Module):
        def __init__(self):
            super().__init__()
            self.v, self.g = nn.Parameter(torch.randn(5, 5)), nn.Parameter(torch.ones(5, 1))

        def forward(self, h):
            return h @ torch._weight_norm(self.v, self.g, 0)

    landscape = LossLandscape(Between(Fused()), F.cross_entropy, data)
    with pytest.warns(MeasurementWarning, match="operation '_weight_norm' in 'middle'"):
        found = landscape.hessian().dense()
    torch.testing.assert_close(found, by_differences(landscape), rtol=1e-5, atol=1e-7)

    def loss(outputs, targets):
        return F.cross_entropy(Wrong.apply(0.1 * outputs), targets)

    landscape = LossLandscape(Between(nn.Identity()), loss, data)
    with pytest.warns(MeasurementWarning, match=r"of the loss \(in the autograd function 'Wrong'"):
        found = landscape.hessian().dense()
    torch.testing.assert_close(found, by_differences(landscape), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_differences_are_the_matrices(kind, dtype, data):
    model = Between(nn.GELU())
    exact = getattr(LossLandscape(model, F.cross_entropy, data), kind)()
    model = copy.deepcopy(model).to(dtype)
    landscape = LossLandscape(
        model, F.cross_entropy, (data[0].to(dtype), data[1]), products="differences", batch_size=17
    )
    found = getattr(landscape, kind)()
    tolerance = {"rtol": 1e-4, "atol": 1e-7 if dtype == torch.float64 else 1e-5}
    torch.testing.assert_close(found.dense(), exact.dense(), **tolerance)
    part = [found.restricted(["last"]).dense(), exact.restricted(["last"]).dense()]
    torch.testing.assert_close(*part, **tolerance)


def test_a_loss_without_second_derivative_has_products_by_differences():
    torch.manual_seed(0)
    lengths = torch.full((8,), 10), torch.full((8,), 3)

    def ctc(outputs, targets):
        scores = outputs.log_softmax(-1).transpose(0, 1)
        return F.ctc_loss(scores, targets, *(n[: len(targets)] for n in lengths))

    data = torch.randn(8, 10, 4).double(), torch.randint(1, 6, (8, 3))
    model = nn.Linear(4, 6).double()
    with pytest.raises(InputError, match=r"no second derivative.*products='differences'"):
        LossLandscape(model, ctc, data).hessian() @ torch.ones(30)
    landscape = LossLandscape(model, ctc, data, products="differences")
    torch.testing.assert_close(
        landscape.hessian().dense(), by_differences(landscape), rtol=1e-4, atol=1e-6
    )


# -- gradients -----------------------------------------------------------------------------------


class Reversed(torch.autograd.Function):
    """The identity, whose gradient turns round."""

    @staticmethod
    def forward(ctx, h):
        return h.clone()

    @staticmethod
    def backward(ctx, slope):
        return -slope


STRAIGHT_THROUGH = {
    "detach": lambda h: h + ((4 * h).round() / 4 - h).detach(),
    "Reversed": Reversed.apply,
    "fake_quantize_per_tensor_affine": lambda h: torch.fake_quantize_per_tensor_affine(
        h, 0.1, 0, -128, 127
    ),
}


@pytest.mark.parametrize("name", STRAIGHT_THROUGH)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_gradient_that_is_not_the_slope_is_named_once(name, dtype, data):
    model = Between(Called(STRAIGHT_THROUGH[name])).to(dtype)
    landscape = LossLandscape(model, F.cross_entropy, (data[0].to(dtype), data[1]))
    with pytest.warns(MeasurementWarning, match=f"not the slope of the loss.*{name}.* in 'middle'"):
        landscape.gradient()
    with warnings.catch_warnings():
        warnings.simplefilter("error", MeasurementWarning)
        landscape.at(landscape.theta + 1).gradient()


@pytest.mark.parametrize(
    "cut",
    [
        lambda h: h.detach(),
        lambda h: torch.from_numpy(h.detach().numpy()),
        lambda h: F.one_hot(h.argmax(1), 3).double(),
        lambda h: h.round(decimals=1).detach(),
    ],
)
def test_a_gradient_that_is_missing_is_refused(cut, data):
    model = nn.Sequential(Between(nn.Identity()), Called(cut))
    landscape = LossLandscape(model, F.cross_entropy, data)
    for call in (
        landscape.gradient,
        lambda: landscape.hessian() @ landscape.theta,
        lambda: landscape.batch_gradient(landscape.theta, data),
    ):
        with pytest.raises(InputError, match="has no gradient by any of them"):
            call()


def test_parameters_that_change_nothing_have_a_gradient_of_zero(data):
    model = Between(nn.Identity())
    model.unused = nn.Linear(2, 2).double()
    landscape = LossLandscape(model, F.cross_entropy, data)
    assert not landscape.restricted(["unused"]).gradient().any()
    assert not LossLandscape(model, lambda h, y: h.sum() * 0, data).gradient().any()


# -- parameters that the loss reaches ------------------------------------------------------------


def test_parameters_that_the_loss_reaches_are_refused(data):
    model = Between(nn.Identity())

    def penalised(h, y):
        return F.cross_entropy(h, y) + sum((p**2).sum() for p in model.parameters())

    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.log_scale = nn.Parameter(torch.zeros(()).double())

        def forward(self, h, y):
            return F.cross_entropy(h * self.log_scale.exp(), y)

    stray = torch.ones(3, dtype=torch.float64, requires_grad=True)
    for loss, words in (
        (penalised, r"model's parameter '.*shifted\(2 \* c\)"),
        (Scaled(), r"parameter of its own, 'log_scale'.*requires_grad_\(False\)"),
        (lambda h, y: F.cross_entropy(h * stray, y), r"tensor of shape \(3,\) that requires"),
    ):
        landscape = LossLandscape(model, loss, data)
        for call in (landscape.gradient, lambda a=landscape: a.hessian() @ a.theta):
            with pytest.raises(InputError, match=words):
                call()
    held = Scaled().requires_grad_(False)
    torch.testing.assert_close(
        LossLandscape(model, held, data).gradient(),
        LossLandscape(model, F.cross_entropy, data).gradient(),
    )


def test_the_way_out_of_a_penalty_is_right(data):
    """2 c on the diagonal is the Hessian of c |theta|^2."""
    model = Between(nn.Identity())
    landscape = LossLandscape(model, F.cross_entropy, data)

    def gradient(theta):
        return landscape.at(theta).gradient() + 0.2 * theta

    v = torch.randn(landscape.num_parameters, dtype=torch.float64)
    ends = [gradient(landscape.theta + s * v) for s in (1e-6, -1e-6)]
    found = landscape.hessian().shifted(2 * 0.1) @ v
    torch.testing.assert_close(found, (ends[0] - ends[1]) / 2e-6, rtol=1e-6, atol=1e-8)


# -- no false alarm ------------------------------------------------------------------------------


def _quiet(model, loss, data, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("error", MeasurementWarning)
        landscape = LossLandscape(model, loss, data, **options)
        landscape.gradient()
        for kind in ("hessian", "gauss_newton"):
            getattr(landscape, kind)() @ torch.ones(landscape.num_parameters)


def _changed(model, change):
    with torch.no_grad():
        change(model)
    return model


ORDINARY = {
    "as made": lambda m: None,
    "all zero": lambda m: [p.zero_() for p in m.parameters()],
    "no outputs": lambda m: m.last.weight.zero_(),
    "saturated": lambda m: [p.mul_(50) for p in m.parameters()],
    "confident": lambda m: m.last.weight.mul_(1e4),
    "dead": lambda m: m.first.bias.fill_(-100),
    "of unlike sizes": lambda m: (m.first.weight.mul_(1e-6), m.last.weight.mul_(1e6)),
}


@pytest.mark.parametrize("change", ORDINARY)
@pytest.mark.parametrize("middle", [nn.ReLU, nn.ELU, nn.GELU, nn.Hardswish])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_ordinary_networks_raise_no_alarm(change, middle, dtype, data):
    model = _changed(Between(middle()), ORDINARY[change]).to(dtype)
    _quiet(model, F.cross_entropy, (data[0].to(dtype), data[1]))


@pytest.mark.parametrize("scale", [1e-21, 1e21])
def test_nor_do_losses_of_any_size(scale, data):
    _quiet(Between(nn.ReLU()).float(), lambda h, y: scale * F.cross_entropy(h, y), data)


def test_nor_rows_that_are_fitted_to_the_last_digit(data):
    """The loss is 0, its gradient the tails of a softmax."""
    model = _changed(Between(nn.Identity()), lambda m: m.last.weight.mul_(1e3))
    _quiet(model, F.cross_entropy, (data[0], model(data[0]).argmax(1)))


def test_nor_kinks_everywhere(data):
    """A thousand ReLUs a row, and losses with kinks of their own."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 1000), nn.ReLU(), nn.Linear(1000, 3)).float()
    targets = torch.randn(41, 3).round()
    for loss in (F.l1_loss, F.smooth_l1_loss, F.mse_loss):
        _quiet(model, loss, (data[0].float(), targets))


def test_nor_what_is_not_in_float64(data):
    """A model that casts inside, and one that insists on bfloat16."""

    class Casting(nn.Module):
        def __init__(self, dtype):
            super().__init__()
            self.dtype, self.inner = dtype, nn.Sequential(nn.Linear(4, 5), nn.ReLU())
            self.last = nn.Linear(5, 3)

        def forward(self, x):
            return self.last(self.inner(x.float()).to(self.dtype).float())

    torch.manual_seed(0)
    for dtype in (torch.float32, torch.bfloat16):
        _quiet(Casting(dtype), F.cross_entropy, (data[0].float(), data[1]))


def test_nor_batch_statistics_and_single_rows(data):
    model = Between(nn.BatchNorm1d(5))
    _quiet(model, F.cross_entropy, data, batch_norm="train-frozen-buffers")
    for rows in (1, 2, 3):
        _quiet(Between(nn.ReLU()), F.cross_entropy, (data[0][:rows], data[1][:rows]))


def test_the_witness_leaves_no_trace(data):
    model = Between(nn.ReLU())
    before = torch.get_rng_state(), torch.get_default_dtype(), copy.deepcopy(model.state_dict())
    LossLandscape(model.float(), F.cross_entropy, (data[0].float(), data[1])).gradient()
    assert torch.equal(before[0], torch.get_rng_state())
    assert torch.get_default_dtype() is before[1]
    assert not any(module._forward_hooks for module in model.modules())


def test_a_loss_that_jumps_beside_the_parameters_is_said_to(data):
    """Whole numbers among the parameters that are rounded down, as torch's Householder map does."""
    model = Between(Called(lambda h: h * model.steps.int()))
    model.steps = nn.Parameter(torch.ones(5, dtype=torch.float64))
    landscape = LossLandscape(model, F.cross_entropy, data)
    with pytest.warns(MeasurementWarning, match="the loss jumps right beside the parameters"):
        landscape.gradient()


def test_frequent_tokens_count_like_all_others():
    """torch divides their gradient where it is asked to, which makes it another than the loss's."""
    torch.manual_seed(0)
    tokens, targets = torch.randint(0, 3, (12, 2)), torch.randint(0, 3, (12,))
    scaled = nn.Sequential(nn.Embedding(3, 2, scale_grad_by_freq=True), nn.Flatten()).double()
    plain = nn.Sequential(nn.Embedding(3, 2), nn.Flatten()).double()
    plain.load_state_dict(scaled.state_dict())

    def loss(h, y):
        return F.cross_entropy(h[:, :3], y)

    one, two = (LossLandscape(m, loss, (tokens, targets)) for m in (scaled, plain))
    torch.testing.assert_close(one.hessian().dense(), two.hessian().dense())
    assert scaled[0].scale_grad_by_freq
