"""The same models in transformers' own pipelines: the same results."""

import json

import numpy as np
import pytest

import tfllm
from tests.helpers.golden_models import VOCABULARY

pytestmark = pytest.mark.parity
TEXTS = ["abc de fgh", "a dead cab, hi"]
SHARES = 1e-4  # probabilities: float32 in another order
SHAPE = {
    "vocab_size": len(VOCABULARY), "hidden_size": 16, "num_hidden_layers": 2,
    "num_attention_heads": 2, "intermediate_size": 24, "max_position_embeddings": 64,
}  # fmt: skip
LABELS = {0: "O", 1: "B-PER", 2: "I-PER", 3: "B-LOC", 4: "I-LOC"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """`made("BertForMaskedLM")`: a directory of a tiny random BERT with that head."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")

    def directory(name, **config):
        folder = tmp_path_factory.mktemp(name)
        torch.manual_seed(3)
        model = getattr(transformers, name)(transformers.BertConfig(**SHAPE, **config)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(8.0 if parameter.ndim > 1 else 1.0)
        model.save_pretrained(folder)
        (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
        (folder / "tokenizer_config.json").write_text(
            json.dumps({"tokenizer_class": "BertTokenizer"})
        )
        return str(folder)

    return directory


def both(task, folder):
    from transformers import BertTokenizerFast, pipeline

    tokenizer = BertTokenizerFast.from_pretrained(folder)
    return pipeline(task, model=folder, tokenizer=tokenizer), tfllm.pipeline(task, model=folder)


def assert_same(found, expected):
    """The same names and values; numbers nearly."""
    if isinstance(expected, dict):
        assert set(found) == set(expected)
        for name, value in expected.items():
            assert_same(found[name], value)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            assert_same(one, other)
    elif isinstance(expected, float | np.floating):
        assert found == pytest.approx(float(expected), abs=SHARES)
    else:
        assert found == expected


def test_text_classification(made):
    theirs, ours = both("text-classification", made("BertForSequenceClassification", num_labels=3))
    for given in (TEXTS[0], TEXTS, {"text": "abc", "text_pair": "de"}):
        assert_same(ours(given), theirs(given))
        assert_same(ours(given, top_k=2), theirs(given, top_k=2))
    assert_same(ours(TEXTS, top_k=None), theirs(TEXTS, top_k=None))


NAMED = [None, "regression", "single_label_classification", "multi_label_classification"]
# transformers 5 refuses one label of a single-label problem; transformers 4 gives its sigmoid.
PROBLEMS = [(n, name) for n in (1, 2, 3) for name in NAMED if (n, name) != (1, NAMED[2])]


@pytest.mark.parametrize(("size", "problem"), PROBLEMS)
def test_text_classification_by_its_problem(made, size, problem):
    """One label alone is a sigmoid, unless it is said to be a number: rerankers."""
    folder = made("BertForSequenceClassification", num_labels=size, problem_type=problem)
    theirs, ours = both("text-classification", folder)
    assert_same(ours(TEXTS), theirs(TEXTS))
    assert_same(ours(TEXTS, top_k=None), theirs(TEXTS, top_k=None))


@pytest.mark.parametrize("strategy", ["none", "simple", "first", "average", "max"])
def test_token_classification(made, strategy):
    folder = made("BertForTokenClassification", id2label=LABELS)
    theirs, ours = both("token-classification", folder)
    expected = theirs(TEXTS, aggregation_strategy=strategy)
    assert_same(ours(TEXTS, aggregation_strategy=strategy), expected)
    assert any(expected)


def test_fill_mask(made):
    theirs, ours = both("fill-mask", made("BertForMaskedLM"))
    for given in ("ab [MASK] de", ["a [MASK]", "[MASK] b c"], "a [MASK] b [MASK]"):
        assert_same(ours(given), theirs(given))
    assert_same(ours("a [MASK]", top_k=2), theirs("a [MASK]", top_k=2))


def test_feature_extraction(made):
    theirs, ours = both("feature-extraction", made("BertModel"))
    assert_same(ours(TEXTS[0]), theirs(TEXTS[0]))
    assert_same(ours(TEXTS), theirs(TEXTS))
