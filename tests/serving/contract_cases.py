"""The REST contract as a table: request, status, answer. Written from TF Serving's own sources.

An answer is a value (the whole JSON), a text (part of `error`), or None (only the status counts).
Cases marked OURS hold for `tfllm serve` alone, where it is stricter on purpose.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import Any

T, K = "/v1/models/toy", "/v1/models/kinds"
OURS = True


@dataclass(frozen=True)
class Case:
    name: str
    verb: str
    path: str
    body: bytes | None
    status: int
    answer: Any = None
    ours: bool = False


def get(name, path, status, answer=None, verb="GET"):
    return Case(name, verb, path, None, status, answer)


def ask(name, path, document, status, answer=None, ours=False):
    body = document if isinstance(document, bytes) else json.dumps(document).encode()
    return Case(name, "POST", path, body, status, answer, ours)


def b64(data: bytes) -> dict:
    return {"b64": base64.b64encode(data).decode()}


def version(number: int) -> dict:
    status = {"error_code": "OK", "error_message": ""}
    return {"version": str(number), "state": "AVAILABLE", "status": status}


def sig(name: str, **rest) -> dict:
    return {"signature_name": name, **rest}


STATUS = [
    get("all versions, newest first", T, 200, {"model_version_status": [version(2), version(1)]}),
    get("one version", f"{T}/versions/1", 200, {"model_version_status": [version(1)]}),
    get("a label says nothing to status", f"{T}/labels/stable", 200),
    get("path in capitals", "/V1/Models/toy", 200),
    get("encoded name", "/v1/models/t%6Fy", 200),
    get("unknown version", f"{T}/versions/9", 404, "Could not find version 9 of model toy"),
    get("unknown model", "/v1/models/none", 404, "Could not find any versions of model none"),
    get("no model", "/v1/models", 400, "Missing model name in request."),
    get("no resource", "/v1/foo", 400, "Malformed request: GET /v1/foo"),
    get("trailing slash", f"{T}/", 400, "Malformed request"),
    get("version is no number", f"{T}/versions/x", 400, "Malformed request"),
    get("negative version", f"{T}/versions/-1", 400, "Malformed request"),
    get("huge version", f"{T}/versions/99999999999999999999", 400, "Failed to convert version"),
    get("traversal", "/v1/models/..%2F..%2Fetc", 404, "Could not find any versions"),
    get("outside the interface", "/v2/models", 404),
    get("put", T, 400, "Malformed request: PUT", verb="PUT"),
    get("delete", T, 400, "Malformed request: DELETE", verb="DELETE"),
    get("get of predict", f"{T}:predict", 400, "Malformed request"),
    get("metadata of unknown model", "/v1/models/none/metadata", 404,
        "Servable not found for request: Latest(none)"),
    get("metadata of unknown version", f"{T}/versions/9/metadata", 404,
        "Servable not found for request: Specific(toy, 9)"),
    get("metadata of unknown label", f"{T}/labels/x/metadata", 400,
        "Unrecognized servable version label: x"),
]  # fmt: skip

ROUTES = [
    ask("post without method", T, {}, 400, "Malformed request: POST"),
    ask("method in capitals", f"{T}:PREDICT", {}, 400, "Malformed request"),
    ask("unknown method", f"{T}:generate", {}, 400, "Malformed request"),
    ask("predict of unknown model", "/v1/models/none:predict", {"instances": [1]}, 404,
        "Servable not found for request: Latest(none)"),
    ask("predict of unknown version", f"{T}/versions/9:predict", {"instances": ["x"]}, 404,
        "Servable not found for request: Specific(toy, 9)"),
    ask("predict of unknown label", f"{T}/labels/x:predict", {"instances": ["x"]}, 400,
        "Unrecognized servable version label: x"),
    ask("unknown signature", f"{T}:predict", sig("x", instances=["x"]), 400,
        'Serving signature name: "x" not found in signature def'),
    ask("the hidden signature", f"{T}:predict", sig("__saved_model_init_op", instances=["x"]),
        400, "Failed to get input map for signature: __saved_model_init_op"),
    ask("signature is a number", f"{T}:predict", {"signature_name": 1, "instances": ["x"]}, 400,
        "'signature_name' key must be a string value."),
]  # fmt: skip

BODIES = [
    ask("empty", f"{T}:predict", b"", 400, "JSON Parse error: The document is empty"),
    ask("not JSON", f"{T}:predict", b"{nope", 400, "JSON Parse error"),
    ask("cut short", f"{T}:predict", b'{"instances": [', 400, "JSON Parse error"),
    ask("not an object", f"{T}:predict", b"[1]", 400, "Is not object"),
    ask("neither key", f"{T}:predict", {}, 400, "Missing 'inputs' or 'instances' key"),
    ask("both keys", f"{T}:predict", {"instances": ["x"], "inputs": ["x"]}, 400,
        "expecting only one of 'inputs' or 'instances' keys to exist"),
    ask("no rows", f"{T}:predict", {"instances": []}, 400, "No values in 'instances' array"),
    ask("rows are no list", f"{T}:predict", {"instances": "x"}, 400,
        "Expecting 'instances' to be an list/array"),
    ask("what follows is not read", f"{K}:predict", b'{"instances": [1]} and more', 200,
        {"predictions": [0.5]}),
    ask("parse error before unknown model", "/v1/models/none:predict", b"{", 400, "Parse error"),
    ask("invalid UTF-8", f"{T}:predict", b'{"instances": ["\xff"]}', 400, "Parse error", OURS),
    ask("lone surrogate", f"{T}:predict", b'{"instances": ["\\ud800"]}', 400, "Parse error"),
    ask("nested 65 deep", f"{T}:predict", b'{"instances":' + b"[" * 65 + b"]" * 65 + b"}", 400,
        "nested deeper than 64", OURS),
    ask("nested 100 000 deep", f"{T}:predict", b"[" * 100_000, 400, "Parse error", OURS),
]  # fmt: skip

ROWS = [
    ask("values of one input", f"{K}:predict", {"instances": [1, 2.5]}, 200,
        {"predictions": [0.5, 1.25]}),
    ask("objects of one input", f"{K}:predict", {"instances": [{"x": 1}, {"x": -4}]}, 200,
        {"predictions": [0.5, -2.0]}),
    ask("objects of two inputs", f"{T}:predict",
        sig("pair", instances=[{"text": "a", "text_pair": "b"}, {"text": "c", "text_pair": "c"}]),
        200, {"predictions": [{"joined": "a|b", "same": 0.0}, {"joined": "c|c", "same": 1.0}]}),
    ask("values of two inputs", f"{T}:predict", sig("pair", instances=["a"]), 400,
        "instances is a plain list, but expecting list of objects"),
    ask("a missing key", f"{T}:predict", sig("pair", instances=[{"text": "a"}]), 400,
        "keys must be equal to: text,text_pair"),
    ask("an extra key", f"{K}:predict", {"instances": [{"x": 1, "z": 1}]}, 400,
        "JSON object: does not have named input: z"),
    ask("objects, then a value", f"{K}:predict", {"instances": [{"x": 1}, 2]}, 400,
        "Expecting object but got list at item 1 of input list"),
    ask("values, then an object", f"{K}:predict", {"instances": [1, {"x": 2}]}, 400,
        "Expecting value/list but got object at item 1 of input list"),
    ask("lists", f"{K}:predict", sig("wide", instances=[[1, 2], [3, 4.5]]), 200,
        {"predictions": [{"y": [1.0, 2.0], "sum": 3.0}, {"y": [3.0, 4.5], "sum": 7.5}]}),
    ask("uneven lists", f"{K}:predict", sig("wide", instances=[[1, 2], [3]]), 400,
        "Expecting tensor size: 2 but got: 1"),
    ask("a list inside a list", f"{K}:predict", sig("wide", instances=[[1, [2]]]), 400,
        "Failed to process element: 0"),
    ask("a wrong shape", f"{K}:predict", sig("wide", instances=[[1, 2, 3]]), 400),
    ask("all whole types", f"{K}:predict",
        sig("types", instances=[{"bool": True, "int8": -8, "uint8": 8, "int16": -16, "int32": -32,
                                 "int64": -(2**53) - 1, "uint32": 2**32 - 1, "uint64": 2**64 - 1}]),
        200,
        {"predictions": [{"bool_out": True, "int8_out": -8, "uint8_out": 8, "int16_out": -16,
                          "int32_out": -32, "int64_out": -(2**53) - 1, "uint32_out": 2**32 - 1,
                          "uint64_out": 2**64 - 1}]}),
]  # fmt: skip

VALUES = [
    ask("text for a number", f"{K}:predict", {"instances": ["x"]}, 400,
        'JSON Value: "x" Type: String is not of expected type: float'),
    ask("null", f"{K}:predict", {"instances": [None]}, 400,
        "JSON Value: null Type: Null is not of expected type: float"),
    ask("true for a number", f"{K}:predict", {"instances": [True]}, 400,
        "Type: True is not of expected type: float"),
    ask("number for text", f"{T}:predict", {"instances": [1]}, 400,
        "JSON Value: 1 Type: Number is not of expected type: string"),
    ask("which element", f"{T}:predict", {"instances": ["a", 1]}, 400,
        "Failed to process element: 1 "),
    ask("fraction for int32", f"{K}:predict", sig("divide", instances=[1.5]), 400,
        "is not of expected type: int32"),
    ask("too large for int32", f"{K}:predict", sig("divide", instances=[2**31]), 400,
        "is not of expected type: int32"),
    ask("too large for uint8", f"{K}:predict",
        sig("types", inputs={"bool": [True], "int8": [0], "uint8": [256], "int16": [0],
                             "int32": [0], "int64": [0], "uint32": [0], "uint64": [0]}),
        400, "is not of expected type: uint8", OURS),
    ask("base64", f"{K}:predict", sig("raw", instances=[b64(b"\x00\xfe")]), 200),
    ask("base64 without padding", f"{K}:predict", sig("raw", inputs=[{"b64": "YQ"}]), 200,
        {"outputs": {"plain": ["a"], "same_bytes": [{"b64": "YQ=="}]}}),
    ask("bad base64", f"{K}:predict", sig("raw", inputs=[{"b64": "a*"}]), 400,
        "Unable to base64 decode"),
    ask("base64 is no text", f"{K}:predict", sig("raw", inputs=[{"b64": 1}]), 400,
        "not formatted correctly for base64 data"),
    ask("other alphabets", f"{K}:predict", sig("raw", inputs=["日本 😀 \x00"]), 200,
        {"outputs": {"plain": ["日本 😀 \x00"],
                     "same_bytes": [b64("日本 😀 \x00".encode())]}}),
    ask("a row that the model refuses", f"{K}:predict", sig("divide", instances=[1, 0]), 400,
        "poison"),
]  # fmt: skip

COLUMNS = [
    ask("bare list", f"{K}:predict", {"inputs": [1, 3]}, 200, {"outputs": [0.5, 1.5]}),
    ask("named list", f"{K}:predict", {"inputs": {"x": [1]}}, 200, {"outputs": [0.5]}),
    ask("two inputs", f"{T}:predict", sig("pair", inputs={"text": ["a"], "text_pair": ["b"]}), 200,
        {"outputs": {"joined": ["a|b"], "same": [0.0]}}),
    ask("a missing input", f"{T}:predict", sig("pair", inputs={"text": ["a"]}), 400,
        "Missing named input: text_pair in 'inputs' object."),
    ask("bare list for two inputs", f"{T}:predict", sig("pair", inputs=["a"]), 400,
        "inputs is a plain value/list, but expecting an object"),
    ask("scalar", f"{K}:predict", sig("scalar", inputs=1), 200, {"outputs": 2.0}),
    ask("scalar where a list belongs", f"{K}:predict", {"inputs": 1}, 400),
    ask("columns of a matrix", f"{K}:predict", sig("wide", inputs=[[1, 2]]), 200,
        {"outputs": {"y": [[1.0, 2.0]], "sum": [3.0]}}),
    ask("uneven matrix", f"{K}:predict", sig("wide", inputs=[[1, 2], [3]]), 400,
        "Encountered list at unexpected size: 1 at level: 1 expected size: 2"),
    ask("no column at all", f"{K}:predict", {"inputs": []}, 200, {"outputs": []}),
]  # fmt: skip

OUTPUTS = [
    ask("a scalar breaks rows", f"{K}:predict", sig("total", instances=[1, 2]), 400,
        "Tensor name: total has no shape information"),
    ask("and not columns", f"{K}:predict", sig("total", inputs=[1, 2]), 200,
        {"outputs": {"total": 3.0, "x": [1.0, 2.0]}}),
    ask("other batch sizes break rows", f"{K}:predict", sig("uneven", instances=[1, 2]), 400,
        "has inconsistent batch size"),
    ask("no JSON for bfloat16", f"{K}:predict", sig("sixteen", instances=[1]), 400,
        "Failed to write JSON value for tensor type: bfloat16"),
]  # fmt: skip

EXAMPLES = [
    ask("regress", f"{T}:regress", sig("regress", examples=[{"text": "abc"}, {"text": ""}]), 200,
        {"results": [3.0, 0.0]}),
    ask("values in lists", f"{T}:regress", sig("regress", examples=[{"text": ["abcd"]}]), 200,
        {"results": [4.0]}),
    ask("context is shared", f"{T}:regress",
        sig("regress", context={"text": "abcde"}, examples=[{}, {"text": "x"}]), 200,
        {"results": [5.0, 1.0]}),
    ask("bytes", f"{T}:regress", sig("regress", examples=[{"text": b64(b"\xff\x00")}]), 200,
        {"results": [2.0]}),
    ask("a feature too many", f"{T}:regress", sig("regress", examples=[{"text": "a", "n": 1}]),
        200, {"results": [1.0]}),
    ask("a feature missing", f"{T}:regress", sig("regress", examples=[{"n": 1}]), 400),
    ask("classify", f"{T}:classify", sig("classify", examples=[{"text": "a"}]), 200),
    ask("classify needs its signature", f"{T}:classify", {"examples": [{"text": "a"}]}, 400,
        "Expected one or two output Tensors, found 3"),
    ask("regress with classify's", f"{T}:regress", sig("classify", examples=[{}]), 400,
        "Expected one output Tensor."),
    ask("unknown signature of examples", f"{T}:classify", sig("x", examples=[{}]), 400,
        "No signature was found with the name: x"),
    ask("two inputs", f"{T}:classify", sig("pair", examples=[{}]), 400,
        "Expected one input Tensor."),
    ask("no examples", f"{T}:classify", {}, 400, "'examples' is expected and was not found"),
    ask("examples are no list", f"{T}:classify", {"examples": {}}, 400,
        "Expecting 'examples' value to be an list/array"),
    ask("empty examples", f"{T}:classify", {"examples": []}, 400, "is an empty array"),
    ask("example is no object", f"{T}:classify", {"examples": ["a"]}, 400,
        "Example must be JSON object but got JSON String"),
    ask("null feature", f"{T}:classify", {"examples": [{"a": None}]}, 400,
        "Feature: a has element with unexpected JSON type: Null"),
    ask("mixed feature", f"{T}:classify", {"examples": [{"a": [1, "x"]}]}, 400,
        "Unexpected element type in feature: a"),
    ask("feature above int64", f"{T}:classify", {"examples": [{"a": 2**63}]}, 400,
        "has uint64_t element. Only int64_t is supported."),
]  # fmt: skip

CASES = [*STATUS, *ROUTES, *BODIES, *ROWS, *VALUES, *COLUMNS, *OUTPUTS, *EXAMPLES]
