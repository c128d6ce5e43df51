r"""Training many networks of one architecture as one computation.

The parameters of B networks are stacked, and one step moves all of them: network b takes the
gradient of its own mini-batch :math:`M_b` of its own data :math:`S \cup A_b`,

.. math:: g_b = \sum_{n=1}^{N} w_{bn} \nabla_{\theta_b} \ell(h(x_{bn}; \theta_b), y_{bn}),
          \qquad w_{bn} = 1 / |M_b| \text{ for } n \le |M_b|, \text{ else } 0,

so mini-batches of unequal sizes, and epochs of unequal lengths, stand side by side. Every network
sees the rows that it would see alone, in the same order, and stops where it would stop alone; it
then leaves the stack and costs nothing more. Small networks spend their time between operations,
which a stack pays for once: see `benchmarks/training.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from planimeter.ensembles.batches import MemberBatches, MemberData
from planimeter.ensembles.optimisers import MemberOptimiser
from planimeter.errors import InputError
from planimeter.landscape.denominators import known_loss
from planimeter.landscape.means import MeanCheck
from planimeter.losses import Loss, binary_cross_entropy, predicted_classes, row_loss
from planimeter.network.stack import check_alike, other_names, stack_of, stacked
from planimeter.training.fitting import FitResult, check_batch_size

Rows = tuple[Float[Tensor, "_ ..."], Int[Tensor, " _"]]

_ROWS_AT_ONCE = 1024  # of every network, when errors are counted
_WITNESSES = 32
_LOOKED_AT = 64  # rows on which a loss is seen to be a mean


def fit_ensemble(
    models: Sequence[nn.Module],
    loss: Loss,
    optimiser: str | Callable[..., torch.optim.Optimizer],
    train: Rows,
    attacks: Sequence[Rows | None] | None = None,
    *,
    settings: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    batch_size: int | None = 32,
    max_epochs: int = 1000,
    seeds: Sequence[int] | None = None,
    noise_seeds: Sequence[int] | None = None,
    progress: Callable[[int, int, int], None] = lambda done, total, epoch: None,
) -> list[FitResult]:
    """`fit_to_zero_error` of many networks at once, each with what it would have had alone.

    Arguments:
        models: of one architecture, trained in place, each from its own weights.
        loss: mean over the rows of a batch.
        optimiser: a name that `make_optimiser` knows, or a class such as `torch.optim.AdamW`; it
            has to treat every number of a parameter alike, or to be Entropy-SGD.
        train: S, which all share.
        attacks: A of every network, of any sizes; None, or None for some, for none.
        settings: of the optimiser, for all or for each.
        batch_size: rows a mini-batch; None for all rows at every step.
        max_epochs: give up here.
        seeds: of the shuffling of every network; default all 0, as for one network.
        noise_seeds: of the noise of an optimiser that draws random numbers; default all 0.
        progress: called with the networks that are done, how many there are, and the epochs of the
            one that has most, whenever some end an epoch.

    Returns:
        what `fit_to_zero_error` returns, for each network. A network whose loss stops being finite
        says so, and leaves the others alone.

    Raises:
        InputError: the networks differ in architecture, or their rows cannot be told apart
            (BatchNorm, dropout, a loss that is no mean over rows); the optimiser mixes networks or
            is unknown; a list has another length than `models`; a number is out of its range.
    """
    check_alike(models)
    count = len(models)
    if max_epochs < 1 or (batch_size is not None and batch_size < 1):
        raise InputError(
            f"max_epochs and batch_size must be at least 1: {max_epochs}, {batch_size}"
        )
    each = [dict(settings or {})] * count if not isinstance(settings, Sequence) else settings
    attacks = [None] * count if attacks is None else attacks
    seeds = [0] * count if seeds is None else seeds
    noise_seeds = [0] * count if noise_seeds is None else noise_seeds
    for what, given in (
        ("settings", each), ("attacks", attacks), ("seeds", seeds), ("noise_seeds", noise_seeds),
    ):  # fmt: skip
        if len(given) != count:
            raise InputError(f"{len(given)} {what} for {count} networks")
    data = MemberData(train, attacks)
    if batch_size is not None:
        check_batch_size(batch_size, min(map(len, data.members)))
    _check_rows(models[0], loss, data)
    # Networks with the same settings stand together: they are one group of the optimiser.
    order = sorted(range(count), key=lambda b: repr(sorted(each[b].items())))
    run = _Run(
        [models[b] for b in order],
        loss,
        data,
        MemberBatches(data, [(b, seeds[b]) for b in order], batch_size),
        max_epochs,
    )
    run.optimiser = MemberOptimiser(
        optimiser,
        [dict(each[b]) for b in order],
        [noise_seeds[b] for b in order],
        run.parameters,
        run.gradients,
    )
    results: dict[int, FitResult] = {}
    with torch.no_grad():
        while run.models:
            run.optimiser.step(run.next_batch)
            if run.consumed >= run.next_look:
                for position, result in run.look():
                    results[order[position]] = result
                progress(len(results), count, run.longest)
    return [results[b] for b in range(count)]


class _Run:
    """The networks that are still being trained."""

    optimiser: MemberOptimiser

    def __init__(
        self,
        models: list[nn.Module],
        loss: Loss,
        data: MemberData,
        batches: MemberBatches,
        max_epochs: int,
    ) -> None:
        self.data, self.batches, self.max_epochs = data, batches, max_epochs
        self.names = _used(models[0], loss, data)
        self.others = other_names(models[0], self.names)
        self.stack = stack_of(models[0], row_loss(loss), self.names, data.inputs.shape[1:])
        states = [{**dict(m.named_parameters()), **dict(m.named_buffers())} for m in models]
        self.parameters, self.fixed = stacked(states, self.names), stacked(states, self.others)
        self.gradients = [torch.empty_like(p) for p in self.parameters]
        self.models = models
        self.positions = list(range(len(models)))
        self.epochs = [0] * len(models)
        # Rows of S that were wrong when a network was last looked at: as long as one of them still
        # is, the network is not done, and the other rows need no look.
        self.witnesses: list[Tensor] = [torch.arange(0)] * len(models)
        self.losses = torch.zeros(len(models))
        self.consumed, self.longest = 0, 0
        self._plan_look()
        for model in models:
            model.train()

    def next_batch(self) -> Tensor:
        """The gradients of every network on its next mini-batch."""
        rows, weights = self.batches.take()
        inputs, targets = self.data.rows(rows)
        self.consumed += 1
        outputs = self.stack.gradient(
            self.parameters, self.fixed, inputs, targets, weights, self.gradients
        )
        if self.consumed >= self.next_look:
            values = self.stack.loss.values(outputs, targets)
            # A row of weight zero counts nothing, even where its loss is infinite.
            self.losses = torch.where(weights > 0, weights * values, 0.0).sum(1)
        return self.losses

    def look(self) -> list[tuple[int, FitResult]]:
        """At the networks that ended an epoch: those that are done leave the stack."""
        lengths = self.batches.lengths
        ended = [b for b, n in enumerate(lengths) if self.consumed >= (self.epochs[b] + 1) * n]
        for b in ended:
            self.epochs[b] = self.consumed // lengths[b]
        self.longest = max(self.longest, *(self.epochs[b] for b in ended))
        finite = torch.isfinite(self.losses).tolist()
        over = {b for b in ended if not finite[b] or self.epochs[b] >= self.max_epochs}
        over |= set(self._right([b for b in ended if b not in over]))
        done = [(self.positions[b], self._result(b)) for b in sorted(over)]
        for b in over:
            self._hand_back(b)
        if over:
            self._keep([b for b in range(len(self.models)) if b not in over])
        self._plan_look()
        return done

    def _right(self, members: list[int]) -> list[int]:
        """Those of the networks that have all of S right."""
        suspects = [b for b in members if len(self.witnesses[b])]
        if suspects:
            rows = torch.stack([self.witnesses[b] for b in suspects])
            wrong = self._wrong(suspects, *self.data.rows(rows)).any(1).tolist()
            still = {b for b, w in zip(suspects, wrong, strict=True) if w}
            members = [b for b in members if b not in still]
        if not members:
            return []
        right = []
        for b, wrong_rows in zip(members, self._wrong_on_train(members), strict=True):
            found = wrong_rows.nonzero()[:, 0]
            if len(found):
                # All lists are of one length, so that they stack.
                self.witnesses[b] = found[torch.arange(_WITNESSES) % len(found)].cpu()
            else:
                right.append(b)
        return right

    def _wrong_on_train(self, members: list[int]) -> Tensor:
        """(k, m) whether networks are wrong on the rows of S."""
        starts = range(0, self.data.train_rows, _ROWS_AT_ONCE)
        ends = [min(start + _ROWS_AT_ONCE, self.data.train_rows) for start in starts]
        parts = map(slice, starts, ends)
        found = [self._wrong(members, *self.data.train(part, len(members))) for part in parts]
        return torch.cat(found, 1)

    def _wrong(self, members: list[int], inputs: Tensor, targets: Tensor) -> Tensor:
        """(k, n) whether networks are wrong on rows of their own."""
        some = len(members) < len(self.models)
        parameters = [p[members] for p in self.parameters] if some else self.parameters
        fixed = [f[members] for f in self.fixed] if some else self.fixed
        outputs = self.stack.outputs(parameters, fixed, inputs)
        classes = predicted_classes(outputs.flatten(0, 1)).reshape(targets.shape)
        return classes != targets

    def _result(self, b: int) -> FitResult:
        """How the training of a network ended."""
        size = self.data.train_rows
        errors = int(self._wrong_on_train([b]).sum())
        attack = self.batches.members[b].rows[None, size:]
        parts = attack.split(_ROWS_AT_ONCE, dim=1) if attack.numel() else ()
        attack_errors = sum(int(self._wrong([b], *self.data.rows(part)).sum()) for part in parts)
        value = float(self.losses[b])
        if not math.isfinite(value):
            reason = f"the loss became {value}"
        elif errors == 0:
            reason = "zero error on the training set"
        else:
            reason = f"{errors} of {size} training rows still wrong after {self.epochs[b]} epochs"
        converged = math.isfinite(value) and errors == 0
        return FitResult(
            converged,
            self.epochs[b],
            errors,
            attack_errors,
            reason,
            diverged=not math.isfinite(value),
            stop_epoch=self.epochs[b] if converged else None,
        )

    def _hand_back(self, b: int) -> None:
        """Leave a network's parameters in its model."""
        own = dict(self.models[b].named_parameters())
        for name, values in zip(self.names, self.parameters, strict=True):
            own[name].copy_(values[b])

    def _keep(self, kept: list[int]) -> None:
        """Go on with these networks alone. Copying them costs less than one step."""
        self.models = [self.models[b] for b in kept]
        if not kept:
            return
        self.parameters = [p[kept] for p in self.parameters]
        self.fixed = [f[kept] for f in self.fixed]
        self.gradients = [torch.empty_like(p) for p in self.parameters]
        self.optimiser.keep(kept, self.parameters, self.gradients)
        self.batches.keep(kept)
        self.positions = [self.positions[b] for b in kept]
        self.epochs = [self.epochs[b] for b in kept]
        self.witnesses = [self.witnesses[b] for b in kept]
        self.losses = self.losses[kept]

    def _plan_look(self) -> None:
        """How many mini-batches have to be consumed before a network ends an epoch."""
        ends = zip(self.epochs, self.batches.lengths, strict=False)
        self.next_look = min((epoch + 1) * n for epoch, n in ends) if self.models else 0


