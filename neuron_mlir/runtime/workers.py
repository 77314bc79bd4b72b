"""Where tasks run: in this process, on processes of this machine, or on a Dask cluster."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar, cast

from neuron_mlir.errors import NeuronError

if TYPE_CHECKING:
    from concurrent.futures import ProcessPoolExecutor

    from neuron_mlir.runtime.explore import Workers

TaskT = TypeVar("TaskT")
AnswerT = TypeVar("AnswerT")

RETRIES = 3
"""How often a task that a worker has died over is given to another."""
CONNECT_SECONDS = 10


class Inline:
    """One task after the other, here."""

    def map(
        self, function: Callable[[TaskT], AnswerT], tasks: Sequence[TaskT], done: Callable[[TaskT], None]
    ) -> list[AnswerT]:
        """See `Workers.map`."""
        answers: list[AnswerT] = []
        for task in tasks:
            answers.append(function(task))
            done(task)
        return answers


class Processes:
    """Processes of this machine, each with one task at a time."""

    def __init__(self, pool: ProcessPoolExecutor) -> None:
        self._pool = pool

    def map(
        self, function: Callable[[TaskT], AnswerT], tasks: Sequence[TaskT], done: Callable[[TaskT], None]
    ) -> list[AnswerT]:
        """See `Workers.map`. Raises `NeuronError` when a process dies."""
        from concurrent.futures import as_completed
        from concurrent.futures.process import BrokenProcessPool

        futures = {self._pool.submit(function, task): index for index, task in enumerate(tasks)}
        answers: dict[int, AnswerT] = {}
        try:
            for future in as_completed(futures):
                index = futures[future]
                answers[index] = future.result()
                done(tasks[index])
        except BrokenProcessPool as error:
            raise NeuronError(
                "a worker process has died, perhaps for want of memory", advice="--jobs 1, or fewer than before"
            ) from error
        finally:
            for future in futures:
                future.cancel()
        return [answers[index] for index in range(len(tasks))]


class Cluster:
    """Workers of a Dask cluster. A task whose worker dies goes to another."""

    def __init__(self, client: Any) -> None:
        self._client = client

    def map(
        self, function: Callable[[TaskT], AnswerT], tasks: Sequence[TaskT], done: Callable[[TaskT], None]
    ) -> list[AnswerT]:
        """See `Workers.map`. Raises `NeuronError` when workers die over one task again and again."""
        from distributed import KilledWorker, as_completed

        # Not pure: each run of the tool computes its own, whatever the scheduler still has of another.
        futures = [self._client.submit(function, task, pure=False, retries=RETRIES) for task in tasks]
        index_of = {future.key: index for index, future in enumerate(futures)}
        answers: dict[int, AnswerT] = {}
        try:
            for future in cast("Any", as_completed)(futures):
                index = index_of[future.key]
                try:
                    answers[index] = future.result()
                except KilledWorker as error:
                    raise NeuronError(
                        f"workers of the cluster die over {tasks[index]}", advice="workers with more memory"
                    ) from error
                done(tasks[index])
        finally:
            self._client.cancel([future for future in futures if not future.done()])
        return [answers[index] for index in range(len(tasks))]


@contextmanager
def open_workers(jobs: int | None, scheduler: str | None) -> Generator[Workers]:
    """Workers for the length of a block.

    Args:
        jobs: processes on this machine; all its cores when None.
        scheduler: the address of a Dask scheduler, `tcp://host:8786`; then `jobs` does not count.

    Raises:
        NeuronError: no scheduler answers at that address, it has no workers, or `distributed` is not installed.
    """
    if scheduler is not None:
        with _cluster(scheduler) as cluster:
            yield cluster
        return
    import os

    count = jobs or len(os.sched_getaffinity(0))
    if count == 1:
        yield Inline()
        return
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    # Spawned: a fork would copy whatever threads and locks this process has.
    with ProcessPoolExecutor(count, mp_context=get_context("spawn")) as pool:
        try:
            yield Processes(pool)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@contextmanager
def _cluster(address: str) -> Generator[Workers]:
    try:
        from distributed import Client
    except ImportError as error:
        raise NeuronError(
            "--scheduler needs the package 'distributed'", advice="pip install 'neuron-mlir[distributed]'"
        ) from error
    try:
        client = cast("Any", Client)(address, timeout=CONNECT_SECONDS)
    except (OSError, TimeoutError, ValueError) as error:
        raise NeuronError(
            f"no Dask scheduler answers at '{address}': {error}", advice="dask scheduler, and its address"
        ) from error
    with client:
        if not client.scheduler_info()["workers"]:
            raise NeuronError(f"the Dask scheduler at '{address}' has no workers", advice=f"dask worker {address}")
        yield Cluster(client)
