r"""Products of a curvature with vectors, by the fastest way that a model and its memory allow.

What does not depend on the vector is computed once and kept, batch by batch, for as long as it
fits into a memory budget; the rest of the batches is computed anew for every product. There are

* ``tape``: the operations of forward over reverse differentiation that touch the vector, with the
  values they need (`planimeter.products.tape`); k vectors at once when that is faster; on a GPU
  launched as one (`planimeter.products.replay`);
* ``graph``: autograd's graph of the gradient;
* ``program``, ``forward`` and ``reverse``: without keeping anything of the data, by a tape of the
  whole product (`planimeter.products.program`), and as the two above.

The first product is computed by tape and by graph. They must agree, or the tape is not used and a
warning says so; the faster one is kept. What both inherit from the library that differentiates is
for a witness to tell (`planimeter.products.witness`): where it trusts none, there are

* ``differences`` of first derivatives (`planimeter.products.differences`).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from planimeter.errors import InputError, MeasurementWarning, NotApplicableError
from planimeter.machine.memory import free_memory, is_out_of_memory
from planimeter.machine.precision import full_precision
from planimeter.products.agreement import agree, difference, elsewhere, flat, seconds
from planimeter.products.batches import (
    NOTHING,
    Batch,
    BatchedLoss,
    Parameters,
    cut_rows,
    first_non_finite,
    is_finite,
    refuse_inference_mode,
)
from planimeter.products.curvatures import Curvature, Directions, LinearMap
from planimeter.products.recomputed import WITHOUT, Anew
from planimeter.products.tape import Tape, TapeError, record, tensor_bytes

STRATEGIES = ("auto", "tape", "graph", "recompute", "differences")
BLOCKS = (16, 8)
"""Vectors of a block product."""
SINGLES = 300
"""So many vectors among columns are multiplied one by one before blocks are tried: trying costs
about 100 products, and a block saves at most a third."""
FEWEST_ROWS = 8
"""A batch is not cut into pieces of fewer rows."""
PIECE = {
    "cpu": {"kept": 2**25, "recomputed": 2**24},
    "cuda": {"kept": 2**32, "recomputed": 2**29},
}
"""Batches that need more bytes are cut: their pieces need less memory at once, and more cache. What
is kept on a GPU gains nothing from pieces, which take a second each."""
PIECES = 8
"""A batch is cut into at most so many, as long as memory is free."""
SLOWER = 1.3
"""A tape is given up for a graph that is faster by this factor, so that noise decides nothing."""


class Products:
    """v -> A v for a curvature A of a loss, float64 in and out.

    Arguments:
        curvature: which matrix.
        function: the loss.
        parameters: where.
        mode: the context in which the model runs.
        memory_budget: bytes that may be kept between products; None for half of what is free.
        strategy: "auto" (as above), or "tape", "graph", "recompute", "differences" to insist.
        compile: translate tapes with torch.compile, and check them against the eager ones.
        witness: tells, before the first product, which way is to be trusted: "any", "forward" or
            "differences".
    """

    def __init__(
        self,
        curvature: Curvature,
        function: BatchedLoss,
        parameters: Parameters,
        mode: Callable[[], AbstractContextManager[None]],
        *,
        memory_budget: int | None = None,
        strategy: str = "auto",
        compile: bool = False,
        witness: Callable[[], str] = lambda: "any",
    ) -> None:
        if strategy not in STRATEGIES:
            raise InputError(f"no strategy {strategy!r}; there are {', '.join(STRATEGIES)}")
        if memory_budget is not None and memory_budget < 0:
            raise InputError(f"memory_budget must not be negative, got {memory_budget} bytes")
        # A copy: pieces must not change their rows while some of them are kept.
        self.curvature, self.function, self.mode = curvature, replace(function), mode
        self._shared = function
        self.parameters = {name: value.detach() for name, value in parameters.items()}
        self.shapes = [value.shape for value in self.parameters.values()]
        self.sizes = [value.numel() for value in self.parameters.values()]
        self.dtypes = [value.dtype for value in self.parameters.values()]
        self.device = next(iter(self.parameters.values())).device
        self.precision = max(torch.finfo(dtype).eps for dtype in self.dtypes)
        device = "cpu" if self.device.type == "cpu" else "cuda"
        self._piece = PIECE[device]["recomputed" if strategy == "recompute" else "kept"]
        self.memory_budget, self.wanted, self.compiled = memory_budget, strategy, compile
        self.witness, self.budget = witness, 0
        self.anew = Anew(
            curvature, self.function, self.parameters,
            insisted={"tape": "forward", "graph": "reverse"}.get(strategy),
        )  # fmt: skip
        self._pool: Any = None
        self._buffers = [
            torch.empty(value.shape, dtype=value.dtype, device=self.device)
            for value in self.parameters.values()
        ]
        self._views = [buffer.view(-1) for buffer in self._buffers]
        # On a GPU, what counts is the number of operations: all pieces of a vector in one.
        self._whole: Tensor | None = None
        if self.device.type == "cuda" and len(set(self.dtypes)) == 1:
            self._whole = torch.empty(sum(self.sizes), dtype=self.dtypes[0], device=self.device)
            self._views = list(self._whole.split(self.sizes))
            self._buffers = [v.view(s) for v, s in zip(self._views, self.shapes, strict=True)]
        self._reset()

    def _reset(self) -> None:
        self.strategy: str | None = None  # decided by the first product
        self.anew.reset()
        self.kept: list[tuple[float, LinearMap]] = []
        self.kept_bytes, self.all_kept = 0, False
        self.blocks: dict[int, list[Tape]] = {}  # none where single vectors are faster
        self.singles = 0  # columns multiplied one by one since a block was last tried

    # -- products ----------------------------------------------------------------------------

    def __call__(self, vectors: Float[Tensor, " P *k"]) -> Float[Tensor, " P *k"]:
        """A v, or A V for the columns of V."""
        refuse_inference_mode()
        columns = vectors if vectors.ndim == 2 else vectors[:, None]
        with full_precision():
            result: Tensor = self._surviving(lambda: self._columns(columns))
        return result if vectors.ndim == 2 else result[:, 0]

    def _surviving(self, compute: Callable[[], Tensor]) -> Tensor:
        """`compute()`, with less kept and on smaller pieces for as long as memory runs out."""
        while True:
            try:
                return compute()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if self.kept and self.wanted == "auto":
                    warnings.warn(
                        "out of memory: going on without keeping what products have in common",
                        MeasurementWarning,
                        stacklevel=5,
                    )
                    self.wanted = "recompute"
                else:
                    self.function.shrink(str(error))
                    rows = self.function.rows
                    self._shared.rows = min(rows or 1, self._shared.rows or rows or 1)
                self._reset()

    def _columns(self, columns: Float[Tensor, "P k"]) -> Float[Tensor, "P k"]:
        if self.strategy is None:
            with self.mode():
                self._decide(self._directions(columns[:, 0]))
        count = columns.shape[1]
        if count == 1:
            return self._one(columns[:, 0])[:, None]
        result = columns.new_empty(count, columns.shape[0])
        done = 0
        while done < count:
            size = self._together(columns[:, done:])
            if size > 1:
                self._block(columns[:, done : done + size], result[done : done + size])
            else:
                result[done] = self._one(columns[:, done])
                self.singles += 1
            done += size
        return result.T

    def _one(self, v: Float[Tensor, " P"]) -> Float[Tensor, " P"]:
        directions = self._directions(v)
        if self.all_kept and len(self.kept) == 1:
            if self._whole is not None:
                return self._finite(flat(self.kept[0][1](directions)), directions)
            result = torch.empty_like(v)
            for piece, part in zip(
                result.split(self.sizes), self.kept[0][1](directions), strict=True
            ):
                piece.copy_(part.reshape(-1))
            return self._finite(result, directions)
        total, rows = torch.zeros_like(v), 0.0
        for weight, product in self._maps():
            if self._whole is not None:
                total.add_(flat(product(directions)), alpha=weight)
            else:
                for piece, part in zip(total.split(self.sizes), product(directions), strict=True):
                    piece.add_(part.reshape(-1), alpha=weight)
            rows += weight
        return self._finite(total.div_(rows), directions)

    def _together(self, columns: Float[Tensor, "P k"]) -> int:
        """How many of the columns, from the first on, to multiply at once."""
        if self.all_kept and self.strategy == "tape":
            for size in BLOCKS:
                if size > columns.shape[1]:
                    continue
                if size not in self.blocks and self.singles >= SINGLES:
                    self._decide_block(columns[:, :size])
                if self.blocks.get(size):
                    return size
        return 1

    def _block(self, columns: Float[Tensor, "P k"], result: Float[Tensor, "k P"]) -> None:
        """A times the columns, into the rows of `result`."""
        tapes = self.blocks[columns.shape[1]]
        directions = self._directions(columns.T)
        weights = [weight for weight, _ in self.kept]
        rows = sum(weights)
        for number, (weight, tape) in enumerate(zip(weights, tapes, strict=True)):
            for piece, part in zip(result.split(self.sizes, dim=1), tape(directions), strict=True):
                own = part.reshape(len(part), -1)
                if number == 0:
                    piece.copy_(own)
                    if len(weights) > 1:
                        piece.mul_(weight / rows)
                else:
                    piece.add_(own, alpha=weight / rows)
        if not is_finite(result):
            for column in columns.unbind(1):
                self._one(column)  # the one that is not finite says where

    def _maps(self) -> Iterator[tuple[float, LinearMap]]:
        """Every piece of the data as a linear map with its rows."""
        yield from self.kept
        if self.all_kept:
            return
        with self.mode():
            for number, (index, weight, batch) in enumerate(self.function.pieces()):
                if number >= len(self.kept):
                    yield weight, self.anew(batch, index)

    # -- deciding, on the first product ------------------------------------------------------

    def _decide(self, directions: Directions) -> None:
        """Choose how to compute, and keep what fits."""
        free = free_memory(self.device)
        budget = free // 2 if self.memory_budget is None else self.memory_budget
        self.budget = budget
        pieces = self.function.pieces()
        first = next(pieces, None)
        if first is None:
            raise InputError(NOTHING)
        index, weight, batch = first
        # Looks at the loss before anything is differentiated, for errors in words.
        with torch.enable_grad():
            self.function.batch_loss(self.parameters, batch, index)
        trusted = self.wanted if self.wanted == "differences" else self.witness()
        if trusted != "any":
            self.strategy = self.anew.way = trusted
            return
        size = self._size(batch, index, directions)
        size = self._cut(size, len(batch[1]), free)
        # Only about so: in doubt a piece is tried, and its size is then known.
        if self.wanted == "recompute" or size > max(2 * budget, self._piece):
            self._decide_recomputed(directions)
            return
        index, weight, batch = next(self.function.pieces())
        tape, size = self._chosen(batch, index, directions)
        if size > budget:
            del tape
            self._decide_recomputed(directions)
            return
        self.strategy = "tape" if tape is not None else "graph"
        self.kept, self.kept_bytes = [(weight, tape or self.anew(batch, index))], size
        self.all_kept = self._keep_others(tape, directions)
        if tape is not None and not self.all_kept:
            self.anew.choose(directions)

    def _keep_others(self, first: Tape | None, directions: Directions) -> bool:
        """Keep what the other pieces have in common too; False where that does not fit."""
        pieces = self.function.pieces()
        rows, size = len(next(pieces)[2][1]), self.kept_bytes
        constants = [] if first is None else list(first.constants)
        for index, weight, batch in pieces:
            if first is None:
                total = self.kept_bytes + int(size * len(batch[1]) / rows)
                if total > self.budget:
                    return False
                another = self.anew(batch, index)
            else:
                try:
                    another = self._recorded(batch, directions)
                except TapeError:
                    return False
                # Tapes share the parameters and, from tensors in memory, the data.
                constants += another.constants
                total = tensor_bytes(constants)
                if total > self.budget:
                    return False
            self.kept.append((weight, another))
            self.kept_bytes = total
        return True

    def _chosen(self, batch: Batch, index: int, directions: Directions) -> tuple[Tape | None, int]:
        """A tape that agrees with the graph and is not slower, or None; and the bytes to keep."""
        saved, failure = _Bytes(), ""

        def by_graph() -> tuple[Directions, float]:
            """A product and the time of another; the graph is gone afterwards."""
            with saved:
                graph = self.curvature.graph(self.function, self.parameters, batch, index)
            product, auto = graph(directions), self.wanted == "auto"
            return product, seconds(lambda: graph(directions), self.device) if auto else 0.0

        expected: Directions | None
        try:
            expected, slow = by_graph()
        except (RuntimeError, NotImplementedError) as error:
            if is_out_of_memory(error) or isinstance(error, InputError):
                raise
            failure, expected = str(error).splitlines()[0], None
            slow = float("inf")
        if self.wanted == "graph" and expected is not None:
            return None, saved.total
        try:
            tape = self._recorded(batch, directions)
            found = tape(directions)
        except (TapeError, RuntimeError, NotImplementedError) as error:
            if is_out_of_memory(error) or isinstance(error, InputError):
                raise
            if expected is None:
                raise NotApplicableError(
                    f"the {self.curvature.name} cannot be computed: an operation of the model or "
                    f"the loss has no second derivative ({failure}; {str(error).splitlines()[0]}); "
                    f"{WITHOUT}"
                ) from error
            if self.wanted == "tape":
                raise InputError(f"the model cannot be recorded on a tape: {error}") from error
            return None, saved.total
        if expected is None:  # nothing independent to compare with, but the tape has to be right
            expected = self.curvature.forward(self.function, self.parameters, batch)(directions)
            if not agree(self.precision, tape, directions, found, expected):
                raise InputError(
                    f"the {self.curvature.name} cannot be computed: recorded and repeated products "
                    f"differ by {difference(found, expected):.1e} ({failure})"
                )
        else:
            if not agree(self.precision, tape, directions, found, expected):
                other = elsewhere(directions)
                graph = self.curvature.graph(self.function, self.parameters, batch, index)
                if not agree(self.precision, tape, other, tape(other), graph(other)):
                    self.anew.warn_of(found, expected)
                    return None, saved.total
            if self.wanted == "auto" and seconds(lambda: tape(directions), self.device) > slow:
                fast = min(seconds(lambda: tape(directions), self.device) for _ in range(3))
                slow = min(by_graph()[1] for _ in range(2))
                if fast > SLOWER * slow:
                    return None, saved.total
        return tape, tensor_bytes(tape.constants)

    def _size(self, batch: Batch, index: int, directions: Directions) -> float:
        """About how many bytes a batch would keep, from some of its rows where rows are many."""
        inputs, targets = batch
        rows, parts = len(targets), 1
        if self.function.separable and rows >= 2 * FEWEST_ROWS:
            some = cut_rows(inputs, slice(rows // 8), rows), targets[: rows // 8]
            if self.function.weight(some):  # else none of them counts
                batch, parts = some, 8
        try:
            with _Bytes() as saved:
                self.curvature.graph(self.function, self.parameters, batch, index)
            kept = saved.total - tensor_bytes(self.parameters.values())
            return float(max(kept, 0) * parts)
        except (RuntimeError, NotImplementedError) as error:
            if is_out_of_memory(error) or isinstance(error, InputError):
                raise
        try:
            return float(tensor_bytes(self._recorded(batch, directions).constants) * parts)
        except (TapeError, RuntimeError, NotImplementedError) as error:
            if is_out_of_memory(error) or isinstance(error, InputError):
                raise
            return 0.0  # the error is explained where products are tried

    def _cut(self, size: float, rows: int, free: int) -> float:
        """Cut large batches into pieces; the bytes that one of them needs."""
        pieces = max(min(size / self._piece, PIECES), 4 * size / max(free, 1))
        if not self.function.separable or pieces <= 1:
            return size
        # Of equal sizes: fewer shapes to record, and no piece larger than need be.
        cut = min(rows, max(math.ceil(rows / math.ceil(pieces)), FEWEST_ROWS))
        self.function.rows = min(cut, self.function.rows or cut)
        return size * cut / rows

    def _decide_recomputed(self, directions: Directions) -> None:
        """Keep nothing."""
        self.anew.choose(directions)
        self.strategy = self.anew.way

    def _recorded(self, batch: Batch, directions: Directions) -> Tape:
        product = self.curvature.forward(self.function, self.parameters, batch)
        tape = record(lambda *tensors: product(list(tensors)), directions)
        if self.compiled:
            self._translate(tape, directions, "compiled", tape.compile)
        elif self.device.type == "cuda":
            self._capture(tape, directions)
        return tape

    def _capture(self, tape: Tape, directions: Directions) -> None:
        """Have a tape launched as one, where that works."""
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        self._translate(tape, directions, "captured", lambda: tape.capture(directions, self._pool))

    def _translate(
        self, tape: Tape, directions: Directions, name: str, translate: Callable[[], None]
    ) -> None:
        """Run a tape in another way, and take that back where its result differs."""
        expected, eager = tape(directions), tape.run
        try:
            translate()
            found = tape(directions)
        except Exception as error:  # whatever the translator raises
            if is_out_of_memory(error):
                raise
            reason = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        else:
            if agree(self.precision, tape, directions, found, expected):
                return
            reason = f"its result differs by {difference(found, expected):.1e}"
        tape.run = eager
        warnings.warn(
            f"the {name} product is not used, going on with the eager one: {reason}",
            MeasurementWarning,
            stacklevel=9,
        )

    def _decide_block(self, columns: Float[Tensor, "P k"]) -> None:
        """Whether blocks of vectors are faster than one after the other.

        Convolutions gain nothing from blocks, matrix products do.
        """
        self.blocks[columns.shape[1]], self.singles = [], 0
        if self.wanted == "recompute" or self.compiled:
            return
        tapes = [tape for _, tape in self.kept if isinstance(tape, Tape)]
        if (
            any(t.has_convolutions for t in tapes)
            or columns.shape[1] * self.kept_bytes > self.budget
        ):
            return
        directions = self._directions(columns.T)
        # Two columns stand for all of them: deciding must not cost what blocks save.
        some = (0, columns.shape[1] - 1)
        singles = [[t.clone() for t in self._directions(columns[:, i])] for i in some]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of vmap, about operations without a fast rule
                blocks = [tape.batched(directions) for tape in tapes]
            if self.device.type == "cuda":
                for block in blocks:
                    self._capture(block, directions)
            found = blocks[0](directions)
        except (TapeError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise
            return
        for i, single in zip(some, singles, strict=True):
            alone, column = tapes[0](single), [part[i] for part in found]
            if not agree(self.precision, tapes[0], single, alone, column):
                return

        self.blocks[columns.shape[1]] = blocks
        if self.wanted == "tape":  # no clock decides, so that results repeat bit by bit
            return

        def one_by_one() -> None:
            for i in some:
                self._one(columns[:, i])

        out = columns.new_empty(columns.shape[1], columns.shape[0])
        together = min(seconds(lambda: self._block(columns, out), self.device) for _ in range(3))
        one = min(seconds(one_by_one, self.device) for _ in range(3)) / len(some)
        if together > one * columns.shape[1]:
            self.blocks[columns.shape[1]] = []

    # -- vectors -------------------------------------------------------------------------------

    def _directions(self, vectors: Float[Tensor, "*k P"]) -> Directions:
        """A flat vector, or rows of them, as tensors of the parameters' shapes and dtypes.

        A single vector goes through a buffer: allocating costs small networks more than copying.
        """
        if vectors.ndim == 1 and self._whole is not None:
            self._whole.copy_(vectors)
            return self._buffers
        if vectors.ndim == 1:
            for view, piece in zip(self._views, vectors.split(self.sizes), strict=True):
                view.copy_(piece)
            return self._buffers
        columns = vectors.T.to(self.dtypes[0] if len(set(self.dtypes)) == 1 else torch.float64)
        pieces = columns.split(self.sizes)
        return [  # contiguous, as a tape was recorded
            piece.to(dtype).T.contiguous().view(len(vectors), *shape)
            for piece, shape, dtype in zip(pieces, self.shapes, self.dtypes, strict=True)
        ]

    def _finite(self, result: Tensor, directions: Directions) -> Tensor:
        """The result itself; an error in words where it is not finite."""
        if is_finite(result):
            return result
        for number, (_, product) in enumerate(self._maps()):
            parts = dict(zip(self.parameters, product(directions), strict=True))
            name = first_non_finite(parts)
            if name is not None:
                raise InputError(
                    f"a product with the {self.curvature.name} is not finite in parameter "
                    f"{name!r}, on batch {number}: the network overflows {self.dtypes[0]} there"
                )
        raise InputError(f"a product with the {self.curvature.name} is not finite")


class _Bytes:
    """Counts the bytes that autograd saves for a graph inside."""

    def __init__(self) -> None:
        self.storages: dict[int, int] = {}
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self._note, lambda saved: saved)

    def _note(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        self.storages[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # an operation that holds its own result is never freed

    @property
    def total(self) -> int:
        return sum(self.storages.values())

    def __enter__(self) -> _Bytes:
        self.hooks.__enter__()
        return self

    def __exit__(self, *failure: object) -> None:
        self.hooks.__exit__(*failure)
