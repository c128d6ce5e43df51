r"""A model, a loss and data as one function :math:`L(\theta)` of a flat parameter vector.

.. math:: L(\theta) = \frac1N \sum_{n=1}^N \ell(h(x_n; \theta), y_n).

A landscape is immutable: it keeps its own copy of the parameters and buffers, so training the
model afterwards does not change it, and measuring never changes the model.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from planimeter.errors import InputError, NotApplicableError
from planimeter.landscape.accuracy import Predictions, predictions_of
from planimeter.landscape.admission import check_module, unwrapped, warn_of_long_rows
from planimeter.landscape.convexity import refuse_non_convex
from planimeter.landscape.data import BatchData
from planimeter.landscape.denominators import known_loss
from planimeter.landscape.loss import put_together, scalar_loss
from planimeter.landscape.together import belong_together, check_batches, is_indivisible
from planimeter.landscape.witnesses import Witnesses
from planimeter.losses import Loss, in_float64, likelihood_of
from planimeter.network.modes import (
    batch_norms,
    compiled_parts,
    evaluation_mode,
    has_dropout,
)
from planimeter.network.returned import (
    Reading,
    one_tensor,
    reading_of,
    refuse_complex,
    refuse_outputs_apart,
    tensors_of,
)
from planimeter.network.running import run, run_first
from planimeter.operator import CurvatureOperator, consecutive, matching
from planimeter.products.batches import (
    Batch,
    BatchedLoss,
    Inputs,
    Parameters,
    RowWeights,
    copied,
    cut_rows,
    flatten,
    is_changed,
    loss_and_gradient,
    mean_loss,
    refuse_inference_mode,
    unflatten,
)
from planimeter.products.curvatures import (
    Curvature,
    GaussNewton,
    Hessian,
    empirical_fisher_curvature,
    loss_curvature,
    monte_carlo_fisher_curvature,
)
from planimeter.products.differences import widened
from planimeter.products.products import Products

WIDE_OUTPUTS = 4096
"""Outputs a row up to which the loss is computed in float64, whatever the model's dtype is."""


