"""Decoders that label or embed texts, without a token for padding: exported as encoders are."""

import pytest

import tfllm
from tests.helpers import language_models
from tfllm import tasks
from tfllm.checkpoints import store

CLOSE = 1e-4  # scores of the artifact and of the checkpoint, float32 sums in another order
TEXTS = ["the film was good", "It was bad, so bad that nobody stayed to the end."]
TASKS = {
    "classification": {"labels": ["bad", "good"], "max_length": 32},
    "embedding": {"pooling": "last", "max_length": 32},
}


def model_of(kind, folder, family="llama"):
    store.save(language_models.make(folder / "lm", family), folder / "saved")
    task = tasks.build({"kind": kind, **TASKS[kind]})
    return tfllm.Model(store.load(folder / "saved", task=task, seed=3))


def numbers(answers):
    return [
        [*answer["scores"].values()] if "scores" in answer else answer["embedding"]
        for answer in answers
    ]


def test_rows_of_a_tokenizer_without_a_padding_token(tmp_path):
    tokenizer = language_models.tokenizer(tmp_path)
    assert tokenizer.pad_token_id is None
    rows = tokenizer.graph()(TEXTS, max_length=32)
    for row, text in enumerate(TEXTS):
        ids = list(tokenizer.encode(text, max_length=32).ids)
        mask = rows["padding_mask"][row].numpy()
        assert mask.sum() == len(ids)
        assert rows["token_ids"][row].numpy()[: len(ids)].tolist() == ids


@pytest.mark.slow
@pytest.mark.parametrize("to", ["savedmodel", "tflite-float32", "tflite-int8"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize("kind", TASKS)
def test_an_artifact_answers_as_its_checkpoint(kind, family, to, tmp_path):
    model = model_of(kind, tmp_path, family)
    artifact = model.export(to, tmp_path / "artifact")
    assert artifact.checks and all(check.passed for check in artifact.checks)
    if to != "tflite-int8":
        found = numbers(tfllm.open(tmp_path / "artifact").predict(TEXTS))
        for one, other in zip(found, numbers(model.predict(TEXTS)), strict=True):
            assert one == pytest.approx(other, abs=CLOSE)


def test_a_classifier_of_a_decoder_learns(tmp_path):
    model = model_of("classification", tmp_path)
    examples = [
        {"text": "the film was good", "label": "good"},
        {"text": "the film was bad", "label": "bad"},
    ] * 8
    model.compile(1e-2, warmup=1, run_eagerly=False)
    model.fit(model.dataset(examples, batch_size=8, shuffle=True), epochs=4)
    answers = model.predict([example["text"] for example in examples[:2]])
    assert [answer["label"] for answer in answers] == ["good", "bad"]
    model.save(tmp_path / "trained")
    assert tfllm.load(tmp_path / "trained").predict(TEXTS) == model.predict(TEXTS)
