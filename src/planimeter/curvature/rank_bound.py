r"""Bounds on the rank of Hessian and Gauss-Newton matrix, each with what it assumes.

With r the rank of the output curvature (C - 1 for the softmax, C otherwise), d the inputs of a row
and :math:`N_{\mathrm{hidden}}` the number of hidden neurons,

.. math:: \mathrm{rank}\, G \le \min(P, N r), \qquad
          \mathrm{rank}\, H \le r (d + 1) + 2 C N_{\mathrm{hidden}}.

Neurons count as often as their layer is applied to a row: a layer that is called six times, or that
acts on six tokens, has six times its neurons. (Where layers do not form a chain, 2 N_hidden is the
sum of what goes into and comes out of every application, but for the first one's inputs and the
last one's outputs.)

The first always holds. The second holds when the same neurons are active for every row, as in a
linear network. There the Jacobian of a row is :math:`B (I_C \otimes \tilde x)` with one matrix B
for all rows, which bounds the first term; and the gradient by layer l is
:math:`A_{>l}^T S_l` with both factors of rank at most C, so the change of the residual part has at
most :math:`C (n_l + n_{l-1})` dimensions there, without the input and output layers. The bound of
granziol2020, :math:`2 C (N_{\mathrm{hidden}} + C)`, leaves the inputs out, and logistic regression
already breaks it. For ReLU networks, whose patterns differ from row to row, the averaged Hessian
breaks either: compare with the numerical rank, whose tolerance is explicit.
"""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from planimeter.errors import InputError
from planimeter.landscape import LossLandscape
from planimeter.losses import predicts_classes
from planimeter.products.batches import Parameters, as_leaves, cut_rows, tensors_in

_NEURONS = (
    nn.Linear, nn.Flatten, nn.ReLU, nn.LeakyReLU, nn.Identity, nn.Dropout, nn.Tanh, nn.Sigmoid,
    nn.GELU, nn.ELU, nn.SiLU, nn.Softplus,
)  # fmt: skip


@dataclass(frozen=True)
class RankBound:
    """An upper bound on a rank.

    Arguments:
        value: the bound.
        formula: in plain text.
        assumption: what it needs to hold; "none" where it always does.
    """

    value: int
    formula: str
    assumption: str

    def __str__(self) -> str:
        return f"rank ≤ {self.value} = {self.formula} (assumes: {self.assumption})"


def gauss_newton_rank_bound(landscape: LossLandscape) -> RankBound:
    """min(P, N r), which always holds.

    Source: granziol2020, Section 3.
    """
    outputs = _outputs(landscape)
    softmax = predicts_classes(landscape.loss_function)
    rank, name = (outputs - 1, "(C - 1)") if softmax and outputs > 1 else (outputs, "C")
    value = min(landscape.num_parameters, landscape.num_rows * rank)
    return RankBound(value, f"min(P, N {name})", "none")


def hessian_rank_bound(landscape: LossLandscape) -> RankBound:
    """r (d + 1) + 2 C (hidden neurons), under its assumption.

    Raises:
        InputError: the network has other layers than fully connected ones, for which the number of
            neurons is not defined here, or uses a parameter outside of its layer's calls.
    """
    count = _count(landscape)
    outputs = _outputs(landscape)
    rank = outputs - 1 if predicts_classes(landscape.loss_function) and outputs > 1 else outputs
    value = min(landscape.num_parameters, rank * (count.inputs + 1) + outputs * count.ends)
    return RankBound(
        value,
        f"{'(C - 1)' if rank < outputs else 'C'} (inputs + 1) + 2 C {count.hidden}",
        "the same neurons are active for every row, as in a linear network; not so for ReLU",
    )


def published_rank_bound(landscape: LossLandscape) -> RankBound:
    """2 C (hidden neurons + C), as it is published.

    Raises:
        InputError: as for `hessian_rank_bound`.

    Source: granziol2020, Section 4.
    """
    count = _count(landscape)
    outputs = _outputs(landscape)
    value = min(landscape.num_parameters, outputs * (count.ends + 2 * outputs))
    return RankBound(
        value,
        f"2 C ({count.hidden.strip('()')} + C)",
        "the same neurons are active for every row, and few inputs: linear networks of many inputs "
        "break it",
    )


