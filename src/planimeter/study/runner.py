"""Running the trials of a study that are not done yet, on dask.distributed workers.

Trials that can be trained side by side are trained in groups (`planimeter.study.group`), one task a
group; each is then measured and stored by itself.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from planimeter.errors import InputError
from planimeter.study.cluster import cluster_of
from planimeter.study.group import Trained, groups_of, measure_member, train_group
from planimeter.study.spec import Study
from planimeter.study.store import Store
from planimeter.study.store_errors import Gone
from planimeter.study.trial import Trial, check_trial, run_trial, trials_of

PATIENCE = 60.0
"""Seconds that a cluster may be without a worker: one that died is started anew in fewer."""
_LOOK = 2.0  # seconds between looks at a cluster from which nothing comes
_SILENCE = 10.0  # seconds without a worker before anything is said


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
    patience: float = PATIENCE,
    progress: Callable[[Trial, dict[str, Any] | None, int, int], None] = lambda *_: None,
    note: Callable[[str], None] = lambda _: None,
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
        patience: seconds to wait for a worker while there is none.
        progress: called after each trial with its result (None if it failed), trials done, total.
        note: called with what a person should hear while the run goes on.

    Raises:
        InputError: another process writes to the store, it holds another study, no scheduler
            answers at the address, a trial could not be done (`check_trial`), the cluster
            was lost or without a worker for too long, or results cannot be written. What was
            stored stays, and another call does the rest.
    """
    trials = trials_of(study)
    with store.writing(study, reference):
        done = store.keys()
        todo = {t.key: t for t in trials if t.key not in done}
        finished, failed = len(trials) - len(todo), {}
        if todo:
            check_trial(next(iter(todo.values())))
            with cluster_of(workers, scheduler, len(todo)) as client:
                _wait_for_workers(client, patience, note)
                groups = groups_of(list(todo.values()), sum(client.nthreads().values()))
                # Weights go beside the results only when the workers share this disk.
                weights = (store.folder / "weights").resolve() if scheduler is None else None
                futures = _submit(client, groups, weights)
                fresh: list[tuple[Trial, dict[str, Any]]] = []
                for future in _ended(client, futures, patience, note):
                    trial, result = futures[future], None
                    if future.status == "finished":
                        result = future.result()
                        fresh.append((trial, result))
                        _keep(store, fresh, (study, reference), note)
                        finished += 1
                    else:
                        failed[trial.label] = _reason(future.exception())
                    future.release()
                    progress(trial, result, finished, len(trials))
    return RunSummary(len(trials), len(trials) - len(todo), len(todo) - len(failed), failed)


def _keep(
    store: Store,
    fresh: list[tuple[Trial, dict[str, Any]]],
    of: tuple[Study, str],
    note: Callable[[str], None],
) -> None:
    """Store the last result; all of this run where the file was deleted meanwhile."""
    try:
        store.add(*fresh[-1], waiting=note)
    except Gone as error:
        store.folder.mkdir(parents=True, exist_ok=True)
        store.bind(*of)
        for trial, result in fresh:
            store.add(trial, result)
        note(f"{error}; a new one has the {len(fresh)} trials of this run")


def _ended(
    client: Any, futures: Collection[Any], patience: float, note: Callable[[str], None]
) -> Iterator[Any]:
    """Futures as they end.

    Raises:
        InputError: none can end any more, because the scheduler or all workers are gone.
    """
    from distributed import as_completed

    ending, looked = as_completed(futures), time.monotonic()
    while not ending.is_empty():
        if ending.has_ready():
            future = next(ending)
            if future.status in ("cancelled", "lost"):
                raise _lost(client)
            yield future
            looked = time.monotonic()
        elif time.monotonic() > looked + _LOOK:
            _wait_for_workers(client, patience, note)
            looked = time.monotonic()
        else:
            time.sleep(0.02)


def _wait_for_workers(client: Any, patience: float, note: Callable[[str], None]) -> None:
    """Return when the cluster has a worker.

    Raises:
        InputError: it had none for `patience` seconds, or its scheduler does not answer.
    """
    since, told = time.monotonic(), False
    address = client.scheduler.address if client.scheduler is not None else "the address"
    while not _workers(client):
        waited = time.monotonic() - since
        if waited > patience:
            raise InputError(
                f"the cluster at {address} had no worker for {patience:g} s: start some (dask "
                f"worker {address}), see whether they die for want of memory, or use fewer; then "
                f"the same command does the rest"
            )
        if waited > min(_SILENCE, patience / 2) and not told:
            note(f"the cluster at {address} has no worker: waiting {patience:g} s for one")
            told = True
        time.sleep(min(0.5, patience / 4))


def _workers(client: Any) -> int:
    if client.status != "running":
        raise _lost(client)
    try:
        return len(client.nthreads())
    except (OSError, TimeoutError) as error:
        raise _lost(client) from error


def _lost(client: Any) -> InputError:
    return InputError(
        "the dask scheduler was lost: it was ended, or the connection to it broke; what was "
        "finished is stored, and when a scheduler runs again the same command does the rest"
    )


def _reason(error: BaseException | None) -> str:
    from distributed import KilledWorker

    if isinstance(error, KilledWorker):
        return (
            "the worker processes that ran it died, each time anew: most often for want of "
            "memory, so use fewer --workers"
        )
    return f"{type(error).__name__}: {error}"


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
