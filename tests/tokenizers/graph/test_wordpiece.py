"""The tokenizer as TensorFlow ops equals the Python one: ids, offsets, pairs, windows."""

import functools
import subprocess
import sys

import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.vocabularies import SPECIALS, VOCABULARY
from tfllm.errors import SettingError
from tfllm.tokenizers.loading import read_vocabulary
from tfllm.tokenizers.wordpiece import WordPiece

OPTIONS = {
    "uncased": {},
    "cased": {"lowercase": False},
    "uncased, accents kept": {"strip_accents": False},
    "cased, accents stripped": {"lowercase": False, "strip_accents": True},
    "ideographs not split": {"chinese_characters": False},
    "not cleaned": {"clean_text": False},
    "short words, an added token": {
        "max_word_characters": 4,
        "added": ["Zoë", "<e1>", "<e1>x"],
        "model_size": len(VOCABULARY),
    },
}
TRICKY = [
    "",
    " ",
    "\n\t\r\x0b\x0c\x1c\x85\u2028\u3000",
    "Hello, World!",
    "the\x00cat\x00",
    "\x00",
    "a\x00[MASK]\x00b[SEP]",
    "[MASK]",
    "[MASK][MASK] x[SEP]y",
    "[mask] [ MASK ] [MASK [CLS]]",
    "Zoë<e1>x<e1> <E1> zoë",
    "un" * 49 + "abc",
    "a" * 100,
    "a" * 101,
    "é" * 100 + " " + "é" * 101,
    "a\u0301" * 101,
    "ÀÉÎÕÜ ßẞ ŸŒ ÅÅ K",
    "İstanbul ıI",
    "ΑΣ ΑΣΑ Σ",
    "ǅ ǆ ﬁ Ⅳ ½ … 𝐀 Ａ",
    "的人,是！一。不",
    "\uf900\u2f800\U0002f800\U00020000\U0002ceb0\U00030000",
    "가각 힣 ᄀ\u1161\u11a8",
    "नमस्ते किताब \u0958 \u09cb \u0dda",
    "ไทย ລາວ မြန်မာ",
    "مرحبا שָׁלוֹם",
    "👩‍👩‍👧 🏳️‍🌈 🇩🇪 e\u0301\u0323",
    "zero\u200bwidth\u200djoin\ufeffer soft\u00adhyphen",
    "\ufeffbom",
    "\ufffd\ufffe\uffff\U0010ffff\ue000",
    "##ing # ## #a",
    "don't  $5.00 a_b `x` ~^|<>=+",
    "\u037e \u1fef \u2260 \u226e \u0385",
    "a\u1714\u0301\u1734b \u1baa\u302eq \U0001d15e\U0001d165",
    "q Q \uff31",
    # Marks that stay, behind marks that are stripped, of the same code point or of another.
    *("\u0340\U0001d165", "\u0344\u0301\U0001d165x", "\xe9\U0001d165x", "\u1f82\u302e\u0301b"),
    *(
        "\U0001d15e\u0300\U0001d160\U0001d165",
        "x\u0300\u0340\x00\u1714\U0001d16dq",
        "\U0001d166\u0f76\u1baa",
    ),
]


@functools.cache
def both(name):
    options = OPTIONS[name]
    tokenizer = WordPiece.from_vocabulary([*VOCABULARY, *options.get("added", [])], **options)
    graph = tokenizer.graph()
    signature = [tf.TensorSpec([None], tf.string)]
    return tokenizer, graph, tf.function(graph.tokenize_with_offsets, input_signature=signature)


def in_python(tokenizer, text):
    row = tokenizer.encode(text)
    return row.ids[1:-1], row.offsets[1:-1]


def in_graph(function, texts):
    ids, starts, ends = (part.to_list() for part in function(tf.constant(texts)))
    return [
        (row, list(zip(first, last, strict=True)))
        for row, first, last in zip(ids, starts, ends, strict=True)
    ]


def assert_equal(name, texts):
    tokenizer, _, function = both(name)
    for text, (ids, offsets) in zip(texts, in_graph(function, texts), strict=True):
        expected, expected_offsets = in_python(tokenizer, text)
        assert ids == expected, repr(text)
        assert offsets == expected_offsets, repr(text)


@pytest.mark.parametrize("name", OPTIONS)
def test_tricky_texts(name):
    assert_equal(name, TRICKY)
    for text in TRICKY[:8]:
        assert_equal(name, [text])


ALPHABET = st.one_of(
    st.characters(codec="utf-8"),
    st.sampled_from([*map(chr, (*range(0x250), *range(0x300, 0x370), 0x1714, 0x1BAA, 0x302E))]),
    st.sampled_from([*SPECIALS, "[MASK", "Zoë", "<e1>", "<e1>x", "the", "want", "ning"]),
    st.sampled_from("가각\u1100\u1161\u11a8的人\uf900\U0001d15e\U0001d165\u0f71\u0f72\u0f74"),
)
TEXT = st.lists(ALPHABET, max_size=20).map("".join)


@pytest.mark.parametrize("name", OPTIONS)
@settings(max_examples=30, deadline=None)
@given(texts=st.lists(TEXT, min_size=1, max_size=8))
def test_random_texts(name, texts):
    assert_equal(name, texts)


BYTES = [
    *(b"\xe4", b"\xbd", b"\xa0", b"\xf0\x9f", b"\xed\xa0\x80", b"\xc0\x80", b"\xff", b"\x00"),
    *(b"the", b" ", b"[MASK]", b"\xff[SEP]\xff", b"\xef\xbb\xbf"),
]


