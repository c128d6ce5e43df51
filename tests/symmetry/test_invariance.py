import json
import math

import pytest
import torch
from torch import nn

from planimeter.errors import InputError
from planimeter.landscape import LossLandscape
from planimeter.models.resnet import cifar_resnet
from planimeter.symmetry import audit
from planimeter.symmetry.invariance import CHANGES, CLAIMED, INVARIANT

from . import attention_nets
from .networks import LeNet

F = nn.functional

NAMES = [
    "top_eigenvalue", "trace", "frobenius_norm", "keskar_sharpness", "rangamani",
    "rangamani_trace", "minimum_sharpness", "relative_flatness", "relative_flatness_normalised",
    "adaptive_eigenvalue", "adaptive_trace", "adaptive_sharpness", "adaptive_sharpness_l2",
    "normalized_flat_minima", "path_norm", "fisher_rao_norm", "output_margin",
]  # fmt: skip
EXACT = {
    name: {"probes": 10**5}
    for name in (
        "trace", "frobenius_norm", "rangamani_trace", "minimum_sharpness", "relative_flatness",
        "relative_flatness_normalised", "adaptive_trace", "normalized_flat_minima",
    )
} | {"adaptive_eigenvalue": {"tolerance": 1e-6}}  # fmt: skip
# methods.md's table: what is invariant to layer rescaling, and to neuron rescaling too.
LAYER = {"rangamani", "rangamani_trace", "minimum_sharpness", "relative_flatness"}
BOTH = {
    "relative_flatness_normalised", "adaptive_eigenvalue", "adaptive_trace", "adaptive_sharpness",
    "adaptive_sharpness_l2", "normalized_flat_minima", "path_norm", "fisher_rao_norm",
    "output_margin",
}  # fmt: skip


def fitted(model, x, y, steps=150):
    optimiser = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(steps):
        optimiser.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimiser.step()
    return LossLandscape(model.eval(), F.cross_entropy, (x, y))


def mlp():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 7), nn.ReLU(), nn.Linear(7, 3)
    ).double()
    x = torch.randn(80, 6).double()
    return fitted(model, x, (x[:, :3] + 0.2 * torch.randn(80, 3)).argmax(1))


def test_the_table_of_invariances_comes_out_on_a_trained_network():
    found = audit(mlp(), NAMES, settings=EXACT, factor=5.0)
    assert list(found.changes) == ["layer", "neuron", "logits"]
    for name in found.values:
        for kind, change in found.changes.items():
            if kind == "logits":
                continue
            claimed = name in BOTH or (kind == "layer" and name in LAYER)
            if name in found.changes[kind]:
                assert change[name].verdict == (INVARIANT if claimed else CHANGES), (name, kind)
    assert set(found.to_report()) == BOTH & set(found.values)
    assert found.verdict("rangamani") == CHANGES  # neurons
    assert "batch_norm" in found.absent
    # Another confidence changes all of them, the margin above all.
    assert found.changes["logits"]["output_margin"].relative == pytest.approx(4.0, rel=1e-6)


def test_a_false_claim_is_found(monkeypatch):
    from dataclasses import replace

    from planimeter.flatness import MEASURES

    claimed = replace(MEASURES["top_eigenvalue"], invariant_to=frozenset({"layer", "neuron"}))
    monkeypatch.setitem(MEASURES, "top_eigenvalue", claimed)
    found = audit(mlp(), ["top_eigenvalue", "adaptive_eigenvalue"])
    assert found.verdict("top_eigenvalue") == CLAIMED
    assert found.to_report() == ["adaptive_eigenvalue"]


def test_lambda_max_moves_by_more_than_ten_while_s_stays():
    found = audit(mlp(), ["top_eigenvalue", "rangamani"], factor=50.0, seed=1,
                  settings={"rangamani": {"tolerance": 1e-10}})  # fmt: skip
    assert abs(math.log10(1 + found.changes["layer"]["top_eigenvalue"].relative)) > 1
    assert abs(found.changes["layer"]["rangamani"].relative) < 1e-10
    assert abs(found.changes["neuron"]["rangamani"].relative) > 0.1


