"""Rows, batches and targets of hand-made examples."""

import numpy as np
import pytest

from tfllm import tasks
from tfllm.errors import DataError, SettingError
from tfllm.tasks import features as task_features

HERE = {"_where": "reviews.tsv:7"}


def pieces(tokenizer, row):
    return [tokenizer.vocabulary[index] for index in row]


def test_batch_pads_and_masks(tokenizer):
    task = tasks.Classification(labels=("bad", "good"))
    examples = [{"text": "the film was good", "label": "good"}, {"text": "bad", "label": "bad"}]
    features = task.features(examples, tokenizer)
    assert pieces(tokenizer, features.token_ids[1]) == ["[CLS]", "bad", "[SEP]"]
    inputs, targets = features.batch([1, 0])
    assert inputs["token_ids"].tolist() == [[2, 9, 3, 0, 0, 0], [2, 5, 6, 7, 8, 3]]
    assert inputs["padding_mask"].tolist() == [[1, 1, 1, 0, 0, 0], [1] * 6]
    assert all(array.dtype == np.int32 for array in inputs.values())
    assert targets.tolist() == [0, 1]
    assert features.batch([1], length=4)[0]["padding_mask"].tolist() == [[1, 1, 1, 0]]
    assert features.lengths.tolist() == [6, 3]
    assert features.units.tolist() == [[0], [1]]


def test_pairs_have_types_and_are_cut(tokenizer):
    task = tasks.Classification(labels=("a", "b"), pair=True, max_length=7)
    example = {"text": "the film was good", "text_pair": "very bad"}
    inputs, targets = task.features([example], tokenizer).batch([0])
    assert inputs["segment_ids"].tolist() == [[0, 0, 0, 0, 1, 1, 1]]
    assert targets is None
    with pytest.raises(DataError, match="text_pair"):
        task.features([{"text": "the film"}], tokenizer)


def test_unknown_label_is_named(tokenizer):
    task = tasks.Classification(labels=("bad", "good"))
    example = {"text": "x", "label": "goood", **HERE}
    with pytest.raises(DataError, match=r"reviews.tsv:7: unknown label 'goood'. Known: bad, good"):
        task.features([example], tokenizer)
    assert task.features([example], tokenizer, targets=False).targets is None
    with pytest.raises(DataError, match="reviews.tsv:7: the field 'label' is missing here"):
        task.features([{"text": "x", "label": "bad"}, {"text": "x", **HERE}], tokenizer)
    with pytest.raises(DataError, match="reviews.tsv:7: the field 'text' is missing"):
        task.features([{"label": "bad", **HERE}], tokenizer)


@pytest.mark.parametrize("label", ["1", 1])
def test_a_label_may_be_a_place_unless_names_are_numbers(tokenizer, label):
    example = {"text": "x", "label": label}
    assert tasks.Classification(labels=("bad", "good")).target(example) == 1
    assert tasks.Classification(labels=("1", "2")).target(example) == 0
    with pytest.raises(DataError):
        tasks.Classification(labels=("2", "3")).target(example)


def test_multi_label_and_regression_targets(tokenizer):
    several = tasks.Classification(labels=("a", "b", "c"), problem="multi_label")
    examples = [{"text": "x", "label": ["c", "a"]}, {"text": "x", "label": []}]
    assert several.features(examples, tokenizer).batch([0, 1])[1].tolist() == [[1, 0, 1], [0, 0, 0]]
    number = tasks.Classification(problem="regression")
    features = number.features(
        [{"text": "x", "label": "2.5"}, {"text": "x", "label": 1}], tokenizer
    )
    assert features.batch([0, 1])[1].tolist() == [2.5, 1.0]
    for label in ("many", "nan", [1, 2]):
        with pytest.raises(DataError, match="is not a number"):
            number.features([{"text": "x", "label": label}], tokenizer)


def test_completed_finds_labels_and_pairs():
    examples = [{"text": "", "label": "10", "text_pair": "x"}, {"label": "9", "text_pair": "y"}]
    task = tasks.Classification().infer_settings(examples)
    assert (task.labels, task.pair) == (("9", "10"), True)
    named = tasks.Classification(labels=("x",))
    assert named.infer_settings([{"label": "x"}]) == named
    several = tasks.Classification(problem="multi_label")
    assert several.infer_settings([{"label": ["b"]}, {"label": ["c", "a"]}]).labels == (
        "a",
        "b",
        "c",
    )
    tags = [{"tags": ["B-PER", "O", "I-LOC"]}, {"tags": ["B-LOC", "I-PER"]}]
    found = tasks.TokenClassification().infer_settings(tags).labels
    assert found == ("O", "B-LOC", "I-LOC", "B-PER", "I-PER")
    with pytest.raises(SettingError, match="task.labels is empty"):
        tasks.Classification().size  # noqa: B018


