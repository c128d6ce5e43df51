import math

import pytest
import torch
from torch import nn

from planimeter.data import binary_split, load
from planimeter.ensembles import fit_ensemble
from planimeter.errors import InputError
from planimeter.losses import binary_cross_entropy, predicted_classes, row_loss
from planimeter.models.fully_connected import fully_connected
from planimeter.network.stack import ChainStack, MappedStack, stack_of
from planimeter.training import EntropySGD, Padam, fit, fit_to_zero_error

ATTACKS = (0, 13, 40, 7)  # epochs and last batches of different sizes
OPTIMISERS = [
    (torch.optim.SGD, [{"lr": 0.1}, {"lr": 0.02}, {"lr": 0.02}, {"lr": 0.1, "weight_decay": 0.2}]),
    (torch.optim.SGD, [{"lr": 0.01, "momentum": m} for m in (0.9, 0.5, 0.9, 0.0)]),
    (torch.optim.SGD, [{"lr": 0.01, "momentum": 0.9, "nesterov": True}] * 4),
    (torch.optim.Adam, [{"lr": lr} for lr in (1e-3, 2e-3, 1e-3, 5e-4)]),
    (torch.optim.Adam, [{"weight_decay": wd, "amsgrad": True} for wd in (0.0, 0.1, 0.1, 0.0)]),
    (torch.optim.AdamW, [{"weight_decay": wd} for wd in (0.0, 0.5, 0.1, 0.5)]),
    (torch.optim.Adagrad, [{"lr": 0.01}, {"lr": 0.02}, {"lr": 0.01}, {"lr_decay": 0.1}]),
    (torch.optim.RMSprop, [{"lr": 1e-3}, {"lr": 1e-3, "momentum": 0.9}, {"lr": 5e-4}, {}]),
    (Padam, [{"lr": 0.05}, {"lr": 0.1, "weight_decay": 0.01}, {"lr": 0.05}, {"partial": 0.25}]),
    (EntropySGD, [{"lr": 0.5}, {"lr": 1.0, "gamma": 0.1}, {"lr": 0.5}, {"thermal_noise": 0.01}]),
]  # fmt: skip
NAMES = [
    "sgd", "momentum", "nesterov", "adam", "amsgrad", "adamw", "adagrad", "rmsprop", "padam",
    "entropy_sgd",
]  # fmt: skip


@pytest.fixture(scope="module")
def split():
    return binary_split(load("digits"), train=80, test=200)


def network(seed):
    return fully_connected(64, (12, 8), seed=seed)


def singles(
    split, make, settings, attacks=ATTACKS, build=network, fitted=fit_to_zero_error, **options
):
    """Every network alone."""
    models, results = [], []
    for seed, (attack, own) in enumerate(zip(attacks, settings, strict=True)):
        model = build(seed)
        noise = {"seed": 10 + seed} if make is EntropySGD else {}
        optimiser = make(model.parameters(), **own, **noise)
        train = (split.train_inputs, split.train_labels)
        rows = split.attack_set(attack, seed)
        results.append(
            fitted(model, binary_cross_entropy, optimiser, train, rows, seed=seed, **options)
        )
        models.append(model)
    return models, results


def together(split, make, settings, attacks=ATTACKS, build=network, places=None, **options):
    """The same as an ensemble, or some of it."""
    places = list(range(len(attacks))) if places is None else places
    models = [build(b) for b in places]
    results = fit_ensemble(
        models,
        binary_cross_entropy,
        make,
        (split.train_inputs, split.train_labels),
        [split.attack_set(attacks[b], b) for b in places],
        settings=[settings[b] for b in places],
        seeds=places,
        noise_seeds=[10 + b for b in places],
        **options,
    )
    return models, results


def distance(one, other):
    return max(
        float((p - q).detach().abs().max() / p.detach().abs().max())
        for p, q in zip(one.parameters(), other.parameters(), strict=True)
    )


@pytest.mark.parametrize(("make", "settings"), OPTIMISERS, ids=NAMES)
def test_a_hundred_steps_are_those_of_single_runs(split, make, settings):
    options = {"max_epochs": 34, "batch_size": 29}  # 3 to 5 batches an epoch: over 100 steps
    alone, results = singles(split, make, settings, **options)
    side, found = together(split, make, settings, **options)
    assert found == results
    for one, other in zip(alone, side, strict=True):
        # Where a gradient is all rounding, Adam makes a step of it: hence not machine precision.
        assert distance(one, other) < 2e-4


def test_full_batches(split):
    settings = [{"lr": 0.1}] * 4
    alone, results = singles(
        split, torch.optim.SGD, settings, fitted=fit, batch_size=None, max_epochs=100
    )
    side, found = together(split, torch.optim.SGD, settings, batch_size=None, max_epochs=100)
    assert found == results
    assert max(map(distance, alone, side)) < 1e-5


