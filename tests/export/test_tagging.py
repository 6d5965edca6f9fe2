"""A tagger of every kind of vocabulary, from words with tags to its exported SavedModel."""

import numpy as np
import pytest

import tfllm
from tests.helpers.tiny_tokenizers import tokenizer
from tests.helpers.vocabularies import VOCABULARY
from tfllm import tasks
from tfllm.checkpoints import store
from tfllm.evaluation.harness import evaluate
from tfllm.export import export, load_profile
from tfllm.runtimes.checkpoint import open_checkpoint
from tfllm.runtimes.opening import open_model
from tfllm.tokenizers.word_alignment import SINGLE_SPACE
from tfllm.tokenizers.wordpiece import WordPiece

pytestmark = pytest.mark.slow
SHAPE = {"num_layers": 1, "num_heads": 2, "hidden_dim": 32, "max_sequence_length": 64}
LABELS = ("O", "B-THING", "I-THING", "B-NUMBER")
SCORES = 1e-4  # probabilities: float32 in another order
STEPS, RATE = 150, 0.01  # enough to know these sentences by heart
# Words apart from their punctuation: transformers' pipeline takes `mat,` for one word.
SENTENCES = [
    ("the cat sat on the mat , in 1974", "O B-THING O O O B-THING O O B-NUMBER"),
    ("Lily loved the little girl .", "B-THING O O B-THING I-THING O"),
    ("what they have done to the cat", "O B-THING O O O O B-THING"),
    ("12345 and 67 numbers", "B-NUMBER O B-NUMBER O"),
    ("the cat was there to see the mat", "O B-THING O O O O O B-THING"),  # no lone marks
]
# Vocabulary -> family and its settings. GPT-2's rows have no special tokens around them.
TAGGERS = {
    "wordpiece": ("bert", {}),
    "roberta": ("bert", {"variant": "roberta", "pad_token_id": 401, "num_segments": 1}),
    "xlm-r": ("bert", {"variant": "xlm-roberta", "pad_token_id": 1, "num_segments": 1}),
    "unigram.json": ("bert", {"variant": "xlm-roberta", "pad_token_id": 3, "num_segments": 1}),
}


@pytest.fixture(scope="module", params=TAGGERS)
def tagger(request):
    """A checkpoint that has learned SENTENCES."""
    family, settings = TAGGERS[request.param]
    if request.param == "wordpiece":
        python = WordPiece.from_vocabulary(VOCABULARY)
    else:
        python = tokenizer(request.param)
    task = tasks.TokenClassification(labels=LABELS, max_length=48)
    shape = {**SHAPE, "vocabulary_size": python.vocabulary_size, "dropout": 0.0, **settings}
    checkpoint = store.create(family, shape, python, task, seed=1)
    features = task.features(examples(), python)
    inputs, targets = features.batch(range(len(features)))
    model = checkpoint.model
    model.compile(optimizer="adam", loss=task.loss())
    model.optimizer.learning_rate = RATE
    chosen = {name: inputs[name] for name in model.input}
    model.fit(chosen, targets, epochs=STEPS, batch_size=len(features), verbose=0)
    return checkpoint


def examples():
    return [{"words": text.split(), "tags": tags.split()} for text, tags in SENTENCES]


def assert_same(found, expected):
    """The same entities, with nearly the same scores."""
    assert [{**one, "score": 0} for one in found] == [{**one, "score": 0} for one in expected]
    scores = [[one["score"] for one in side] for side in (found, expected)]
    np.testing.assert_allclose(*scores, atol=SCORES)


def test_words_with_tags_and_plain_texts_have_the_same_entities(tagger):
    predictor = open_checkpoint(tagger)
    split = predictor.predict(examples())
    assert [answer["tags"] for answer in split] == [tags.split() for _, tags in SENTENCES]
    plain = predictor.predict([{"text": text} for text, _ in SENTENCES])
    for given, found in zip(split, plain, strict=True):
        assert_same(found["entities"], given["entities"])
    assert evaluate(predictor, examples())["f1"] == 1.0


def test_the_pipeline_has_them_too(tagger):
    """By transformers' rules, which take every piece behind a lone space mark for a word."""
    pipe = tfllm.pipeline("ner", model=tagger, aggregation_strategy="first")
    predictor = open_checkpoint(tagger)
    compared = 0
    for text, _ in SENTENCES:
        row = tagger.tokenizer.encode(text)
        if (tagger.tokenizer.token_kinds[row.ids] == SINGLE_SPACE).any():
            continue
        compared += 1
        wanted = predictor.predict([{"text": text}])[0]["entities"]
        found = [
            (one["entity_group"], text[one["start"] : one["end"]].strip()) for one in pipe(text)
        ]
        assert found == [(one["label"], one["text"]) for one in wanted]
    assert compared


def test_its_saved_model_agrees(tagger, tmp_path):
    artifact = export(tagger, load_profile("savedmodel"), tmp_path / "tagger", examples())
    assert all(check.passed for check in artifact.checks)
    predictor, served = open_checkpoint(tagger), open_model(artifact.path)
    texts = [text for text, _ in SENTENCES] + ["the cat,\tthe\u00a0mat", "  12345  the cat  ", ""]
    for given in (examples(), [{"text": text} for text in texts]):
        for found, wanted in zip(served.predict(given), predictor.predict(given), strict=True):
            assert_same(found["entities"], wanted["entities"])
            assert found.get("tags") == wanted.get("tags")
    assert evaluate(served, examples())["f1"] == 1.0
