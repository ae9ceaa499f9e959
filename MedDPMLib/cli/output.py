"""How does the command line write? Results go to stdout; progress and errors to stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import typer

#: Seconds between two lines of progress where there is no terminal to draw a bar on.
_LINE_EVERY = 10.0


def complain(sentence: str) -> None:
    typer.echo(f"meddpm: {sentence}", err=True)


def print_table(headings: Sequence[str], rows: Sequence[Sequence[str]], numeric: Sequence[int] = ()) -> None:
    """A table on stdout; the columns in ``numeric`` are aligned to the right."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    # A file or a pipe has no width to break lines at.
    width = None if sys.stdout.isatty() else 10_000
    console = Console(highlight=False, markup=False, emoji=False, width=width)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="right" if index in numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*row)
    console.print(table)


class Progress:
    """Work done of a ``total`` that may shrink; ``doing`` describes the current work."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.done = 0

    def advance(self, doing: str) -> None:
        self.reach(self.done + 1, doing)

    def reach(self, done: int, doing: str) -> None:
        self.done = done
        self._show(doing)

    def drop(self, amount: int) -> None:
        """``amount`` of the total is skipped."""
        self.total -= amount

    def _show(self, doing: str) -> None:
        raise NotImplementedError


class _Lines(Progress):
    """A line now and then, for logs and pipes."""

    def __init__(self, total: int) -> None:
        super().__init__(total)
        self.shown = time.monotonic()
        self.first: tuple[float, int] | None = None

    def _show(self, doing: str) -> None:
        now = time.monotonic()
        # What was done in a run before says nothing about the speed of this one.
        if self.first is None:
            self.first = now, self.done
        if now - self.shown < _LINE_EVERY and self.done < self.total:
            return
        self.shown = now
        started, before = self.first
        line = f"{doing}: {self.done} of {self.total}"
        if self.done > before:
            line += f", {duration((now - started) / (self.done - before) * (self.total - self.done))} left"
        typer.echo(line, err=True)


class _Bar(Progress):
    """A bar that is drawn in place."""

    def __init__(self, total: int, bar, task) -> None:
        super().__init__(total)
        self.bar, self.task = bar, task

    def drop(self, amount: int) -> None:
        super().drop(amount)
        self.bar.update(self.task, total=self.total)

    def _show(self, doing: str) -> None:
        self.bar.update(self.task, completed=self.done, description=doing)


@contextmanager
def show_progress(total: int, doing: str) -> Iterator[Progress]:
    """A bar with the time left where stderr is a terminal, lines elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines(total)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    # What is printed meanwhile appears above the bar; results that are piped are not redirected.
    # Steps take seconds: the time left is an average over minutes.
    with RichProgress(*columns, console=console, speed_estimate_period=300, redirect_stdout=sys.stdout.isatty()) as bar:
        yield _Bar(total, bar, bar.add_task(doing, total=total))


def duration(seconds: float) -> str:
    """A readable duration: "45 s", "12 min", "3 h 20 min"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def size(count: int) -> str:
    """A number of bytes: "8.4 MB"."""
    return f"{count / 1e6:.1f} MB"
