"""The REST contract, case by case, against our server and, where there is one, TF Serving."""

import json
import math

import pytest

from tests.serving.contract_cases import CASES

T, K = "/v1/models/toy", "/v1/models/kinds"


def test_the_table_is_long_and_unambiguous():
    assert len(CASES) >= 60
    assert len({case.name for case in CASES}) == len(CASES) - 1  # "two inputs" stands twice


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.verb} {case.name}")
def test_case(contract, case):
    client, is_ours = contract
    if case.ours and not is_ours:
        pytest.skip("stricter here on purpose")
    response = client.request(case.verb, case.path, content=case.body)
    assert response.status_code == case.status, response.text
    if response.content:
        assert response.headers["content-type"] == "application/json"
    if isinstance(case.answer, str):
        assert list(response.json()) == ["error"]
        assert case.answer in response.json()["error"]
    elif case.answer is not None:
        assert response.json() == case.answer


def predict(client, path, **document):
    return client.post(f"{path}:predict", content=json.dumps(document))


def test_the_latest_version_answers_and_others_when_asked(contract):
    client, _ = contract

    def versions(place):
        rows = predict(client, f"{T}{place}", instances=["a", "b"]).json()["predictions"]
        return {row["version"] for row in rows}

    assert versions("") == {2}
    assert versions("/versions/1") == {1}
    assert versions("/labels/stable") == {1}
    assert versions("/labels/canary") == {2}


def test_rows_and_columns_say_the_same(contract):
    client, _ = contract
    texts = ["a good day", "bad", ""]
    rows = predict(client, T, instances=texts).json()["predictions"]
    columns = predict(client, T, inputs={"text": texts}).json()["outputs"]
    assert [row["scores"] for row in rows] == columns["scores"]
    assert [row["label"] for row in rows] == columns["label"]
    assert {len(row["scores"]) for row in rows} == {3}
    assert all(math.isclose(sum(scores), 1, abs_tol=1e-6) for scores in columns["scores"])


def test_classify_pairs_labels_with_scores(contract):
    client, _ = contract
    body = {"signature_name": "classify", "examples": [{"text": "good"}, {"text": "bad"}]}
    results = client.post(f"{T}:classify", content=json.dumps(body)).json()["results"]
    assert [[label for label, _ in row] for row in results] == [["bad", "fine", "good"]] * 2
    scores = predict(client, T, instances=["good", "bad"]).json()["predictions"]
    assert [[score for _, score in row] for row in results] == [row["scores"] for row in scores]


def test_metadata_lists_the_signatures(contract):
    client, _ = contract
    answer = client.get(f"{T}/versions/1/metadata").json()
    assert answer["model_spec"] == {"name": "toy", "signature_name": "", "version": "1"}
    signatures = answer["metadata"]["signature_def"]["signature_def"]
    assert {"serving_default", "classify", "tokens", "__saved_model_init_op"} <= set(signatures)
    text = signatures["serving_default"]["inputs"]["text"]
    assert text["dtype"] == "DT_STRING"
    assert text["tensor_shape"] == {"dim": [{"size": "-1", "name": ""}], "unknown_rank": False}
    assert signatures["serving_default"]["method_name"] == "tensorflow/serving/predict"


def test_numbers_are_written_as_tf_serving_writes_them(contract):
    client, _ = contract
    values = [0.4, 2e-07, 6.0, -2 / 3, 2e10]
    text = "".join(predict(client, K, instances=values).text.split())
    assert "[0.2,1e-07,3.0,-0.333333343,1e+10]" in text


def test_what_is_not_a_number_comes_and_goes(contract):
    client, _ = contract
    body = b'{"instances": [NaN, Infinity, -Infinity]}'
    response = client.post(f"{K}:predict", content=body)
    values = json.loads(response.text)["predictions"]  # Python reads the three words
    assert math.isnan(values[0])
    assert values[1:] == [math.inf, -math.inf]


def test_error_bodies_are_printed_with_four_spaces(contract):
    client, _ = contract
    assert client.get("/v1/models").text == '{\n    "error": "Missing model name in request."\n}'


def test_bytes_that_are_no_text_stay_json(client):
    body = {"signature_name": "raw", "instances": [{"b64": "/wA="}]}
    answer = client.post(f"{K}:predict", content=json.dumps(body)).json()
    assert answer == {"predictions": [{"plain": "\ufffd\0", "same_bytes": {"b64": "/wA="}}]}


def test_token_ids_in_logits_out(contract):
    client, _ = contract
    rows = [
        {"token_ids": [1, 2, 3], "padding_mask": [1, 1, 0]},
        {"token_ids": [1, 2, 9], "padding_mask": [1, 1, 0]},
    ]
    answer = predict(client, T, signature_name="tokens", instances=rows).json()["predictions"]
    assert answer[0] == answer[1]
