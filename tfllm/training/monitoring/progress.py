"""A progress bar on stderr: step, loss, learning rate, tokens per second, time left."""

from __future__ import annotations

import sys
import time
from typing import Any


class ProgressBar:
    """Rich's bar on a terminal, a line per log step elsewhere; silent when `shown` is false."""

    def __init__(self, total: int, done: int = 0, shown: bool = True):
        self.total, self.done, self.shown = total, done, shown
        self._first, self._started = done, time.monotonic()
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> ProgressBar:
        if self.shown and sys.stderr.isatty():
            from rich import progress
            from rich.console import Console

            self._bar = progress.Progress(
                progress.TextColumn("step {task.completed}/{task.total}"),
                progress.BarColumn(),
                progress.TaskProgressColumn(),
                progress.TextColumn("{task.description}"),
                progress.TimeElapsedColumn(),
                progress.TextColumn("left"),
                progress.TimeRemainingColumn(),
                console=Console(stderr=True),
            )
            self._bar.start()
            self._task = self._bar.add_task("", total=self.total, completed=self.done)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()
            self._bar = None

    def advance(self) -> None:
        """Count one step."""
        self.done += 1
        if self._bar:
            self._bar.advance(self._task)

    def describe(self, values: dict[str, float]) -> None:
        """Show the newest values beside the bar."""
        text = _format(values)
        if self._bar:
            self._bar.update(self._task, description=text)
        else:
            self.print(f"step {self.done}/{self.total}  {text}{self._left()}")

    def _left(self) -> str:
        """Estimate the time left by the mean speed so far, as "  1:02 left"."""
        steps = self.done - self._first
        if not steps or self.done >= self.total:
            return ""
        seconds = (time.monotonic() - self._started) / steps * (self.total - self.done)
        minutes, rest = divmod(round(seconds), 60)
        hours, minutes = divmod(minutes, 60)
        return (
            f"  {hours}:{minutes:02d}:{rest:02d} left" if hours else f"  {minutes}:{rest:02d} left"
        )

    def print(self, text: str) -> None:
        """Print a line above the bar."""
        if self._bar:
            self._bar.console.print(text, highlight=False, markup=False)
        elif self.shown:
            print(text, file=sys.stderr, flush=True)


def _format(values: dict[str, float]) -> str:
    parts = (
        ("loss", "loss {:.4f}"),
        ("learning_rate", "rate {:.2e}"),
        ("tokens_per_second", "{:,.0f} tokens/s"),
    )
    return "  ".join(template.format(values[name]) for name, template in parts if name in values)