@dataclass(frozen=True)
class _Count:
    """What the bounds count, for one row of the data.

    Arguments:
        inputs: numbers that go into the network.
        ends: numbers that go into and come out of all applications of layers, without what goes
            into the first and comes out of the last; in a chain, twice the hidden neurons.
        repeated: whether a layer is applied more than once.
    """

    inputs: int
    ends: int
    repeated: bool

    @property
    def hidden(self) -> str:
        """The name of half of the ends."""
        return "(hidden neurons, once an application)" if self.repeated else "(hidden neurons)"


def _count(landscape: LossLandscape) -> _Count:
    """Neurons, as often as their layer is applied to a row.

    A parameter that serves n times is n parameters that are moved together: the Hessian by it is
    a compression of the Hessian by those, and its rank no larger.
    """
    _check_layers(landscape)
    inputs, targets = next(landscape.batches())
    row = cut_rows(inputs, slice(1), len(targets))
    calls: list[tuple[nn.Module, int, int, int]] = []

    def note(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        calls.append((module, args[0].numel(), output.numel(), output.numel() // output.shape[-1]))

    leaves = as_leaves(landscape.parameters)
    with ExitStack() as stack:
        for module in landscape.model.modules():
            if isinstance(module, nn.Linear):
                stack.callback(module.register_forward_hook(note).remove)
        stack.enter_context(landscape.mode())
        with torch.enable_grad():
            outputs = landscape.outputs(leaves, row)
    if not calls:
        raise InputError("the rank bound counts neurons, and the model calls no nn.Linear layer")
    _check_uses(landscape.model, leaves, outputs, Counter(id(call[0]) for call in calls))
    ends = sum(fed + given for _, fed, given, _ in calls) - calls[0][1] - calls[-1][2]
    modules = {id(call[0]) for call in calls}
    return _Count(
        sum(tensor.numel() for tensor in tensors_in(row)),
        ends,
        sum(times for *_, times in calls) > len(modules),
    )


def _check_layers(landscape: LossLandscape) -> None:
    """Refuse modules that are no fully connected layers, or whose parameters are not theirs."""
    for path, module in landscape.model.named_modules():
        own = {name for name, _ in module.named_parameters(recurse=False)}
        leaf = not any(True for _ in module.children())
        known = {"weight", "bias"} if isinstance(module, nn.Linear) else set()
        if (leaf and not isinstance(module, _NEURONS)) or not own <= known:
            raise InputError(
                f"the rank bound counts the neurons of fully connected layers, and "
                f"{path or 'the model'!r} is a {type(module).__name__}"
                + ("" if own <= known else f" with parameters {', '.join(sorted(own - known))}")
            )


def _check_uses(
    model: nn.Module, leaves: Parameters, outputs: Tensor, calls: dict[int, int]
) -> None:
    """Refuse parameters that serve elsewhere than in the calls of their layers."""
    names = {id(leaf): name for name, leaf in leaves.items()}
    uses: Counter[str] = Counter()
    open_, seen = [outputs.grad_fn], {outputs.grad_fn}
    while open_:
        for node, _ in getattr(open_.pop(), "next_functions", ()):
            name = names.get(id(getattr(node, "variable", None)))
            if name is not None:
                uses[name] += 1
            elif node is not None and node not in seen:
                seen.add(node)
                open_.append(node)
    # A tied parameter has several names, of which the landscape knows the first.
    own: dict[int, set[int]] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            own.setdefault(id(parameter), set()).add(id(module))
    named = dict(model.named_parameters())
    for name in leaves:
        expected = sum(calls.get(module, 0) for module in own[id(named[name])])
        if uses[name] > expected:
            raise InputError(
                f"the rank bound counts applications of layers, and parameter {name!r} is used "
                f"{uses[name]} times while its layers are called {expected} times: call the "
                f"layer itself"
            )


def _outputs(landscape: LossLandscape) -> int:
    inputs, targets = next(landscape.batches())
    with torch.no_grad(), landscape.mode():
        one = landscape.outputs(landscape.parameters, cut_rows(inputs, slice(1), len(targets)))
    return one.numel()
