r"""A kernel matrix in tiles: what fits the cache, what runs side by side, where the result goes.

Rows go in bands, bands in tiles of a few rows by many columns. A tile is as large as `TILE` numbers
for the average covariance that it holds, so that a pass over it stays in a core's cache; tiles of a
band run on as many threads as torch has, one each (threads inside of operations this small would
wait for each other longer than they work). Of a symmetric kernel only the upper half is computed.

The result is a tensor, or a .npy file that is written band by band and taken up again where it was
left, if the same kernel is asked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from planimeter.errors import InputError
from planimeter.machine.memory import free_memory
from planimeter.prior.kernels.activations import Dual
from planimeter.prior.kernels.propagation import (
    Data,
    Fields,
    Plan,
    Program,
    all_pairs,
    covariance,
    each_with_its_own,
    moments_needed,
    own_moments,
    planned,
)

Progress = Callable[[str, int, int], None]
Part = slice | Int[Tensor, " p"]
Tile = tuple[Any, Any]
"""Rows and columns, both as a `Part`: ranges of both, or pairs of numbers."""

TILE = 2**16
"""Numbers in an average covariance of a tile on the CPU."""
TILE_ON_GPU = 2**24
BAND = 2**25
"""Numbers in a band of rows."""
_SHORTEST, _LONGEST = 64, 2048  # columns of a tile


@dataclass(frozen=True)
class Tiling:
    """How a kernel is cut.

    Arguments:
        rows, columns: of a tile.
        paired: whether a tile is a list of rows times columns pairs; ranges as short as in a small
            kernel would leave inner loops without work.
        band: rows that are computed before they are written.
        own: rows whose moments are computed at a time.
        workers: tiles at a time.
        working: bytes of all tiles at work, the moments and the band.
    """

    rows: int
    columns: int
    paired: bool
    band: int
    own: int
    workers: int
    working: int


def kernel_matrix(
    program: Program,
    left: Data,
    right: Data | None,
    *,
    out: Path | None,
    progress: Progress,
) -> Float[Tensor, "n m"]:
    """The covariances of a program's output; `right` is None for the rows themselves.

    Raises:
        InputError: memory does not suffice, or `out` exists and is something else.
    """
    plan = planned(program, [(len(program) - 1, (0, 0))])
    own_plan = planned(program, moments_needed(program))
    n, m = left[0].shape[3], (left if right is None else right)[0].shape[3]
    tiling = _tiled(program, plan, own_plan, left, n, m, symmetric=right is None, kept=out is None)
    with _one_thread_each(tiling.workers) as pool:
        rows = _moments(program, own_plan, left, tiling, pool)
        columns = rows if right is None else _moments(program, own_plan, right, tiling, pool)

        def fill(block: Tensor, row: int, column: int, tile: Tile) -> None:
            i, j = tile
            sides = _Side(rows, i, columns=False), _Side(columns, j, columns=not tiling.paired)
            found = covariance(
                program,
                plan,
                [value[..., i] for value in left],
                [value[..., j] for value in (left if right is None else right)],
                sides,
                each_with_its_own if tiling.paired else all_pairs,
            )[0, 0]
            if isinstance(i, Tensor):
                block[i - row, j - column] = found[:, 0]
            else:
                block[i.start - row : i.stop - row, j.start - column : j.stop - column] = found

        target = _Target(out, (n, m), left[0], _fingerprint(program, left, right, tiling))
        for start in range(target.done, n, tiling.band):
            band = slice(start, min(start + tiling.band, n))
            first = start if right is None else 0
            block = left[0].new_empty(band.stop - start, m - first)
            tiles = list(_tiles(band, m, tiling, symmetric=right is None))
            for number, _ in enumerate(pool.map(partial(fill, block, start, first), tiles)):
                progress("kernel", start + (band.stop - start) * number // len(tiles), n)
            if right is None:
                _symmetrise(block, rows.variances[len(program) - 1][0, 0, band])
            target.write(band, block, symmetric=right is None)
            progress("kernel", band.stop, n)
    return target.finished()


class _Side:
    """The moments of a tile's rows or columns, cut from those of all."""

    def __init__(self, fields: Fields, part: Part, *, columns: bool) -> None:
        self._fields, self._part, self._axis = fields, part, -2 if columns else -1

        self._ready: dict[tuple[int, str], Tensor] = {}

    def variance(self, step: int) -> Tensor:
        return self._cut(self._fields.variances[step])

    def prepared(self, step: int, dual: Dual) -> Tensor:
        key = step, dual.name
        if key not in self._ready:  # lists of pairs are gathered, once for all offsets
            self._ready[key] = self._cut(self._fields.ready[key])
        return self._ready[key]

    def mean(self, step: int) -> Tensor | None:
        mean = self._fields.means[step]
        return None if mean is None else self._cut(mean)

    def _cut(self, field: Float[Tensor, "h w n"]) -> Float[Tensor, "h w r c"]:
        return field[:, :, self._part].unsqueeze(self._axis)


