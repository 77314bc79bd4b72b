"""A progress bar on standard error, for tools that run on a terminal."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager

Update = Callable[[str, int, int], None]
"""Told what is going on, how much of it is done, and how much there is."""


@contextmanager
def progress_bar(first: str, width: int, *, counts: bool = True) -> Generator[Update]:
    """A bar that goes when it is done with.

    Args:
        first: what is going on at the beginning.
        width: characters kept for that.
        counts: show `done/total` beside the bar.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    middle = (BarColumn(), MofNCompleteColumn()) if counts else (BarColumn(),)
    columns = (SpinnerColumn(), TextColumn(f"{{task.description:{width}}}"), *middle, TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(first)

        def update(description: str, done: int, total: int) -> None:
            progress.update(task, description=description, completed=done, total=total)

        yield update