def test_words_carry_tags_at_their_first_piece(tokenizer):
    task = tasks.TokenClassification(labels=("O", "B-X"))
    example = {"words": ["the", "unwatchable", "\u200b", "film"], "tags": ["O", "B-X", "O", "B-X"]}
    features = task.features([example], tokenizer)
    words = ["[CLS]", "the", "un", "##watch", "##able", "film", "[SEP]"]
    assert pieces(tokenizer, features.token_ids[0]) == words
    assert features.targets[0].tolist() == [-100, 0, 1, -100, -100, 1, -100]
    assert features.batch([0], length=9)[1][0, 7:].tolist() == [-100, -100]
    assert features.details[0]["positions"].tolist() == [1, 2, -1, 5]
    cut = task.model_copy(update={"max_length": 4}).features([example], tokenizer)
    assert cut.targets[0].tolist() == [-100, 0, 1, -100]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"tags": ["O"]}, "reviews.tsv:7: 2 words but 1 tags"),
        ({"tags": ["O", "B-Y"]}, "reviews.tsv:7: unknown tag 'B-Y'. Known: O, B-X"),
        ({"words": "the film"}, "reviews.tsv:7: the field 'words' is not a list"),
    ],
)
def test_wrong_words(tokenizer, change, message):
    task = tasks.TokenClassification(labels=("O", "B-X"))
    example = {"words": ["the", "film"], "tags": ["O", "O"], **HERE, **change}
    with pytest.raises(DataError, match=message):
        task.features([example], tokenizer)


def test_embedding_pairs_stay_together(tokenizer):
    task = tasks.Embedding()
    examples = [{"text": "a", "text_pair": "b c"}, {"text": "d", "text_pair": "e"}]
    features = task.features(examples, tokenizer)
    assert (features.group, features.units.tolist()) == (2, [[0, 1], [2, 3]])
    assert features.example.tolist() == [0, 0, 1, 1]
    first = [pieces(tokenizer, row)[1] for row in features.token_ids]
    assert first == ["a", "b", "d", "e"]
    inputs, targets = features.batch(features.units[[1, 0]].ravel())
    assert targets.shape == (2,) and inputs["token_ids"].shape == (2, 2, 4)
    assert pieces(tokenizer, inputs["token_ids"][0, 1])[1] == "e"
    assert features.inputs([1, 2])["token_ids"].shape == (2, 4)
    for rows in ([1, 2], [0, 2], [1, 0], [0, 1, 3, 2]):
        with pytest.raises(DataError, match="2 rows each belong together"):
            features.batch(rows)
    assert task.features([{"text": "a"}], tokenizer).group == 1


def test_next_sentence_labels(tokenizer):
    task = tasks.NextSentence()
    pair = {"text": "a", "text_pair": "b"}
    examples = [{**pair, "label": label} for label in ("is_next", "not_next", 0, "1")]
    assert task.features(examples, tokenizer).batch(range(4))[1].tolist() == [0, 1, 0, 1]
    with pytest.raises(DataError, match="unknown label 'maybe'"):
        task.features([{**pair, "label": "maybe"}], tokenizer)


def test_masks_are_a_function_of_seed_epoch_and_row(tokenizer):
    task = tasks.MaskedLM(max_length=64)
    examples = [{"text": "the film was very good " * 10}] * 300 + [{"text": ""}, {"text": "a"}]
    features = task.features(examples, tokenizer)
    assert features.targets is None
    drawn = task.for_epoch(features, seed=3, epoch=1)
    again = task.for_epoch(features, seed=3, epoch=1)
    for first, second in zip(drawn.token_ids, again.token_ids, strict=True):
        assert first.tolist() == second.tolist()
    other = task.for_epoch(features, seed=3, epoch=2)
    assert drawn.token_ids[0].tolist() != other.token_ids[0].tolist()
    assert drawn.token_ids[0].tolist() != drawn.token_ids[1].tolist()

    plain = np.concatenate(features.token_ids[:300])
    hidden, target = np.concatenate(drawn.token_ids[:300]), np.concatenate(drawn.targets[:300])
    told = target != task_features.IGNORED
    assert (target[told] == plain[told]).all() and (hidden[~told] == plain[~told]).all()
    assert abs(told.mean() - 0.15 * 50 / 52) < 0.01
    masked = (hidden[told] == tokenizer.mask_token_id).mean()
    kept = (hidden[told] == plain[told]).mean()
    assert abs(masked - 0.8) < 0.03 and abs(kept - 0.1) < 0.03
    assert drawn.targets[300].tolist() == [-100, -100]  # an empty text has nothing to hide
    assert (drawn.targets[301] != -100).sum() == 1  # one token: it is hidden
    inputs, targets = drawn.batch([0, 301])
    assert targets.shape == inputs["token_ids"].shape
