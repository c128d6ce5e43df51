import random
from collections import UserDict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from planimeter.errors import InputError
from planimeter.landscape import LossLandscape, data
from planimeter.landscape.data import BatchData

cross_entropy = nn.functional.cross_entropy


def batch_data(rows, **options):
    given = {"batch_size": 16, "device": torch.device("cpu"), "dtype": torch.float64}
    return BatchData(rows, **{**given, **options})


class Augmented(Dataset):
    """Rows with noise that is drawn again every time."""

    def __init__(self, inputs, targets):
        self.inputs, self.targets = inputs, targets

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, i):
        return self.inputs[i] + 0.1 * torch.randn(5), self.targets[i]


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda d: DataLoader(TensorDataset(*d), 8, shuffle=True), r"is shuffled.*shuffle=False"),
        (lambda d: DataLoader(TensorDataset(*d), 41, shuffle=True), "is shuffled"),
        (lambda d: DataLoader(Augmented(*d), 8), "changes from pass to pass.*augmentation"),
        (
            lambda d: DataLoader(TensorDataset(*d), 8, shuffle=True, drop_last=True),
            "changes from pass to pass.*drop_last",
        ),
        (lambda d: TensorDataset(*d), "got a TensorDataset: pass a DataLoader"),
        (lambda d: [d[0], None], "targets must be a tensor, got a NoneType"),
        (lambda d: (d[0], d[1].tolist()), "targets must be a tensor, got a list"),
        (lambda d: map(tuple, [d]), "got a one-shot map"),
        (lambda d: (d[0], d[0], d[1]), "batch 0 is no pair of tensors"),
        (lambda d: [(d[0], d[1][:3])], "batch 0 has 41 inputs and 3 targets"),
        (lambda d: [d, (d[0] / 0, d[1])], "inputs of batch 1 contain values"),
    ],
)
def test_data_that_gives_no_fixed_mean_is_refused_with_the_reason(small_data, make, reason):
    with pytest.raises(InputError, match=reason):
        batch_data(make(small_data))


class OneShot:
    """Iterable again and again, but with rows in the first pass alone."""

    def __init__(self, batch):
        self.batches = iter([batch])

    def __iter__(self):
        return self.batches


def test_data_for_one_pass_is_refused(small_data):
    with pytest.raises(InputError, match="iterated only once"):
        batch_data(OneShot(small_data))


@pytest.mark.parametrize("kept", [True, False])
def test_loaders_give_their_rows_in_order(small_data, monkeypatch, kept):
    if not kept:
        monkeypatch.setattr(data, "free_memory", lambda device: 0)
    loader = DataLoader(TensorDataset(*small_data), 16)
    rows = batch_data(loader, dtype=torch.float32)
    assert isinstance(rows.loader, list) == kept
    for _ in range(2):
        inputs, targets = (torch.cat(parts) for parts in zip(*rows, strict=True))
        assert torch.equal(inputs, small_data[0].float())
        assert torch.equal(targets, small_data[1])


class Reused:
    """Batches that come in the same memory, as fast loaders yield them."""

    def __init__(self, inputs, targets):
        self.inputs, self.targets = inputs, targets

    def __iter__(self):
        memory = torch.empty_like(self.inputs[:20])
        for start in (0, 20):
            yield memory.copy_(self.inputs[start : start + 20]), self.targets[start : start + 20]


def test_batches_in_memory_that_is_used_again_are_not_kept(small_data):
    rows = [inputs.clone() for inputs, _ in batch_data(Reused(*small_data))]
    assert torch.equal(torch.cat(rows), small_data[0][:40])


def states():
    numpy_state = np.random.get_state()[1].tolist()  # noqa: NPY002
    return torch.get_rng_state().tolist(), random.getstate(), numpy_state


@pytest.mark.parametrize("kept", [True, False])
def test_the_global_random_state_is_untouched(small_net, small_data, monkeypatch, kept):
    if not kept:
        monkeypatch.setattr(data, "free_memory", lambda device: 0)
    monkeypatch.setattr(torch, "manual_seed", None)  # reseeds every device
    loader = DataLoader(TensorDataset(*small_data), 16)
    before = states()
    landscape = LossLandscape(small_net, cross_entropy, loader, memory_budget=2**20)
    landscape.loss(), landscape.gradient(), landscape.accuracy(), list(landscape.batches())
    next(landscape.batches())
    for operator in (
        landscape.hessian(),
        landscape.gauss_newton(),
        landscape.empirical_fisher(),
        landscape.monte_carlo_fisher(),
    ):
        operator.noise()
        operator @ torch.ones(operator.size, 8)
    list(landscape.minibatches(5, torch.Generator()))
    assert states() == before


