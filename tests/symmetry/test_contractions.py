"""Activations that are multiplied make up for each other, and only where they do."""

import pytest
import torch
import torch.nn.functional as F

from planimeter.network import evaluation_mode, recorded
from planimeter.symmetry import find_rescalings

from .attention_nets import (
    Between,
    Bilinear,
    Cut,
    Einsum,
    Fused,
    Gated,
    Hand,
    Heads,
    Masked,
    Multihead,
    Overlapping,
    Packed,
    SelfScores,
)
from .networks import outputs, randomised, state_of

HAND = ["q → k", "v → o", "o → last"]
PACKED = ["qkv → o", "a part of qkv → another part of it", "o → last"]
MULTIHEAD = ["e → m", "m → m.out_proj", "a part of m → another part of it", "m.out_proj → h"]
CASES = {
    "hand-written": (Hand, HAND),
    "scaled_dot_product_attention": (Fused, HAND),
    "einsum": (Einsum, HAND),
    "bmm and a mask": (Masked, HAND),
    "one matrix": (Packed, PACKED),
    "parts of a parameter": (Cut, ["w + b → o", "a part of w + b → another part of it"]),
    "a matrix for each head": (Heads, ["q → k", "v → o"]),
    "MultiheadAttention": (Multihead, MULTIHEAD),
    "its weights": (lambda: Multihead(weights=True), MULTIHEAD),
    "other queries": (lambda: Multihead(rows=2), MULTIHEAD),
    "no biases": (lambda: Multihead(bias=False), MULTIHEAD),
    "biases of key and value": (lambda: Multihead(add_bias_kv=True), ["e → m", "m.out_proj → h"]),
    "gate by silu": (lambda: Gated(F.silu), ["a → c"]),
    "gate by relu": (lambda: Gated(F.relu), ["a → b", "b → c"]),
    "glu": (lambda: Between(F.glu, 4), ["a → c"]),
    "square": (lambda: Between(lambda y: y.relu().square()), ["a → c"]),
    "third power": (lambda: Between(lambda y: y * y * y), ["a → c"]),
    "bilinear": (Bilinear, ["a → w", "b → w", "w → c"]),
    "query is key": (SelfScores, ["v → o", "o → last"]),
    "rows of two layers": (Overlapping, []),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("graph", ["traced", "recorded"])
def test_products_are_rescaled_without_a_change(name, graph, monkeypatch):
    if graph == "recorded":
        monkeypatch.setattr("planimeter.symmetry.finding.traced", recorded)
    make, names = CASES[name]
    model = randomised(make())
    x = torch.randn(4, 6, 5, generator=torch.Generator().manual_seed(1)).double()
    rescalings = find_rescalings(model, x[:2])
    if graph == "traced":  # what runs may be taken apart further, and shows less
        assert [r.name for r in rescalings] == names
    if not len(rescalings):
        return
    generator = torch.Generator().manual_seed(2)
    with evaluation_mode(model):
        before = outputs(model, state_of(model), x)
        for draw in (rescalings.layer_factors, rescalings.neuron_factors):
            state = rescalings.apply(state_of(model), draw(generator, 5.0))
            after = outputs(model, state, x)
            assert float((after - before).norm() / before.norm()) < 1e-12


def test_query_times_five_is_key_over_five():
    model = randomised(Hand())
    rescaling = find_rescalings(model, torch.randn(2, 6, 5).double())[0]
    state = state_of(model)
    with torch.no_grad():
        new = rescaling.apply(state, 5.0)
    for kind in ("weight", "bias"):
        assert torch.allclose(new[f"q.{kind}"], 5 * state[f"q.{kind}"], rtol=1e-15)
        assert torch.allclose(new[f"k.{kind}"], state[f"k.{kind}"] / 5, rtol=1e-15)
    assert all(new[n] is state[n] for n in state if n[0] not in "qk")


def test_a_frozen_key_holds_the_query():
    model = Hand()
    model.k.requires_grad_(False)
    rescalings = find_rescalings(model, torch.randn(2, 6, 5))
    assert [r.name for r in rescalings] == ["v → o", "o → last"]
    assert any(reason.startswith("'k':") and "frozen" in reason for reason in rescalings.refused)
