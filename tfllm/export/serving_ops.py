"""Makes `serving_ops_2_20.txt`, the operations that TF Serving links, from TensorFlow's own wheels.

Run by hand when a new server is released, never by tfllm itself. It imports nothing of tfllm, so
that it runs in an environment that holds one TensorFlow and its TensorFlow Text alone:

    t212/bin/python serving_ops.py list > 2.12.txt      # tensorflow 2.12.1, tensorflow-text 2.12.1
    t219/bin/python serving_ops.py list > 2.19.txt      # tensorflow-cpu 2.19.1
    t220/bin/python serving_ops.py list > 2.20.txt      # tensorflow 2.20.0, tensorflow-text 2.20
    python serving_ops.py table 2.12.txt 2.19.txt 2.20.txt > serving_ops_2_20.txt

Servers 2.12 to 2.19.1 are built with TensorFlow Text 2.12.1, so its operations are the same in all
of them; the first server with a newer TensorFlow Text is 2.20.0.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

# The wheel's Python half, a test's or a device's operation; no kernel of theirs is in the server.
NOT_IN_SERVER = ("PyFunc", "PyFuncStateless", "EagerPyFunc", "Xla", "TPU", "DTensor", "Mlir")

HEADER = """\
# The operations that TF Serving 2.20 links and has a CPU kernel for: tensorflow 2.20.0 and
# tensorflow-text 2.20. Written by tfllm/export/serving_ops.py.
# One line each: name, first server version, attributes (with a version where they came later).
"""

Operations = dict[str, list[str]]


def list_operations() -> Iterator[str]:
    """Return `name attribute attribute…` of every operation with a CPU kernel in this process."""
    import tensorflow as tf  # noqa: F401

    try:
        import tensorflow_text as tf_text  # noqa: F401
    except ImportError:
        print("no tensorflow_text here: TensorFlow's own operations only", file=sys.stderr)
    from tensorflow.core.framework import op_def_pb2
    from tensorflow.python.client import pywrap_tf_session
    from tensorflow.python.framework import kernels

    operations = op_def_pb2.OpList()
    operations.ParseFromString(pywrap_tf_session.TF_GetBuffer(pywrap_tf_session.TF_GetAllOpList()))
    with_kernel = {
        kernel.op
        for kernel in kernels.get_all_registered_kernels().kernel
        if kernel.device_type in ("CPU", "DEFAULT")
    }
    for operation in sorted(operations.op, key=lambda operation: operation.name):
        if operation.name in with_kernel and not operation.name.startswith(NOT_IN_SERVER):
            yield " ".join([operation.name, *sorted(a.name for a in operation.attr)])


def read(path: str) -> Operations:
    """Parse the lines of `list_operations` as a dict from operation to attributes."""
    rows = (line.split() for line in Path(path).read_text().splitlines())
    return {row[0]: row[1:] for row in rows if row}


def table(oldest: Operations, middle: Operations, newest: Operations) -> Iterator[str]:
    """Yield a line for each operation of the newest server, with the first version that has it.

    Args:
        oldest: Attributes by operation of TF Serving 2.12.
        middle: Of TF Serving 2.19.
        newest: Of TF Serving 2.20.
    """
    for name, attributes in sorted(newest.items()):
        versions = [("2.12", oldest.get(name)), ("2.19", middle.get(name)), ("2.20", attributes)]
        since = next(version for version, known in versions if known is not None)
        shown = []
        for attribute in attributes:
            first = next(v for v, known in versions if known is not None and attribute in known)
            shown.append(attribute if first == since else f"{attribute}:{first}")
        yield " ".join([name, since, *shown])


def main(command: str, *paths: str) -> None:
    """Print one environment's list, or the table of three lists."""
    if command == "list":
        print("\n".join(list_operations()))
    else:
        print(HEADER + "\n".join(table(*map(read, paths))))


if __name__ == "__main__":
    main(*sys.argv[1:])
