"""Runs `run_savedmodel.c` against the C API in TensorFlow's wheel."""

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import tensorflow as tf

from tfllm.export import savedmodel

LIBRARIES = ("libtensorflow_cc.so.2", "libtensorflow_framework.so.2")


def printed(
    folder: Path,
    version: Path,
    given: str,
    asked: str,
    operations: Sequence[Path],
    texts: Sequence[str],
) -> list[str]:
    """What the program, compiled in `folder`, prints for each text: `serving_default`'s output
    `asked` for the input `given`. `operations` are the libraries of custom operations it loads."""
    tensorflow = Path(tf.__file__).parent
    program = folder / "run_savedmodel"
    subprocess.run(
        ["gcc", "-O1", str(Path(__file__).parent / "run_savedmodel.c"), "-o", str(program)]
        + [f"-I{tensorflow / 'include'}", *(str(tensorflow / name) for name in LIBRARIES)]
        + [f"-Wl,-rpath,{tensorflow}"],
        check=True,
    )
    signature = savedmodel.signature_defs(version)["serving_default"]
    output, place = signature.outputs[asked].name.split(":")
    done = subprocess.run(
        [program, version, signature.inputs[given].name.split(":")[0], output, place]
        + [*map(str, operations), "--", *texts],
        capture_output=True, text=True, env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()
