"""Byte-level BPE, SentencePiece and characters as TensorFlow ops equal the Python tokenizers."""

import random

import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.tiny_tokenizers import BYTE_LEVEL, MAKERS, TRICKY, graph, tokenizer
from tfllm.errors import SettingError, TokenizerError
from tfllm.tokenizers.bytepair import BytePair
from tfllm.tokenizers.streaming import TextStream


def assert_equal(name, texts):
    assert_same(tokenizer(name), graph(name), texts)


def assert_same(python, ops, texts):
    """The graph of a tokenizer and the tokenizer: ids, offsets, and the texts back."""
    ids, starts, ends = ops.tokenize_with_offsets(tf.constant(texts, tf.string))
    assert ops.tokenize(tf.constant(texts, tf.string)).to_list() == ids.to_list()
    rows = zip(texts, ids.to_list(), starts.to_list(), ends.to_list(), strict=True)
    for text, row, first, last in rows:
        expected = python.encode(text, add_special_tokens=False)
        assert row == expected.ids, repr(text)
        assert list(zip(first, last, strict=True)) == expected.offsets, repr(text)
        assert python.encode_ids([text], add_special_tokens=False) == [row]
    written = ops.detokenize(ids).numpy()
    assert [text.decode() for text in written] == [python.decode(row) for row in ids.to_list()]


@pytest.mark.parametrize("name", MAKERS)
def test_tricky_texts(name):
    assert_equal(name, TRICKY)
    for text in TRICKY[:4]:
        assert_equal(name, [text])
    assert graph(name).tokenize(tf.constant([], tf.string)).to_list() == []


@pytest.mark.parametrize("name", ["roberta", "roberta with a space"])
def test_offsets_of_tokens_that_take_white_space(name):
    before, after = ("", " ", "  ", "\t", "a ", " a ", "a\u00a0"), ("", " ", " b", "<mask>")
    assert_equal(name, [f"{start}<mask>{end}" for start in before for end in after])


ALPHABET = st.one_of(
    st.characters(codec="utf-8"),
    st.sampled_from(list("abc  \n\r\t'\"sStTrReEvVlLmMdD0123.,!-") + ["'s", "'ll", "\u00a0", "ſ"]),
    st.sampled_from(["<|endoftext|>", "<s>", "</s>", "<mask>", "  ", "\u3000", "½", "你", "é"]),
)


QUICK = ("gpt2", "llama3")


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in BYTE_LEVEL],
)
@settings(max_examples=15, deadline=None)
@given(texts=st.lists(st.lists(ALPHABET, max_size=30).map("".join), min_size=1, max_size=8))
def test_random_texts(name, texts):
    assert_equal(name, texts)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bpe", "llama.json", "llama.json, first", "unigram"])
@settings(max_examples=30, deadline=None)
@given(texts=st.lists(st.lists(ALPHABET, max_size=30).map("".join), min_size=1, max_size=8))
def test_random_texts_of_sentencepiece(name, texts):
    assert_equal(name, texts)


@pytest.mark.parametrize("name", MAKERS)
def test_any_ids_make_the_same_valid_text(name):
    python, draw = tokenizer(name), random.Random(0)
    size = python.vocabulary_size
    rows = [
        [draw.randrange(min(size, limit)) for _ in range(draw.randrange(20))]
        for limit in (size, 270)
        for _ in range(150)
    ]
    written = graph(name).detokenize(tf.ragged.constant(rows, tf.int32)).numpy()
    for row, text in zip(rows, written, strict=True):
        assert text.decode("utf-8") == python.decode(row), row
        stream = TextStream(python)
        assert "".join([*map(stream.push, row), stream.finish()]) == python.decode(row), row


def test_ids_outside_of_the_vocabulary_are_left_out():
    ids = tf.ragged.constant([[10**6, -1], [], tokenizer("gpt2").encode("cat").ids])
    assert graph("gpt2").detokenize(ids).numpy().tolist() == [b"", b"", b"cat"]


