"""Through the whole server: batched answers are the answers alone, and junk never becomes a 500."""

import json
import random
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest

from tests.helpers.waiting import PATIENCE_SECONDS
from tests.serving.contract_cases import CASES, sig

T, K = "/v1/models/toy:predict", "/v1/models/kinds:predict"
CALLERS = 16


def together(running, bodies, path=T):
    """The answers to `bodies`, asked by many connections at once, in order."""
    with (
        httpx.Client(base_url=running.url, timeout=PATIENCE_SECONDS) as client,
        ThreadPoolExecutor(CALLERS) as pool,
    ):
        return list(pool.map(lambda body: client.post(path, content=json.dumps(body)), bodies))


def test_a_thousand_tagged_rows_come_back_to_their_requests(running):
    def rows(tag):
        return [{"text": f"{tag}-{n}", "text_pair": f"{tag}"} for n in range(1 + tag % 3)]

    answers = together(running, [sig("pair", instances=rows(tag)) for tag in range(500)])
    for tag, answer in enumerate(answers):
        got = [row["joined"] for row in answer.json()["predictions"]]
        assert got == [f"{row['text']}|{row['text_pair']}" for row in rows(tag)]


def test_scores_in_a_batch_are_the_scores_alone(running, client):
    texts = ["good", "a bad film", "", "日本", "x " * 50, "so so so"] * 10
    alone = {
        text: client.post(T, json={"instances": [text]}).json()["predictions"][0]
        for text in set(texts)
    }
    answers = together(running, [{"instances": [text]} for text in texts])
    answers.append(client.post(T, json={"instances": texts}))
    rows = [row for answer in answers for row in answer.json()["predictions"]]
    for text, row in zip(texts * 2, rows, strict=True):
        assert row["label"] == alone[text]["label"]
        np.testing.assert_allclose(row["scores"], alone[text]["scores"], atol=1e-5)


def test_a_refused_row_does_not_spoil_others(running):
    numbers = [0 if index % 7 == 3 else index + 1 for index in range(60)]
    answers = together(running, [sig("divide", instances=[n]) for n in numbers], K)
    for number, answer in zip(numbers, answers, strict=True):
        if number:
            assert answer.json() == {"predictions": [840 // number]}
        else:
            assert answer.status_code == 400
            assert "poison" in answer.json()["error"]


def test_many_rows_are_split_and_joined(client):
    numbers = list(range(1, 201))
    answer = client.post(K, json=sig("divide", instances=numbers))
    assert answer.json() == {"predictions": [840 // number for number in numbers]}


def damaged(source: random.Random, body: bytes) -> bytes:
    changed = bytearray(body)
    for _ in range(source.randrange(1, 5)):
        place = source.randrange(len(changed) + 1)
        changed[place : place + source.randrange(3)] = bytes(
            source.choices(b'[]{}",:01-.eE\\u\xff\x00n', k=source.randrange(4))
        )
    return bytes(changed)


@pytest.mark.parametrize("count", [500, pytest.param(10_000, marks=pytest.mark.slow)])
def test_junk(client, count):
    """Seeded damage to every body of the contract: answered with 200 or a 4xx, never otherwise."""
    source = random.Random(count)
    cases = [case for case in CASES if case.body and len(case.body) < 2000]
    seen = set()
    for index in range(count):
        case = cases[index % len(cases)]
        response = client.post(case.path, content=damaged(source, case.body))
        assert response.status_code in (200, 400, 404), response.text
        seen.add(response.status_code)
    assert seen == {200, 400, 404}
    assert client.get("/readyz").status_code == 200
