r"""A model, a loss and data as one function :math:`L(\theta)` of a flat parameter vector.

.. math:: L(\theta) = \frac1N \sum_{n=1}^N \ell(h(x_n; \theta), y_n).

A landscape is immutable: it keeps its own copy of the parameters and buffers, so training the
model afterwards does not change it, and measuring never changes the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from planimeter.errors import InputError
from planimeter.losses import Loss, predicted_classes
from planimeter.operators import CurvatureOperator
from planimeter.operators.products import (
    Batch,
    BatchedLoss,
    Parameters,
    flatten,
    gauss_newton_product,
    gradient,
    hessian_product,
    mean_loss,
    unflatten,
)


class LossLandscape:
    """The loss of a model on data, as a function of its parameters.

    The parameters are those that require gradients, each tied one counted once, in the order of
    `model.named_parameters()`. The model runs in evaluation mode (BatchNorm uses its running
    statistics, dropout is off); its training flags and buffers are left as they were.

    Arguments:
        model: any module; called as `model(inputs)`.
        loss: `loss(outputs, targets)`, a **mean** over the rows of a batch.
        data: tensors (inputs, targets), or an iterable of such pairs that can be iterated again
            and gives the same rows every time (no shuffled augmentation).
        batch_size: rows a batch when `data` is tensors; the result does not depend on it.

    Raises:
        InputError: a parameter is not finite, none requires a gradient, the data is empty, of
            unequal lengths, or can be iterated only once; or the data has several batches and the
            loss is no mean over rows.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        data: tuple[Tensor, Tensor] | Iterable[Batch],
        *,
        batch_size: int = 2048,
    ) -> None:
        self.model, self.loss_function, self.batch_size = model, loss, batch_size
        self.parameters: Parameters = {
            name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad
        }
        if not self.parameters:
            raise InputError("no parameter of the model requires a gradient: nothing to measure")
        refuse_non_finite(self.parameters)
        self._fixed: Parameters = {name: b.detach().clone() for name, b in model.named_buffers()}
        self._fixed |= {
            name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad
        }
        first = next(iter(self.parameters.values()))
        self.device, self.dtype = first.device, first.dtype
        if batch_size < 1:
            raise InputError(f"batch_size must be at least 1 row, got {batch_size}")
        self.data = _checked_data(data)
        self._check_mean()
        self.num_parameters = sum(p.numel() for p in self.parameters.values())

    # -- the function and its derivatives --------------------------------------------------

    @property
    def theta(self) -> Float[Tensor, " P"]:
        """The point at which the landscape is looked at, flat, float64."""
        return flatten(list(self.parameters.values()))

    def at(self, theta: Float[Tensor, " P"]) -> LossLandscape:
        """The same landscape seen from other parameters."""
        if theta.shape != (self.num_parameters,):
            raise InputError(
                f"theta has shape {tuple(theta.shape)}, the model {self.num_parameters} parameters"
            )
        other = object.__new__(LossLandscape)
        other.__dict__.update(self.__dict__)
        other.parameters = unflatten(theta.detach().to(self.device), self.parameters)
        return other

    def loss(self) -> float:
        """L(theta), accumulated in float64."""
        with evaluation_mode(self.model):
            return mean_loss(self._batched(), self.parameters)

    def gradient(self) -> Float[Tensor, " P"]:
        """The gradient of L at theta, flat, float64; zeros where the loss uses no parameter."""
        with evaluation_mode(self.model):
            return gradient(self._batched(), self.parameters)

    def hessian(self) -> CurvatureOperator:
        r"""The Hessian :math:`\nabla^2 L(\theta)` as a matrix-free operator."""
        return self._operator("Hessian", hessian_product)

    def gauss_newton(self) -> CurvatureOperator:
        r"""The generalised Gauss-Newton matrix
        :math:`\frac1N \sum_n J_n^T\, \nabla^2_h \ell(h_n, y_n)\, J_n` (granziol2020, Section 3).
        """
        return self._operator("Gauss-Newton matrix", gauss_newton_product)

    # -- what the data looks like through the model ------------------------------------------

    @property
    def num_rows(self) -> int:
        """N, the number of rows of data."""
        return sum(len(targets) for _, targets in self.batches())

    def accuracy(self) -> float:
        """Fraction of rows whose predicted class is the target."""
        right, rows = 0, 0
        with torch.no_grad(), evaluation_mode(self.model):
            for inputs, targets in self.batches():
                predicted = predicted_classes(self._forward(self.parameters, inputs))
                right += int((predicted == targets.reshape(-1).long()).sum())
                rows += len(targets)
        return right / rows

    def batches(self) -> Iterator[Batch]:
        """One pass over the data, on the model's device, floating inputs in the model's dtype."""
        if isinstance(self.data, tuple):
            inputs, targets = self.data
            pairs: Iterable[Batch] = zip(
                inputs.split(self.batch_size), targets.split(self.batch_size), strict=True
            )
        else:
            pairs = self.data
        for batch in pairs:
            if len(batch) != 2 or not all(isinstance(part, Tensor) for part in batch):
                raise InputError("every batch must be a pair of tensors (inputs, targets)")
            yield self._placed(batch[0]), self._placed(batch[1])

    def minibatches(self, batch_size: int, generator: torch.Generator) -> Iterator[Batch]:
        """One epoch of shuffled batches; a loader keeps its own batches and order."""
        if not isinstance(self.data, tuple):
            yield from self.batches()
            return
        inputs, targets = (self._placed(t) for t in self.data)
        order = torch.randperm(len(targets), generator=generator).to(self.device)
        for rows in order.split(batch_size):
            yield inputs[rows], targets[rows]

    def batch_gradient(self, theta: Float[Tensor, " P"], batch: Batch) -> Float[Tensor, " P"]:
        """The gradient at `theta` of the loss of one batch, for stochastic ascent and descent."""
        one = BatchedLoss(self._forward, self.loss_function, lambda: iter([batch]), single=True)
        with evaluation_mode(self.model):
            return gradient(one, unflatten(theta, self.parameters))

    # -- private ------------------------------------------------------------------------------

    def _check_mean(self) -> None:
        """Refuse a loss that is no mean over rows, where batches could not be put together."""
        if self._batched().single:
            return
        batch = next(self.batches(), None)
        if batch is None:
            raise InputError("the data has no batches")
        inputs, targets = (part[:7] for part in batch)
        rows, cut = len(targets), len(targets) // 3
        if cut == 0:
            return

        def part_loss(part: slice) -> float:
            outputs = self._forward(self.parameters, inputs[part])
            return float(self.loss_function(outputs, targets[part]).mean())

        with torch.no_grad(), evaluation_mode(self.model):
            whole, left, right = (part_loss(p) for p in (slice(None), slice(cut), slice(cut, None)))
        parts = (cut * left + (rows - cut) * right) / rows
        if abs(whole - parts) > 1e-2 * max(abs(whole), abs(parts)):
            raise InputError(
                f"the loss is not a mean over rows: {whole:.6g} on {rows} rows, but {parts:.6g} "
                f"from {cut} and {rows - cut} of them put together; use reduction='mean', targets "
                f"of the shape of the outputs, no ignored rows, or a batch_size for all rows"
            )

    def _placed(self, values: Tensor) -> Tensor:
        dtype = self.dtype if values.is_floating_point() else values.dtype
        return values.to(device=self.device, dtype=dtype)

    def _forward(self, parameters: Parameters, inputs: Tensor) -> Tensor:
        state = {**self._fixed, **parameters}
        return cast(Tensor, torch.func.functional_call(self.model, state, (inputs,)))

    def _batched(self) -> BatchedLoss:
        single = isinstance(self.data, tuple) and len(self.data[1]) <= self.batch_size
        return BatchedLoss(self._forward, self.loss_function, self.batches, single)

    def _operator(self, name: str, make: Callable[..., Any]) -> CurvatureOperator:
        product = make(self._batched(), self.parameters)
        blocks, start = {}, 0
        for parameter, value in self.parameters.items():
            blocks[parameter], start = slice(start, start + value.numel()), start + value.numel()

        def in_evaluation_mode(v: Float[Tensor, " P"]) -> Float[Tensor, " P"]:
            with evaluation_mode(self.model):
                result: Tensor = product(v)
            if bool(torch.isfinite(result).all()):
                return result
            bad = next(n for n, part in blocks.items() if not torch.isfinite(result[part]).all())
            raise InputError(f"a product with the {name} is not finite in parameter {bad!r}")

        epsilon = torch.finfo(self.dtype).eps
        return CurvatureOperator(
            self.num_parameters, in_evaluation_mode, name, blocks, self.device, epsilon
        )


