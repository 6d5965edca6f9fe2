"""REST bodies to arrays: TF Serving's row and column forms, its messages, and limits it lacks.

Behaviour of `util/json_tensor.cc` in TF Serving 2.20 and of the rapidjson under it, with the
differences that docs/serving.md lists: nesting is limited, invalid UTF-8 is refused, an integer
that does not fit its type is refused where TF Serving would cut it, and a repeated key takes its
first value in rows and Examples too.
"""

from __future__ import annotations

import base64
import binascii
import itertools
import json
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson

from tfllm.serving.schema import Code, RequestError, invalid
from tfllm.serving.tensors import TensorSpec

SHOWN_CHARACTERS = 256  # of a wrong value, in an error message
BASE64_KEY = "b64"
BOM = b"\xef\xbb\xbf"

# A string, also one that does not end, so that no place of the text is looked at twice.
STRING = r'"[^"\\]*(?:\\.[^"\\]*)*"?'
STRINGS = re.compile(STRING.encode(), re.DOTALL)
# rapidjson's names of what is not a number; Python's parser knows three of them.
NOT_FINITE = re.compile(STRING + r"|-?\b(?:Infinity|Inf|NaN)\b", re.DOTALL)
NOT_FINITE_NAMES = {"Inf": "Infinity", "-Inf": "-Infinity", "-NaN": "NaN"}
LARGEST = {"float": float(np.finfo(np.float32).max), "double": float(np.finfo(np.float64).max)}
DIGITS = {"float": 24, "double": 53}  # binary digits: larger whole numbers lose some

JSON_TYPES = {
    str: "String", int: "Number", float: "Number", bool: "Bool",
    list: "Array", dict: "Object", type(None): "Null",
}  # fmt: skip

# Signature type -> the Python types that JSON may have for it, and the range of whole numbers.
# Small integers are read as int32, as TF Serving does, and then checked against their own range.
NUMBER: set[type] = {int, float}
WHOLE: set[type] = {int}
ACCEPTED: dict[str, tuple[set[type], tuple[int, int] | None]] = {
    "float": (NUMBER, None),
    "double": (NUMBER, None),
    "int8": (WHOLE, (-(2**7), 2**7 - 1)),
    "int16": (WHOLE, (-(2**15), 2**15 - 1)),
    "int32": (WHOLE, (-(2**31), 2**31 - 1)),
    "int64": (WHOLE, (-(2**63), 2**63 - 1)),
    "uint8": (WHOLE, (0, 2**8 - 1)),
    "uint32": (WHOLE, (0, 2**32 - 1)),
    "uint64": (WHOLE, (0, 2**64 - 1)),
    "bool": ({bool}, None),
    "string": ({str}, None),
}

Specs = Mapping[str, TensorSpec]
Arrays = dict[str, np.ndarray]


def parse(body: bytes, depth: int) -> dict[str, Any]:
    """Parse the request's JSON object.

    As TF Serving: NaN, Inf and Infinity are numbers, a byte order mark is skipped, a repeated key
    takes its first value, and what follows the object is not read.

    Args:
        body: The request's body.
        depth: How deep it may be nested.

    Raises:
        RequestError: INVALID_ARGUMENT, it is no such object.
    """
    body = body.removeprefix(BOM)
    if not body.strip():
        raise invalid("JSON Parse error: The document is empty")
    try:
        document = orjson.loads(body)
        deep, keys = _measure_document(document, depth)
        # A colon follows every key. Those inside of strings are only taken out where it matters.
        repeated = body.count(b":") > keys and STRINGS.sub(b"", body).count(b":") > keys
        if repeated and not deep:
            document = _parse_leniently(body, None)
    except orjson.JSONDecodeError as error:
        document = _parse_leniently(body, error)
        deep, _ = _measure_document(document, depth)
    if deep:
        raise invalid(f"JSON Parse error: nested deeper than {depth} levels")
    if not isinstance(document, dict):
        raise invalid(f"JSON Value: {excerpt(document)} Is not object")
    return document


def signature_name(document: Mapping[str, Any]) -> str:
    """Return the signature that the request names, or an empty text."""
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        raise invalid(
            f"JSON Value: {excerpt(document)} not formatted correctly. "
            "'signature_name' key must be a string value."
        )
    return name


def read_inputs(document: Mapping[str, Any], specs: Specs) -> tuple[Arrays, bool]:
    """Read the tensors of a request in row form (`instances`) or column form (`inputs`).

    Args:
        document: The request.
        specs: The signature's inputs.

    Returns:
        Arrays by name, and whether it was in row form.

    Raises:
        RequestError: INVALID_ARGUMENT, the request does not fit the signature.
    """
    if "instances" in document and "inputs" in document:
        raise invalid(
            f"JSON Value: {excerpt(document)} Not formatted correctly expecting only one of "
            "'inputs' or 'instances' keys to exist "
        )
    if "instances" in document:
        return _rows(document["instances"], document, specs), True
    if "inputs" in document:
        return _columns(document["inputs"], specs), False
    raise invalid("Missing 'inputs' or 'instances' key")