def _check_rows(model: nn.Module, loss: Loss, data: MemberData) -> None:
    """Refuse a loss that is no mean over rows, and labels that it does not take."""
    if loss is binary_cross_entropy:
        loss(data.inputs.new_zeros(len(data.labels)), data.labels)
    known = known_loss(loss)
    if known is not None and known.of_classes:
        weighted = known.settings.get("weight") is not None
        if weighted or bool(data.labels.eq(known.settings.get("ignore_index", -100)).any()):
            raise InputError(
                "the loss is not a mean over rows that count alike (class weights, or ignored "
                "labels): train these networks one by one"
            )
    some = torch.arange(0, len(data.labels), max(1, len(data.labels) // _LOOKED_AT))
    with torch.no_grad():
        outputs, targets = model(data.inputs[some]), data.labels[some]
        check = MeanCheck(loss, lambda _, targets: float(len(targets)), lambda: len(some))
        if math.isfinite(float(loss(outputs, targets))) and not check.look(
            outputs, targets, data.inputs[some]
        ):
            raise InputError(
                f"the loss is not a mean over rows: {check.words}; train these networks one by one"
            )


def _used(model: nn.Module, loss: Loss, data: MemberData) -> list[str]:
    """Parameters that the loss reaches: an optimiser leaves the others as they are."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with torch.enable_grad():
        value = loss(model(data.inputs[:2]), data.labels[:2])
        slopes = torch.autograd.grad(value, list(named.values()), allow_unused=True)
    return [name for name, slope in zip(named, slopes, strict=True) if slope is not None]
