"""A progress bar on a terminal."""

import contextlib
from collections.abc import Callable, Iterator
from typing import TextIO


@contextlib.contextmanager
def progress_bar(terminal: TextIO | None, title: str, steps: int) -> Iterator[Callable[[int], None]]:
    """A bar with the time left, on a terminal; nothing elsewhere.

    Yields:
        What to call with the number of steps that were done.
    """
    if terminal is None or not terminal.isatty():
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(file=terminal), transient=True) as bar:
        task = bar.add_task(title, total=steps)
        yield lambda done: bar.advance(task, done)
