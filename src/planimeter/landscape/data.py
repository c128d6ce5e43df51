"""The rows that a loss is a mean over: tensors, or a loader that gives the same rows every time."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import count
from typing import Any

import torch
from torch import Tensor

from planimeter.errors import InputError
from planimeter.landscape.odd_data import kind, odd_part, way_out
from planimeter.machine.memory import free_memory
from planimeter.products.batches import Batch, Inputs, cut_rows, is_finite, tensors_in

TARGET_KEYS = ("labels", "label", "targets", "target")
DEFAULT_ROWS = 2048
KEPT_FRACTION = 8
"""A loader's rows are kept in memory when they take less than this part of what is free."""


class BatchData:
    """Batches that are the same in every pass.

    Arguments:
        data: (inputs, targets), inputs a tensor or a tuple or dict of tensors with one entry a
            row, or of other lengths, if they are more than one; or an iterable of batches that can
            be iterated again. A batch is such a pair, a tuple whose last tensor is the targets, or
            a dict with the targets under "labels".
        batch_size: rows a batch, for tensors; None for some number.
        device, dtype: of the model; floating inputs are converted.

    Raises:
        InputError: the data is empty, of unequal lengths, not finite, can be iterated only once,
            or is not the same in a second pass (the reason is named: shuffled, or changing rows).
    """

    def __init__(
        self, data: Any, *, batch_size: int | None, device: torch.device, dtype: torch.dtype
    ) -> None:
        if batch_size is not None and batch_size < 1:
            raise InputError(f"batch_size must be at least 1 row, got {batch_size}")
        self.batch_size = DEFAULT_ROWS if batch_size is None else batch_size
        self.cut, self.device, self.dtype = batch_size is not None, device, dtype
        self.uneven = self.whole = False
        """Whether some inputs have another length than the targets; whether nothing is cut."""
        self.tensors: Batch | None = None
        odd = odd_part(data)
        if odd is not None:
            raise InputError(f"data must be tensors, got {kind(odd)}{way_out(odd)}")
        if isinstance(data, Tensor):
            raise InputError(
                f"data must be (inputs, targets), got one tensor of shape {tuple(data.shape)}: "
                f"the loss needs targets too; pass its own rows for those of an autoencoder"
            )
        if isinstance(data, tuple | list) and len(data) == 2 and _are_rows(*data):
            self.tensors = _checked_tensors(data[0], data[1])
            self.uneven = _is_uneven(self.tensors)
            return
        if isinstance(data, Iterator) or not isinstance(data, Iterable):
            what = "one-shot " if isinstance(data, Iterator) else ""
            raise InputError(
                f"data must be tensors (inputs, targets) or an iterable that can be iterated "
                f"again, got a {what}{type(data).__name__}: pass a DataLoader or a list of "
                f"batches"
            )
        self.loader: Iterable[Any] = data
        self._check_repeats()

    def __iter__(self) -> Iterator[Batch]:
        """One pass, on the model's device, floating inputs in the model's dtype."""
        if self.tensors is None:
            for batch in self._loaded(seed=None):
                yield self._placed(batch[0]), self._placed(batch[1])
            return
        inputs, targets = self.tensors
        rows = len(targets)
        for start in range(0, rows, rows if self.whole else self.batch_size):
            part = slice(start, start + (rows if self.whole else self.batch_size))
            yield self._placed(cut_rows(inputs, part, rows)), self._placed(targets[part])

    def shuffled(self, batch_size: int, generator: torch.Generator) -> Iterator[Batch]:
        """One epoch of shuffled batches; those of a loader, or whole ones, are as they are."""
        if self.tensors is None or self.whole:
            yield from self
            return
        inputs, targets = self.tensors
        order = torch.randperm(len(targets), generator=generator)
        for rows in order.split(batch_size):
            yield self._placed(_taken(inputs, rows, len(targets))), self._placed(targets[rows])

    def spread(self, rows: int) -> Batch | None:
        """Rows from all over the data; None for a loader, or where nothing is cut."""
        if self.tensors is None or self.whole:
            return None
        inputs, targets = self.tensors
        some = torch.arange(0, len(targets), max(1, len(targets) // rows))[:rows]
        return self._placed(_taken(inputs, some, len(targets))), self._placed(targets[some])

    def _loaded(self, seed: int | None) -> Iterator[Batch]:
        """The loader's batches as pairs; it has a random state of its own.

        A DataLoader draws from the global one even when it does not shuffle.
        """
        state = torch.get_rng_state()
        if seed is not None:
            state = torch.Generator().manual_seed(seed).get_state()
        batches: Iterator[Any] | None = None
        for number in count():
            outside = torch.get_rng_state()
            torch.set_rng_state(state)
            try:
                batches = iter(self.loader) if batches is None else batches
                batch = next(batches)
                state = torch.get_rng_state()
            except StopIteration:
                return
            finally:
                torch.set_rng_state(outside)
            yield _pair(batch, number)

    def _check_repeats(self) -> None:
        """Two passes with different random states have to give the same batches."""
        kept: list[Batch] | None = []
        room = free_memory(torch.device("cpu")) // KEPT_FRACTION
        first: list[list[int]] = []
        for number, batch in enumerate(self._loaded(seed=1)):
            _check_rows(batch, f"batch {number}")
            self.uneven |= _is_uneven(batch)
            first.append(_fingerprints(batch))
            room -= sum(t.untyped_storage().nbytes() for t in [*tensors_in(batch[0]), batch[1]])
            if room < 0:
                kept = None
            if kept is not None:
                kept.append(batch)
        if not first:
            raise InputError("the data has no batches")
        second = [_fingerprints(batch) for batch in self._loaded(seed=2)]
        if first != second:
            rows, again = (Counter(f for batch in p for f in batch) for p in (first, second))
            if not second:
                raise InputError(
                    "the data can be iterated only once: pass a DataLoader or a list of batches"
                )
            raise InputError(
                "the data is shuffled: two passes gave the same rows in another order; turn "
                "shuffling off (DataLoader(shuffle=False))"
                if rows == again
                else "the data changes from pass to pass (random augmentation, or another choice "
                "of rows): measure on the rows themselves, without random transforms, shuffling "
                "or drop_last"
            )
        # A loader may yield the same memory again with other rows in it.
        if kept is not None and [_fingerprints(batch) for batch in kept] == first:
            self.loader = kept

    def _placed(self, values: Inputs) -> Any:
        if isinstance(values, Tensor):
            dtype = self.dtype if values.is_floating_point() else values.dtype
            values = values.clone() if values.is_inference() else values
            placed = values.to(device=self.device, dtype=dtype)
            # Not the user's own: a model that differentiates by its inputs may set their flag.
            return placed if placed.requires_grad else placed.detach()
        if isinstance(values, dict):
            return {key: self._placed(value) for key, value in values.items()}
        if isinstance(values, tuple | list):
            return tuple(self._placed(value) for value in values)
        return values


def _are_rows(inputs: Any, targets: Any) -> bool:
    """Whether this is (inputs, targets) of all rows, rather than a list of two batches."""
    if isinstance(inputs, Tensor):
        return True
    if isinstance(inputs, Mapping):
        return not any(key in inputs for key in TARGET_KEYS)
    return isinstance(targets, Tensor) and isinstance(inputs, tuple | list)


def _pair(batch: Any, number: int) -> Batch:
    if isinstance(batch, Mapping):
        key = next((key for key in TARGET_KEYS if key in batch), None)
        if key is not None and not isinstance(batch[key], Tensor):
            raise InputError(
                f"batch {number}: {key!r} must be a tensor, got {kind(batch[key])}"
                f"{way_out(batch[key])}"
            )
        if key is not None:
            return {k: v for k, v in batch.items() if k != key}, batch[key]
        raise InputError(
            f"batch {number} is a dict without targets: it has {', '.join(map(str, batch))}, none "
            f"of {', '.join(TARGET_KEYS)}"
        )
    if isinstance(batch, tuple | list) and len(batch) >= 2 and isinstance(batch[-1], Tensor):
        inputs = batch[0] if len(batch) == 2 else tuple(batch[:-1])
        if isinstance(inputs, Mapping):
            inputs = dict(inputs)
        if tensors_in(inputs):
            return inputs, batch[-1]
    raise InputError(
        f"batch {number} is no pair of tensors (inputs, targets), no tuple that ends with the "
        f"targets and no dict with {TARGET_KEYS[0]!r}, but {kind(batch)}{way_out(_odd_of(batch))}"
    )


def _odd_of(batch: Any) -> Any:
    """The part of a batch that is no tensor."""
    if not isinstance(batch, tuple | list):
        return batch
    return next((part for part in batch if not isinstance(part, Tensor)), None)


def _checked_tensors(inputs: Any, targets: Any) -> Batch:
    if not isinstance(targets, Tensor):
        raise InputError(f"targets must be a tensor, got {kind(targets)}{way_out(targets)}")
    inputs = dict(inputs) if isinstance(inputs, Mapping) else inputs
    _check_rows((inputs, targets), "data")
    return inputs, targets


def _check_rows(batch: Batch, where: str) -> None:
    inputs, targets = batch
    tensors = tensors_in(inputs)
    rows = len(tensors[0]) if tensors and tensors[0].ndim else 0
    if any(t.layout is not torch.strided for t in [*tensors, targets]):
        raise InputError(f"{where} has sparse tensors: rows are cut from dense ones (.to_dense())")
    if targets.is_complex():
        raise InputError(f"the targets of {where} are complex: use torch.view_as_real")
    counted = len(targets) if targets.ndim else 0
    if rows == 0 or counted == 0 or (rows != counted and len(tensors) == 1):
        raise InputError(f"{where} has {rows} inputs and {counted} targets")
    if not all(map(is_finite, tensors)):
        raise InputError(f"the inputs of {where} contain values that are not finite")


def _is_uneven(batch: Batch) -> bool:
    """Whether some of its inputs have no entry a row."""
    inputs, targets = batch
    return any(t.ndim and len(t) != len(targets) for t in tensors_in(inputs))


def _fingerprints(batch: Batch) -> list[int]:
    """A checksum of each row."""
    inputs, targets = batch
    sums = [0] * len(targets)
    for tensor in [*tensors_in(inputs), targets]:
        if tensor.ndim == 0 or len(tensor) != len(sums):
            shared = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            sums[0] = zlib.crc32(shared.numpy().tobytes(), sums[0])
            continue
        raw = tensor.detach().cpu().contiguous().flatten(1 if tensor.ndim > 1 else 0)
        for i, row in enumerate(raw.reshape(len(sums), -1).view(torch.uint8).numpy()):
            sums[i] = zlib.crc32(row.tobytes(), sums[i])
    return sums


def _taken(inputs: Inputs, rows: Tensor, size: int) -> Any:
    if isinstance(inputs, Tensor):
        return inputs[rows.to(inputs.device)] if inputs.ndim and len(inputs) == size else inputs
    if isinstance(inputs, dict):
        return {key: _taken(value, rows, size) for key, value in inputs.items()}
    if isinstance(inputs, tuple | list):
        return tuple(_taken(value, rows, size) for value in inputs)
    return inputs
