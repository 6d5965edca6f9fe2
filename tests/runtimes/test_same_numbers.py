"""One model, three files: checkpoint, SavedModel and TFLite give the same answers and measures."""

import pytest

from tfllm import tasks
from tfllm.checkpoints import store
from tfllm.evaluation.harness import measured_answers
from tfllm.runtimes.opening import open_model
from tfllm.tokenizers.wordpiece import WordPiece

VOCABULARY = [
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "film", "was", "good", "bad", "very",
    "un", "##watch", "##able", "who", "made", "it", "?", ".", ",", "-", "paris", "new", "york",
    "ann", "lee", "at", "##s", "in", "lives", "中", "国", "a", "b", "c", "##a", "##b",
]  # fmt: skip
SHAPE = {
    "vocabulary_size": len(VOCABULARY), "num_layers": 1, "num_heads": 2, "hidden_dim": 16,
    "max_sequence_length": 64, "initializer_range": 0.5,
}  # fmt: skip
LENGTH = 32

# Largest difference of a number in an answer, and of a measure, between files of the same model.
# The graphs compute in float32 in another order.
ANSWER_TOLERANCE = 1e-4
MEASURE_TOLERANCE = 1e-4

TEXTS = [
    "the film was good", "very bad", "", "unwatchable. it was very very very bad", "中国 in paris",
    "Ann Lee lives in New York, at a-b", "who made it?", "ünknown wörds good",
]  # fmt: skip
WORDS = [["Ann", "Lee", "lives", "in", "New", "York", "."], ["unwatchable", "film"], ["中国"]]
TAGS = [["B-P", "I-P", "O", "O", "B-L", "I-L", "O"], ["O", "O"], ["B-L"]]
PAIRS = list(zip(TEXTS, TEXTS[1:] + TEXTS[:1], strict=True))


def text_examples(labels):
    return [{"text": t, "label": labels[n % len(labels)]} for n, t in enumerate(TEXTS)]


def pair_examples(labels):
    pairs = enumerate(PAIRS)
    return [
        {"text": a, "text_pair": b, **({"label": labels[n % len(labels)]} if labels else {})}
        for n, (a, b) in pairs
    ]


CASES = {
    "single": (
        {"kind": "classification", "labels": ["no", "yes", "maybe"]},
        text_examples(["no", "yes", "maybe"]),
    ),
    "pair": (
        {"kind": "classification", "labels": ["no", "yes"], "pair": True},
        pair_examples(["no", "yes"]),
    ),
    "multi": (
        {"kind": "classification", "labels": ["x", "y"], "problem": "multi_label"},
        text_examples([["x"], ["x", "y"], []]),
    ),
    "number": (
        {"kind": "classification", "problem": "regression"}, text_examples([1.0, 2.5, 0.5])
    ),
    "tags": (
        {"kind": "token_classification", "labels": ["O", "B-P", "I-P", "B-L", "I-L"]},
        [{"words": w, "tags": t} for w, t in zip(WORDS, TAGS, strict=True)],
    ),
    "answers": (
        {"kind": "question_answering", "stride": 4, "no_answer": True},
        [
            {"question": "who made it?", "context": " ".join(TEXTS * 2),
             "answers": {"text": ["good"], "start": [13]}},
            {"question": "中国?", "context": "the film", "answers": {"text": [], "start": []}},
        ],
    ),
    "vectors": ({"kind": "embedding"}, pair_examples([])),
    "masked": ({"kind": "masked_lm"}, [{"text": text} for text in TEXTS if text]),
    "next": ({"kind": "next_sentence"}, pair_examples(["is_next", "not_next"])),
}  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A function from a case's name to its checkpoint and its directory, made once."""
    made = {}

    def build(name):
        if name not in made:
            task = tasks.build({**CASES[name][0], "max_length": LENGTH})
            tokenizer = WordPiece.from_vocabulary(VOCABULARY)
            checkpoint = store.create("bert", SHAPE, tokenizer, task, seed=3)
            made[name] = (
                checkpoint,
                store.save(checkpoint, tmp_path_factory.mktemp(name) / "checkpoint"),
            )
        return made[name]

    return build


def assert_alike(one, other, tolerance, place="answer"):
    """The same JSON but for small differences of numbers."""
    assert type(one) is type(other), place
    if isinstance(one, dict):
        assert list(one) == list(other), place
        for key in one:
            assert_alike(one[key], other[key], tolerance, f"{place}.{key}")
    elif isinstance(one, list):
        assert len(one) == len(other), place
        for index, (left, right) in enumerate(zip(one, other, strict=True)):
            assert_alike(left, right, tolerance, f"{place}[{index}]")
    elif isinstance(one, float):
        assert one == pytest.approx(other, abs=tolerance, nan_ok=True), place
    else:
        assert one == other, place


def assert_same(expected, artifact, name):
    examples = CASES[name][1]
    model = open_model(expected)
    want, have = (measured_answers(m, examples, batch_size=3) for m in (model, artifact))
    assert artifact.task.kind == model.task.kind
    assert_alike(want.answers, have.answers, ANSWER_TOLERANCE)
    assert_alike(want.metrics, have.metrics, MEASURE_TOLERANCE, "metrics")


QUICK = ("single", "tags")
NAMES = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CASES]


@pytest.mark.parametrize("name", NAMES)
def test_savedmodel(name, files, tmp_path):
    from tfllm.export import load_profile, savedmodel

    checkpoint, directory = files(name)
    profile = load_profile("savedmodel")
    savedmodel.write(checkpoint, profile, tmp_path / "1")
    savedmodel.write_metadata(checkpoint, profile, tmp_path / "1", [])
    assert_same(directory, open_model(tmp_path), name)


@pytest.mark.parametrize("name", NAMES)
def test_tflite(name, files, tmp_path):
    from tfllm.export import load_profile, tflite

    checkpoint, directory = files(name)
    shapes = [f"extra_lengths=[{LENGTH // 2}]", "batch_sizes=[2]"]
    profile = load_profile("tflite-float32", shapes)
    tflite.write(checkpoint, profile, tmp_path)
    tflite.write_metadata(checkpoint, profile, tmp_path, [])
    assert_same(directory, open_model(tmp_path / "model.tflite"), name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["single", "pair", "number", "vectors", "next"])
def test_tflite_that_takes_text(name, files, tmp_path):
    from tfllm.export import load_profile, tflite

    checkpoint, directory = files(name)
    profile = load_profile("tflite-text")
    tflite.write(checkpoint, profile, tmp_path)
    tflite.write_metadata(checkpoint, profile, tmp_path, [])
    assert_same(directory, open_model(tmp_path), name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["single", "multi", "vectors"])
def test_mediapipe_file(name, files, tmp_path):
    from tfllm.export import load_profile, mediapipe

    checkpoint, directory = files(name)
    profile = load_profile("mediapipe")
    mediapipe.write(checkpoint, profile, tmp_path)
    mediapipe.write_metadata(checkpoint, profile, tmp_path, [])
    assert_same(directory, open_model(tmp_path), name)
