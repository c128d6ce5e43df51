"""What is checked of a landscape before its first derivatives of each kind are believed.

Once a landscape, and for all that is seen `at` other parameters: that the loss reaches no
parameter which it is not a function of; that it has a gradient, and the slope which that says; and
for each matrix, that products with it are what differences of first derivatives say
(`planimeter.products.witness`). All on a few rows from all over the first batch.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn

from planimeter.errors import InputError, MeasurementWarning
from planimeter.machine.memory import is_out_of_memory
from planimeter.network.culprit import culprit
from planimeter.products.batches import NOTHING, Batch, BatchedLoss, Parameters, tensors_in
from planimeter.products.curvatures import Curvature, Hessian, LinearMap
from planimeter.products.differences import moved
from planimeter.products.witness import (
    FAR,
    Sample,
    Samples,
    Way,
    jumps,
    product_is_right,
    sample_of,
    settles,
    verdict_on_gradient,
)

if TYPE_CHECKING:
    from planimeter.landscape.landscape import LossLandscape

T = TypeVar("T")


class Witnesses:
    """What has been found out of one landscape, and of the same seen from elsewhere."""

    def __init__(self, strategy: str) -> None:
        self.strategy = strategy
        self.of_gradient: bool | None = None
        self.of_products: dict[str, str] = {}

    def check_gradient(self, landscape: LossLandscape) -> bool:
        """Whether the gradient is the loss's own; a warning says where it is not.

        Raises:
            InputError: the loss changes with its parameters but has no gradient, or it reaches
                parameters that it is not a function of.
        """
        if self.of_gradient is None:
            with landscape.mode(), torch.enable_grad():
                samples = _samples(landscape.function, landscape)
                sample = samples(0)
                if sample is None:  # what computes it says why
                    return True
                _refuse_reached(sample, landscape)
                verdict = _verdict(lambda: verdict_on_gradient(samples))
                if verdict == "missing":
                    _refuse_missing(sample)
                elif jumps(sample):
                    warnings.warn(
                        "the loss jumps right beside the parameters (int(), floor() or sign() of "
                        "one of them?): its derivatives there say nothing of that",
                        MeasurementWarning,
                        stacklevel=4,
                    )
                right = verdict != "wrong"
                where = "" if right else culprit(landscape.model, sample, _wrong_gradient)
            if not right:
                warnings.warn(
                    f"the gradient is not the slope of the loss: {where} gives derivatives that "
                    f"its own values contradict (as a straight-through estimator, a detach() or a "
                    f"reversed gradient does); gradient and curvature are those of no function",
                    MeasurementWarning,
                    stacklevel=4,
                )
            self.of_gradient = right
        return self.of_gradient

    def trusted(self, kind: Curvature, function: BatchedLoss, landscape: LossLandscape) -> str:
        """How products with a matrix may be computed: "any" way, or by "forward" derivatives or
        "differences" alone, with a warning that says why.

        Raises:
            InputError: as for the gradient; or no way is right.
        """
        if kind.name not in self.of_products:
            way = "any"
            # The matrix of no function, as has been said, is not what differences of it are.
            if self.check_gradient(landscape):
                with landscape.mode(), torch.enable_grad():
                    way = _trusted(kind, function, landscape, self.strategy)
            self.of_products[kind.name] = way
        return self.of_products[kind.name]


def _trusted(
    kind: Curvature, function: BatchedLoss, landscape: LossLandscape, strategy: str
) -> str:
    samples = _samples(function, landscape)
    sample = samples(0)
    if sample is None:
        return "any"
    reverse = _verdict(lambda: product_is_right(kind, _by_graph(kind), samples))
    if reverse:
        return "any"
    forward = _verdict(lambda: product_is_right(kind, kind.forward, samples))
    if reverse is None and forward is not False:
        return "any"  # where neither can be computed, what computes it says why
    hessian = Hessian()
    way = _by_graph(hessian) if reverse is False else hessian.forward
    where = culprit(landscape.model, sample, lambda s: not product_is_right(hessian, way, s))
    says = f"the second derivative of {where} is wrong: differences of its gradient contradict it"
    if forward:
        trusted, then = "forward", "by forward derivatives, which the differences confirm"
    elif strategy == "auto" and settles(kind, samples):
        trusted, then = "differences", "by such differences, which have about eight digits"
    else:
        raise InputError(
            f"the {kind.name} cannot be computed: {says}; write it in other operations, or pass "
            f"products='differences', which is rough where the loss has kinks"
        )
    warnings.warn(
        f"{says}; going on with products of the {kind.name} {then}",
        MeasurementWarning,
        stacklevel=9,
    )
    return trusted


def _by_graph(kind: Curvature) -> Way:
    def way(function: BatchedLoss, parameters: Parameters, batch: Batch) -> LinearMap:
        return kind.graph(function, parameters, batch, 0)

    return way


def _wrong_gradient(samples: Samples) -> bool:
    return verdict_on_gradient(samples) != "right" and _changes(samples(0))


def _verdict(ask: Callable[[], T]) -> T | None:
    """The answer; None where what is asked cannot be computed."""
    try:
        return ask()
    except (RuntimeError, InputError, NotImplementedError) as error:
        if is_out_of_memory(error):
            raise
        return None


def _samples(function: BatchedLoss, landscape: LossLandscape) -> Samples:
    """Of all parameters, also of those that are held where they are."""
    state = landscape.state
    parameters = {**landscape.parameters, **{name: state[name] for name in landscape.held}}
    first = next(function.pieces(), None)
    if first is None:
        raise InputError(NOTHING)
    batch = first[2]
    whole = landscape.data.whole
    return cache(lambda seed: sample_of(function, parameters, batch, seed, whole=whole))


def _changes(sample: Sample | None) -> bool:
    """Whether the loss is another one far away."""
    if sample is None:
        return False
    with sample.inside():
        values = [
            float(
                sample.function.batch_loss(
                    moved(sample.parameters, sample.directions, step), sample.batch
                ).detach()
            )
            for step in FAR
        ]
    return any(value != float(sample.value.detach()) for value in values)


def _refuse_missing(sample: Sample) -> None:
    if _changes(sample):
        raise InputError(
            "the loss changes with the parameters of the model but has no gradient by any of them: "
            "the model or the loss cuts it off (a detach(), torch.no_grad(), argmax or a "
            "conversion to integers or NumPy)"
        )


def _refuse_reached(sample: Sample, landscape: LossLandscape) -> None:
    """Refuse a loss with a graph to tensors that are no parameters of the landscape."""
    if not sample.value.requires_grad:
        return
    with sample.inside():
        again = sample.function.batch_loss(sample.origin, sample.batch)
    # A model may differentiate inside, by its inputs or by tensors that it makes anew each time.
    own = {id(tensor) for tensor in tensors_in(sample.batch)}
    lasting = {id(tensor) for tensor in _leaves(again)} - own
    reached = [tensor for tensor in _leaves(sample.value) if id(tensor) in lasting]
    loss = landscape.loss_function
    of_model = dict(landscape.model.named_parameters(remove_duplicate=False))
    of_loss = dict(loss.named_parameters()) if isinstance(loss, nn.Module) else {}
    for tensor in reached:
        for name, parameter in of_model.items():
            if parameter is tensor:
                raise InputError(
                    f"the loss reaches the model's parameter {name!r} by another way than the "
                    f"outputs, as a penalty on the weights does: a landscape is a function of "
                    f"copies of the parameters, so this part would be left out; leave it out of "
                    f"the loss and add its own Hessian (2 c for c |theta|^2: "
                    f"landscape.hessian().shifted(2 * c)), or compute it in the model's forward "
                    f"and return it with the outputs"
                )
        for name, parameter in of_loss.items():
            if parameter is tensor:
                raise InputError(
                    f"the loss has a parameter of its own, {name!r}, which the landscape is no "
                    f"function of: make it a parameter of the model, or hold it where it is by "
                    f"loss.requires_grad_(False)"
                )
        raise InputError(
            f"the loss reaches a tensor of shape {tuple(tensor.shape)} that requires a gradient "
            f"and is no parameter of the model: register it as an nn.Parameter of the model, or "
            f"detach() it"
        )


def _leaves(value: Tensor) -> list[Tensor]:
    """The tensors that a graph ends in."""
    todo, seen, leaves = [value.grad_fn], set(), []
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.append(node.variable)
        todo += [following for following, _ in node.next_functions]
    return leaves