@pytest.mark.parametrize("name", ["sgd", "adam", "entropy_sgd"])
def test_a_network_is_the_same_in_every_company(split, name):
    settings = [{"lr": 0.02 if name != "adam" else 1e-3}] * 4
    whole, results = together(split, name, settings, max_epochs=40)
    part, found = together(split, name, settings, max_epochs=40, places=[3, 1])
    assert found == [results[3], results[1]]
    for one, other in ((whole[3], part[0]), (whole[1], part[1])):
        assert all(map(torch.equal, one.parameters(), other.parameters()))


def test_each_stops_for_itself_at_the_first_epoch_without_error(split):
    settings, seen = [{"lr": 2e-3}] * 4, []
    models, results = together(split, "adam", settings, progress=lambda *now: seen.append(now))
    assert len({result.epochs for result in results}) > 1
    assert seen[-1] == (4, 4, max(result.epochs for result in results))
    for seed, (model, result) in enumerate(zip(models, results, strict=True)):
        assert result.converged
        with torch.no_grad():
            wrong = predicted_classes(model(split.train_inputs)) != split.train_labels
        assert not wrong.any()
        attack = split.attack_set(ATTACKS[seed], seed)
        with torch.no_grad():
            assert int((predicted_classes(model(attack[0])) != attack[1]).sum()) == (
                result.attack_errors
            )
        _, (before,) = together(
            split, "adam", settings, places=[seed], max_epochs=max(result.epochs - 1, 1)
        )
        assert before.train_errors > 0
        assert before.reason.startswith(f"{before.train_errors} of 80 training rows")


def test_divergence_leaves_the_others_alone(split):
    calm, wild = [{"lr": 0.05}] * 4, [{"lr": 0.05}, {"lr": 1e30}, {"lr": 0.05}, {"lr": 0.05}]
    models, results = together(split, "sgd", calm, max_epochs=30)
    again, found = together(split, "sgd", wild, max_epochs=30)
    _, (alone,) = singles(split, torch.optim.SGD, [wild[1]], ATTACKS[1:2], max_epochs=30)
    assert not found[1].converged
    assert found[1].reason in ("the loss became nan", "the loss became inf")
    assert found[1].epochs == alone.epochs
    for b in (0, 2, 3):
        assert found[b] == results[b]
        assert all(map(torch.equal, models[b].parameters(), again[b].parameters()))


class Skipping(nn.Module):
    """No chain: a skip connection, a frozen layer, and a parameter that nothing reaches."""

    def __init__(self, seed):
        super().__init__()
        self.net, self.short = fully_connected(64, (12,), seed=seed), nn.Linear(64, 1)
        self.unused = nn.Parameter(torch.ones(3))
        nn.init.constant_(self.short.weight, 0.01 * seed)
        nn.init.zeros_(self.short.bias)
        self.short.requires_grad_(False)

    def forward(self, x):
        return torch.tanh(self.net(x)) + self.short(x.flatten(1))


def test_any_module_takes_the_mapped_way(split):
    settings = [{"lr": 0.1, "weight_decay": 0.01}] * 4
    alone, results = singles(split, torch.optim.SGD, settings, build=Skipping, max_epochs=30)
    side, found = together(split, "sgd", settings, build=Skipping, max_epochs=30)
    assert found == results
    assert max(map(distance, alone, side)) < 1e-5
    assert torch.equal(side[0].unused, torch.ones(3))  # no gradient, so no decay either


def test_several_classes_and_convolutions():
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(50, 1, 6, 6, generator=generator)
    labels = torch.randint(0, 3, (50,), generator=generator)

    def build(seed):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 3)
        )

    loss = nn.functional.cross_entropy
    side = [build(seed) for seed in range(3)]
    found = fit_ensemble(
        side, loss, "adam", (inputs, labels), settings={"lr": 0.01}, seeds=range(3), max_epochs=20
    )
    for seed, (other, result) in enumerate(zip(side, found, strict=True)):
        model = build(seed)
        optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
        assert result == fit_to_zero_error(
            model, loss, optimiser, (inputs, labels), seed=seed, max_epochs=20
        )
        assert distance(model, other) < 1e-3


