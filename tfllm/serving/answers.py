"""Arrays to REST bodies, number by number as TF Serving writes them.

A float is the shortest `%g` that reads back as the same value, otherwise nine digits (seventeen for
double), always with a point or an exponent. NaN and Infinity are written as such, which strict
JSON does not have. Text that is not UTF-8 is written with replacement characters, so that the
answer stays JSON; an output named `..._bytes` is written as base64.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import orjson

from tfllm.serving.schema import invalid
from tfllm.serving.tensors import type_name

BYTES_SUFFIX = "_bytes"
SHORT_DIGITS = 6
FULL_DIGITS = {"float": 9, "double": 17}
BOOL_TEXTS = {True: "true", False: "false"}

Arrays = Mapping[str, np.ndarray]


def write_error(message: str) -> bytes:
    """Return `{"error": message}`, formatted as TF Serving formats it."""
    text = message.encode("utf-8", "replace").decode()
    return b'{\n    "error": ' + orjson.dumps(text) + b"\n}"


def write_predictions(outputs: Arrays, rows: bool) -> bytes:
    """Write the JSON body of an answer.

    Args:
        outputs: The signature's outputs by name.
        rows: Whether the request was in row form (`instances`), and so the answer is.

    Raises:
        RequestError: INVALID_ARGUMENT, the outputs have no JSON form.
    """
    if not outputs:
        raise invalid("Cannot convert empty tensor map to JSON")
    return (_write_rows(outputs) if rows else _write_columns(outputs)).encode()


def write_classifications(results: Sequence[Sequence[tuple[str, float]]]) -> bytes:
    """Return `{"results": [[[label, score], ...], ...]}`; the manual says `result`."""
    rows = []
    for classes in results:
        scores = float_texts(np.array([score for _, score in classes], np.float32))
        pairs = zip(classes, scores, strict=True)
        rows.append(
            "[" + ",".join(f"[{quote(label)},{score}]" for (label, _), score in pairs) + "]"
        )
    return ('{"results":[' + ",".join(rows) + "]}").encode()


def write_regressions(values: np.ndarray) -> bytes:
    """Return `{"results": [value, ...]}`."""
    return ('{"results":[' + ",".join(float_texts(values)) + "]}").encode()


def float_texts(array: np.ndarray) -> list[str]:
    """Return every element of a float32 or float64 array as JSON text."""
    flat = array.ravel()
    digits = FULL_DIGITS[type_name_of(flat)]
    texts = (f"%.{digits}g " * flat.size % tuple(flat.tolist())).split()
    for index in np.flatnonzero(_perhaps_short(flat)):
        short = f"%.{SHORT_DIGITS}g" % flat[index]
        if flat.dtype.type(short) == flat[index]:
            texts[index] = short
    return [_with_decimal_point(text) for text in texts]


def quote(text: str | bytes) -> str:
    """Return a JSON string; bytes that are not UTF-8 become U+FFFD."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", "replace")
    return orjson.dumps(text).decode()


def type_name_of(array: np.ndarray) -> str:
    """Return TF Serving's name of an array's type."""
    import tensorflow as tf

    return "string" if array.dtype.kind == "O" else type_name(tf.dtypes.as_dtype(array.dtype))


def _perhaps_short(flat: np.ndarray) -> np.ndarray:
    """Return where six digits may be enough: rounding to them hardly changes the value."""
    wide = flat.astype(np.float64)
    with np.errstate(all="ignore"):
        scale = 10.0 ** (SHORT_DIGITS - 1 - np.floor(np.log10(np.abs(wide))))
        error = np.abs(np.rint(wide * scale) / scale - wide)
        near = error <= np.abs(wide) * (1e-7 if flat.dtype == np.float32 else 1e-15)
    return (near | (wide == 0) | ~np.isfinite(scale)) & np.isfinite(wide)


def _with_decimal_point(text: str) -> str:
    if text in NOT_FINITE:
        return NOT_FINITE[text]
    return text if "." in text or "e" in text else text + ".0"


NOT_FINITE = {"nan": "NaN", "-nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}


def _whole_texts(array: np.ndarray) -> list[str]:
    return list(map(str, array.ravel().tolist()))


def _bool_texts(array: np.ndarray) -> list[str]:
    return [BOOL_TEXTS[value] for value in array.ravel().tolist()]


def _string_texts(array: np.ndarray) -> list[str]:
    return [quote(value) for value in array.ravel().tolist()]


def _base64_texts(array: np.ndarray) -> list[str]:
    return [f'{{"b64":"{base64.b64encode(value).decode()}"}}' for value in array.ravel().tolist()]


WRITERS: dict[str, Callable[[np.ndarray], list[str]]] = {
    "float": float_texts,
    "double": float_texts,
    "bool": _bool_texts,
    "string": _string_texts,
} | dict.fromkeys("int8 int16 int32 int64 uint8 uint32 uint64".split(), _whole_texts)


def _items(name: str, array: np.ndarray, depth: int) -> list[str]:
    """Return the JSON texts of the sub-arrays `depth` dimensions down, in order."""
    kind = type_name_of(array)
    if kind not in WRITERS:
        raise invalid(f"Failed to write JSON value for tensor type: {kind}")
    is_bytes = kind == "string" and name.endswith(BYTES_SUFFIX)
    texts = (_base64_texts if is_bytes else WRITERS[kind])(array)
    for axis in range(array.ndim - 1, depth - 1, -1):
        size = array.shape[axis]
        groups = int(np.prod(array.shape[:axis], dtype=np.int64))
        texts = [
            "[" + ",".join(texts[start * size : (start + 1) * size]) + "]"
            for start in range(groups)
        ]
    return texts


def _write_rows(outputs: Arrays) -> str:
    size = None
    for name, array in outputs.items():
        if array.ndim == 0:
            raise invalid(f"Tensor name: {name} has no shape information ")
        if size is not None and array.shape[0] != size:
            raise invalid(
                f"Tensor name: {name} has inconsistent batch size: {array.shape[0]} "
                f"expecting: {size}"
            )
        size = array.shape[0]
    columns = [_items(name, array, 1) for name, array in outputs.items()]
    if len(outputs) == 1:
        return '{"predictions":[' + ",".join(columns[0]) + "]}"
    keys = [quote(name) + ":" for name in outputs]
    rows = (
        "{" + ",".join(key + value for key, value in zip(keys, row, strict=True)) + "}"
        for row in zip(*columns, strict=True)
    )
    return '{"predictions":[' + ",".join(rows) + "]}"


def _write_columns(outputs: Arrays) -> str:
    columns = {name: _items(name, array, 0)[0] for name, array in outputs.items()}
    if len(columns) == 1:
        return f'{{"outputs":{next(iter(columns.values()))}}}'
    return '{"outputs":{' + ",".join(f"{quote(k)}:{v}" for k, v in columns.items()) + "}}"
