"""The dask.distributed cluster of a run: its processes, how they hear signals, and how they end.

Ctrl-C at a terminal goes to every process of the foreground group. It is for the driver alone,
which ends its workers: they are started from a thread in which SIGINT is blocked, and inherit that.
So the driver hears Ctrl-C at any time, also while workers start.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import signal
import threading
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from typing import Any

from planimeter.errors import InputError

_CLOSING = 10.0
"""Seconds that workers have to end when they are told to."""
_STARTING = 180.0
"""Seconds that they have to start: one that is killed meanwhile may never be heard of."""


@contextmanager
def cluster_of(workers: int | None, scheduler: str | None, jobs: int) -> Iterator[Any]:
    """A client of the given scheduler, or of a local cluster of one-thread processes.

    Arguments:
        workers: processes of the local cluster; None for one a core, at most one a job.
        scheduler: address of a running scheduler; None for a local cluster.
        jobs: how many trials there are.

    Raises:
        InputError: no scheduler answers at the address, or the processes do not start.
    """
    from distributed import Client

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
    with _local(count) as cluster, Client(cluster) as client:
        yield client


@contextmanager
def _local(count: int) -> Iterator[Any]:
    import dask
    from distributed import LocalCluster

    # Heartbeats that fail while a cluster is taken down are logged as errors; what goes wrong in a
    # trial comes back by its future.
    with dask.config.set({"distributed.logging.distributed": "critical"}), _deaf_loop() as loop:
        others = set(multiprocessing.active_children())

        async def made() -> Any:
            return LocalCluster(
                n_workers=count,
                threads_per_worker=1,
                processes=True,
                dashboard_address=":0",
                silence_logs="CRITICAL",
                memory_limit=0,
                asynchronous=True,
            )

        async def started() -> None:
            await cluster

        async def closed() -> None:
            await cluster.close()

        cluster = _on(loop, made())
        cluster.shutdown_on_close = False  # by dask at exit, which may wait for killed workers
        try:
            try:
                _on(loop, started(), timeout=_STARTING)
            except Exception as error:
                raise InputError(
                    f"the worker processes did not start ({type(error).__name__}: "
                    f"{' '.join(str(error).split()) or 'no reason given'}): see whether there is "
                    f"memory for {count}, or use fewer --workers; what was stored is kept"
                ) from error
            yield cluster
        except BaseException:  # what workers were doing is lost: they need not be asked to end
            _kill(others)
            raise
        finally:
            with suppress(Exception, asyncio.CancelledError):
                _on(loop, closed(), timeout=_CLOSING)
            _kill(others)


def _kill(others: set[Any]) -> None:
    """End the processes that were started since."""
    for process in set(multiprocessing.active_children()) - others:
        with suppress(ValueError):  # it has just ended
            process.kill()


def _on(
    loop: asyncio.AbstractEventLoop, what: Coroutine[Any, Any, Any], timeout: Any = None
) -> Any:
    """Run a coroutine on a loop of another thread; Ctrl-C is heard while it runs."""
    future = asyncio.run_coroutine_threadsafe(what, loop)
    try:
        return future.result(timeout)
    except BaseException:
        future.cancel()
        raise


@contextmanager
def _deaf_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """An event loop in a thread that blocks SIGINT, as do the processes that it starts."""
    # Started by that thread, the tracker would take the block away again.
    resource_tracker.ensure_running()
    loop = asyncio.new_event_loop()

    def run() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        asyncio.set_event_loop(loop)
        loop.run_forever()

    thread = threading.Thread(target=run, name="cluster", daemon=True)
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(_CLOSING)
