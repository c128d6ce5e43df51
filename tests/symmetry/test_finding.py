"""Rescalings leave outputs alone; nothing that would not is found."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from planimeter.errors import InputError
from planimeter.models.fully_connected import fully_connected
from planimeter.models.resnet import cifar_resnet, resnet20
from planimeter.network import evaluation_mode, recorded, traced
from planimeter.symmetry import find_rescalings

from .networks import (
    Branching,
    Dense,
    LeNet,
    Residual,
    conv_net,
    grouped_net,
    images,
    outputs,
    randomised,
    state_of,
    vectors,
)

CASES = {
    "fully connected": (lambda: fully_connected(4, (8, 7), 3), vectors, [8, 7]),
    "convolutions": (conv_net, images, [4, 6, 5]),
    "LeNet": (LeNet, images, [6, 8, 12, 7]),
    "groups": (grouped_net, images, [4, 4, 6, 1]),
    "concatenation": (Dense, vectors, [3, 5, 6, 2]),
    "residual": (Residual, vectors, [6, 5]),
}


def unchanged(model, inputs, rescalings, spread=8.0):
    generator = torch.Generator().manual_seed(2)
    with evaluation_mode(model):
        before = outputs(model, state_of(model), inputs)
        for draw in (rescalings.layer_factors, rescalings.neuron_factors):
            state = rescalings.apply(state_of(model), draw(generator, spread))
            after = outputs(model, state, inputs)
            assert float((after - before).norm() / before.norm()) < 1e-12
            moved = [n for n, t in state_of(model).items() if not torch.equal(t, state[n])]
            assert moved


@pytest.mark.parametrize("name", CASES)
def test_outputs_are_unchanged_under_any_factors(name):
    make, draw, channels = CASES[name]
    model, inputs = randomised(make()), draw()
    rescalings = find_rescalings(model, inputs[:1])
    assert [r.channels for r in rescalings] == channels
    assert {r.kind for r in rescalings} == {"linear"}
    unchanged(model, inputs, rescalings)


@pytest.mark.parametrize("name", CASES)
def test_no_factor_is_counted_twice(name):
    """The parameters move in as many independent directions as there are factors."""
    make, draw, _ = CASES[name]
    model, inputs = randomised(make()), draw()
    model.eval()
    rescalings = find_rescalings(model, inputs)
    state = {n: t.detach() for n, t in state_of(model).items() if t.is_floating_point()}
    one = torch.cat([torch.ones(r.channels) for r in rescalings]).double()

    def flat(factors):
        parts = factors.split([r.channels for r in rescalings])
        with torch.no_grad():
            new = rescalings.apply(state, list(parts))
        return torch.cat([new[n].reshape(-1) for n in sorted(new)])

    step = 1e-6
    moves = torch.stack([(flat(one + step * e) - flat(one)) / step for e in torch.eye(len(one))])
    assert int(torch.linalg.matrix_rank(moves, atol=1e-4)) == len(one)


def test_batch_norm_networks_have_all_three_kinds():
    model = randomised(resnet20())
    inputs = torch.randn(3, 3, 32, 32, dtype=torch.float64)
    rescalings = find_rescalings(model, inputs[:1])
    absorbed = [r for r in rescalings if r.kind == "batch_norm"]
    inner = [r for r in rescalings if r.name.endswith(".conv2") and r.kind == "linear"]
    (stream,) = [r for r in rescalings if r.layers[0] == "bn1"]
    assert (len(rescalings), len(absorbed), len(inner)) == (29, 19, 9)
    assert [r.channels for r in inner] == [16] * 3 + [32] * 3 + [64] * 3
    # The shortcuts add channels of zeros, which take factors of their own.
    assert (stream.channels, len(stream.layers)) == (64, 10)
    assert rescalings.refused == ("'linear': its output is the network's output",)
    unchanged(model, inputs, rescalings)


def test_variances_of_zero_bound_the_factors_from_below():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.ReLU(), nn.Linear(3, 2))
    randomised(model)[1].running_var[0] = 0.0
    rescalings = find_rescalings(model, vectors())
    assert [r.kind for r in rescalings] == ["batch_norm", "linear"]
    assert float(rescalings[0].smallest[0]) == 1.0
    assert float(rescalings[0].smallest.min()) < 0.05
    unchanged(model, vectors(), rescalings, spread=10.0)
    with pytest.raises(ValueError, match=r"'1.running_var' negative: factors of 1 and more"):
        rescalings[0].apply(state_of(model), 0.5)


def test_batch_norm_without_weights_takes_no_factor_and_still_absorbs():
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3, affine=False), nn.ReLU())
    model = randomised(model.append(nn.Conv2d(3, 2, 3)))
    rescalings = find_rescalings(model, images())
    assert [r.name for r in rescalings] == ["0 → 1"]
    unchanged(model, images(), rescalings)


def test_statistics_of_the_batch_absorb_nothing():
    norm = nn.BatchNorm2d(3, track_running_stats=False)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), norm, nn.ReLU(), nn.Conv2d(3, 2, 3))
    assert "BatchNorm2d" in find_rescalings(model, images().float()).refused[0]


@pytest.mark.parametrize("pool", ["mean", "amax"])
def test_pooling_over_space_keeps_the_channels(pool):
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.linear = nn.Conv2d(1, 4, 3), nn.Linear(4, 2)

        def forward(self, x):
            return self.linear(getattr(self.conv(x).relu(), pool)(dim=(2, 3)))

    model = randomised(Pooled())
    rescalings = find_rescalings(model, images())
    assert [r.channels for r in rescalings] == [4]
    unchanged(model, images(), rescalings)


def test_channels_that_are_mixed_have_one_factor():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.linear = nn.Conv2d(1, 4, 3), nn.Linear(12 * 12, 2)

        def forward(self, x):
            return self.linear(self.conv(x).relu().mean(1).flatten(1))

    model = randomised(Mixed())
    rescalings = find_rescalings(model, images())
    assert [r.channels for r in rescalings] == [1]
    unchanged(model, images(), rescalings)


def test_reasons_name_what_is_not_homogeneous():
    model = nn.Sequential()
    for name, module in {
        "fc1": nn.Linear(4, 5),
        "act": nn.GELU(),
        "fc2": nn.Linear(5, 6),
        "norm": nn.LayerNorm(6),
        "fc3": nn.Linear(6, 2),
    }.items():
        model.add_module(name, module)
    rescalings = find_rescalings(model, vectors().float())
    # What it normalises cannot be rescaled; its scale and shift can.
    assert [r.name for r in rescalings] == ["norm → fc3"]
    assert rescalings.refused == (
        "'fc1': 'act' (GELU) is not known to be positively homogeneous",
        "'fc2': 'norm' (LayerNorm) is not known to be positively homogeneous",
        "'fc3': its output is the network's output",
    )


@pytest.mark.parametrize(
    "act",
    [
        *(F.gelu, torch.tanh, F.relu6, F.elu, F.silu, torch.exp, torch.sqrt),
        *(
            lambda x: x + 1.0,
            lambda x: x.softmax(-1),
            lambda x: x + x * x,
            lambda x: x.clamp(min=0.1),
        ),
        lambda x: F.pad(x, (0, 1), value=1.0)[..., 1:],
    ],
)
def test_what_is_not_homogeneous_is_refused(act):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(4, 3), nn.Linear(3, 2)

        def forward(self, x):
            return self.last(act(self.first(x)))

    assert len(find_rescalings(Net(), vectors().float())) == 0


def test_tied_weights_fix_what_they_touch():
    model = nn.Sequential(*[m for _ in range(5) for m in (nn.Linear(4, 4), nn.ReLU())][:-1])
    model[4].weight = model[2].weight
    rescalings = find_rescalings(model, vectors().float())
    assert [r.name for r in rescalings] == ["6 → 8"]
    assert rescalings.refused[0] == "'0': '4.weight' is used more than once"


def test_memory_shared_by_two_parameters_ties_them():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[2].weight = nn.Parameter(model[0].weight.detach())
    assert [r.name for r in find_rescalings(model, vectors().float())] == []


def test_a_module_called_twice_fixes_its_neighbours():
    shared = nn.Linear(4, 4)
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), shared, nn.ReLU(), shared, nn.ReLU())
    model.extend([nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)])
    rescalings = find_rescalings(model, vectors().float())
    assert [r.name for r in rescalings] == ["6 → 8"]
    assert "used more than once" in rescalings.refused[0]


def test_frozen_layers_are_left_alone():
    model = nn.Sequential(*[m for _ in range(4) for m in (nn.Linear(4, 4), nn.ReLU())][:-1])
    model[2].requires_grad_(False)
    rescalings = find_rescalings(model, vectors().float())
    assert [r.name for r in rescalings] == ["4 → 6"]
    assert "'2.weight' is frozen" in rescalings.refused[0]


@pytest.mark.parametrize("name", CASES)
def test_what_ran_shows_the_same_rescalings_as_the_traced_graph(name, monkeypatch):
    make, draw, _ = CASES[name]
    model, inputs = randomised(make()), draw()
    by_graph = find_rescalings(model, inputs)
    monkeypatch.setattr("planimeter.symmetry.finding.traced", recorded)
    by_running = find_rescalings(model, inputs)
    assert [r.name for r in by_running] == [r.name for r in by_graph]
    assert [r.channels for r in by_running] == [r.channels for r in by_graph]
    unchanged(model, inputs, by_running)


def test_a_way_that_depends_on_the_input_leaves_the_rescalings_of_what_ran(capfd):
    class Either(LeNet):
        def forward(self, x):
            return super().forward(x if float(x.sum()) > 0 else -x)

    model, inputs = randomised(Either()), images()
    with pytest.raises(InputError, match="depends on the values of the data"):
        traced(model, inputs)
    rescalings = find_rescalings(model, inputs)
    assert capfd.readouterr() == ("", "")
    assert [r.channels for r in rescalings] == [6, 8, 12, 7]
    unchanged(model, inputs, rescalings)


def test_a_layer_that_decides_the_way_is_left_alone():
    rescalings = find_rescalings(Branching(), vectors().float())
    assert len(rescalings) == 0
    assert "'first': the operation 'gt'" in rescalings.refused[0]


@pytest.mark.parametrize("graph", [traced, recorded])
def test_a_number_read_out_of_an_activation_is_no_constant(graph, monkeypatch):
    monkeypatch.setattr("planimeter.symmetry.finding.traced", graph)

    class Normalised(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.last = nn.Linear(4, 3), nn.Linear(3, 3), nn.Linear(3, 2)

        def forward(self, x):
            y = self.first(x).relu()
            return self.last(self.second(y / y.max().item()).relu())

    rescalings = find_rescalings(randomised(Normalised()), vectors())
    assert [r.layers for r in rescalings] == [("second",)]
    assert "'first': the operation" in rescalings.refused[0]


def test_a_model_that_cannot_run_has_none_and_says_why():
    class Broken(nn.Module):
        def forward(self, x):
            raise RuntimeError("no such luck")

    assert "no such luck" in find_rescalings(Broken(), vectors()).refused[0]


def test_zeros_that_are_overwritten_in_place_are_not_followed():
    class Overwritten(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(4, 3), nn.Linear(5, 2)

        def forward(self, x):
            padded = F.pad(self.first(x).relu(), (0, 2))
            padded[:, 3:] += x[:, :2]
            return self.last(padded)

    rescalings = find_rescalings(Overwritten(), vectors().float())
    assert len(rescalings) == 0
    assert "in place" in rescalings.refused[0]


def test_several_inputs_and_named_inputs():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right, self.last = nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(3, 2)

        def forward(self, x, y):
            return {"logits": self.last(torch.maximum(self.left(x), self.right(y)))}

    x = vectors().float()
    for example in ((x, x), {"x": x, "y": x}):
        (rescaling,) = find_rescalings(Two(), example)
        assert (rescaling.name, rescaling.channels) == ("left + right → last", 3)


@pytest.mark.parametrize(
    ("make", "count"),
    [("transformer", 4), ("attention", 4), ("chain", 3), ("recurrent", 0), ("indexed", 1)],
)
def test_other_architectures_are_safe(make, count):
    """Whatever is found there leaves the outputs alone; what is not known fixes its factors."""

    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.position = nn.Embedding(9, 8), nn.Parameter(torch.randn(5, 8))
            self.layer = {
                "transformer": lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
                "attention": lambda: nn.MultiheadAttention(8, 2, batch_first=True),
                "chain": lambda: nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 8)),
                "recurrent": lambda: nn.GRU(8, 8, batch_first=True),
                "indexed": lambda: nn.Conv1d(5, 5, 1),
            }[make]()
            self.head = nn.Linear(8, 3)

        def forward(self, tokens):
            x = self.embed(tokens) + self.position
            x = self.layer(x, x, x) if make == "attention" else self.layer(x)
            x = x[0] if isinstance(x, tuple) else x
            if make == "indexed":
                x = x.relu()[:, torch.tensor([0, 3, 1, 2, 4])]
            return self.head(x.mean(1))

    model = randomised(Tokens())
    tokens = torch.randint(0, 9, (3, 5), generator=torch.Generator().manual_seed(0))
    rescalings = find_rescalings(model, tokens)
    assert len(rescalings) == count
    assert rescalings.refused
    if len(rescalings):
        unchanged(model, tokens, rescalings)


def test_a_layer_that_nothing_reads_is_not_rescaled():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.idle, self.last = nn.Linear(4, 3), nn.Linear(4, 2)

        def forward(self, x):
            self.idle(x)
            return self.last(x)

    assert len(find_rescalings(Idle(), vectors().float())) == 0


def test_model_and_random_state_are_left_alone():
    model = cifar_resnet(8)
    model.layer1.eval()
    flags = [m.training for m in model.modules()]
    before = {n: t.clone() for n, t in model.state_dict().items()}
    state = torch.get_rng_state()
    find_rescalings(model, torch.zeros(1, 3, 32, 32))
    assert torch.equal(state, torch.get_rng_state())
    assert flags == [m.training for m in model.modules()]
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