@pytest.mark.parametrize("name", ["roberta", "xlm-r", "llama.json", "t5", "unigram.json", "gpt2"])
def test_rows(name):
    python, ops = tokenizer(name), graph(name)
    texts, pairs = TRICKY[5:8], TRICKY[8:11]
    assert ops.encode(tf.constant(texts)).to_list() == python.encode_ids(texts)
    if python.pad_token_id is None:
        return
    for max_length in (7, 12, 64):
        for seconds in (None, pairs):
            packed = ops(
                tf.constant(texts), seconds and tf.constant(seconds), max_length=max_length
            )
            rows = python.encode_batch(texts, seconds, max_length=max_length)
            for row, ids, types, mask in zip(
                rows,
                *(packed[key].numpy() for key in ("token_ids", "segment_ids", "padding_mask")),
                strict=True,
            ):
                assert ids[: mask.sum()].tolist() == row.ids
                assert types[: mask.sum()].tolist() == row.type_ids
                assert (ids[mask.sum() :] == python.pad_token_id).all()


@pytest.mark.parametrize("name", ["roberta", "xlm-r"])
@pytest.mark.parametrize(("max_length", "stride"), [(24, 4), (40, 10)])
def test_windows(name, max_length, stride):
    python, ops = tokenizer(name), graph(name)
    questions, contexts = ["Who?", "Who is it? " * 9, ""], [TRICKY[-1], TRICKY[10], "x"]
    found = ops.windows(
        tf.constant(questions), tf.constant(contexts), max_length=max_length, stride=stride
    )
    expected = [
        (number, row)
        for number, (question, context) in enumerate(zip(questions, contexts, strict=True))
        for row in python.encode_windows(question, context, max_length=max_length, stride=stride)
    ]
    assert found["example"].numpy().tolist() == [number for number, _ in expected]
    for place, (_, row) in enumerate(expected):
        size = len(row.ids)
        assert found["token_ids"][place, :size].numpy().tolist() == row.ids
        inside = [i for i, sequence in enumerate(row.sequence_ids) if sequence == 1]
        offsets = [row.offsets[i] for i in inside]
        starts, ends = (found[key][place].numpy()[inside] for key in ("starts", "ends"))
        assert list(zip(starts, ends, strict=True)) == offsets


SAVED = ("neox", "tokens given whole", "bpe")


def test_saved_models_use_what_tf_serving_has_and_share_nothing(tmp_path):
    from tfllm.export.op_compatibility import check_graph

    module = tf.Module()
    module.parts = [graph(name) for name in SAVED]

    def both_ways(texts):
        return {
            f"text_{number}": part.detokenize(part.encode(texts))
            for number, part in enumerate(module.parts)
        }

    signature = tf.function(both_ways, [tf.TensorSpec([None], tf.string)], autograph=False)
    tf.saved_model.save(module, str(tmp_path), signatures=signature)
    found = check_graph(tmp_path)
    assert not found.problems
    loaded = tf.saved_model.load(str(tmp_path))
    texts = ["The  cat", "The cat's mat, 1974"]
    written = loaded.signatures["serving_default"](texts=tf.constant(texts))
    for number in range(len(SAVED)):
        assert [text.decode() for text in written[f"text_{number}"].numpy()] == texts


def described(edit):
    import json

    data = json.loads(tokenizer("gpt2").definition)
    edit(data)
    return BytePair.from_definition(json.dumps(data))


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda d: d.update(normalizer={"type": "Lowercase"}), "'normalizer'"),
        (
            lambda d: d.update(
                pre_tokenizer={
                    "type": "Sequence",
                    "pretokenizers": [
                        {
                            "type": "Split",
                            "pattern": {"Regex": "[a-z]+"},
                            "behavior": "Isolated",
                            "invert": False,
                        },
                        {
                            "type": "ByteLevel",
                            "add_prefix_space": False,
                            "trim_offsets": True,
                            "use_regex": False,
                        },
                    ],
                }
            ),
            "'pre_tokenizer'",
        ),
        (lambda d: d["added_tokens"][0].update(single_word=True), "single_word"),
    ],
)
def test_what_the_graph_does_not_know_is_refused(edit, said):
    python = described(edit)
    assert python.encode("cat").ids  # in Python it works
    with pytest.raises(TokenizerError, match=said):
        python.graph()


def test_there_is_one_profile():
    with pytest.raises(SettingError, match="no tokenizer profile"):
        tokenizer("gpt2").graph("mediapipe")
