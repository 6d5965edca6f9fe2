"""A command, and the files on the call stack when it reaches its first matrix products.

    python -m tests.walks predict MODEL "a text"

The last line that is printed is JSON: for every different stack the files of tfllm, in order. What
a call has finished before (reading a recipe, tokenizing) is not on the stack.
"""

import functools
import json
import sys
import traceback
from pathlib import Path

import keras

ROOT = Path(__file__).parent.parent
PRODUCTS = (keras.layers.Dense, keras.layers.EinsumDense)


def record(layer: type, walks: dict) -> None:
    """Make every call of a kind of layer note the files on its stack."""
    plain = layer.call

    @functools.wraps(plain)  # Keras reads the names of the arguments
    def call(self, *args, **kwargs):
        files = []
        for frame in traceback.extract_stack():
            path = Path(frame.filename)
            if path.is_relative_to(ROOT / "tfllm"):
                files.append(path.relative_to(ROOT).as_posix())
        walks[tuple(dict.fromkeys(files))] = None
        return plain(self, *args, **kwargs)

    layer.call = call


def main(arguments: list[str]) -> None:
    from tfllm.cli import main as run

    walks: dict[tuple[str, ...], None] = {}
    for layer in PRODUCTS:
        record(layer, walks)
    try:
        run(arguments)
    except SystemExit as stop:
        if stop.code:
            raise
    print(json.dumps(list(walks)))


if __name__ == "__main__":
    main(sys.argv[1:])
