"""Running the trials of a study that are not done yet, on dask.distributed workers.

Trials that can be trained side by side are trained in groups (`planimeter.study.group`), one task a
group; each is then measured and stored by itself.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planimeter.errors import InputError
from planimeter.study.group import Trained, groups_of, measure_member, train_group
from planimeter.study.spec import Study
from planimeter.study.store import Store
from planimeter.study.trial import Trial, check_kernel, run_trial, trials_of


@dataclass(frozen=True)
class RunSummary:
    """How a run ended: trials asked for, found done, done now, and failed with their reasons."""

    total: int
    already_done: int
    done_now: int
    failed: dict[str, str]


def run_study(
    study: Study,
    store: Store,
    reference: str,
    *,
    workers: int | None = None,
    scheduler: str | None = None,
    progress: Callable[[Trial, dict[str, Any] | None, int, int], None] = lambda *_: None,
) -> RunSummary:
    """Run every trial of a study that its store does not have yet.

    Interrupting it, or killing it, loses only the trials in flight, those of a group that is being
    trained among them; calling it again does the rest.

    Arguments:
        study: what to run.
        store: where results go; this process is its only writer.
        reference: id or path of the study, kept for the record.
        workers: processes of the local cluster; None for one a core.
        scheduler: address of a running dask scheduler to use instead; its workers need planimeter
            and the data.
        progress: called after each trial with its result (None if it failed), trials done, total.

    Raises:
        InputError: another process writes to the store, it holds another study, no scheduler
            answers at the address, or the network has no analytic kernel for log P(f).
    """
    trials = trials_of(study)
    with store.writing(study, reference):
        done = store.keys()
        todo = {t.key: t for t in trials if t.key not in done}
        finished, failed = len(trials) - len(todo), {}
        if todo:
            check_kernel(next(iter(todo.values())))
            with _cluster(workers, scheduler, len(todo)) as client:
                from distributed import as_completed

                groups = groups_of(list(todo.values()), sum(client.nthreads().values()))
                # Weights go beside the results only when the workers share this disk.
                weights = (store.folder / "weights").resolve() if scheduler is None else None
                futures = _submit(client, groups, weights)
                for future in as_completed(futures):
                    trial, result = futures[future], None
                    if future.status == "finished":
                        result = future.result()
                        store.add(trial, result)
                        finished += 1
                    else:
                        error = future.exception()
                        failed[trial.label] = f"{type(error).__name__}: {error}"
                    future.release()
                    progress(trial, result, finished, len(trials))
    return RunSummary(len(trials), len(trials) - len(todo), len(todo) - len(failed), failed)


def _submit(client: Any, groups: list[list[Trial]], weights: Path | None) -> dict[Any, Trial]:
    """Tasks that train the groups, and one a trial that measures it; early groups go first."""
    futures: dict[Any, Trial] = {}
    for number, group in enumerate(groups):
        how: dict[str, Any] = {"retries": 2, "priority": len(groups) - number}
        if len(group) == 1:
            (trial,) = group
            alone = client.submit(_run_on_worker, trial, weights, key=f"trial-{trial.key}", **how)
            futures[alone] = trial
            continue
        trained = client.submit(_train_on_worker, group, key=f"group-{group[0].key}", **how)
        for place, trial in enumerate(group):
            key = f"trial-{trial.key}"
            future = client.submit(
                _measure_on_worker, trial, trained, place, weights, key=key, **how
            )
            futures[future] = trial
    return futures


def _run_on_worker(trial: Trial, weights: Path | None) -> dict[str, Any]:
    _one_thread()
    return run_trial(trial, weights)


def _train_on_worker(trials: list[Trial]) -> list[Trained | Exception]:
    _one_thread()
    return train_group(trials)


def _measure_on_worker(
    trial: Trial, trained: list[Trained | Exception], place: int, weights: Path | None
) -> dict[str, Any]:
    _one_thread()
    return measure_member(trial, trained[place], weights)


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)  # one task a core: threads inside a task would only compete


@contextmanager
def _cluster(workers: int | None, scheduler: str | None, jobs: int) -> Iterator[Any]:
    """A client of the given scheduler, or of a local cluster of one-thread processes."""
    import dask
    from distributed import Client, LocalCluster

    if scheduler is not None:
        try:
            client = Client(scheduler, timeout="20s")
        except (OSError, ValueError) as error:
            raise InputError(
                f"no dask scheduler answers at {scheduler!r}: pass an address such as "
                f"tcp://host:8786, or leave --scheduler out to use this machine"
            ) from error
        with client:
            yield client
        return
    count = min(workers or len(os.sched_getaffinity(0)), jobs)
    # Heartbeats that fail while a cluster is taken down are logged as errors; what goes wrong in a
    # trial comes back by its future.
    with dask.config.set({"distributed.logging.distributed": "critical"}):
        # Workers are started with SIGINT ignored, which they inherit: Ctrl-C is the driver's, and
        # it ends them in order.
        previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            cluster = LocalCluster(
                n_workers=count,
                threads_per_worker=1,
                processes=True,
                dashboard_address=":0",
                silence_logs="CRITICAL",
                memory_limit=0,
            )
        finally:
            signal.signal(signal.SIGINT, previous)
        with cluster, Client(cluster) as client:
            yield client
