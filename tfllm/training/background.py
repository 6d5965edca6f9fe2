"""States written while training goes on: the step only waits for copies of the variables."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tfllm.training import state
from tfllm.training.state import Place


class Writer:
    """Writes one state after the other in a thread of its own.

    An error is raised by the next call of `check`, `save` or `wait`.
    """

    def __init__(self, directory: Path, keep: int = state.KEEP):
        self.directory, self.keep = directory, keep
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def save(self, model: Any, place: Place) -> None:
        """Copies the model's variables and starts to write them, after those before."""
        self.wait()
        arrays, place = state.snapshot(model), copy.deepcopy(place)
        self._start(lambda: state.write(self.directory, arrays, place, self.keep))

    def check(self) -> None:
        """Raises what has gone wrong in the background so far, once."""
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def wait(self) -> None:
        """Returns when the last state is on the disk. Raises what went wrong."""
        self.settle()
        self.check()

    def settle(self) -> None:
        """The same for a run that ends by an error of its own."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _start(self, work: Callable[[], object]) -> None:
        def run() -> None:
            try:
                work()
            except BaseException as error:  # raised again in the main thread
                self._error = error

        # Not a daemon: an interpreter that ends waits for the state.
        self._thread = threading.Thread(target=run, name="state")
        self._thread.start()
