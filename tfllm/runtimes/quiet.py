"""Keep the log output of native libraries off the terminal.

TensorFlow and LiteRT write to file descriptor 2 themselves, whatever Python's `sys.stderr` is and
before any log level is read: about CPU features, missing GPU drivers, each part of a model.
"""

from __future__ import annotations

import contextlib
import importlib.machinery
import importlib.util
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType

STDERR = 2  # file descriptor


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Show neither the warnings of Python nor the log output of C++ inside the `with` block."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with (
            open(os.devnull, "wb") as null,
            redirect_stderr(null.fileno()),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def silence() -> None:
    """Suppress the log output for the rest of the process."""
    sys.stderr.flush()
    os.dup2(os.open(os.devnull, os.O_WRONLY), STDERR)


@contextlib.contextmanager
def redirect_stderr(descriptor: int) -> Iterator[None]:
    """Redirect file descriptor 2 to another one inside the `with` block."""
    sys.stderr.flush()
    saved = os.dup(STDERR)
    os.dup2(descriptor, STDERR)
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(saved, STDERR)
        os.close(saved)


def quiet_tensorflow_import() -> None:
    """Make the first import of tensorflow quiet. TFLLM_VERBOSE=1 leaves it as it is."""
    if "tensorflow" not in sys.modules and not os.environ.get("TFLLM_VERBOSE"):
        sys.meta_path.insert(0, QuietTensorFlow())


class QuietTensorFlow:
    """An import hook for the one module `tensorflow`, which removes itself when it is used."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return the module's spec, with a loader that runs quietly."""
        if name != "tensorflow":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_quietly(module: ModuleType) -> None:
                _import_quietly(module, execute)

            spec.loader.exec_module = execute_quietly  # type: ignore[method-assign]
        return spec


def _import_quietly(module: ModuleType, execute: Callable[[ModuleType], None]) -> None:
    """Import tensorflow and look up devices for the first time; after an error, show its output."""
    with tempfile.TemporaryFile() as output:
        try:
            with redirect_stderr(output.fileno()):
                execute(module)
                module.config.list_physical_devices()
        except Exception:
            output.seek(0)
            sys.stderr.write(output.read().decode("utf-8", "replace"))
            raise
