import copy

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from planimeter.errors import InputError, MeasurementWarning
from planimeter.landscape import LossLandscape
from planimeter.losses import binary_cross_entropy
from planimeter.network import evaluation_mode

cross_entropy = nn.functional.cross_entropy


def dense_hessian(model, loss, data):
    """The Hessian by torch.autograd.functional, over all trainable parameters in order."""
    named = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    theta = torch.cat([p.reshape(-1) for p in named.values()])

    def function(flat):
        pieces = flat.split([p.numel() for p in named.values()])
        state = {n: v.reshape(p.shape) for (n, p), v in zip(named.items(), pieces, strict=True)}
        return loss(torch.func.functional_call(model, state, (data[0],)), data[1])

    return torch.autograd.functional.hessian(function, theta)


def test_loss_gradient_and_hessian_agree_with_autograd(small_net, small_data, small_landscape):
    loss = cross_entropy(small_net(small_data[0]), small_data[1])
    grads = torch.autograd.grad(loss, list(small_net.parameters()))
    assert small_landscape.loss() == pytest.approx(float(loss), rel=1e-14)
    expected = torch.cat([g.reshape(-1) for g in grads])
    torch.testing.assert_close(small_landscape.gradient(), expected)
    expected = dense_hessian(small_net, cross_entropy, small_data)
    torch.testing.assert_close(small_landscape.hessian().dense(), expected)


@pytest.mark.parametrize("batch_size", [1, 7, 20, 40, 41])
def test_uneven_batches_weigh_by_their_size(small_net, small_data, small_landscape, batch_size):
    split = LossLandscape(small_net, cross_entropy, small_data, batch_size=batch_size)
    loader = DataLoader(TensorDataset(*small_data), batch_size=batch_size)
    loaded = LossLandscape(small_net, cross_entropy, loader)
    v = torch.ones(small_landscape.num_parameters)
    for other in (split, loaded):
        assert other.loss() == pytest.approx(small_landscape.loss(), rel=1e-13)
        torch.testing.assert_close(other.gradient(), small_landscape.gradient())
        torch.testing.assert_close(other.hessian() @ v, small_landscape.hessian() @ v)
        torch.testing.assert_close(other.gauss_newton() @ v, small_landscape.gauss_newton() @ v)


def test_trace_of_hessian_and_gauss_newton_agree_on_relu_nets(small_landscape):
    hessian, ggn = small_landscape.hessian().dense(), small_landscape.gauss_newton().dense()
    assert float(hessian.trace()) == pytest.approx(float(ggn.trace()), rel=1e-12)
    assert not torch.allclose(hessian, ggn)
    assert float(torch.linalg.eigvalsh(ggn)[0]) > -1e-14


@pytest.mark.parametrize("loss", [cross_entropy, nn.functional.mse_loss])
def test_gauss_newton_is_the_hessian_of_a_linear_model(small_data, loss):
    torch.manual_seed(0)
    model = nn.Linear(5, 3).double()
    targets = small_data[1] if loss is cross_entropy else torch.randn(41, 3).double()
    landscape = LossLandscape(model, loss, (small_data[0], targets))
    torch.testing.assert_close(landscape.hessian().dense(), landscape.gauss_newton().dense())


def test_gauss_newton_against_its_definition_for_a_binary_network(small_data):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    inputs, labels = small_data[0], (small_data[1] > 0).long()
    jacobian = torch.stack(
        [
            torch.cat([g.reshape(-1) for g in torch.autograd.grad(h, list(model.parameters()))])
            for h in (model(x)[0] for x in inputs)
        ]
    )
    p = torch.sigmoid(model(inputs)).reshape(-1).detach()
    expected = jacobian.T @ torch.diag(p * (1 - p) / len(p)) @ jacobian
    landscape = LossLandscape(model, binary_cross_entropy, (inputs, labels))
    torch.testing.assert_close(landscape.gauss_newton().dense(), expected)