def test_a_caller_who_draws_between_batches_draws_new_numbers(small_data, monkeypatch):
    monkeypatch.setattr(data, "free_memory", lambda device: 0)
    rows = batch_data(DataLoader(TensorDataset(*small_data), 16))
    first, second = ([float(torch.rand(())) for _ in rows] for _ in range(2))
    assert len({*first, *second}) == 6


def test_an_epoch_of_minibatches_has_every_row_once(small_data):
    inputs, targets = small_data
    mixed = {"x": inputs, "pair": (inputs[:, 0], targets), "scale": torch.tensor(2.0), "flag": True}
    epoch = list(batch_data((mixed, targets)).shuffled(16, torch.Generator().manual_seed(0)))
    assert [len(batch[1]) for batch in epoch] == [16, 16, 9]
    x = torch.cat([batch[0]["x"] for batch in epoch])
    first = torch.cat([batch[0]["pair"][0] for batch in epoch])
    assert not torch.equal(x, inputs)
    assert torch.equal(x[:, 0], first)
    assert torch.equal(x.sort(0).values, inputs.sort(0).values)
    assert all(batch[0]["flag"] is True and batch[0]["scale"] == 2 for batch in epoch)


# -- what a batch may be --------------------------------------------------------------------------


class Tokens(nn.Module):
    """Called as language models are: masked mean of embeddings, outputs in an object."""

    def __init__(self):
        super().__init__()
        self.embed, self.read = nn.Embedding(6, 4), nn.Linear(4, 3)

    def forward(self, input_ids, attention_mask=None, return_dict=True):
        mask = attention_mask[..., None].to(self.embed.weight.dtype)
        h = (torch.tanh(self.embed(input_ids)) * mask).sum(1) / mask.sum(1)
        logits = self.read(h)
        return SimpleNamespace(logits=logits) if return_dict else {"logits": logits}


def tokens():
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(0, 6, (41, 5), generator=generator)
    mask = (torch.arange(5) < torch.randint(1, 6, (41, 1), generator=generator)).long()
    return {"input_ids": ids, "attention_mask": mask}, torch.randint(0, 3, (41,))


def test_dicts_objects_with_logits_and_labels():
    torch.manual_seed(0)
    model, (inputs, labels) = Tokens().double(), tokens()
    parts = [slice(0, 20), slice(20, 40), slice(40, 41)]
    cut = [{key: value[part] for key, value in inputs.items()} for part in parts]
    forms = {
        "tensors": (inputs, labels),
        "as dict": ({**inputs, "return_dict": False}, labels),
        "labels in the batch": [
            {**c, "labels": labels[p]} for c, p in zip(cut, parts, strict=True)
        ],
        "dicts of another kind": [
            UserDict({**c, "label": labels[p]}) for c, p in zip(cut, parts, strict=True)
        ],
        "pairs": [(c, labels[p]) for c, p in zip(cut, parts, strict=True)],
    }
    expected = cross_entropy(model(**inputs).logits, labels)
    slopes = torch.autograd.grad(expected, list(model.parameters()))
    hessian = None
    for form, rows in forms.items():
        landscape = LossLandscape(model, cross_entropy, rows, batch_size=20)
        assert landscape.loss() == pytest.approx(float(expected.detach()), rel=1e-13), form
        torch.testing.assert_close(landscape.gradient(), torch.cat([s.reshape(-1) for s in slopes]))
        hessian = landscape.hessian().dense() if hessian is None else hessian
        v = torch.ones(len(hessian)).double()
        torch.testing.assert_close(landscape.hessian() @ v, hessian @ v)
        assert landscape.num_rows == 41
    with pytest.raises(InputError, match="dict without targets: it has input_ids, attention_mask"):
        LossLandscape(model, cross_entropy, cut)


class Bilinear(nn.Module):
    def __init__(self):
        super().__init__()
        self.form = nn.Bilinear(5, 5, 3)

    def forward(self, x1, x2):
        return self.form(x1, x2)


def test_models_of_several_inputs(small_data):
    torch.manual_seed(0)
    model, (x, y) = Bilinear().double(), small_data
    z = x.flip(0)
    loaders = [
        ((x, z), y),
        ([x, z], y),
        DataLoader(TensorDataset(x, z, y), 16),
        [((x[:20], z[:20]), y[:20]), ((x[20:], z[20:]), y[20:])],
    ]
    expected = cross_entropy(model(x, z), y).item()
    losses = [LossLandscape(model, cross_entropy, rows, batch_size=16).loss() for rows in loaders]
    assert losses == pytest.approx([expected] * 4, rel=1e-13)


def test_a_model_must_return_a_tensor(small_net, small_data):
    class Pair(nn.Sequential):
        def forward(self, x):
            return super().forward(x), x

    with pytest.raises(InputError, match="returned a tuple"):
        LossLandscape(Pair(*small_net), cross_entropy, small_data)
