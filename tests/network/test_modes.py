import warnings

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import orthogonal

from planimeter.errors import InputError
from planimeter.landscape import LossLandscape
from planimeter.network import evaluation_mode

cross_entropy = nn.functional.cross_entropy


def normed():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Dropout(), nn.Linear(4, 3)
    )
    model = model.double()
    model[1](torch.randn(20, 4).double())
    model[3].eval()
    return model


def trace_of(model):
    """All that measuring must leave alone."""
    return (
        {name: value.clone() for name, value in model.state_dict().items()},
        [(m.training, getattr(m, "track_running_stats", None)) for m in model.modules()],
        torch.backends.mha.get_fastpath_enabled(),
        torch.backends.cuda.math_sdp_enabled(),
        torch.backends.cuda.flash_sdp_enabled(),
    )


def unchanged(model, before):
    buffers, *rest = trace_of(model)
    return rest == list(before[1:]) and all(
        torch.equal(value, before[0][name]) for name, value in buffers.items()
    )


def batch_statistics_loss(model, batches):
    """The loss with BatchNorm written out, as a function of the flat parameters."""
    shapes = [p.shape for p in model.parameters()]

    def loss(theta):
        pieces = theta.split([s.numel() for s in shapes])
        w1, b1, gain, shift, w2, b2 = (p.reshape(s) for p, s in zip(pieces, shapes, strict=True))
        total = 0.0
        for x, y in batches:
            h = x @ w1.T + b1
            h = (h - h.mean(0)) / (h.var(0, unbiased=False) + 1e-5).sqrt()
            total = total + len(y) * cross_entropy(torch.tanh(gain * h + shift) @ w2.T + b2, y)
        return total / sum(len(y) for _, y in batches)

    return loss, torch.cat([p.detach().reshape(-1) for p in model.parameters()])


@pytest.mark.parametrize("strategy", ["auto", "tape", "graph", "recompute"])
def test_batch_statistics_are_differentiated_and_buffers_left_alone(small_data, strategy):
    model = normed()
    before = trace_of(model)
    x, y = small_data
    batches = [(x[:30], y[:30]), (x[30:], y[30:])]
    loss, theta = batch_statistics_loss(model, batches)
    landscape = LossLandscape(
        model, cross_entropy, batches, batch_norm="train-frozen-buffers", products=strategy
    )
    assert landscape.loss() == pytest.approx(float(loss(theta)), rel=1e-13)
    expected = torch.autograd.functional.hessian(loss, theta)
    torch.testing.assert_close(landscape.hessian().dense(), expected)
    landscape.gradient()
    landscape.gauss_newton() @ theta
    assert unchanged(model, before)
    assert landscape.record()["batch_norm"] == "train-frozen-buffers"


@pytest.mark.parametrize("policy", ["eval", "train-frozen-buffers"])
@pytest.mark.parametrize("training", [True, False])
def test_everything_comes_back_after_an_exception(small_data, policy, training):
    model = normed().train(training)
    model[4].train(not training)
    before = trace_of(model)

    def measure():
        with evaluation_mode(model, policy):
            assert not model[3].training
            assert model[1].training == (policy != "eval")
            model(small_data[0])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        measure()
    assert unchanged(model, before)

    def broken(outputs, targets):
        if outputs.requires_grad:
            raise ZeroDivisionError
        return cross_entropy(outputs, targets)

    landscape = LossLandscape(model, broken, small_data, batch_norm=policy)
    with pytest.raises(ZeroDivisionError):
        landscape.gradient()
    assert unchanged(model, before)


def test_unknown_policies_are_refused(small_data):
    with pytest.raises(InputError, match="no BatchNorm policy 'train'; there are eval"):
        LossLandscape(normed(), cross_entropy, small_data, batch_norm="train")


def test_records_say_how_the_model_ran(small_net, small_data):
    plain = LossLandscape(small_net, cross_entropy, small_data).record()
    assert plain == {"dtype": "float64", "device": "cpu", "batch_norm": "none", "dropout": "none"}
    single = LossLandscape(normed().float(), cross_entropy, small_data).record()
    assert single == {"dtype": "float32", "device": "cpu", "batch_norm": "eval", "dropout": "off"}