@pytest.mark.parametrize("classes", [1, 4])
def test_the_written_out_gradient_is_the_mapped_one(classes):
    generator = torch.Generator().manual_seed(1)
    loss = binary_cross_entropy if classes == 1 else nn.functional.cross_entropy
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(6, 5), nn.Linear(5, 7, bias=False), nn.ReLU(), nn.Linear(7, classes)
    )  # fmt: skip
    names = [name for name, _ in net.named_parameters()]
    stack = stack_of(net, row_loss(loss), names, (2, 3))
    assert isinstance(stack, ChainStack)
    mapped = MappedStack(net, names, [], stack.loss)
    parameters = [torch.randn(3, *p.shape, generator=generator).double() for p in net.parameters()]
    x = torch.randn(3, 9, 2, 3, generator=generator).double()
    y = torch.randint(0, max(classes, 2), (3, 9), generator=generator)
    weights = torch.rand(3, 9, generator=generator).double()
    slopes = [[torch.empty_like(p) for p in parameters] for _ in range(2)]
    outputs = [
        way.gradient(parameters, [], x, y, weights, out)
        for way, out in zip((stack, mapped), slopes, strict=True)
    ]
    torch.testing.assert_close(outputs[0], outputs[1])
    torch.testing.assert_close(slopes[0], slopes[1])
    state = {n: p[1].clone().requires_grad_() for n, p in zip(names, parameters, strict=True)}
    alone = torch.func.functional_call(net.double(), state, (x[1],))
    rows = torch.stack([loss(h[None], t[None]) for h, t in zip(alone, y[1], strict=True)])
    expected = torch.autograd.grad((weights[1] * rows).sum(), list(state.values()))
    for found, wanted in zip(slopes[0], expected, strict=True):
        torch.testing.assert_close(found[1], wanted)


@pytest.mark.parametrize(
    "net",
    [
        nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1)),
        nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.ReLU(), nn.LayerNorm(4)), nn.Linear(4, 1)),
    ],
)
def test_other_layers_are_no_chain(net):
    names = [name for name, _ in net.named_parameters()]
    assert isinstance(stack_of(net, row_loss(binary_cross_entropy), names, (4,)), MappedStack)


def test_what_looks_like_a_chain_and_is_none():
    layer = nn.Linear(4, 4)
    tied = nn.Sequential(layer, nn.ReLU(), layer)
    hooked = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    hooked[0].register_forward_hook(lambda module, args, out: 2 * out)
    images = nn.Sequential(nn.Linear(4, 4))  # of the last dimension of more than one
    for net, row in ((tied, (4,)), (hooked, (4,)), (images, (3, 4))):
        names = [name for name, _ in net.named_parameters()]
        assert isinstance(stack_of(net, row_loss(nn.functional.mse_loss), names, row), MappedStack)


def test_bad_input_is_refused(split):
    train = (split.train_inputs, split.train_labels)

    def attempt(models=None, loss=binary_cross_entropy, optimiser="sgd", **options):
        options = {"settings": {"lr": 0.1}} | options
        models = [network(0), network(1)] if models is None else models
        fit_ensemble(models, loss, optimiser, train, **options)

    with pytest.raises(InputError, match="at least one network"):
        attempt([])
    with pytest.raises(InputError, match="number 1 is another"):
        attempt([network(0), fully_connected(64, (12, 9))])
    with pytest.raises(InputError, match="BatchNorm"):
        attempt([nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 1))])
    with pytest.raises(InputError, match="dropout"):
        attempt([nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(64, 1))])
    with pytest.raises(InputError, match="not a mean over rows"):
        attempt(
            loss=lambda h, y: nn.functional.binary_cross_entropy_with_logits(
                h[:, 0], y.float(), reduction="sum"
            )
        )
    with pytest.raises(InputError, match="LBFGS looks at the parameters"):
        attempt(optimiser=torch.optim.LBFGS)
    with pytest.raises(InputError, match="no optimiser 'sdg'"):
        attempt(optimiser="sdg")
    with pytest.raises(InputError, match="3 seeds for 2 networks"):
        attempt(seeds=[1, 2, 3])
    with pytest.raises(InputError, match="inner_steps"):
        attempt(optimiser="entropy_sgd", settings=[{"inner_steps": 3}, {"inner_steps": 4}])
    with pytest.raises(InputError, match="at least 1"):
        attempt(max_epochs=0)
    with pytest.raises(InputError, match="batch_size 81 is larger than the 80 rows"):
        attempt(batch_size=81)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "lr"), [("sgd", 0.05), ("adam", 2e-3), ("entropy_sgd", 1.0)])
def test_epochs_to_zero_error_have_the_same_distribution(split, name, lr):
    """Rounding makes long runs part ways; what they arrive at must not differ systematically."""
    make = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "entropy_sgd": EntropySGD}[name]
    attacks, settings = (30,) * 24, [{"lr": lr}] * 24

    def build(seed):
        return fully_connected(64, seed=seed)

    _, alone = singles(split, make, settings, attacks, build)
    _, side = together(split, make, settings, attacks, build)
    assert all(result.converged for result in alone + side)
    for quantity in ("epochs", "attack_errors"):
        pairs = [
            (float(getattr(a, quantity)), float(getattr(b, quantity)))
            for a, b in zip(alone, side, strict=True)
        ]
        differences = torch.tensor([a - b for a, b in pairs])
        spread = torch.tensor([a for a, _ in pairs]).std()
        stderr = float(differences.std()) / math.sqrt(len(pairs))
        assert abs(float(differences.mean())) <= 3 * stderr + 1e-9
        assert float(differences.std()) < float(spread)  # most of them do not part at all
