"""TensorFlow's start-up notices, kept from the user's terminal.

Its native libraries write about CPU features and missing GPU drivers to file descriptor 2 before
any log level is read. While `import tensorflow` runs, and devices are looked up for the first time,
the descriptor leads to a file; where the import fails, what was caught is shown.
"""

from __future__ import annotations

import contextlib
import importlib.machinery
import importlib.util
import os
import sys
import tempfile
from collections.abc import Iterator
from types import ModuleType
from typing import Any


class QuietTensorFlow:
    """An import hook for the one module `tensorflow`; it takes itself away when it was used."""

    def find_spec(
        self, name: str, path: Any = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name != "tensorflow":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def quietly(module: ModuleType) -> None:
                with _caught_stderr():
                    execute(module)
                    module.config.list_physical_devices()

            spec.loader.exec_module = quietly  # type: ignore[method-assign]
        return spec


def install() -> None:
    """From now on the first import of tensorflow is quiet. TFLLM_VERBOSE=1 leaves it as it is."""
    if "tensorflow" not in sys.modules and not os.environ.get("TFLLM_VERBOSE"):
        sys.meta_path.insert(0, QuietTensorFlow())


@contextlib.contextmanager
def _caught_stderr() -> Iterator[None]:
    """Descriptor 2 leads to a file in the block; after an error, the file is shown."""
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as caught:
        os.dup2(caught.fileno(), 2)
        try:
            yield
        except Exception:
            os.dup2(kept, 2)
            caught.seek(0)
            sys.stderr.write(caught.read().decode("utf-8", "replace"))
            raise
        finally:
            os.dup2(kept, 2)
            os.close(kept)