class LossLandscape:
    """The loss of a model on data, as a function of its parameters.

    The parameters are those that require gradients, each tied one counted once, in the order of
    `model.named_parameters()`. The model runs in evaluation mode (BatchNorm uses its running
    statistics, dropout is off); its training flags and buffers are left as they were.

    Arguments:
        model: any module; called with the inputs, tuples as its arguments and dicts as its keyword
            arguments. Of `DataParallel`, `DistributedDataParallel` and compiled modules the
            network inside is measured.
        loss: `loss(outputs, targets)`, a **mean** over the rows of a batch. Outputs are what the
            model returns; of an object or dict with `logits` those, if the loss takes them. Where
            rows count differently (class weights, ignored labels, padding), the losses of torch
            are known; any other may return `(sum, count)`, what it divides and by what.
        data: tensors (inputs, targets), or an iterable of batches that can be iterated again and
            gives the same rows every time. Inputs are a tensor, or a tuple or dict of tensors; a
            batch may also be a tuple that ends with the targets, or a dict with "labels". Tensors
            of other lengths than the targets (the nodes and edges of graphs) are not cut.
        batch_size: rows a batch when `data` is tensors; the result does not depend on it, except
            with `batch_norm="train-frozen-buffers"`.
        weight: from the targets of a batch to the weights of its rows in the mean, (n,) or
            (n, ...) to be summed over a row, or to their total; None for those of the loss.
        batch_norm: "eval", or "train-frozen-buffers" for the statistics of each batch with the
            running ones left alone.
        normalise_logits: centre the outputs z of every row and divide by their norm before the
            loss, (z - mean z) / |z - mean z|, so that it does not depend on their scale
            (Andriushchenko et al. 2023).
        memory_budget: bytes that products with a curvature may keep from one to the next; None for
            half of the free memory at the first product.
        products: how they are computed: "auto" measures, "tape", "graph", "recompute" and
            "differences" insist
            (`planimeter.products.products`).
        compile: translate products with torch.compile; checked against the eager ones.

    Raises:
        InputError: a parameter is complex or not finite, none requires a gradient, the model is
            scripted or writes to its parameters, or does not take the inputs; the data is empty, of
            unequal lengths, can be iterated only once or differs from pass to pass; the model is
            random; torch broadcasts targets against outputs; or the data has several batches and
            the loss is no mean over rows.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        data: tuple[Inputs, Tensor] | Iterable[Any],
        *,
        batch_size: int | None = None,
        weight: Callable[[Tensor], Any] | None = None,
        batch_norm: str = "eval",
        normalise_logits: bool = False,
        memory_budget: int | None = None,
        products: str = "auto",
        compile: bool = False,
    ) -> None:
        refuse_inference_mode()
        model = unwrapped(model)
        check_module(model)
        warn_of_long_rows(model)
        self.model, self.loss_function = model, loss
        self.batch_norm, self.normalise_logits = batch_norm, normalise_logits
        compiled = compiled_parts(model)
        self.mode = partial(evaluation_mode, model, batch_norm, at_rest=True, compiled=compiled)
        self.parameters: Parameters = {
            name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad
        }
        self.held: frozenset[str] = frozenset()
        """Names of the parameters that `restricted` holds where they are."""
        refuse_non_finite(self.parameters)
        self._fixed: Parameters = {name: b.detach().clone() for name, b in model.named_buffers()}
        self._fixed |= {
            name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad
        }
        first = next(iter(self.parameters.values()))
        self.device, self.dtype = first.device, first.dtype
        self.num_parameters = sum(p.numel() for p in self.parameters.values())
        self.data = BatchData(
            data,
            batch_size=batch_size,
            device=self.device,
            dtype=self.dtype,
        )
        mixes_rows = batch_norm != "eval" and bool(batch_norms(model))
        self.function = BatchedLoss(
            self.forward, loss, self.data.__iter__, separable=not mixes_rows
        )
        self._product_options: dict[str, Any] = {
            "memory_budget": memory_budget,
            "strategy": products,
            "compile": compile,
        }
        self._operators: dict[Any, CurvatureOperator] = {}
        self.data.whole = self.data.uneven or self.function.surviving(lambda: is_indivisible(self))
        self._written: frozenset[str] = frozenset()
        self._own_inputs = False
        """Whether the model writes to its inputs, and gets copies of them."""
        self._reading = Reading()
        self._witnesses = Witnesses(products)
        self._check_deterministic()
        self.loss_function = self.function.loss = self._reading.loss(loss)
        if self.data.whole:
            self.data.whole = self.function.surviving(lambda: belong_together(self))
            self.function.separable &= not self.data.whole
        self.take_loss(scalar_loss(self, weight))
        if self.function.separable:
            put_together(self, given=weight is not None)
        elif self.data.whole:
            check_batches(self)

    # -- the function and its derivatives --------------------------------------------------

    @property
    def theta(self) -> Float[Tensor, " P"]:
        """The point at which the landscape is looked at, flat, float64."""
        return flatten(list(self.parameters.values()))

    def at(self, theta: Float[Tensor, " P"]) -> LossLandscape:
        """The same landscape seen from other parameters."""
        refuse_inference_mode()
        if theta.shape != (self.num_parameters,):
            raise InputError(
                f"theta has shape {tuple(theta.shape)}, the model {self.num_parameters} parameters"
            )
        other = copy.copy(self)
        other.parameters = unflatten(theta.detach().to(self.device), self.parameters)
        other._operators = {}
        return other

    @property
    def state(self) -> dict[str, Tensor]:
        """Parameters and buffers by name, as the landscape has them; not to be changed in place."""
        return {**self._fixed, **self.parameters}

    def with_state(self, state: Mapping[str, Tensor]) -> LossLandscape:
        """The same landscape with other parameters and buffers; those not named are kept.

        Arguments:
            state: new tensors by name, of the shapes of the old ones.

        Raises:
            InputError: the model has no such tensor, it is of another shape, or not finite.
        """
        refuse_inference_mode()
        changed: Parameters = {}
        for name, value in state.items():
            old = self.state.get(name)
            if old is None or old.shape != value.shape:
                has = "no such tensor" if old is None else f"one of shape {tuple(old.shape)}"
                raise InputError(
                    f"the state has {name!r} of shape {tuple(value.shape)}, the model {has}"
                )
            changed[name] = value.detach().to(old, copy=True)
        # A buffer may hold what a parameter may not: the infinities of a mask.
        refuse_non_finite({n: v for n, v in changed.items() if n in self.parameters})
        other = copy.copy(self)
        other.parameters = {n: changed.get(n, p) for n, p in self.parameters.items()}
        other._fixed = {n: changed.get(n, b) for n, b in self._fixed.items()}
        other.function = replace(self.function, forward=other.forward)
        other._operators = {}
        return other

    def restricted(self, names: list[str]) -> LossLandscape:
        """The loss as a function of some of the parameters, the others held where they are.

        Arguments:
            names: of parameters (``"layer1.weight"``), or of modules whose parameters are all
                meant (``"layer1"``).

        Raises:
            InputError: there is no such parameter.
        """
        kept = matching(names, self.parameters)
        other = copy.copy(self)
        other.parameters = {name: self.parameters[name] for name in kept}
        other.held = self.held | (self.parameters.keys() - set(kept))
        other._fixed = {n: p for n, p in self.state.items() if n not in other.parameters}
        other.num_parameters = sum(p.numel() for p in other.parameters.values())
        other.function = replace(self.function, forward=other.forward)
        other._operators = {}
        return other

    def loss(self) -> float:
        """L(theta), accumulated in float64."""
        with self.mode():
            return mean_loss(self.function, self.parameters)

    def gradient(self) -> Float[Tensor, " P"]:
        """The gradient of L at theta, flat, float64; zeros where the loss uses no parameter."""
        return self.loss_and_gradient()[1]

    def loss_and_gradient(self) -> tuple[float, Float[Tensor, " P"]]:
        """Both, from one pass over the data."""
        self._check_gradient()
        with self.mode():
            return loss_and_gradient(self.function, self.parameters)

    def hessian(self) -> CurvatureOperator:
        r"""The Hessian :math:`\nabla^2 L(\theta)` as a matrix-free operator."""
        return self._operator(Hessian(), self.function)

    def gauss_newton(self) -> CurvatureOperator:
        r"""The generalised Gauss-Newton matrix
        :math:`\frac1N \sum_n J_n^T\, \nabla^2_h \ell(h_n, y_n)\, J_n` (granziol2020, Section 3).

        Raises:
            NotApplicableError: the loss is not convex in the outputs, so the matrix is not what
                the name says.
        """
        self._refuse_several("Gauss-Newton matrix")
        refuse_non_convex(self)
        return self._operator(GaussNewton("Gauss-Newton matrix", loss_curvature), self.function)

    def empirical_fisher(self) -> CurvatureOperator:
        r"""The second moment of the rows' gradients, :math:`\frac1N \sum_n g_n g_n^T` with
        :math:`g_n = \nabla_\theta \ell(h(x_n; \theta), y_n)` and the data's own labels.

        It is not the Fisher matrix (Kunstner et al. 2019), and at a minimum that fits the labels
        it vanishes.
        """
        self._refuse_mixed_rows("empirical Fisher matrix")
        kind = GaussNewton("empirical Fisher matrix", empirical_fisher_curvature)
        return self._operator(kind, self.function)

    def monte_carlo_fisher(self, samples: int = 1, seed: int = 0) -> CurvatureOperator:
        r"""The Fisher matrix with labels drawn from the model,
        :math:`\frac{1}{NS} \sum_{n,s} g_{ns} g_{ns}^T`; its mean over draws is the Gauss-Newton
        matrix. Where a row averages T losses (outputs, tokens), the sum is multiplied by T.

        Arguments:
            samples: S, labels drawn for each row, once: the operator is one fixed matrix.
            seed: of the draws.

        Raises:
            InputError: no likelihood is known for the loss, or samples is below 1.
        """
        self._refuse_mixed_rows("Monte-Carlo Fisher matrix")
        if samples < 1:
            raise InputError(f"samples must be at least 1, got {samples}")
        likelihood, known = likelihood_of(self.loss_function), known_loss(self.loss_function)

        def sample(outputs: Tensor, targets: Tensor, generator: torch.Generator) -> Tensor:
            drawn = likelihood.sample(outputs, generator)
            if known is None or known.ignored is None:
                return drawn
            return torch.where(targets == known.ignored, targets, drawn)

        def draw() -> list[Tensor]:
            generator = torch.Generator(self.device).manual_seed(seed)
            drawn: dict[int, list[Tensor]] = defaultdict(list)
            for index, _, (inputs, targets) in self.function.pieces(uncounted=True):
                outputs = self.outputs(self.parameters, inputs)
                draws = [sample(outputs, targets, generator) for _ in range(samples)]
                drawn[index].append(torch.stack(draws, dim=1))
            return [torch.cat(parts) for parts in drawn.values()]

        with torch.enable_grad(), self.mode():
            drawn: list[Tensor] = self.function.surviving(draw)

        def loss(outputs: Tensor, targets: Tensor) -> Tensor:
            draws = [self.function.loss(outputs, one) for one in targets.unbind(1)]
            return torch.stack(draws).mean()

        def batches() -> Iterator[Batch]:
            for (inputs, _), targets in zip(self.data, drawn, strict=True):
                yield inputs, targets

        curve = partial(monte_carlo_fisher_curvature, terms=likelihood.terms)
        function = BatchedLoss(self.forward, loss, batches, rows=self.function.rows)
        if known is not None and known.of_classes:
            function.row_weights = RowWeights(
                lambda _, drawn: known.row_weights(drawn[:, 0]),
                lambda _, drawn: float(known.row_weights(drawn[:, 0]).sum()),
            )
        kind = GaussNewton("Monte-Carlo Fisher matrix", curve)
        return self._operator(kind, function, samples, seed)

    # -- what the data looks like through the model ------------------------------------------

    @property
    def num_rows(self) -> int:
        """N, the number of rows of data."""
        return sum(len(targets) for _, targets in self.data)

    def accuracy(self) -> float:
        """Fraction of labels that the network predicts, of those that count.

        Raises:
            NotApplicableError: the targets are no classes.
        """

        def compute() -> float:
            right, labels = 0, 0
            for _, _, (inputs, targets) in self.function.pieces():
                hits = predictions.hits(self.outputs(self.parameters, inputs), targets)
                right, labels = right + int(hits.sum()), labels + hits.numel()
            if not labels:
                raise NotApplicableError("this needs classes: no label counts")
            return right / labels

        with torch.enable_grad(), self.mode():
            predictions = self.predictions()
            result: float = self.function.surviving(compute)
        return result

    def predictions(self) -> Predictions:
        """How classes are read off the outputs.

        Raises:
            NotApplicableError: the targets are no classes.
        """

        def compute() -> tuple[Tensor, Tensor]:
            inputs, targets = self.first_rows(64)
            outputs = refuse_complex(self.outputs(self.parameters, inputs), "accuracy")
            return outputs.detach(), targets

        with torch.enable_grad(), self.mode():
            outputs, targets = self.function.surviving(compute)
        return predictions_of(self.loss_function, self.scalar_loss, outputs, targets)

    def batches(self) -> Iterator[Batch]:
        """One pass over the data, on the model's device, floating inputs in the model's dtype."""
        return iter(self.data)

    def minibatches(self, batch_size: int, generator: torch.Generator) -> Iterator[Batch]:
        """One epoch of shuffled batches; a loader keeps its own batches and order."""
        return self.data.shuffled(batch_size, generator)

    def batch_gradient(self, theta: Float[Tensor, " P"], batch: Batch) -> Float[Tensor, " P"]:
        """The gradient at `theta` of the loss of one batch, for stochastic ascent and descent."""
        own = self.function.row_weights
        one = BatchedLoss(self.forward, self.function.loss, lambda: iter([batch]), row_weights=own)
        self._check_gradient()
        with self.mode():
            if not one.weight(batch):  # none of its rows counts
                return torch.zeros_like(theta)
            return loss_and_gradient(one, unflatten(theta, self.parameters))[1]

    def forward(self, parameters: Parameters, inputs: Inputs) -> Any:
        """What the loss is given, at given parameters, in whatever mode the model is in.

        Where the parameters are given in float64 and the model has another dtype, everything else
        is made float64 too.
        """
        state = {**self._beside(parameters, self._fixed), **parameters}
        given = copied(inputs) if self._own_inputs else inputs
        return self._passed_on(run(self.model, state, given, self._written))

    def outputs(self, parameters: Parameters, inputs: Inputs) -> Tensor:
        """The same where it is one tensor.

        Raises:
            NotApplicableError: the model returns several.
        """
        outputs = one_tensor(self.forward(parameters, inputs))
        inside = torch.is_grad_enabled() or torch._C._are_functorch_transforms_active()
        # A module that differentiates leaves a graph even where its caller wants none.
        return outputs if inside else outputs.detach()

    def record(self) -> dict[str, Any]:
        """How the model runs while it is measured, for records of results."""
        norms = bool(batch_norms(self.model))
        return {
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": str(self.device),
            "batch_norm": self.batch_norm if norms else "none",
            "dropout": "off" if has_dropout(self.model) else "none",
            **({"logits": "normalised"} if self.normalise_logits else {}),
        }

    # -- private ------------------------------------------------------------------------------

    def _passed_on(self, result: Any) -> Any:
        """What the loss is given of what the model returned."""
        given = self._reading.given(result)
        return _normalised(one_tensor(given)) if self.normalise_logits else given

    def _check_deterministic(self) -> None:
        """Refuse a model that gives other outputs when it is run again."""

        def compute() -> list[tuple[Tensor, Tensor]]:
            inputs, targets = self.first_rows(64)
            given = copied(inputs)
            result, self._written = run_first(self.model, self.parameters, self._fixed, given)
            self._own_inputs = is_changed(inputs, given)
            self._reading = reading_of(
                result, lambda given: self.loss_function(given, targets.clone())
            )
            one, two = self._passed_on(result), self.forward(self.parameters, inputs)
            found = zip(tensors_of(one), tensors_of(two), strict=True)
            return [(first.detach(), second.detach()) for first, second in found]

        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices), torch.enable_grad(), self.mode():
            pairs = self.function.surviving(compute)
        for one, two in pairs:
            numbers = one.is_floating_point() or one.is_complex()
            if not numbers:
                one, two = one.double(), two.double()
            scale = float(one.abs().max()) if one.numel() else 0.0
            apart = float((one - two).abs().max()) if one.numel() else 0.0
            if apart > 100 * torch.finfo(self.dtype).eps * scale:
                raise InputError(
                    "the model gives other outputs when it runs again: turn off what is random in "
                    "it (functional dropout, noise, stochastic depth) in evaluation mode"
                )

    def take_loss(self, loss: Loss) -> None:
        """Measure a loss that is a scalar, in float64 where it can be."""
        self.scalar_loss = self.function.loss = loss
        if self._takes_float64():
            self.function.loss = in_float64(loss)

    def first_rows(self, count: int) -> Batch:
        """Some rows of the first batch, no more than fit into memory at a time."""
        inputs, targets = next(iter(self.data))
        if self.data.whole:
            return inputs, targets
        part = slice(min(count, self.function.rows or count))
        return cut_rows(inputs, part, len(targets)), targets[part]

    def _takes_float64(self) -> bool:
        """Whether the loss, and its gradient, can be computed in float64 (class weights, a device
        without it, or a loss with a dtype of its own may be in the way), and at little cost."""

        def compute() -> bool:
            inputs, targets = self.first_rows(2)
            outputs = self.forward(self.parameters, inputs)
            parts = [t for t in tensors_of(outputs) if t.is_floating_point() or t.is_complex()]
            if all(t.dtype in (torch.float64, torch.complex128) for t in parts):
                return False
            numbers = sum(t.numel() for t in parts) // max(1, len(targets))
            if any(t.is_complex() for t in parts) or numbers > WIDE_OUTPUTS:
                return False
            wide = in_float64(self.scalar_loss)
            try:
                if isinstance(outputs, Tensor):
                    torch.func.grad(wide)(outputs, targets)
                else:
                    wide(outputs, targets)
            except (RuntimeError, TypeError, ValueError, IndexError):
                return False
            return True

        with torch.enable_grad(), self.mode():
            result: bool = self.function.surviving(compute)
        return result

    def _refuse_several(self, what: str) -> None:
        """Refuse a matrix of derivatives by the outputs where these are not one real tensor."""
        inputs, _ = self.first_rows(2)
        with torch.enable_grad(), self.mode():
            refuse_complex(self.outputs(self.parameters, inputs), what)

    def _beside(self, parameters: Parameters, others: Parameters) -> Parameters:
        """Other tensors of the model, in float64 where the parameters are given so."""
        if self.dtype == torch.float64 or any(
            p.dtype != torch.float64 for p in parameters.values()
        ):
            return others
        wide: Parameters = widened(others)
        return wide

    def _check_gradient(self) -> None:
        """Refuse a loss without a gradient, and warn of one that is not the loss's slope."""
        refuse_inference_mode()
        self.function.surviving(lambda: self._witnesses.check_gradient(self))

    def _refuse_mixed_rows(self, what: str) -> None:
        self._refuse_several(what)
        if not self.function.separable:
            raise NotApplicableError(
                f"rows have no gradients of their own, which the {what} is made of, when BatchNorm "
                f"uses the batch's statistics (use batch_norm='eval'), the loss is no mean over "
                f"rows, or inputs belong together (graphs)"
            )
        inputs, targets = self.first_rows(2)
        with torch.enable_grad(), self.mode():
            refuse_outputs_apart(self.outputs(self.parameters, inputs), targets, what)

    def _operator(
        self, kind: Curvature, function: BatchedLoss, *key: int, names: tuple[str, ...] = ()
    ) -> CurvatureOperator:
        """One operator a matrix: what its products have in common is computed once."""
        if function.check is not None and not function.check.complete:
            self.loss()  # looks at all batches, which products do not
        found = self._operators.get((kind.name, names, *key))
        if found is None:
            found = self._new_operator(kind, function, *key, names=names)
            self._operators[kind.name, names, *key] = found
        return found

    def _new_operator(
        self, kind: Curvature, function: BatchedLoss, *key: int, names: tuple[str, ...]
    ) -> CurvatureOperator:
        parameters, name, whole = self.parameters, kind.name, function
        if names:
            held = {n: p for n, p in self.parameters.items() if n not in names}
            parameters = {n: p for n, p in self.parameters.items() if n in names}

            def forward(p: Parameters, inputs: Inputs) -> Tensor:
                return whole.forward({**self._beside(p, held), **p}, inputs)

            function = replace(whole, forward=forward)
            name = f"{name} restricted to {', '.join(names)}"
        witness = partial(self._witnesses.trusted, kind, whole, self)
        products = Products(
            kind, function, parameters, self.mode, witness=witness, **self._product_options
        )

        def restrict(kept: list[str]) -> CurvatureOperator:
            if len(kept) == len(self.parameters):
                return self._operator(kind, self.function, *key)
            return self._operator(kind, function, *key, names=tuple(kept))

        return CurvatureOperator(
            sum(p.numel() for p in parameters.values()),
            products,
            name,
            consecutive({n: p.numel() for n, p in parameters.items()}),
            self.device,
            self.dtype,
            None if names else restrict,
        )


def _normalised(outputs: Float[Tensor, "n c ..."]) -> Float[Tensor, "n c ..."]:
    """Centred and of norm 1 over the classes."""
    if outputs.ndim < 2 or outputs.shape[1] < 2:
        raise InputError(
            f"logits are normalised over several classes, the outputs have shape "
            f"{tuple(outputs.shape)}"
        )
    centred = outputs - outputs.mean(1, keepdim=True)
    return centred / centred.norm(dim=1, keepdim=True).clamp_min(1e-12)


def refuse_non_finite(parameters: Parameters) -> None:
    """Raise an InputError that names the first parameter with NaN or infinite values."""
    for name, value in parameters.items():
        bad = int((~torch.isfinite(value)).sum())
        if bad:
            raise InputError(
                f"parameter {name!r} has {bad} of {value.numel()} values that are not finite "
                f"(NaN or infinity): the checkpoint or the training run is broken"
            )