class _Target:
    """Where bands go: a tensor, or a file with a note beside it of how far it is."""

    def __init__(
        self, path: Path | None, shape: tuple[int, int], like: Tensor, fingerprint: str
    ) -> None:
        self.done, self._path, self._fingerprint = 0, path, fingerprint
        if path is None:
            self._result = like.new_empty(shape)
            return
        dtype = np.float32 if like.dtype == torch.float32 else np.float64
        self._note = path.with_name(path.name + ".progress")
        if path.exists():
            note = self._note.read_text().split() if self._note.exists() else []
            if len(note) != 2 or note[0] != fingerprint:
                raise InputError(
                    f"{path} exists and is not the beginning of this kernel: remove it, or name "
                    f"another file"
                )
            self.done = int(note[1])
            self._file = np.lib.format.open_memmap(path, mode="r+")
        else:
            self._note.write_text(f"{fingerprint} 0")
            self._file = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
        self._result = torch.from_numpy(self._file)

    def write(self, band: slice, block: Tensor, *, symmetric: bool) -> None:
        first = band.start if symmetric else 0
        self._result[band, first:] = block
        if symmetric:
            below = block[:, band.stop - first :]
            self._result[band.stop :, band] = below.T
        if self._path is not None:
            self._file.flush()
            partial = self._note.with_name(self._note.name + ".partial")
            partial.write_text(f"{self._fingerprint} {band.stop}")
            partial.replace(self._note)

    def finished(self) -> Tensor:
        if self._path is not None:
            self._note.unlink()
        return self._result


def _tiled(
    program: Program,
    plan: Plan,
    own_plan: Plan,
    data: Data,
    n: int,
    m: int,
    *,
    symmetric: bool,
    kept: bool,
) -> Tiling:
    device, bytes_each = data[0].device, data[0].element_size()
    gpu = device.type != "cpu"
    workers = 1 if gpu else torch.get_num_threads()
    pairs = max(1, int((TILE_ON_GPU if gpu else TILE) / plan.mean))
    columns = min(m, _LONGEST if gpu else max(_SHORTEST, min(_LONGEST, pairs // 8)))
    paired = m < _SHORTEST
    if paired:
        everything = n * (n + 1) // 2 if symmetric else n * m
        rows, columns = min(pairs, -(-everything // workers)), 1
    else:
        rows = max(1, min(pairs // columns, n))
        if symmetric:  # tiles on the diagonal are computed whole: not many rows of them
            rows = min(rows, max(1, n // 8))
    moments = (
        2
        * (n if symmetric else n + m)
        * sum(program[step].size[0] * program[step].size[1] for step, _ in own_plan.targets)
    )
    while True:
        band = min(n, max(rows, BAND // m) if not paired else max(1, BAND // m))
        own = max(1, min(n, rows * columns))
        working = workers * plan.peak * rows * columns + band * m + moments
        result = n * m if kept else 0
        if (working + result) * bytes_each <= free_memory(device):
            return Tiling(rows, columns, paired, band, own, workers, working * bytes_each)
        if rows * columns == 1 and workers == 1:
            break
        if rows > 1:
            rows = (rows + 1) // 2
        elif columns > 1:
            columns = (columns + 1) // 2
        else:
            workers = 1
    raise InputError(
        f"a kernel of {n} x {m} in {str(data[0].dtype).removeprefix('torch.')} needs "
        f"{result * bytes_each / 1e9:.3g} GB for the result and "
        f"{working * bytes_each / 1e9:.3g} GB to work in, one pair at a time; "
        f"{free_memory(device) / 1e9:.3g} GB are free: "
        + ("write it to a file with out=, " if kept else "")
        + "use dtype=torch.float32 or fewer rows"
    )


def _tiles(band: slice, m: int, tiling: Tiling, *, symmetric: bool) -> Iterator[Tile]:
    if tiling.paired:
        pairs = [
            (i, j) for i in range(band.start, band.stop) for j in range(i if symmetric else 0, m)
        ]
        yield from (tuple(part.unbind(1)) for part in torch.tensor(pairs).split(tiling.rows))
        return
    for i in range(band.start, band.stop, tiling.rows):
        for j in range(i if symmetric else 0, m, tiling.columns):
            yield (
                slice(i, min(i + tiling.rows, band.stop)),
                slice(j, min(j + tiling.columns, m)),
            )


def _symmetrise(block: Float[Tensor, "r c"], variances: Float[Tensor, " r"]) -> None:
    """Copy the upper half of a band's square onto the lower one, and put in the variances."""
    square = block[:, : len(block)]
    square.copy_(square.triu(1) + square.triu(1).T)
    square.diagonal().copy_(variances)


def _moments(
    program: Program, plan: Plan, data: Data, tiling: Tiling, pool: ThreadPoolExecutor
) -> Fields:
    """`own_moments`, some rows at a time."""
    cut = [
        [value[..., i : i + tiling.own] for value in data]
        for i in range(0, data[0].shape[3], tiling.own)
    ]
    parts = list(pool.map(lambda part: own_moments(program, plan, part), cut))
    together = Fields(program, data)
    for step in parts[0].variances:
        together.variances[step] = torch.cat([part.variances[step] for part in parts], dim=2)
    for key in parts[0].ready:
        together.ready[key] = torch.cat([part.ready[key] for part in parts], dim=2)
    for step, mean in parts[0].means.items():
        means = [part.means[step] for part in parts]
        together.means[step] = (
            None if mean is None else torch.cat([x for x in means if x is not None], dim=2)
        )
    return together


@contextmanager
def _one_thread_each(workers: int) -> Iterator[ThreadPoolExecutor]:
    """Workers whose operations are not split further."""
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(workers) as pool:
        try:
            torch.set_num_threads(1)
            yield pool
        except BaseException:  # do not work on what nobody waits for
            pool.shutdown(cancel_futures=True)
            raise
        finally:
            torch.set_num_threads(threads)


def _fingerprint(program: Program, left: Data, right: Data | None, tiling: Tiling) -> str:
    """Of everything that determines a file's content and its bands."""
    digest = hashlib.sha256(f"{program!r} {tiling.band} {left[0].dtype}".encode())
    for value in [*left, *(right or [])]:
        digest.update(value.cpu().numpy().tobytes())
    return digest.hexdigest()
