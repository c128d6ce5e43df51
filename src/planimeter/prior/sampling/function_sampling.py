r"""Which functions random networks compute, and how often: P(f) by counting.

A network with random weights labels a set of n inputs: a string f of n bits, the signs of its
outputs. Of N networks c(f) give f, and

.. math:: P(f) = \int 1[M(\theta) = f]\, P_{par}(\theta)\, d\theta \approx c(f)/N, \qquad
          \mathrm{se} = \sqrt{P (1 - P)/N} .

P(f) is biased over many orders of magnitude, so the frequent functions are known well although
the 2^n functions cannot be listed. Functions of random networks are made in
`random_functions`, counted in bounded memory in `counting`.

Source: Valle-Pérez, Camargo & Louis 2019; Mingard et al. 2019; zhang2021, Section 5.1 (7 bits,
7-40-40-1, 10^8 samples).
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from planimeter.errors import InputError
from planimeter.network.modes import evaluation_mode
from planimeter.prior.kernels.initialisation import check_deviations
from planimeter.prior.sampling.counting import CountTable, Recount, empty_table
from planimeter.prior.sampling.function_counts import FunctionCounts
from planimeter.prior.sampling.packing import words_of
from planimeter.prior.sampling.random_functions import STREAM, batch_size
from planimeter.prior.sampling.sampling_file import check_sampling_path, load_counts, save_counts
from planimeter.prior.sampling.streams import Source, source_of, stream

_MERGED_AT_ONCE = 1 << 18
"""Functions that are gathered before they are sorted into the table."""
_COPIES = 4
"""Times the table is in memory while it grows: old, new, and what sorting needs."""


def sample_functions(
    network: nn.Module | Sequence[int],
    x: Float[Tensor, "n ..."],
    samples: int,
    *,
    sigma_w: float = 2.0**0.5,
    sigma_b: float = 1.0,
    seed: int = 0,
    top: int = 1000,
    memory: int = 1 << 29,
    threads: int | None = None,
    out: Path | str | None = None,
    save_every: float = 60.0,
    progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> FunctionCounts:
    r"""Counts of the functions that random networks compute on x.

    .. math:: P(f) \approx c(f)/N, \qquad W \sim N(0, \sigma_w^2/\mathrm{fan\_in}), \quad
              b \sim N(0, \sigma_b^2).

    **Guarantee.** The first `exact_top` functions of the result are the most frequent ones of the
    stream, and their counts are exact, whatever the memory; `exact_top` is `top` (or the number
    of all functions) unless memory is so short that the threshold reaches their counts. Where the
    table had to drop functions, those of the leading ones that may have been dropped before are
    counted in a second pass over the same stream. All other counts say what may be missing.

    Ctrl-C ends the run with what was counted (`complete` is False), in either pass.

    Arguments:
        network: widths such as (7, 40, 40, 1) of a fully connected ReLU network, the first that
            of an input and the last 1; or a module with one output, whose linear and
            convolutional layers are drawn anew for every sample (the module itself keeps its
            weights; normalisation layers and buffers count as they are, in eval mode).
        x: (n, ...) inputs. For widths, on the device to use; for a module, moved to its device.
        samples: networks to draw, at least 1.
        sigma_w: standard deviation of a weight times the root of its fan-in.
        sigma_b: standard deviation of a bias. The defaults of both are those of the kernels.
        seed: of the stream, at least 0. Results depend on the kind of device, not on `threads`.
        top: the number of most frequent functions whose counts have to be exact.
        memory: bytes for the table of functions, about.
        threads: that draw networks; default as many as torch uses. One on an accelerator.
        out: an .npz file that keeps the counts; the same call goes on where it ends, also with
            more samples.
        save_every: seconds between writing it.
        progress: called with a stage ("sample", "recount"), the networks done and their number.

    Raises:
        InputError: an argument is out of its range, the network does not fit, or the file holds
            other counts.

    Source: Valle-Pérez et al. 2019; zhang2021, Section 5.1.
    """
    check_deviations(sigma_w, sigma_b)
    if samples < 1 or top < 1 or (threads is not None and threads < 1):
        raise InputError(
            f"samples, top and threads must be at least 1, got {samples}, {top} and {threads}"
        )
    if seed < 0:
        raise InputError(f"the seed of a stream must be at least 0, got {seed}")
    path = None if out is None else Path(out)
    if path is not None:
        check_sampling_path(path)
    inputs = _checked_inputs(x)
    words = words_of(len(inputs))
    budget = memory // (_COPIES * 8 * (words + 3))
    if budget < 2 * top:
        raise InputError(
            f"{memory} bytes hold {budget} functions of {len(inputs)} bits, too few for the "
            f"{top} most frequent ones: give at least {2 * top * _COPIES * 8 * (words + 3)}"
        )
    modules = [network] if isinstance(network, nn.Module) else []
    with evaluation_mode(nn.ModuleList(modules)):
        source = source_of(network, inputs, sigma_w, sigma_b)
        settings = {
            "stream_version": STREAM,
            "network": source.network,
            "device": source.device,
            "inputs": len(inputs),
            "inputs_sha256": hashlib.sha256(inputs.cpu().numpy().tobytes()).hexdigest()[:16],
            "sigma_w": sigma_w,
            "sigma_b": sigma_b,
            "seed": seed,
        }
        run = _Run(
            source=source,
            samples=int(samples),
            threads=threads or torch.get_num_threads(),
            budget=budget,
            path=path,
            settings=settings,
            save_every=save_every,
            progress=progress,
        )
        return run.counts(top)


class _Run:
    """One call: the table, the recount, and where they are kept.

    Only whole batches enter the table, so that a longer run can go on from it; the samples of a
    last part of a batch are added when the result is made.
    """

    def __init__(
        self,
        *,
        source: Source,
        samples: int,
        threads: int,
        budget: int,
        path: Path | None,
        settings: dict[str, Any],
        save_every: float,
        progress: Callable[[str, int, int], None],
    ) -> None:
        self.source, self.samples, self.threads = source, samples, threads
        self.batch = batch_size(source.device)
        self.budget, self.path, self.settings = budget, path, settings
        self.save_every, self.progress = save_every, progress
        self.table, self.before = empty_table(words_of(settings["inputs"])), 0.0
        self.recount: Recount | None = None
        if path is not None and (stored := load_counts(path, settings)) is not None:
            self.table, self.recount, self.before = stored
            held = self.table.batches * self.batch
            if held > samples:
                raise InputError(
                    f"{path} holds {held} samples already, more than the {samples} asked for"
                )
        self.started = self.saved = time.monotonic()

    def counts(self, top: int) -> FunctionCounts:
        """Both passes."""
        whole, rest = divmod(self.samples, self.batch)
        done = self._count(whole)
        table, samples = self.table, self.table.batches * self.batch
        last = []
        if done and rest:
            last = [next(self._stream(whole, whole + 1))[:rest]]
            table, samples = table.with_batches(last, self.budget, self.source.device), self.samples
        chosen = table.contenders(top) & (table.missing > 0)
        if done and chosen.any():
            words = table.words[chosen]
            if self.recount is None or not np.array_equal(self.recount.words, words):
                self.recount = Recount(words, np.zeros(len(words), dtype=np.int64))
            done = self._count_again(whole)
            if done:
                counts, missing = table.counts.copy(), table.missing.copy()
                counts[chosen] = self.recount.with_batches(last).counts
                missing[chosen] = 0
                table = replace(table, counts=counts, missing=missing)
        return self._result(table, samples, done, top)

    def _result(self, table: CountTable, samples: int, done: bool, top: int) -> FunctionCounts:
        order = np.argsort(-table.counts, kind="stable")
        counts, missing = table.counts[order], table.missing[order]
        return FunctionCounts(
            words=table.words[order],
            counts=counts,
            missing=missing,
            samples=samples,
            requested=self.samples,
            complete=done,
            inputs=self.settings["inputs"],
            threshold=table.threshold,
            exact_top=_certain(counts, missing, table.threshold, top),
            settings=self.settings,
            seconds=self._seconds(),
        )

    def _count(self, batches: int) -> bool:
        """Count up to so many batches; False if interrupted."""
        first = self.table.batches
        pending: list[tuple[int, NDArray[np.uint64]]] = []

        def merge() -> None:
            # What the table holds is told by its own number of batches, so that an interrupt
            # between these two lines counts nothing twice.
            new = [functions for i, functions in pending if i >= self.table.batches]
            self.table = self.table.with_batches(new, self.budget, self.source.device)
            pending.clear()

        try:
            for i, functions in enumerate(self._stream(first, batches), first):
                pending.append((i, functions))
                if self.batch * len(pending) >= max(_MERGED_AT_ONCE, len(self.table.counts) // 2):
                    merge()
                if time.monotonic() - self.saved > self.save_every:
                    merge()
                    self._save()
                self.progress("sample", (i + 1) * self.batch, self.samples)
        except KeyboardInterrupt:
            merge()
            self._save()
            return False
        if pending:
            merge()
            self._save()
        return True

    def _count_again(self, batches: int) -> bool:
        """Recount up to so many batches; False if interrupted."""
        assert self.recount is not None
        try:
            first = self.recount.batches
            for batch in self._stream(first, batches):
                self.recount = self.recount.with_batches([batch])
                if time.monotonic() - self.saved > self.save_every:
                    self._save()
                self.progress("recount", self.recount.batches * self.batch, self.samples)
        except KeyboardInterrupt:
            self._save()
            return False
        self._save()
        return True

    def _stream(self, first: int, end: int) -> Iterator[NDArray[np.uint64]]:
        return stream(self.source, self.settings["seed"], first, end, self.threads)

    def _seconds(self) -> float:
        return self.before + time.monotonic() - self.started

    def _save(self) -> None:
        if self.path is not None:
            save_counts(self.path, self.settings, self.table, self.recount, self._seconds())
            self.saved = time.monotonic()


def _checked_inputs(x: Float[Tensor, "n ..."]) -> Tensor:
    inputs = torch.as_tensor(x).detach()
    if inputs.ndim < 2 or len(inputs) == 0:
        raise InputError(f"x needs one row an input, got shape {tuple(inputs.shape)}")
    bad = (~torch.isfinite(inputs)).flatten(1).any(dim=1).nonzero()
    if len(bad):
        raise InputError(f"input {int(bad[0])} has values that are not finite (NaN or infinity)")
    return inputs


def _certain(
    counts: NDArray[np.int64], missing: NDArray[np.int64], threshold: int, top: int
) -> int:
    """How many leading functions are the most frequent ones, with exact counts."""
    upper = np.append(counts + missing, 0)
    # The most that any function from each place on, or one that was dropped, can have.
    behind = np.maximum(np.maximum.accumulate(upper[::-1])[::-1][1:], threshold)
    certain = (np.cumsum(missing) == 0) & (counts >= behind)
    places = np.flatnonzero(certain[:top])
    return int(places[-1]) + 1 if len(places) else 0
