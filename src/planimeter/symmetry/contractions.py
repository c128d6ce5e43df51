r"""Products of two tensors under a sum: layers, scores of attention, bilinear forms.

With a parameter, :math:`y_f = \sum_c x_c W_{cf}` reads the units of x and writes those of y. Of
two activations, every term :math:`x_c y_c` of a sum has to have the same unit, the product of both.
"""

from __future__ import annotations

from string import ascii_letters
from typing import TYPE_CHECKING, Any

from torch import Tensor, fx

from planimeter.network import described

if TYPE_CHECKING:
    from planimeter.symmetry.homogeneity import Flow

LARGEST = 2**22
"""Products of more terms than that are not followed."""


def contracted(flow: Flow, node: fx.Node, name: str, given: dict[str, Any]) -> Tensor | None:
    """The units of linear, matmul, mm, bmm, einsum, addmm and baddbmm; None if not followed."""
    if name == "einsum":
        return _einsum(flow, node, given)
    if name == "linear":
        x, weight = given["input"], given["weight"]
        rest = ascii_letters[2 : 1 + flow.units_of(x).ndim]
        product = _product(flow, node, (x, rest + "a"), (weight, "ba"), rest + "b")
        return _with_bias(flow, node, given["bias"], product)
    operands = list(given.values())
    if name in ("addmm", "baddbmm"):
        if given["beta"] != 1 or given["alpha"] != 1:
            return None
        product = _matmul(flow, node, *operands[1:3])
        return _with_bias(flow, node, operands[0], product)
    return _matmul(flow, node, *operands[:2])


def attention(flow: Flow, node: fx.Node, given: dict[str, Any]) -> Tensor | None:
    """Softmax fixes the scores, so that query and key make up for each other; values pass on."""
    query, key, value = (flow.units_of(given[k]) for k in ("query", "key", "value"))
    if given["dropout_p"] or given.get("enable_gqa") or not query.ndim == key.ndim == value.ndim:
        return None
    scores = _summed(flow, node, query.unsqueeze(-2), key.unsqueeze(-3))
    if scores is None:
        return None
    flow.units.fix(scores, f"{described(node)} takes the softmax of its scores")
    mask = given.get("attn_mask")
    if isinstance(mask, fx.Node):
        flow.units.fix(flow.units_of(mask), f"{described(node)} adds it to its scores")
    return flow.units.together(value, [-2]).expand(node.meta["val"].shape)


def bilinear(flow: Flow, node: fx.Node, given: dict[str, Any]) -> Tensor | None:
    r""":math:`y_o = \sum_{ij} x_i W_{oij} z_j`."""
    left, right, weight = (given[k] for k in ("input1", "input2", "weight"))
    if flow.parameter(weight) is None:
        return None
    reads = [
        flow.units.together(u, range(u.ndim - 1)).reshape(-1)
        for u in (flow.units_of(left), flow.units_of(right))
    ]
    written = flow.units.new(flow.units_of(weight).shape[0])
    flow.use(weight, 1, written[:, None, None])
    flow.use(weight, -1, reads[0][None, :, None])
    flow.use(weight, -1, reads[1][None, None, :])
    return _with_bias(flow, node, given["bias"], written.expand(node.meta["val"].shape))


def _einsum(flow: Flow, node: fx.Node, given: dict[str, Any]) -> Tensor | None:
    equation, operands = str(given["equation"]).replace(" ", ""), list(given["tensors"])
    indices, arrow, result = equation.partition("->")
    parts = indices.split(",")
    if not arrow or "." in equation or len(parts) != 2 or len(operands) != 2:
        return None
    return _product(flow, node, (operands[0], parts[0]), (operands[1], parts[1]), result)


def _matmul(flow: Flow, node: fx.Node, left: fx.Node, right: fx.Node) -> Tensor | None:
    one, other = flow.units_of(left).ndim, flow.units_of(right).ndim
    if other < 2 or one < 1:
        return None
    if other == 2:
        rest = ascii_letters[2 : 1 + one]
        return _product(flow, node, (left, rest + "a"), (right, "ab"), rest + "b")
    if one < 2:
        return None
    batch = ascii_letters[3 : 1 + max(one, other)]
    here, there = (batch[len(batch) - n + 2 :] for n in (one, other))
    return _product(flow, node, (left, here + "ca"), (right, there + "ab"), batch + "cb")


def _product(
    flow: Flow,
    node: fx.Node,
    left: tuple[fx.Node, str],
    right: tuple[fx.Node, str],
    result: str,
) -> Tensor | None:
    """A contraction by its indices, each of which stands once in an operand."""
    for (operand, own), (other, others) in ((left, right), (right, left)):
        if len(set(own)) != len(own) or flow.units_of(operand).ndim != len(own):
            return None
        if flow.parameter(operand) is not None and flow.parameter(other) is None:
            return _layer(flow, node, (other, others), (operand, own), result)
    (one, here), (two, there) = left, right
    order = result + "".join(sorted({*here, *there} - set(result)))
    units = _summed(
        flow,
        node,
        _aligned(flow.units_of(one), here, order),
        _aligned(flow.units_of(two), there, order),
        len(order) - len(result),
    )
    return None if units is None else units.expand(node.meta["val"].shape)


def _layer(
    flow: Flow,
    node: fx.Node,
    of: tuple[fx.Node, str],
    weight: tuple[fx.Node, str],
    result: str,
) -> Tensor | None:
    """A parameter that reads the units of the indices it is summed over, and writes the others."""
    (x, indices), (parameter, own) = of, weight
    units, shape = flow.units_of(x), flow.units_of(parameter).shape
    sizes = dict(zip(own, shape, strict=True))
    seen = dict(zip(indices, units.shape, strict=True))
    if any(index not in indices and index not in result for index in own):
        return None
    if any(seen.get(index, size) != size for index, size in sizes.items()):
        return None
    read = flow.units.together(units, [i for i, index in enumerate(indices) if index not in own])
    read = _aligned(read.squeeze([i for i, x in enumerate(indices) if x not in own]),
                    "".join(x for x in indices if x in own), own)  # fmt: skip
    # An index of both that stays (a head) takes units of its own on either side.
    written = flow.units.new(*(sizes[index] if index in result else 1 for index in own))
    flow.use(parameter, 1, written)
    flow.use(parameter, -1, read)
    kept = [i for i, index in enumerate(own) if index not in result]
    out = _aligned(written.squeeze(kept), "".join(x for x in own if x in result), result)
    return out.expand(node.meta["val"].shape)


def _aligned(units: Tensor, own: str, order: str) -> Tensor:
    """Dimensions named `own` in the order of `order`, of size 1 where there is none."""
    units = units.permute([own.index(index) for index in order if index in own])
    for place, index in enumerate(order):
        if index not in own:
            units = units.unsqueeze(place)
    return units


def _summed(flow: Flow, node: fx.Node, left: Tensor, right: Tensor, dims: int = 1) -> Tensor | None:
    """Products of two activations, summed over the last dimensions."""
    units = flow.units.product(left, right, f"{described(node)} multiplies it", LARGEST)
    if units is None or not dims:
        return units
    last = range(-dims, 0)
    return flow.units.together(units, last).squeeze(list(last))


def _with_bias(
    flow: Flow, node: fx.Node, bias: fx.Node | None, product: Tensor | None
) -> Tensor | None:
    if bias is None or product is None:
        return product
    units = flow.added(bias)
    return flow.units.unite(product, units) if isinstance(units, Tensor) else None