@pytest.mark.parametrize("kind", ["lenet", "resnet"])
def test_convolutions_batch_norm_and_residual_streams(kind):
    torch.manual_seed(0)
    if kind == "lenet":
        model, x = LeNet(), torch.randn(24, 1, 12, 12)
        classes = model(x).shape[1]
    else:
        model, x, classes = cifar_resnet(8), torch.randn(16, 3, 32, 32), 10
    y = torch.randint(0, classes, (len(x),))
    landscape = fitted(model, x, y, steps=3)
    names = ["top_eigenvalue", "rangamani", "adaptive_eigenvalue", "fisher_rao_norm"]
    found = audit(landscape, names, factor=3.0)
    kinds = ["layer", "neuron"] + (["batch_norm"] if kind == "resnet" else [])
    assert list(found.changes) == [*kinds, "logits"]
    for k in kinds:
        assert found.changes[k]["top_eigenvalue"].verdict == CHANGES
        assert found.changes[k]["adaptive_eigenvalue"].verdict == INVARIANT
        assert found.changes[k]["fisher_rao_norm"].verdict == INVARIANT
    assert found.changes["neuron"]["rangamani"].verdict == CHANGES
    assert found.changes["layer"]["rangamani"].verdict == INVARIANT


def test_a_network_without_rescalings_says_why():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.GELU(), nn.Linear(5, 2))
    data = torch.randn(20, 4), torch.randint(0, 2, (20,))
    found = audit(LossLandscape(model, F.cross_entropy, data), ["trace"])
    assert list(found.changes) == ["logits"]
    assert "gelu" in found.absent["layer"].lower()
    assert found.verdict("trace") == "not tested"
    assert found.absent["layer"].startswith("none found")
    assert found.to_report() == []
    assert list(found.to_report().untested) == ["trace"]
    assert "not tested (no rescaling was found" in str(found)


def test_rescalings_of_attention_change_the_curvature():
    """Query against key, value against output: the loss stays, the largest eigenvalue does not."""
    torch.manual_seed(0)
    model = attention_nets.Hand().double()
    data = torch.randn(12, 6, 5).double(), torch.randint(0, 3, (12,))
    landscape = LossLandscape(model, F.cross_entropy, data)
    names = ["top_eigenvalue", "rangamani", "adaptive_eigenvalue", "fisher_rao_norm"]
    found = audit(landscape, names, settings={"adaptive_eigenvalue": {"tolerance": 1e-6}})
    assert {"q → k", "v → o"} <= set(found.names["layer"])
    assert found.verdict("top_eigenvalue") == CHANGES
    assert found.verdict("adaptive_eigenvalue") == INVARIANT
    assert found.changes["layer"]["rangamani"].verdict == INVARIANT
    assert len(str(found)) < 4000
    assert len(repr(found)) < 200


def test_a_part_of_a_matrix_is_no_layer():
    """Query and key of one matrix rescale against each other, which no layer's norm allows."""
    torch.manual_seed(0)
    model = attention_nets.Packed().double()
    data = torch.randn(12, 6, 5).double(), torch.randint(0, 3, (12,))
    found = audit(LossLandscape(model, F.cross_entropy, data), ["rangamani"])
    assert found.names["layer"] == ("o → last",)
    assert "a part of qkv → another part of it" in found.names["neuron"]
    assert found.changes["layer"]["rangamani"].verdict == INVARIANT
    assert found.changes["neuron"]["rangamani"].verdict == CHANGES


def test_a_network_that_cannot_be_traced_says_so():
    class Forks(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x):
            h = self.one(x)
            return self.two(h.relu() if float(h.sum()) > 0 else -h)

    data = torch.randn(20, 4), torch.randint(0, 2, (20,))
    found = audit(LossLandscape(Forks(), F.cross_entropy, data), ["l2_norm"])
    assert set(found.absent) == {"layer", "neuron", "batch_norm"}
    assert found.fixed


def test_records_are_json_and_settings_in_error():
    landscape = mlp()
    found = audit(landscape, ["trace", "path_norm"])
    assert json.loads(json.dumps(found.as_dict()))["verdicts"]["path_norm"] == INVARIANT
    with pytest.raises(InputError, match="factor must be above 1"):
        audit(landscape, ["trace"], factor=1.0)
    with pytest.raises(InputError, match="did you mean trace"):
        audit(landscape, ["tracy"])
