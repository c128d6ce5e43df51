import copy

import pytest
import torch
from torch.nn.functional import cross_entropy

from planimeter.errors import InputError
from planimeter.training import (
    Averaging,
    Recording,
    Timetable,
    after_epochs,
    evaluate,
    fit,
    make_optimiser,
    recompute_batch_norm,
)

from .small import SETTINGS, flat, network, optimiser, rows


def weights_after(epochs, name, seen):
    """Train and copy the weights at the end of each epoch."""
    model = network(norm=False)
    fit(
        model, cross_entropy, optimiser(model, name), rows(40), batch_size=16,
        stop=after_epochs(epochs),
        progress=lambda epoch, on_train: seen.append(copy.deepcopy(model.state_dict())),
    )  # fmt: skip


@pytest.mark.parametrize(("start", "every"), [(3, 1), (2, 3), (8, 1)])
@pytest.mark.parametrize("name", ["sgd", "adamw", "padam", "entropy_sgd"])
def test_the_result_is_the_plain_mean_of_the_epochs_weights(name, start, every):
    seen: list = []
    weights_after(8, name, seen)
    epochs = range(start, 9, every)
    if name == "entropy_sgd":  # 4 batches a step, 3 an epoch: epochs 1, 2, 4, 5, 6, 8 are seen
        at = [1, 2, 4, 5, 6, 8]
        pairs = zip([0, *at], at, strict=False)
        wanted = [i for i, (p, e) in enumerate(pairs) if any(p < x <= e for x in epochs)]
        assert len(seen) == len(at)
    else:
        wanted = [e - 1 for e in epochs]
    model = network(norm=False)
    fit(
        model, cross_entropy, optimiser(model, name), rows(40), batch_size=16,
        stop=after_epochs(8), averaging=Averaging(start, every),
    )  # fmt: skip
    for key, value in model.state_dict().items():
        mean = torch.stack([seen[i][key].double() for i in wanted]).mean(0)
        torch.testing.assert_close(value.double(), mean, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("partial", [None, 0.125])
def test_gadam_and_gadamx_by_hand(partial):
    """Full-batch steps on a line: decay decoupled, one step an epoch, mean of epochs 3 to 5."""
    lr, b1, b2, eps, decay = 0.1, 0.9, 0.999, 1e-8, 0.25
    x, y = torch.tensor([[2.0]], dtype=torch.float64), torch.tensor([[3.0]], dtype=torch.float64)
    model = torch.nn.Linear(1, 1, bias=False).double()
    with torch.no_grad():
        model.weight.fill_(0.5)
    name, extra = ("adamw", {}) if partial is None else ("padam", {"decoupled": True})
    algorithm = make_optimiser(name, model.parameters(), lr=lr, weight_decay=decay, **extra)
    fit(
        model, torch.nn.functional.mse_loss, algorithm, (x, y), batch_size=None,
        stop=after_epochs(5), averaging=Averaging(3), schedule=lambda e: 1.0 if e < 2 else 0.5,
    )  # fmt: skip
    theta, m, v, largest, visited = 0.5, 0.0, 0.0, 0.0, []
    for t in range(1, 6):
        rate = lr if t <= 2 else lr / 2
        g = 2 * (2 * theta - 3) * 2
        theta -= rate * decay * theta
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        largest = max(largest, v)
        if partial is None:
            theta -= rate * (m / (1 - b1**t)) / ((v / (1 - b2**t)) ** 0.5 + eps)
        else:
            step = rate * (1 - b2**t) ** 0.5 / (1 - b1**t)
            theta -= step * m / (largest**0.5 + eps) ** (2 * partial)
        visited.append(theta)
    assert float(model.weight.detach()) == pytest.approx(sum(visited[2:]) / 3, rel=1e-12)


def test_what_is_recorded_is_the_average_with_its_own_statistics():
    model = network(dropout=0.2)
    result = fit(
        model, cross_entropy, optimiser(model), rows(40), test=rows(50, seed=9), batch_size=16,
        stop=after_epochs(6), averaging=Averaging(3), recording=Recording(Timetable(epochs=(6,))),
    )  # fmt: skip
    (record,) = result.records
    assert record.values["loss"] == evaluate(model, cross_entropy, rows(40)).loss
    assert record.values["test_errors"] == evaluate(model, cross_entropy, rows(50, seed=9)).errors
    expected = copy.deepcopy(model)
    recompute_batch_norm(expected, rows(40))
    norm = model[1].running_mean
    torch.testing.assert_close(norm, expected[1].running_mean)


def test_looking_does_not_change_the_training():
    ends = []
    for recording in (None, Recording(Timetable(every=1))):
        model = network(dropout=0.3)
        fit(
            model, cross_entropy, optimiser(model, "adamw"), rows(40), batch_size=16,
            stop=after_epochs(6), averaging=Averaging(3), recording=recording,
        )  # fmt: skip
        ends.append(flat(model))
    assert torch.equal(*ends)


def test_numbers_out_of_range_are_refused():
    with pytest.raises(InputError, match="counts epochs from 1"):
        Averaging(0)
    assert set(SETTINGS) >= {"adamw", "padam"}