@settings(max_examples=30, deadline=None)
@given(
    text=st.one_of(
        st.binary(max_size=12), st.lists(st.sampled_from(BYTES), max_size=8).map(b"".join)
    )
)
@pytest.mark.parametrize("name", ["uncased", "not cleaned"])
def test_invalid_utf8_reads_as_replacement_characters(name, text):
    tokenizer, _, function = both(name)
    expected = in_python(tokenizer, text.decode("utf-8", errors="replace"))
    assert in_graph(function, [text]) == [expected]


def test_an_empty_batch():
    _, graph, function = both("uncased")
    ids, starts, ends = function(tf.zeros([0], tf.string))
    assert ids.to_list() == starts.to_list() == ends.to_list() == []
    assert graph(tf.zeros([0], tf.string), max_length=8)["token_ids"].shape[0] == 0


@pytest.mark.parametrize("max_length", [3, 4, 5, 8, 9, 16, 17, 512])
def test_rows_of_texts_and_pairs(max_length):
    tokenizer, graph, _ = both("uncased")
    texts = [text for text in TRICKY[:16] for _ in range(16)]
    pairs = TRICKY[:16] * 16
    for second in (None, pairs):
        rows = tokenizer.encode_batch(texts, second, max_length=max_length)
        packed = graph(
            tf.constant(texts), None if second is None else tf.constant(second),
            max_length=max_length,
        )  # fmt: skip
        longest = max(map(len, rows))
        pad = [longest - len(row) for row in rows]
        assert packed["token_ids"].numpy().tolist() == [
            row.ids + [tokenizer.pad_token_id] * n for row, n in zip(rows, pad, strict=True)
        ]
        assert packed["segment_ids"].numpy().tolist() == [
            row.type_ids + [0] * n for row, n in zip(rows, pad, strict=True)
        ]
        assert packed["padding_mask"].numpy().tolist() == [
            [1] * len(row) + [0] * n for row, n in zip(rows, pad, strict=True)
        ]
        assert {value.dtype for value in packed.values()} == {tf.int32}


@pytest.mark.parametrize(("max_length", "stride"), [(8, 0), (10, 3), (16, 6), (24, 20), (384, 128)])
def test_windows(max_length, stride):
    tokenizer, graph, _ = both("uncased")
    questions = ["the cat", "", "who? " * 20, "[MASK] 的人"]
    contexts = ["the cat sat on the mat. " * 5, "", "  的人是他 " * 9, "x"]
    asked = [(q, c) for q in questions for c in contexts]
    function = tf.function(functools.partial(graph.windows, max_length=max_length, stride=stride))
    got = function(tf.constant([q for q, _ in asked]), tf.constant([c for _, c in asked]))
    got = {key: value.numpy().tolist() for key, value in got.items()}
    row = 0
    for number, (question, context) in enumerate(asked):
        for expected in tokenizer.encode_windows(
            question, context, max_length=max_length, stride=stride
        ):
            size = len(expected)
            assert got["example"][row] == number
            assert got["token_ids"][row][:size] == expected.ids
            assert got["segment_ids"][row][:size] == expected.type_ids
            assert sum(got["padding_mask"][row]) == size
            offsets = list(zip(got["starts"][row], got["ends"][row], strict=True))
            inside = [sequence == 1 for sequence in expected.sequence_ids]
            inside += [False] * (len(offsets) - size)
            for place, flag in enumerate(inside):
                assert offsets[place] == (expected.offsets[place] if flag else (-1, -1))
            row += 1
    assert row == len(got["example"])


def test_plain_lists_of_texts():
    tokenizer, graph, _ = both("uncased")
    rows = graph(["the cat"], ["mat"], max_length=8)
    assert rows["token_ids"].numpy().tolist() == [tokenizer.encode("the cat", "mat").ids]


def test_an_unknown_profile_is_named():
    with pytest.raises(SettingError, match="Did you mean 'reference'"):
        both("uncased")[0].graph("refernce")


RELOAD = """
import sys, tensorflow as tf, tensorflow_text
f = tf.saved_model.load(sys.argv[1]).signatures["serving_default"]
g = f(text=tf.constant(["The unwanted [MASK] cät", "的人"]))
print(g["token_ids"].numpy().tolist(), "tfllm" in sys.modules)
"""


def test_saved_and_loaded_without_tfllm(tmp_path):
    tokenizer, graph, _ = both("uncased")

    class Holder(tf.Module):
        def __init__(self):
            super().__init__()
            self.tokenizer = graph

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="text")])
        def row(self, text):
            return self.tokenizer(text, max_length=16)

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="text")] * 2)
        def pair(self, text, text_pair):
            return self.tokenizer(text, text_pair, max_length=16)

    holder = Holder()
    tf.saved_model.save(
        holder, str(tmp_path), signatures={"serving_default": holder.row, "pair": holder.pair}
    )
    done = subprocess.run(
        [sys.executable, "-c", RELOAD, str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    rows = tokenizer.encode_batch(["The unwanted [MASK] cät", "的人"])
    rows[1].ids.extend([0] * (len(rows[0]) - len(rows[1])))
    assert done.stdout.strip() == f"{[row.ids for row in rows]} False", done.stderr[-2000:]
    size = (tmp_path / "saved_model.pb").stat().st_size
    assert size < 700_000, "the tables are held once, not once for each function"


@pytest.mark.parametrize("kind", ["uncased", "cased", "chinese"])
def test_real_vocabularies(data, kind):
    vocabulary = read_vocabulary(data / "tokenizers" / f"bert_base_{kind}_vocab.txt")
    tokenizer = WordPiece.from_vocabulary(vocabulary, lowercase=kind != "cased")
    graph = tokenizer.graph()
    for text, got in zip(TRICKY, in_graph(graph.tokenize_with_offsets, TRICKY), strict=True):
        assert got == in_python(tokenizer, text), repr(text)
