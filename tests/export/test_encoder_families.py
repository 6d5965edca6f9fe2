"""Every encoder family with every encoder task, in every form that it is exported to.

Families differ in their inputs (DistilBERT, RoBERTa and XLM-R have no token types) and in their
tokenizers; an artifact takes what its model takes.
"""

import pytest

from tests.helpers import tiny_tokenizers
from tests.helpers.encoders import SHAPE, SPECIALS, TASKS, VOCABULARY
from tfllm import tasks
from tfllm.checkpoints import store
from tfllm.errors import SettingError
from tfllm.export import export, load_profile, savedmodel, tflite
from tfllm.runtimes.opening import open_model
from tfllm.tokenizers.wordpiece import BertSpecialTokens, WordPiece

TYPES = {
    "bert": 2,
    "electra": 2,
    "distilbert": 0,
    "roberta": 1,
    "xlm-roberta": 1,
    "camembert": 1,
    "mpnet": 0,
    "albert": 2,
    "modernbert": 0,
}
TOKENIZERS = {"roberta": "roberta", "xlm-roberta": "xlm-r", "camembert": "camembert",
              "modernbert": "roberta"}  # fmt: skip
KINDS = [
    "classification", "token_classification", "question_answering", "embedding", "masked_lm",
    "next_sentence",
]  # fmt: skip
QUICK = [("distilbert", "classification"), ("roberta", "embedding")]
PAIRS = [
    pytest.param(family, kind, marks=() if (family, kind) in QUICK else pytest.mark.slow)
    for family in TYPES
    for kind in KINDS
]
ONE_RECORD = "warmup_batch_sizes=[1]"
# Random weights have no clear answers: here it only matters that files run and say something.
ANY_ANSWER = "tolerance.agreement=0.0"
LITE = [("tflite-float32", ()), ("tflite-int8", (ANY_ANSWER,)), ("tflite-int8-full", (ANY_ANSWER,))]


def make(family, kind):
    """A checkpoint of a tiny random encoder with the family's kind of tokenizer."""
    tokenizer = WordPiece.from_vocabulary(VOCABULARY)
    if family == "mpnet":
        tokenizer = mpnet_tokenizer()
    if family in TOKENIZERS:
        tokenizer = tiny_tokenizers.tokenizer(TOKENIZERS[family])
    task = tasks.build({"kind": kind, "max_length": 32, **TASKS.get(kind, {})})
    if family == "modernbert":
        shape = {"vocabulary_size": tokenizer.vocabulary_size, "sliding_window": 8,
                 "pad_token_id": tokenizer.pad_token_id, "classifier_pooling": "mean"}  # fmt: skip
        return store.create("modernbert", {**SHAPE, **shape}, tokenizer, task, seed=3)
    shape = {
        "variant": family, "num_segments": TYPES[family], "num_groups": int(family == "albert"),
        "pad_token_id": tokenizer.pad_token_id or 0,
        "vocabulary_size": tokenizer.vocabulary_size,
    }  # fmt: skip
    return store.create("bert", {**SHAPE, **shape}, tokenizer, task, seed=3)


def mpnet_tokenizer():
    """WordPiece with the special tokens and rows of RoBERTa."""
    special = BertSpecialTokens("<pad>", "[UNK]", "<s>", "</s>", "<mask>")
    first = ["<s>", "<pad>", "</s>", "[UNK]", "<mask>"]
    words = [*first, *VOCABULARY[len(SPECIALS) :]]
    return WordPiece.from_vocabulary(words, special_tokens=special, roberta_rows=True)


def examples(kind):
    if kind == "question_answering":
        return [{"question": "who built it?", "context": "the lighthouse was built"}]
    pair = {"text_pair": "it was good"} if kind == "next_sentence" else {}
    return [{"text": "the film was good", **pair}, {"text": "", **pair}]


@pytest.mark.parametrize(("family", "kind"), PAIRS)
def test_a_savedmodel_takes_what_its_model_takes(family, kind, tmp_path):
    checkpoint = make(family, kind)
    artifact = export(checkpoint, load_profile("savedmodel", [ONE_RECORD]), tmp_path / "served")
    assert artifact.failed == []
    inputs = set(savedmodel.signature_defs(artifact.path)["tokens"].inputs)
    assert inputs == set(checkpoint.model.input)
    assert ("segment_ids" in inputs) == (TYPES[family] > 1)
    assert len(open_model(artifact.path).predict(examples(kind))) == len(examples(kind))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "settings"), LITE)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", TYPES)
def test_a_tflite_file_takes_what_its_model_takes(
    family, kind, name, settings, tmp_path, monkeypatch
):
    # Of a table of positions a file keeps the rows that its length needs: much of a tiny model.
    monkeypatch.setattr(tflite, "MIN_WEIGHT_RATIO", 0.9)
    artifact = export(make(family, kind), load_profile(name, settings), tmp_path / "lite")
    assert artifact.failed == []
    assert len(open_model(artifact.path).predict(examples(kind))) == len(examples(kind))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tflite-text", "mediapipe"])
@pytest.mark.parametrize("kind", ["classification", "embedding"])
@pytest.mark.parametrize("family", ["bert", "electra", "distilbert"])
def test_files_with_a_tokenizer_inside(family, kind, name, tmp_path):
    assert export(make(family, kind), load_profile(name), tmp_path / "lite").failed == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["classification", "embedding"])
def test_files_with_mpnets_tokenizer_inside(kind, tmp_path):
    assert export(make("mpnet", kind), load_profile("tflite-text"), tmp_path / "lite").failed == []


def test_mediapipe_has_berts_rows_only(tmp_path):
    with pytest.raises(SettingError, match=r"\[CLS\] and \[SEP\].*<s> a </s>.*tflite"):
        export(make("mpnet", "classification"), load_profile("mediapipe"), tmp_path / "lite")


@pytest.mark.parametrize("name", ["tflite-text", "mediapipe"])
@pytest.mark.parametrize("family", TOKENIZERS)
def test_files_with_a_tokenizer_inside_know_wordpiece_only(family, name, tmp_path):
    with pytest.raises(SettingError, match=r"wordpiece tokenizer.*(bytepair|sentencepiece).*ids"):
        export(make(family, "classification"), load_profile(name), tmp_path / "lite")
    assert not (tmp_path / "lite").exists()


@pytest.mark.parametrize("name", ["savedmodel", "tflite-float32"])
def test_a_pretraining_model_is_exported_for_its_masked_tokens(name, tmp_path):
    with pytest.raises(SettingError, match=r"exported as masked_lm.*export_task\(\)"):
        export(make("bert", "pretraining"), load_profile(name), tmp_path / "out")
    assert not (tmp_path / "out").exists()