def read_tensor(value: Any, type_name: str, dtype: np.dtype) -> np.ndarray:
    """Convert a JSON value, nested evenly, to an array.

    Args:
        value: A number, text, boolean or nested list.
        type_name: TensorFlow's name of the type.
        dtype: The array's type.

    Raises:
        RequestError: INVALID_ARGUMENT, the value has another type or is nested unevenly;
            UNIMPLEMENTED, the type has no JSON form.
    """
    if type_name not in ACCEPTED:
        raise RequestError(
            Code.UNIMPLEMENTED,
            f"Conversion of JSON Value: {excerpt(value)} to type: {type_name}",
        )
    shape, leaves = _flatten(value)
    if type_name == "string":
        array = np.empty(len(leaves), object)
        array[:] = [_string(leaf) for leaf in leaves]
    else:
        kinds, limits = ACCEPTED[type_name]
        if not set(map(type, leaves)) <= kinds:
            raise _type_error(next(v for v in leaves if type(v) not in kinds), type_name)
        if limits and leaves and not (limits[0] <= min(leaves) and max(leaves) <= limits[1]):
            wrong = next(v for v in leaves if not limits[0] <= v <= limits[1])
            raise _type_error(wrong, type_name)
        if kinds is NUMBER:
            _check_digits(leaves, type_name)
        array = np.array(leaves, dtype)
    return array.reshape(shape)


def _check_digits(leaves: list[Any], type_name: str) -> None:
    """Raise INVALID_ARGUMENT for a number that the type cannot hold: IsLosslessDecimal."""
    max_exact, largest = 2 ** DIGITS[type_name] - 1, LARGEST[type_name]
    if not (np.abs(np.array(leaves, np.float64)) > max_exact).any():
        return
    for value in leaves:
        if type(value) is float:  # whole numbers above 64 bits are floats here, as in rapidjson
            lossy = abs(value) > largest and math.isfinite(value)
        else:
            lossy = abs(value) > max_exact
        if lossy:
            raise invalid(
                f"Cannot convert JSON value: {excerpt(value)} to {type_name} without loss of "
                "precision."
            )


def excerpt(value: object) -> str:
    """Return a value for an error message: JSON, cut short."""
    try:
        text = orjson.dumps(value, option=orjson.OPT_PASSTHROUGH_DATETIME).decode()
    except (TypeError, ValueError):
        text = repr(value)
    return text[:SHOWN_CHARACTERS]


def is_base64(value: object) -> bool:
    """Return whether a value is `{"b64": "..."}`, a string given as bytes."""
    return type(value) is dict and len(value) == 1 and type(value.get(BASE64_KEY)) is str


def decode_base64(value: dict[str, str]) -> bytes:
    """Return the bytes of `{"b64": ...}`; padding may be left out."""
    text = re.sub(r"\s", "", value[BASE64_KEY])
    try:
        return base64.b64decode(
            text.rstrip("=") + "=" * (-len(text.rstrip("=")) % 4), validate=True
        )
    except (binascii.Error, ValueError):
        raise invalid("Unable to base64 decode") from None


