"""JSON in and out: whatever comes is answered or refused, and numbers survive the way."""

import gzip
import json
import math
import random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from tfllm.serving import answers, codec, examples
from tfllm.serving.schema import RequestError
from tfllm.serving.tensors import TensorSpec

QUICK = settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))


def spec(kind, *shape):
    numpy_type = {"string": object, "float": np.float32, "double": np.float64}.get(kind, kind)
    return TensorSpec("t:0", kind, shape or (-1,), np.dtype(numpy_type))


SPECS = [
    {"text": spec("string")},
    {"x": spec("float")},
    {"a": spec("int32", -1, -1), "b": spec("string")},
    {"u": spec("uint64"), "flag": spec("bool")},
]

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=8)
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.sampled_from(["b64", "text", "x", "a", "b", "u", "flag"]), inner),
    ),
    max_leaves=12,
)


@QUICK
@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(body):
    try:
        assert isinstance(codec.parse(body, 64), dict)
    except RequestError as error:
        answers.write_error(error.message)


@QUICK
@given(st.sampled_from(["instances", "inputs", "examples"]), values, st.sampled_from(SPECS))
def test_any_document_is_read_or_refused(key, value, specs):
    body = json.dumps({key: value, "signature_name": "s"}).encode()
    try:
        document = codec.parse(body, 64)
        if key == "examples":
            assert len(examples.serialize_input(examples.read_examples(document)))
            return
        arrays, rows = codec.read_inputs(document, specs)
        assert rows == (key == "instances")
        assert {name: array.dtype for name, array in arrays.items()} == {
            name: one.dtype for name, one in specs.items()
        }
    except RequestError as error:
        assert json.loads(answers.write_error(error.message))["error"] == error.message


@QUICK
@given(hnp.arrays(np.float32, hnp.array_shapes(min_dims=1, max_dims=3, max_side=4)))
def test_float32_survives(array):
    _survives(array)


@QUICK
@given(hnp.arrays(np.float64, hnp.array_shapes(min_dims=1, max_dims=2, max_side=4)))
def test_float64_survives(array):
    _survives(array)


def _survives(array):
    columns = json.loads(answers.write_predictions({"y": array}, rows=False))["outputs"]
    rows = json.loads(answers.write_predictions({"y": array}, rows=True))["predictions"]
    assert np.array_equal(np.array(columns, array.dtype), array, equal_nan=True)
    assert np.array_equal(np.array(rows, array.dtype), array, equal_nan=True)
    for text in answers.float_texts(array):
        assert "." in text or "e" in text or text in ("NaN", "Infinity", "-Infinity")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.2, "0.2"), (1e-7, "1e-07"), (3.0, "3.0"), (-1 / 3, "-0.333333343"), (9e6, "9e+06"),
        (123456.0, "123456.0"), (1234567.0, "1234567.0"), (0.0, "0.0"), (-0.0, "-0.0"),
        (math.nan, "NaN"), (math.inf, "Infinity"), (-math.inf, "-Infinity"),
        (3.4028235e38, "3.40282347e+38"), (1e-45, "1.40129846e-45"),
    ],
)  # fmt: skip
def test_float_texts(value, text):
    assert answers.float_texts(np.array([value], np.float32)) == [text]


def test_double_texts():
    assert answers.float_texts(np.array([0.1, 1 / 3])) == ["0.1", "0.33333333333333331"]


@QUICK
@given(st.lists(st.binary(max_size=12), min_size=1, max_size=4))
def test_any_string_output_is_json(data):
    array = np.empty(len(data), object)
    array[:] = data
    written = answers.write_predictions({"plain": array, "raw_bytes": array}, rows=True)
    for row, original in zip(json.loads(written)["predictions"], data, strict=True):
        assert row["plain"] == original.decode("utf-8", "replace")
        assert codec.decode_base64(row["raw_bytes"]) == original


@QUICK
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=1))
def test_text_survives(texts):
    body = json.dumps({"instances": texts}).encode()
    arrays, _ = codec.read_inputs(codec.parse(body, 64), {"text": spec("string")})
    assert [one.decode() for one in arrays["text"]] == texts


def test_nesting():
    deep = b'{"inputs":' + b"[" * 63 + b"1" + b"]" * 63 + b"}"
    assert codec.parse(deep, 64)
    for count in (64, 1000, 10_000, 1_000_000):
        with pytest.raises(RequestError):
            codec.parse(b'{"inputs":' + b"[" * count + b"]" * count + b"}", 64)
        with pytest.raises(RequestError):
            codec.parse(b'{"a":' * count, 64)
        with pytest.raises(RequestError):
            codec.parse(b"[" * count + b" NaN", 64)


