"""Graphs are batches whose tensors have other lengths than the targets: they are run whole."""

import pytest
import torch
from torch import nn

from planimeter import InputError, LossLandscape
from planimeter import measure as measure_all
from planimeter.errors import NotApplicableError

cross_entropy = nn.functional.cross_entropy


class Graphs(nn.Module):
    """One step of messages along the edges, and a sum over each graph."""

    def __init__(self, pool=True):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(4, 6).double(), nn.Linear(6, 3).double()
        self.pool = pool

    def forward(self, x, edges, graph=None):
        h = torch.tanh(self.first(x))
        h = self.last(h + torch.zeros_like(h).index_add(0, edges[1], h[edges[0]]))
        if not self.pool:
            return h
        sums = torch.zeros(int(graph.max()) + 1, 3, dtype=h.dtype)
        return sums.index_add(0, graph, h)


def graphs(count, seed):
    generator = torch.Generator().manual_seed(seed)
    nodes, edges, owners, offset = [], [], [], 0
    for number in range(count):
        size = 2 + number % 3
        nodes.append(torch.randn(size, 4, generator=generator, dtype=torch.float64))
        edges.append(torch.randint(0, size, (2, 3), generator=generator) + offset)
        owners.append(torch.full((size,), number))
        offset += size
    targets = torch.randint(0, 3, (count,), generator=generator)
    return (torch.cat(nodes), torch.cat(edges, 1), torch.cat(owners)), targets


def dense_trace(model, inputs, targets):
    parameters = list(model.parameters())
    loss = cross_entropy(model(*inputs), targets)
    slopes = torch.autograd.grad(loss, parameters, create_graph=True)
    total = 0.0
    for slope, parameter in zip(slopes, parameters, strict=True):
        for place, one in enumerate(slope.reshape(-1)):
            (row,) = torch.autograd.grad(one, parameter, retain_graph=True)
            total += float(row.reshape(-1)[place])
    return total


def test_graphs_are_measured_whole():
    model, (inputs, targets) = Graphs(), graphs(7, seed=1)
    landscape = LossLandscape(model, cross_entropy, (inputs, targets))
    expected = float(cross_entropy(model(*inputs), targets).detach())
    assert landscape.loss() == pytest.approx(expected, rel=1e-14)
    assert landscape.num_rows == 7
    trace = float(landscape.hessian().dense().trace())
    assert trace == pytest.approx(dense_trace(model, inputs, targets), rel=1e-10)
    right = (model(*inputs).argmax(1) == targets).double().mean()
    assert landscape.accuracy() == pytest.approx(float(right))


def test_the_nodes_of_one_graph_are_measured_whole():
    model, (inputs, _) = Graphs(pool=False), graphs(4, seed=1)
    targets = torch.arange(len(inputs[0])) % 3
    landscape = LossLandscape(model, cross_entropy, (inputs[:2], targets))
    expected = float(cross_entropy(model(*inputs[:2]), targets).detach())
    assert landscape.loss() == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("as_dict", [False, True])
def test_batches_of_graphs_weigh_by_their_graphs(as_dict):
    model, parts = Graphs(), [graphs(7, seed=1), graphs(5, seed=2)]
    names = ("x", "edges", "graph")
    batches = [
        {**dict(zip(names, i, strict=True)), "label": t} if as_dict else (*i, t) for i, t in parts
    ]
    landscape = LossLandscape(model, cross_entropy, batches)
    losses = [float(cross_entropy(model(*inputs), t).detach()) for inputs, t in parts]
    assert landscape.loss() == pytest.approx((7 * losses[0] + 5 * losses[1]) / 12, rel=1e-14)


def test_a_sum_over_graphs_in_several_batches_is_refused():
    batches = [(*inputs, targets) for inputs, targets in (graphs(7, seed=1), graphs(5, seed=2))]
    for total in (
        nn.CrossEntropyLoss(reduction="sum"),
        lambda outputs, targets: cross_entropy(outputs, targets, reduction="sum"),
    ):
        with pytest.raises(InputError, match="not a mean over rows"):
            LossLandscape(Graphs(), total, batches)
    same = LossLandscape(Graphs(), lambda h, y: cross_entropy(h, y), batches)
    assert same.loss() == LossLandscape(Graphs(), cross_entropy, batches).loss()


def test_what_needs_single_rows_is_refused_and_the_rest_goes_on():
    landscape = LossLandscape(Graphs(), cross_entropy, graphs(7, seed=1))
    with pytest.raises(NotApplicableError, match="belong together"):
        landscape.empirical_fisher()
    refused = {}
    names = ["trace", "gauss_newton_trace", "empirical_fisher_rao_norm", "keskar_sharpness"]
    found = measure_all(landscape, names, refused=refused.__setitem__)
    assert {"trace", "keskar_sharpness"} <= found.keys()
    assert "belong together" in refused["empirical_fisher_rao_norm"]


def test_a_batch_of_graphs_is_not_cut():
    with pytest.raises(InputError, match="cannot be cut into batches of 3: leave out batch_size"):
        LossLandscape(Graphs(), cross_entropy, graphs(7, seed=1), batch_size=3)


class Mixes(nn.Linear):
    """What all rows share is a matrix, and no row of anything."""

    def forward(self, x, mixing):
        return super().forward(x @ mixing)


def test_a_tensor_that_all_rows_share_stays_whole_when_rows_are_cut():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(14, 4, generator=generator, dtype=torch.float64)
    mixing = torch.randn(4, 4, generator=generator, dtype=torch.float64)
    model, targets = Mixes(4, 3, dtype=torch.float64), torch.arange(14) % 3
    whole, cut = (
        LossLandscape(model, cross_entropy, ((x, mixing), targets), batch_size=size)
        for size in (None, 5)
    )
    assert len(list(cut.batches())) == 3
    assert cut.loss() == pytest.approx(whole.loss(), rel=1e-14)
    assert torch.allclose(cut.empirical_fisher().dense(), whole.empirical_fisher().dense())
    with pytest.raises(InputError, match="one output a target"):
        LossLandscape(model, cross_entropy, ((x, mixing), targets[:9]))


def test_graphs_that_change_from_pass_to_pass_are_refused():
    class Loader:
        seed = 0

        def __iter__(self):
            self.seed += 1
            inputs, targets = graphs(5, seed=1)
            edges = torch.roll(inputs[1], self.seed, dims=1)
            yield inputs[0], edges, inputs[2], targets

    with pytest.raises(InputError, match="changes from pass to pass"):
        LossLandscape(Graphs(), cross_entropy, Loader())