def encode_text(text: str) -> bytes:
    """Return a text as UTF-8. Raises INVALID_ARGUMENT for a lone surrogate."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise invalid("JSON Parse error: The surrogate pair in string is invalid.") from None


def _parse_leniently(body: bytes, error: orjson.JSONDecodeError | None) -> Any:
    """Parse what strict JSON refuses, or leaves open, and TF Serving accepts."""
    try:
        text = body.decode()
    except UnicodeDecodeError as wrong:
        raise invalid(f"JSON Parse error: invalid UTF-8 at offset: {wrong.start}") from None
    message = str(error)
    if error is None or "after document" in message or "NaN" in text or "Inf" in text:
        text = NOT_FINITE.sub(lambda name: NOT_FINITE_NAMES.get(name[0], name[0]), text)
        decoder = json.JSONDecoder(
            object_pairs_hook=_first_values, parse_float=_finite, parse_int=_whole
        )
        try:
            return decoder.raw_decode(text.lstrip())[0]
        except (ValueError, RecursionError):
            pass
    if "recursion" in message.lower():
        message = "nested too deeply"
    raise invalid(f"JSON Parse error: {message} at offset: {error.pos if error else 0}") from None


def _first_values(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        values.setdefault(key, value)
    return values


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError("Number too big to be stored in double.")
    return value


def _whole(text: str) -> int | float:
    value = int(text)
    return value if -(2**63) <= value < 2**64 else _finite(text)


def _measure_document(document: Any, depth: int) -> tuple[bool, int]:
    """Return whether a document is nested deeper than `depth`, and its keys down to there."""
    level, keys = [document], 0
    for _ in range(depth + 1):
        level = [value for value in level if type(value) in (list, dict)]
        if not level:
            return False, keys
        keys += sum(len(value) for value in level if type(value) is dict)
        level = list(
            itertools.chain.from_iterable(v.values() if type(v) is dict else v for v in level)
        )
    return True, keys


def _flatten(value: Any) -> tuple[tuple[int, ...], list[Any]]:
    """Return the shape by the first elements, as TF Serving sees it, and all leaves in order."""
    if type(value) is not list:
        return (), [value]
    shape = [len(value)]
    while value and type(value[0]) is list:
        if any(type(item) is not list for item in value):
            wrong = next(item for item in value if type(item) is not list)
            raise invalid(
                f"JSON Value: {excerpt(wrong)} found at incorrect level: {len(shape) + 1} "
                f"in the JSON DOM. Expected at level: {len(shape) + 1}"
            )
        size = len(value[0])
        for item in value:
            if len(item) != size:
                raise invalid(
                    f"Encountered list at unexpected size: {len(item)} at level: {len(shape)} "
                    f"expected size: {size}"
                )
        shape.append(size)
        value = list(itertools.chain.from_iterable(value))
    if any(type(item) is list for item in value):
        raise invalid(f"Encountered list at unexpected level: {len(shape)} expected < {len(shape)}")
    return tuple(shape), value


def _string(leaf: Any) -> bytes:
    if type(leaf) is str:
        return encode_text(leaf)
    if is_base64(leaf):
        return decode_base64(leaf)
    if type(leaf) is dict:
        raise invalid(f"JSON Value: {excerpt(leaf)} not formatted correctly for base64 data")
    raise _type_error(leaf, "string")


def _type_error(value: object, type_name: str) -> RequestError:
    kind = JSON_TYPES.get(type(value), "Unknown")
    if type(value) is bool:
        kind = "True" if value else "False"
    return invalid(
        f"JSON Value: {excerpt(value)} Type: {kind} is not of expected type: {type_name}"
    )


def _is_object(value: object) -> bool:
    return type(value) is dict and not is_base64(value)


def _rows(instances: Any, document: Mapping[str, Any], specs: Specs) -> Arrays:
    if type(instances) is not list:
        raise invalid(f"JSON Value: {excerpt(document)} Expecting 'instances' to be an list/array")
    if not instances:
        raise invalid(f"JSON Value: {excerpt(document)} No values in 'instances' array")
    if type(instances[0]) is not dict and len(specs) > 1:
        raise invalid(
            "instances is a plain list, but expecting list of objects as multiple "
            "input tensors required as per tensorinfo_map"
        )
    named = _is_object(instances[0])
    try:
        if named:
            if any(not _is_object(row) or row.keys() != specs.keys() for row in instances):
                raise invalid("rows differ")  # which one, the slow way below says
            columns = {name: [row[name] for row in instances] for name in specs}
        else:
            if any(_is_object(row) for row in instances):
                raise invalid("rows differ")
            columns = {next(iter(specs)): instances}
        return {
            name: read_tensor(values, specs[name].type, specs[name].dtype)
            for name, values in columns.items()
        }
    except RequestError as error:
        raise _row_error(instances, named, specs) or error from None


def _row_error(instances: list[Any], named: bool, specs: Specs) -> RequestError | None:
    """Return the error of the first wrong row, as TF Serving words it."""
    shapes: dict[str, tuple[int, ...]] = {}
    for index, row in enumerate(instances):
        start = f"Failed to process element: {index} "
        if named and not _is_object(row):
            return invalid(f"Expecting object but got list at item {index} of input list")
        if not named and _is_object(row):
            return invalid(f"Expecting value/list but got object at item {index} of input list")
        for name, value in row.items() if named else ((next(iter(specs)), row),):
            where = f"{start}key: {name} " if named else start
            try:
                if name not in specs:
                    raise invalid(f"JSON object: does not have named input: {name}")
                shape = read_tensor(value, specs[name].type, specs[name].dtype).shape
                _same_shape(shapes.setdefault(name, shape), shape)
            except RequestError as error:
                code = error.code.name
                return RequestError(
                    error.code, f"{where}of 'instances' list. Error: {code}: {error.message}"
                )
        if named and row.keys() != specs.keys():
            return invalid(
                f"{start}of 'instances' list. JSON object: {excerpt(row)} keys must be equal to: "
                + ",".join(sorted(specs))
            )
    return None


def _same_shape(expected: tuple[int, ...], shape: tuple[int, ...]) -> None:
    sizes = int(np.prod(expected)), int(np.prod(shape))
    if sizes[0] != sizes[1]:
        raise invalid(f"Expecting tensor size: {sizes[0]} but got: {sizes[1]}")
    if expected != shape:
        texts = ["[" + ",".join(map(str, sizes)) + "]" for sizes in (expected, shape)]
        raise invalid(f"Expecting shape {texts[0]} but got: {texts[1]}")


def _columns(inputs: Any, specs: Specs) -> Arrays:
    if not _is_object(inputs):
        if len(specs) > 1:
            raise invalid(
                "inputs is a plain value/list, but expecting an object as multiple "
                "input tensors required as per tensorinfo_map"
            )
        inputs = {next(iter(specs)): inputs}
    for name in specs:
        if name not in inputs:
            raise invalid(f"Missing named input: {name} in 'inputs' object.")
    return {name: read_tensor(inputs[name], spec.type, spec.dtype) for name, spec in specs.items()}
