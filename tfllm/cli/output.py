"""Result files and progress bars, the same for every command."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from tfllm.errors import StorageError

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


@contextmanager
def result_file(path: str | None) -> Iterator[IO[str]]:
    """Open a text file under a temporary name, renamed to `path` when the block succeeds.

    After an error or Ctrl-C nothing is left, and an older file stays as it was.

    Args:
        path: The file; None: standard output.

    Raises:
        StorageError: The file cannot be written.
    """
    if path is None:
        sys.stdout.reconfigure(encoding="utf-8")  # type: ignore[union-attr]
        yield sys.stdout
        sys.stdout.flush()
        return
    target = Path(path)
    if target.is_dir():
        raise StorageError(f"--output: '{target}' is a directory. Name a file in it.")
    if not target.parent.is_dir():
        raise StorageError(f"--output: there is no directory '{target.parent}'. Make it first.")
    descriptor, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)  # what open() would have given
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@contextmanager
def stage_bar() -> Iterator[Callable[[str, int, int], None]]:
    """Show a bar on stderr for stages of reading: call it with (stage, bytes done, bytes in all).

    Shows the rate and the time left; without a terminal a line at the end of every stage.
    """
    import time

    started: dict[str, float] = {}

    def rate(stage: str, done: int) -> str:
        seconds = time.monotonic() - started.setdefault(stage, time.monotonic())
        return f"{done / 1e6 / seconds:.1f} MB/s" if seconds > 0.1 else ""

    if not sys.stderr.isatty():

        def line(stage: str, done: int, total: int) -> None:
            speed = rate(stage, done)
            if done >= total:
                parts = [f"{stage}: {total / 1e6:,.1f} MB", speed]
                print(" at ".join(filter(None, parts)), file=sys.stderr, flush=True)
                started.pop(stage)

        yield line
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
    from rich.progress import TimeElapsedColumn as Elapsed
    from rich.progress import TimeRemainingColumn as Remaining

    columns = (TextColumn("{task.fields[stage]}"), BarColumn(), TaskProgressColumn(),
               TextColumn("{task.fields[rate]}"), Elapsed(), TextColumn("left"),
               Remaining())  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        tasks: dict[str, Any] = {}

        def bar(stage: str, done: int, total: int) -> None:
            speed = rate(stage, done)
            if stage not in tasks:
                for other in tasks.values():
                    progress.update(other, visible=False)
                tasks[stage] = progress.add_task("", total=total, stage=stage, rate="")
            progress.update(tasks[stage], completed=done, rate=speed)

        yield bar


class Bar:
    """A progress bar: call it with an amount to advance. Without a terminal nothing is drawn."""

    def __init__(self, progress: Progress | None = None, task: TaskID | None = None):
        self._progress, self._task = progress, task

    def __call__(self, amount: float) -> None:
        """Advance by an amount."""
        if self._progress is not None and self._task is not None:
            self._progress.advance(self._task, amount)

    def set_total(self, total: float) -> None:
        """Set the amount at the end, from which the time left is shown."""
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, total=total)


@contextmanager
def progress_bar(what: str, total: float | None = None) -> Iterator[Bar]:
    """Show a bar on stderr while the block runs, with the time left where a total is known."""
    if not sys.stderr.isatty():
        yield Bar()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeElapsedColumn as Elapsed
    from rich.progress import TimeRemainingColumn as Remaining

    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), Elapsed(), Remaining())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield Bar(progress, progress.add_task(what, total=total))
