"""Progress of some work, reported through a function that the work is given, so that it needs no terminal."""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TextIO

#: Of a title and a number of steps makes a context; its value is called with the number of steps that were done.
Progress = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]
#: Begins a line by which a program on another machine says how many steps are done.
STEP = "step "


@contextlib.contextmanager
def silent(title: str, steps: int) -> Iterator[Callable[[int], None]]:
    """Tells nobody."""
    yield lambda done: None


@contextlib.contextmanager
def progress_bar(terminal: TextIO | None, title: str, steps: int) -> Iterator[Callable[[int], None]]:
    """A bar with the time left, on a terminal; nothing elsewhere.

    Yields:
        What to call with the number of steps that were done.
    """
    if terminal is None or not terminal.isatty():
        with silent(title, steps) as advance:
            yield advance
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(file=terminal), transient=True) as bar:
        task = bar.add_task(title, total=steps)
        yield lambda done: bar.advance(task, done)
