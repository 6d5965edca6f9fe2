"""Rows of sources and targets: teacher forcing, lengths, several right targets, spans."""

import numpy as np
import pytest

from tfllm.errors import DataError, SettingError
from tfllm.tasks import build
from tfllm.tasks.features import IGNORED
from tfllm.tokenizers.characters import from_characters
from tfllm.tokenizers.train import append_eos

PAD, END, UNKNOWN = 0, 1, 2
SENTINELS = tuple(f"<extra_id_{number}>" for number in range(4))


@pytest.fixture(scope="module")
def tokenizer():
    letters = "abcdefghijklmnopqrstuvwxyz "
    return append_eos(from_characters(letters, ("<pad>", "</s>", "<unk>", *SENTINELS)))


def task(**settings):
    return build({"kind": "seq2seq", "max_length": 8, **settings})


def ids(tokenizer, text):
    return [tokenizer.token_id(letter) for letter in text]


def example(source="ab", target="cde", **fields):
    return {"source": source, "target": target, "_where": "pairs.tsv:7", **fields}


def test_the_decoder_reads_the_target_one_token_late(tokenizer):
    features = task().features([example(), example("abcde", "f")], tokenizer)
    inputs, targets = features.batch([0, 1], 4)
    assert inputs["token_ids"].tolist() == [
        [PAD, *ids(tokenizer, "cde")],
        [PAD, *ids(tokenizer, "f"), PAD, PAD],
    ]
    assert targets.tolist() == [
        [*ids(tokenizer, "cde"), END],
        [*ids(tokenizer, "f"), END, IGNORED, IGNORED],
    ]
    assert inputs["padding_mask"].tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert inputs["source_ids"].tolist()[0] == [*ids(tokenizer, "ab"), END, *[PAD] * 5]
    assert inputs["source_padding_mask"].sum(axis=1).tolist() == [3, 6]
    assert features.lengths.tolist() == [4, 2] and features.source_lengths.tolist() == [3, 6]
    assert [row.tolist() for row in features.source_ids] == [
        [*ids(tokenizer, "ab"), END], [*ids(tokenizer, "abcde"), END]
    ]  # fmt: skip


def test_the_first_token_is_the_checkpoints(tokenizer):
    started = task().with_decoder_start_token_id(UNKNOWN)
    inputs, _ = started.features([example()], tokenizer).batch([0])
    assert inputs["token_ids"][0, 0] == UNKNOWN
    of_recipe = task(decoder_start_token_id=END).with_decoder_start_token_id(UNKNOWN)
    assert of_recipe.decoder_start_token_id == END, "what the recipe says counts"


def test_every_right_target_is_a_row_and_sentences_are_one_source(tokenizer):
    several = example(["ab", "cd"], ["x", "yz"])
    features = task().features([example(), several], tokenizer)
    assert features.example.tolist() == [0, 1, 1]
    assert features.source_ids[1].tolist() == [*ids(tokenizer, "ab cd"), END]
    assert [len(row) for row in features.targets] == [4, 2, 3]


def test_prefix_of_task_and_of_an_example(tokenizer):
    found = task(prefix="to ").encode_sources([example(), example(prefix="x")], tokenizer)
    assert [tokenizer.decode(row) for row in found] == ["to ab", "xab"]


def test_an_empty_side_is_left_out_and_told(tokenizer, caplog):
    examples = [example(), example(""), example(target=" "), example("c", "d")]
    features = task().features(examples, tokenizer)
    assert features.example.tolist() == [0, 3]
    assert "2 of 4 examples have an empty source or target" in caplog.text
    assert "pairs.tsv:7" in caplog.text
    with pytest.raises(DataError, match=r"^pairs.tsv:7: every example"):
        task().features([example("")], tokenizer)


def test_without_targets_every_source_is_a_row(tokenizer):
    features = task().features([{"source": "ab"}, {"source": ""}], tokenizer, targets=False)
    inputs, targets = features.batch([0, 1])
    assert targets is None and inputs["token_ids"].tolist() == [[PAD], [PAD]]


@pytest.mark.parametrize(
    ("fields", "settings", "message"),
    [
        (
            {"source": "a" * 8},
            {},
            r"^pairs.tsv:7: the source has 9 tokens, .*max_source_length is 8",
        ),
        ({"source": "a" * 8}, {"max_source_length": 5}, "max_source_length is 5"),
        ({"target": "a" * 8}, {}, r"^pairs.tsv:7: the target has 9 tokens, .*max_length is 8"),
        ({"target": None}, {}, r"^pairs.tsv:7: the field 'target' is missing"),
        ({"target": []}, {}, "'target' is missing or not a text"),
        ({"source": 3}, {}, r"^pairs.tsv:7: the field 'source' is missing or not a text"),
    ],
)
def test_what_cannot_be_used(tokenizer, fields, settings, message):
    with pytest.raises(DataError, match=message):
        task(**settings).features([example(**fields)], tokenizer)


def test_long_texts_are_cut_on_demand(tokenizer):
    features = task(truncate=True).features([example("a" * 20, "b" * 20)], tokenizer)
    inputs, targets = features.batch([0])
    assert inputs["source_ids"].tolist() == [[*ids(tokenizer, "a" * 7), END]]
    assert targets.tolist() == [ids(tokenizer, "b" * 8)], "the target does not end there"
    (source,) = task().encode_sources([example("a" * 20)], tokenizer, truncate=True)
    assert len(source) == 8


def test_vocabularies_that_cannot_pad_or_end():
    without = from_characters("ab", ("</s>",))
    with pytest.raises(SettingError, match="decoder_start_token_id"):
        task().features([example("a", "b")], without)
    with pytest.raises(SettingError, match="special tokens"):
        task().features([example("a", "b")], from_characters("ab", ("<pad>",)))


def test_the_digest_knows_sources_and_targets(tokenizer):
    digests = {
        task().features([example(*texts)], tokenizer).digest
        for texts in (("ab", "c"), ("ab", "d"), ("a", "c"), ("a", "bc"))
    }
    assert len(digests) == 4


def test_spans_of_texts_are_drawn_anew_in_every_epoch(tokenizer):
    spans = task(
        objective="span_corruption", max_length=16, max_source_length=24, noise_density=0.3
    )
    texts = [{"text": "the quick brown fox jumps over the lazy dog"}, {"text": "and away"}]
    features = spans.for_epoch(spans.features(texts, tokenizer), 1, 0)
    again = spans.for_epoch(features, 1, 1)
    assert features.lengths.tolist() == [len(row) for row in features.targets]
    assert features.source_lengths.tolist() == [len(row) for row in features.source_ids]
    assert max(features.source_lengths) == 24
    assert [row.tolist() for row in again.source_ids] != [
        row.tolist() for row in features.source_ids
    ]
    inputs, targets = features.batch(np.arange(len(features)))
    first = tokenizer.token_id(SENTINELS[0])
    assert (targets[:, 0] == first).all() and (inputs["source_ids"] == first).any(axis=1).all()


def test_spans_that_do_not_fit(tokenizer):
    short = task(objective="span_corruption", max_length=4, max_source_length=24)
    with pytest.raises(SettingError, match="task.max_length is 4"):
        short.features([{"text": "the quick brown fox jumps over"}], tokenizer)