class Unusual(nn.Module):
    """Tied weights, a frozen layer and a parameter that the loss does not use."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(5, 5)
        self.again = nn.Linear(5, 5)
        self.again.weight = self.first.weight
        self.frozen = nn.Linear(5, 3)
        self.frozen.requires_grad_(False)
        self.unused = nn.Parameter(torch.ones(2))

    def forward(self, x):
        return self.frozen(torch.tanh(self.again(torch.tanh(self.first(x)))))


def test_tied_frozen_and_unused_parameters(small_data):
    torch.manual_seed(0)
    model = Unusual().double()
    landscape = LossLandscape(model, cross_entropy, small_data)
    assert list(landscape.parameters) == ["unused", "first.weight", "first.bias", "again.bias"]
    assert landscape.num_parameters == 2 + 25 + 5 + 5
    assert torch.equal(landscape.gradient()[:2], torch.zeros(2, dtype=torch.float64))
    expected = dense_hessian(model, cross_entropy, small_data)
    torch.testing.assert_close(landscape.hessian().dense(), expected)
    assert torch.equal(landscape.gauss_newton().dense()[:2], torch.zeros(2, 37).double())


def test_a_loss_linear_in_its_parameters_has_no_curvature():
    model = nn.Linear(3, 1).double()
    landscape = LossLandscape(
        model, lambda h, y: h.mean(), (torch.ones(4, 3).double(), torch.ones(4))
    )
    assert float(landscape.hessian().dense().abs().max()) == 0
    assert float(landscape.gauss_newton().dense().abs().max()) == 0


def test_batchnorm_runs_in_eval_mode_and_is_left_as_it_was(small_data):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3))
    model = model.double().train()
    model[1](torch.randn(20, 6).double())
    model[2].eval()
    before = {name: b.clone() for name, b in model.named_buffers()}
    flags = [m.training for m in model.modules()]
    landscape = LossLandscape(model, cross_entropy, small_data)
    landscape.hessian() @ landscape.theta
    landscape.gradient()
    assert all(torch.equal(b, before[name]) for name, b in model.named_buffers())
    assert [m.training for m in model.modules()] == flags
    with evaluation_mode(model):
        expected = float(cross_entropy(model(small_data[0]), small_data[1]))
    assert landscape.loss() == pytest.approx(expected, rel=1e-13)


def test_modes_come_back_after_an_exception(small_net, small_data):
    small_net.train()
    landscape = LossLandscape(small_net, lambda h, y: h, small_data)
    with pytest.raises(InputError, match="mean over the batch"):
        landscape.loss()
    assert all(m.training for m in small_net.modules())


def test_a_landscape_does_not_change_when_its_model_is_trained(small_net, small_landscape):
    before = small_landscape.loss()
    with torch.no_grad():
        for p in small_net.parameters():
            p.add_(1.0)
    assert small_landscape.loss() == before


def test_other_points_give_the_loss_of_a_second_order_expansion(small_landscape):
    theta = small_landscape.theta
    step = 1e-4 * torch.randn(len(theta), dtype=torch.float64, generator=torch.Generator())
    gained = small_landscape.at(theta + step).loss() - small_landscape.loss()
    linear = float(small_landscape.gradient() @ step)
    quadratic = 0.5 * float(step @ (small_landscape.hessian() @ step))
    assert gained == pytest.approx(linear + quadratic, abs=1e-11)


@pytest.mark.parametrize("scale", [1e-8, 1e-6, 1e6])
def test_scaling_the_loss_scales_its_curvature(small_net, small_data, small_landscape, scale):
    scaled = LossLandscape(small_net, lambda h, y: scale * cross_entropy(h, y), small_data)
    torch.testing.assert_close(
        scaled.hessian().dense() / scale, small_landscape.hessian().dense(), rtol=1e-10, atol=1e-14
    )


def test_float32_products_agree_with_float64(small_net, small_data, small_landscape):
    exact = small_landscape.hessian().dense()
    single = LossLandscape(small_net.float(), cross_entropy, small_data).hessian()
    assert single.epsilon == torch.finfo(torch.float32).eps
    torch.testing.assert_close(single.dense(), exact, rtol=1e-4, atol=1e-6)


def test_nan_parameters_are_named(small_net, small_data):
    with torch.no_grad():
        small_net[2].weight[0, 0] = float("nan")
    with pytest.raises(InputError, match=r"'2\.weight' has 1 of 18 values that are not finite"):
        LossLandscape(small_net, cross_entropy, small_data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (iter([(torch.ones(2, 5), torch.zeros(2).long())]), "iterated again"),
        ((torch.ones(3, 5), torch.zeros(2).long()), "3 inputs and 2 targets"),
        (
            (torch.full((2, 5), float("inf")), torch.zeros(2).long()),
            "inputs of data contain values",
        ),
    ],
)
def test_unusable_data_is_refused(small_net, data, message):
    with pytest.raises(InputError, match=message):
        LossLandscape(small_net, cross_entropy, data)


def test_a_model_without_trainable_parameters_is_refused(small_net, small_data):
    with pytest.raises(InputError, match="requires a gradient"):
        LossLandscape(small_net.requires_grad_(False), cross_entropy, small_data)


def test_derivatives_do_not_vanish_inside_no_grad(small_landscape):
    gradient, hessian = small_landscape.gradient(), small_landscape.hessian().dense()
    ggn = small_landscape.gauss_newton().dense()
    with torch.no_grad():
        assert torch.equal(small_landscape.gradient(), gradient)
        assert torch.equal(small_landscape.hessian().dense(), hessian)
        assert torch.equal(small_landscape.gauss_newton().dense(), ggn)


def test_a_loss_that_is_no_mean_over_rows_is_refused(small_net, small_data):
    total = nn.CrossEntropyLoss(reduction="sum")
    with pytest.raises(InputError, match="not a mean over rows"):
        LossLandscape(small_net, total, small_data, batch_size=10)


def test_a_sum_over_the_rows_of_one_batch_is_said_to_be_one(small_net, small_data):
    total = nn.CrossEntropyLoss(reduction="sum")
    with pytest.warns(
        MeasurementWarning, match="the loss is a sum over rows: everything is 41 times"
    ):
        landscape = LossLandscape(small_net, total, small_data)
    mean = LossLandscape(small_net, cross_entropy, small_data)
    assert landscape.loss() == pytest.approx(41 * mean.loss())


def test_targets_that_do_not_fit_the_loss_are_explained(small_net, small_data):
    x, y = small_data
    for targets, message in (
        (torch.full_like(y, 3), r"int64 targets of shape \(41,\), which are 3 to 3: Target 3 is"),
        (y.double(), r"the loss does not take .* with float64 targets"),
    ):
        with pytest.raises(InputError, match=message):
            LossLandscape(small_net, cross_entropy, (x, targets))
    late = torch.cat([y, y.new_tensor([-1])])
    landscape = LossLandscape(
        small_net, cross_entropy, (torch.cat([x, x[:1]]), late), batch_size=41
    )
    with pytest.raises(InputError, match="batch 1 does not fit the loss: Target -1"):
        landscape.loss()
    with pytest.raises(InputError, match=r"use torch\.from_numpy"):
        LossLandscape(small_net, cross_entropy, (x.numpy(), y.numpy()))


def test_empty_and_misshapen_loaders_are_refused(small_net):
    with pytest.raises(InputError, match="no batches"):
        LossLandscape(small_net, cross_entropy, [])
    with pytest.raises(InputError, match="dict without targets"):
        LossLandscape(small_net, cross_entropy, [{"x": torch.ones(2, 5)}])
    with pytest.raises(InputError, match="batch_size"):
        LossLandscape(small_net, cross_entropy, (torch.ones(2, 5), torch.ones(2)), batch_size=0)


class Attentive(nn.Module):
    def __init__(self):
        super().__init__()
        self.encode = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True)
        self.read = nn.Linear(4, 3)

    def forward(self, x):
        return self.read(self.encode(x).mean(1))


def test_attention_has_second_derivatives():
    torch.manual_seed(0)
    model = Attentive().double()
    data = (torch.randn(12, 5, 4).double(), torch.randint(0, 3, (12,)))
    landscape = LossLandscape(model, cross_entropy, data)
    hessian = landscape.hessian().dense()
    assert float((hessian - hessian.T).abs().max()) == 0
    v = torch.randn(landscape.num_parameters, dtype=torch.float64)
    step = 1e-6
    up, down = (landscape.at(landscape.theta + s * step * v).gradient() for s in (1, -1))
    torch.testing.assert_close((up - down) / (2 * step), hessian @ v, rtol=1e-5, atol=1e-7)
    ggn = landscape.gauss_newton().dense()
    assert float(torch.linalg.eigvalsh(ggn)[0]) > -1e-12
    assert torch.backends.mha.get_fastpath_enabled()


def test_an_unused_module_and_unused_rows_of_an_embedding():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(4, 2), nn.Flatten(), nn.Linear(6, 2)).double()
    data = (torch.randint(0, 3, (9, 3)), torch.randint(0, 2, (9,)))
    hessian = LossLandscape(model, cross_entropy, data).hessian().dense()
    torch.testing.assert_close(hessian, dense_hessian(model, cross_entropy, data))
    assert float(hessian[6:8].abs().max()) == 0


@pytest.mark.parametrize("products", ["tape", "graph", "recompute"])
@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_curvature_scales_with_the_loss_whatever_the_way(small_net, small_data, products, scale):
    def scaled(h, y):
        return scale * cross_entropy(h, y)

    one, other = (
        LossLandscape(small_net, loss, small_data, products=products)
        for loss in (cross_entropy, scaled)
    )
    v = torch.ones(57)
    torch.testing.assert_close(
        other.hessian() @ v / scale, one.hessian() @ v, rtol=1e-10, atol=1e-14
    )
    torch.testing.assert_close(
        other.gauss_newton() @ v / scale, one.gauss_newton() @ v, rtol=1e-10, atol=1e-14
    )


def test_bfloat16_is_close_to_float32():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
    data = (torch.randn(64, 5), torch.randint(0, 3, (64,)))
    half = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
    half.load_state_dict(model.state_dict())
    exact = LossLandscape(model, cross_entropy, data)
    rough = LossLandscape(half.to(torch.bfloat16), cross_entropy, data)
    assert rough.record()["dtype"] == "bfloat16"
    assert rough.loss() == pytest.approx(exact.loss(), rel=0.02)
    for kind in ("hessian", "gauss_newton", "empirical_fisher"):
        expected, found = (getattr(ls, kind)().dense() for ls in (exact, rough))
        assert float((found - expected).norm()) < 0.04 * float(expected.norm())


def test_models_that_are_random_in_evaluation_mode_are_refused(small_net, small_data):
    class Noisy(nn.Sequential):
        def forward(self, x):
            return super().forward(nn.functional.dropout(x, 0.2))

    with pytest.raises(InputError, match=r"other outputs when it runs again.*functional dropout"):
        LossLandscape(Noisy(*small_net), cross_entropy, small_data)


def test_two_runs_are_equal_bit_by_bit(small_net, small_data):
    def run():
        loader = DataLoader(TensorDataset(*small_data), batch_size=16)
        landscape = LossLandscape(small_net.float(), cross_entropy, loader, products="tape")
        operators = (
            landscape.hessian(),
            landscape.gauss_newton(),
            landscape.empirical_fisher(),
            landscape.monte_carlo_fisher(2, seed=1),
        )
        v = torch.randn(57, 11, generator=torch.Generator().manual_seed(0))
        numbers = [landscape.gradient(), torch.tensor([landscape.loss()]).double()]
        return torch.cat(numbers + [(operator @ v).reshape(-1) for operator in operators])

    assert torch.equal(run(), run())


def test_operators_of_a_landscape_are_made_once(small_landscape):
    assert small_landscape.hessian() is small_landscape.hessian()
    assert small_landscape.hessian().restricted(["0", "2"]) is small_landscape.hessian()
    elsewhere = small_landscape.at(small_landscape.theta + 1)
    assert elsewhere.hessian() is not small_landscape.hessian()
    assert not torch.allclose(elsewhere.hessian().dense(), small_landscape.hessian().dense())


def test_relu_kinks_do_not_spoil_float32_products():
    """Finite differences of gradients cross kinks, and report an eigenvalue twice too large."""
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Linear(8, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 3)
    )
    x, y = torch.randn(60, 8), torch.randint(0, 3, (60,))
    single = LossLandscape(model, cross_entropy, (x, y)).hessian()
    exact = LossLandscape(model.double(), cross_entropy, (x.double(), y)).hessian()
    v = torch.randn(single.size, dtype=torch.float64)
    assert float((single @ v - exact @ v).norm()) < 1e-5 * float((exact @ v).norm())


def test_another_state_replaces_parameters_and_buffers(small_data):
    torch.manual_seed(0)
    norm = nn.BatchNorm1d(6)
    model = nn.Sequential(nn.Linear(5, 6), norm, nn.ReLU(), nn.Linear(6, 3)).double()
    model[0].bias.requires_grad_(False)
    landscape = LossLandscape(model, cross_entropy, small_data)
    before = landscape.loss()
    state = {
        "0.bias": torch.ones(6),
        "1.running_var": torch.full((6,), 2.0),
        "3.weight": torch.ones(3, 6),
    }
    other = landscape.with_state(state)
    model.load_state_dict({**model.state_dict(), **state})
    fresh = LossLandscape(model, cross_entropy, small_data)
    assert other.loss() == fresh.loss() != before
    assert torch.equal(other.gradient(), fresh.gradient())
    assert torch.equal(other.hessian().dense(), fresh.hessian().dense())
    assert landscape.loss() == before
    assert set(other.state) == set(model.state_dict())
    assert all(other.state[n].dtype == landscape.state[n].dtype for n in state)


def test_a_state_that_does_not_fit_is_refused(small_landscape):
    for state, message in (
        ({"4.weight": torch.ones(1)}, "no such tensor"),
        ({"0.bias": torch.ones(5)}, r"'0.bias' of shape \(5,\), the model one of shape \(6,\)"),
        ({"0.bias": torch.full((6,), torch.nan)}, "not finite"),
    ):
        with pytest.raises(InputError, match=message):
            small_landscape.with_state(state)


def test_normalised_logits_do_not_see_their_scale():
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(4, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3)
    ).double()
    x, y = torch.randn(30, 4).double(), torch.randint(0, 3, (30,))
    entropy = torch.nn.functional.cross_entropy
    plain = LossLandscape(model, entropy, (x, y))
    one = LossLandscape(model, entropy, (x, y), normalise_logits=True)
    z = model(x) - model(x).mean(1, keepdim=True)
    expected = entropy(z / z.norm(dim=1, keepdim=True), y)
    assert one.loss() == pytest.approx(float(expected), rel=1e-12)
    louder = {name: 5 * one.state[name] for name in ("2.weight", "2.bias")}
    two = one.with_state(louder)
    assert two.loss() == pytest.approx(one.loss(), rel=1e-12)
    assert two.accuracy() == plain.accuracy()
    # Curvature scales with the logits' factor alone: H in the last layer by its inverse square.
    layer = [op.hessian().restricted(["2"]).dense() for op in (one, two)]
    torch.testing.assert_close(25 * layer[1], layer[0])
    assert one.record()["logits"] == "normalised"
    assert one.hessian().dense().shape == plain.hessian().dense().shape


def test_one_output_has_no_logits_to_normalise():
    model = torch.nn.Linear(4, 1)
    data = torch.randn(9, 4), torch.randn(9, 1)
    with pytest.raises(InputError, match="several classes"):
        LossLandscape(model, torch.nn.functional.mse_loss, data, normalise_logits=True)


def test_a_restricted_landscape_is_the_loss_of_some_parameters(small_landscape):
    part = small_landscape.restricted(["2", "0.bias"])
    assert list(part.parameters) == ["0.bias", "2.weight", "2.bias"]
    assert part.held == {"0.weight"}
    assert part.num_parameters == 6 + 18 + 3
    assert part.loss() == small_landscape.loss()
    kept = torch.cat(
        [torch.arange(b.start, b.stop) for n, b in small_landscape.hessian().blocks.items()
         if n in part.parameters]
    )  # fmt: skip
    assert torch.allclose(part.gradient(), small_landscape.gradient()[kept], rtol=1e-12, atol=0)
    dense = small_landscape.hessian().dense()[kept][:, kept]
    assert torch.allclose(part.hessian().dense(), dense, rtol=1e-10, atol=1e-12)
    moved = part.at(part.theta + 0.1)
    assert torch.equal(moved.state["0.weight"], small_landscape.parameters["0.weight"])
    assert part.restricted(["2.weight"]).num_parameters == 18
    with pytest.raises(ValueError, match=r"no parameter '0\.weight'; there are 0\.bias"):
        part.restricted(["0.weight"])


def test_derivatives_of_well_fitted_rows_keep_their_digits():
    """In float32 1 - p of a row with a margin of 15 has no digit: the loss is taken in float64."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 4))
    inputs = torch.randn(30, 6)
    with torch.no_grad():
        labels = model(inputs).argmax(1)
        top = model(inputs).topk(2, dim=1).values
        sure = top[:, 0] - top[:, 1] > 0.1
        model[2].weight *= 150
        model[2].bias *= 150
    data = inputs[sure], labels[sure]
    assert sure.sum() > 10
    single = LossLandscape(model, cross_entropy, data)
    double = LossLandscape(
        copy.deepcopy(model).double(), cross_entropy, (data[0].double(), data[1])
    )
    v = torch.randn(single.num_parameters, dtype=torch.float64)

    def relative(found, expected):
        return float((found - expected).norm() / expected.norm())

    assert double.loss() < 1e-6
    assert single.loss() == pytest.approx(double.loss(), rel=1e-4)
    assert relative(single.gradient(), double.gradient()) < 1e-4
    assert relative(single.hessian() @ v, double.hessian() @ v) < 1e-4
    assert relative(single.gauss_newton() @ v, double.gauss_newton() @ v) < 1e-4
    assert relative(single.empirical_fisher() @ v, double.empirical_fisher() @ v) < 1e-3
    with torch.no_grad():
        naive = float(cross_entropy(model(data[0]), data[1]))
    assert abs(naive / double.loss() - 1) > 1e-2  # so it was worth it


def test_a_loss_that_insists_on_its_dtype_is_taken_as_it_is(small_data):
    torch.manual_seed(0)
    model = nn.Linear(5, 3)
    inputs, labels = small_data[0].float(), small_data[1]
    weighted = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 0.5]), reduction="none")

    def loss(outputs, targets):
        return weighted(outputs, targets).mean()

    landscape = LossLandscape(model, loss, (inputs, labels))
    assert landscape.loss() == pytest.approx(float(loss(model(inputs), labels)), rel=1e-6)
    assert torch.isfinite(landscape.hessian() @ torch.ones(18, dtype=torch.float64)).all()