def test_ten_thousand_mutations():
    """Seeded damage to good requests: refused or read, never anything else."""
    random_source = random.Random(20)
    good = [
        b'{"signature_name": "s", "instances": [{"a": [1, 2], "b": "x"}, {"a": [3, 4], "b": "y"}]}',
        b'{"inputs": {"text": ["a", {"b64": "YWJj"}], "x": [1.5, -2e10, NaN]}}',
        '{"instances": ["日本", "\\ud83d\\ude00", "\\u0000"]}'.encode(),
    ]
    for index in range(10_000):
        body = bytearray(good[index % 3])
        for _ in range(random_source.randrange(1, 5)):
            place = random_source.randrange(len(body))
            kind = random_source.randrange(3)
            if kind == 0:
                body[place] = random_source.randrange(256)
            elif kind == 1:
                del body[place : place + random_source.randrange(1, 6)]
            else:
                body[place:place] = bytes(random_source.choices(b'[]{}",:0123e\\u', k=3))
            if not body:
                break
        try:
            codec.read_inputs(codec.parse(bytes(body), 64), SPECS[index % len(SPECS)])
        except RequestError:
            pass


def test_gzip_is_read_up_to_the_limit():
    from tfllm.serving.rest import decompress

    assert decompress(gzip.compress(b"x" * 1000), 1000) == b"x" * 1000
    with pytest.raises(RequestError) as error:
        decompress(gzip.compress(b"\0" * (100 << 20)), 1 << 20)
    assert error.value.status == 413
    for wrong in (b"not gzip", gzip.compress(b"x" * 1000)[:-9]):
        with pytest.raises(RequestError) as error:
            decompress(wrong, 10_000)
        assert error.value.status == 400


def test_gzip_of_several_members():
    """RFC 1952: members follow one another; what is no member is refused."""
    from tfllm.serving.rest import decompress

    two = gzip.compress(b"a" * 5000) + gzip.compress(b"b")
    assert decompress(two, 5001) == b"a" * 5000 + b"b"
    assert decompress(two + gzip.compress(b""), 5001) == b"a" * 5000 + b"b"
    many = gzip.compress(b"x") * 20_000
    assert decompress(many, 20_000) == b"x" * 20_000
    for wrong in (two + b"garbage", two + two[:20], two[:-1], b"", two + b"\0" * 8):
        with pytest.raises(RequestError) as error:
            decompress(wrong, 100_000)
        assert error.value.status == 400
    with pytest.raises(RequestError) as error:
        decompress(two, 5000)
    assert error.value.status == 413


@pytest.mark.parametrize(
    ("body", "document"),
    [
        (b'\xef\xbb\xbf{"a": 1}', {"a": 1}),
        (b'{"a": 1, "a": 2}', {"a": 1}),
        (b'{"a": {"b": 1, "b": [2]}, "c": [{"d": "x:y", "d": 0}]}',
         {"a": {"b": 1}, "c": [{"d": "x:y"}]}),
        (b'{"a:a": ":", "b\\"": "::"}', {"a:a": ":", 'b"': "::"}),
        (b'{"a": [Inf, -Inf, Infinity, -Infinity]}', {"a": [math.inf, -math.inf] * 2}),
        (b'{"a": [Inf], "b": "Inf -NaN \\" Inf"} NaN', {"a": [math.inf], "b": 'Inf -NaN " Inf'}),
        (b'{"a": [1], "a": [Inf]} rest', {"a": [1]}),
        (b'{"a": 12345678901234567890123, "a": 1}', {"a": 12345678901234567890123.0}),
    ],
)  # fmt: skip
def test_json_as_rapidjson_reads_it(body, document):
    assert codec.parse(body, 64) == document


def test_minus_nan():
    assert math.isnan(codec.parse(b'{"a": -NaN}', 64)["a"])


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"instances": ["\xff"]}', "invalid UTF-8 at offset: 16"),
        ('{"instances": ["日'.encode()[:-1], "invalid UTF-8 at offset: 16"),
        (b'{"a": Info}', "offset: 6"),
        (b'{"a": 1NaN}', "Parse error"),
        (b'{"a": nan}', "Parse error"),
        (b'{"a": 1e999}', "Parse error"),
        (b'{"a": [NaN, 1e999]}', "Parse error"),
        (b'\xef\xbb\xbf', "The document is empty"),
        (b'{"a": NaN' + b'\\"' * 300_000, "Parse error"),
    ],
)  # fmt: skip
def test_json_that_rapidjson_refuses_too(body, said):
    with pytest.raises(RequestError, match=said):
        codec.parse(body, 64)


@pytest.mark.parametrize(
    ("kind", "value"),
    [("float", 2**24), ("float", -(2**24)), ("float", 1e39), ("double", 2**53), ("float", 2**63)],
)
def test_numbers_that_a_type_cannot_hold(kind, value):
    """IsLosslessDecimal of json_tensor.cc."""
    with pytest.raises(RequestError, match=f"to {kind} without loss of precision"):
        codec.read_inputs({"inputs": [0.5, value]}, {"x": spec(kind)})
    codec.read_inputs({"inputs": [2**24 - 1, 1.7e7, math.inf, math.nan]}, {"x": spec(kind)})