def refuse_non_finite(parameters: Parameters) -> None:
    """Raise an InputError that names the first parameter with NaN or infinite values."""
    for name, value in parameters.items():
        bad = int((~torch.isfinite(value)).sum())
        if bad:
            raise InputError(
                f"parameter {name!r} has {bad} of {value.numel()} values that are not finite "
                f"(NaN or infinity): the checkpoint or the training run is broken"
            )


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Every module in eval mode inside, its own flag given back after, also on an exception.

    Attention runs on its mathematical form inside: the fused kernels have no second derivative,
    and the fused encoder layer no forward one.
    """
    flags = [(module, module.training) for module in model.modules()]
    fused = torch.backends.mha.get_fastpath_enabled()
    try:
        model.eval()
        torch.backends.mha.set_fastpath_enabled(False)
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for module, training in flags:
            module.training = training


def _checked_data(data: Any) -> tuple[Tensor, Tensor] | Iterable[Batch]:
    if isinstance(data, tuple | list) and len(data) == 2 and isinstance(data[0], Tensor):
        inputs, targets = data
        if len(inputs) != len(targets) or len(targets) == 0:
            raise InputError(f"data has {len(inputs)} inputs and {len(targets)} targets")
        if inputs.is_floating_point() and not bool(torch.isfinite(inputs).all()):
            raise InputError("the inputs contain values that are not finite (NaN or infinity)")
        return inputs, targets
    if isinstance(data, Iterator) or not isinstance(data, Iterable):
        raise InputError(
            f"data must be tensors (inputs, targets) or an iterable that can be iterated again, "
            f"got a one-shot {type(data).__name__}: pass a DataLoader or a list of batches"
        )
    return data