def test_the_row_of_padding_counts_like_any_other():
    """torch sets its gradient to zero, and the derivative of that is not symmetric."""
    torch.manual_seed(0)
    embedding = nn.Embedding(5, 4, padding_idx=0)
    model = nn.Sequential(embedding, nn.Flatten(), nn.Tanh(), nn.Linear(12, 3)).double()
    tokens, y = torch.randint(0, 5, (20, 3)), torch.randint(0, 3, (20,))
    assert bool((tokens == 0).any())
    landscape = LossLandscape(model, nn.functional.cross_entropy, (tokens, y))
    hessian = landscape.hessian()
    v = torch.randn(hessian.size, dtype=torch.float64)
    step, theta = 1e-5, landscape.theta
    ahead, behind = (landscape.at(theta + s * step * v).gradient() for s in (1, -1))
    torch.testing.assert_close(hessian @ v, (ahead - behind) / (2 * step), rtol=1e-5, atol=1e-8)
    matrix = hessian @ torch.eye(hessian.size, dtype=torch.float64)
    torch.testing.assert_close(matrix, matrix.T)
    assert float(matrix[:4].abs().max()) > 0
    assert embedding.padding_idx == 0


@pytest.mark.parametrize("dim", [0, 1, None])
@pytest.mark.parametrize("form", ["parametrization", "hook"])
def test_weight_norm_has_the_hessian_of_the_same_network_written_by_hand(form, dim):
    """torch's fused operation has a wrong second derivative on the CPU."""
    wrap = torch.nn.utils.weight_norm
    if form == "parametrization":
        wrap = torch.nn.utils.parametrizations.weight_norm
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch would rather have the other form
        model = wrap(torch.nn.Linear(4, 3), dim=dim).double()
    x, y = torch.randn(14, 4).double(), torch.randint(0, 3, (14,))
    named = dict(model.named_parameters())
    assert len(named) == 3

    def loss(bias, g, v):
        over = [d for d in (0, 1) if d != dim]
        weight = g * v / v.square().sum(over, keepdim=True).sqrt()
        return torch.nn.functional.cross_entropy(x @ weight.T + bias, y)

    blocks = torch.autograd.functional.hessian(loss, tuple(named.values()))
    sizes = [p.numel() for p in named.values()]
    exact = torch.cat(
        [
            torch.cat([b.reshape(m, n) for b, n in zip(row, sizes, strict=True)], dim=1)
            for row, m in zip(blocks, sizes, strict=True)
        ]
    )
    for products in ("auto", "tape", "graph", "recompute"):
        landscape = LossLandscape(
            model, torch.nn.functional.cross_entropy, (x, y), products=products
        )
        torch.testing.assert_close(landscape.hessian().dense(), exact)


@pytest.mark.parametrize("around", ["autocast", "cached"])
def test_what_a_caller_has_on_does_not_change_the_derivatives(around):
    torch.manual_seed(0)
    model = nn.Sequential(orthogonal(nn.Linear(4, 4)), nn.Tanh(), nn.Linear(4, 3))
    rows = torch.randn(12, 4), torch.randint(0, 3, (12,))
    plain = LossLandscape(model, nn.functional.cross_entropy, rows)
    loss, gradient, hessian = plain.loss(), plain.gradient(), plain.hessian().dense()
    with torch.autocast("cpu", torch.bfloat16) if around == "autocast" else parametrize.cached():
        found = LossLandscape(model, nn.functional.cross_entropy, rows)
        assert found.loss() == pytest.approx(loss, rel=1e-6)
        torch.testing.assert_close(found.gradient(), gradient, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(found.hessian().dense(), hessian, rtol=1e-4, atol=1e-5)
        assert torch.is_autocast_enabled("cpu") == (around == "autocast")
        assert bool(parametrize._cache_enabled) == (around == "cached")
