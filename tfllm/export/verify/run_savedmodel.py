"""Runs a SavedModel as TF Serving does, in a process of its own: `python run_savedmodel.py …`.

It imports nothing of tfllm, and of the rest only tensorflow and tensorflow_text, so that it also
runs in an environment that holds TF Serving's own versions of the two. Like the server it forbids
compilation by XLA and loads through a TensorFlow 1 session.

    run_savedmodel.py VERSION_FOLDER REQUESTS.json ANSWERS.json [xla]

Requests: [{"signature": name, "inputs": {name: nested list}}, ...]. Answers: {"outputs": [{name:
nested list}, ...], "foreign": modules that should not be here, "load_seconds", "versions"}.
"""

from __future__ import annotations

import base64
import ctypes
import json
import sys
import time
from pathlib import Path

# keras is not named here: `import tensorflow` loads it by itself. Nothing of it is called, and the
# C program of the tests runs the same files without Python.
FOREIGN = ("tfllm", "tf_keras", "keras_hub")
DISABLE_XLA = "_ZN10tensorflow21DisableXlaCompilationEv"  # tensorflow::DisableXlaCompilation()


def forbid_xla(tensorflow_folder: str | Path) -> None:
    """Do what tensorflow_model_server does at its start, by the same function."""
    for name in ("libtensorflow_cc.so.2", "libtensorflow_framework.so.2"):
        library = ctypes.CDLL(str(Path(tensorflow_folder) / name))
        if hasattr(library, DISABLE_XLA):
            getattr(library, DISABLE_XLA)()
            return
    raise RuntimeError("this TensorFlow has no switch to forbid compilation by XLA")


def decode_bytes(value: object) -> object:
    """Return nested lists with {"b64": text} decoded to bytes."""
    if isinstance(value, dict):
        return base64.b64decode(value["b64"])
    return [decode_bytes(part) for part in value] if isinstance(value, list) else value


def decode_texts(value: object) -> object:
    """Return nested lists with bytes decoded to texts."""
    if isinstance(value, bytes):
        return value.decode()
    return [decode_texts(part) for part in value] if isinstance(value, list) else value


def main(version_folder: str, request_file: str, answer_file: str, xla: str = "") -> None:
    """Load the SavedModel once and answer every request; `xla`: compilation is allowed."""
    import numpy as np
    import tensorflow as tf
    import tensorflow_text as tf_text

    if not xla:
        forbid_xla(Path(tf.__file__).parent)
    v1 = tf.compat.v1
    outputs = []
    with v1.Session(graph=tf.Graph()) as session:
        start = time.perf_counter()
        signatures = v1.saved_model.loader.load(session, ["serve"], version_folder).signature_def
        load_seconds = time.perf_counter() - start
        for request in json.loads(Path(request_file).read_text()):
            signature = signatures[request["signature"]]
            feed = {}
            for name, value in request["inputs"].items():
                if name not in signature.inputs:  # reading it would add it, without a type
                    known = ", ".join(sorted(signature.inputs))
                    raise ValueError(f"{request['signature']} has no input {name}, only {known}")
                info = signature.inputs[name]
                kind = tf.dtypes.as_dtype(info.dtype)
                feed[info.name] = np.array(decode_bytes(value), kind.as_numpy_dtype)
            fetch = {name: info.name for name, info in signature.outputs.items()}
            arrays = session.run(fetch, feed)
            outputs.append(
                {name: decode_texts(np.asarray(array).tolist()) for name, array in arrays.items()}
            )
    answer = {
        "outputs": outputs,
        "foreign": [name for name in FOREIGN if name in sys.modules],
        "load_seconds": load_seconds,
        "versions": {"tensorflow": tf.__version__, "tensorflow_text": tf_text.__version__},
    }
    Path(answer_file).write_text(json.dumps(answer))


if __name__ == "__main__":
    main(*sys.argv[1:])
