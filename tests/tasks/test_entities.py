"""One rule of words for every kind of vocabulary: in labels, in predictions and in the graph."""

import json

import numpy as np
import pytest
import tensorflow as tf

from tests.helpers.tiny_tokenizers import MAKERS, TRICKY, learned, tokenizer
from tfllm import tasks
from tfllm.tasks import entities, fill_mask_graph
from tfllm.tasks.entities_graph import GraphWords
from tfllm.tasks.masked_lm import fill_masks
from tfllm.tokenizers import word_alignment
from tfllm.tokenizers.bytepair import from_vocabulary
from tfllm.tokenizers.loading import load_tokenizer
from tfllm.tokenizers.tokenizer_config import TokenizerConfig

TEXTS = [
    "unbelievable Berlin",
    "the cat, in (the mat) at 123 Main St.",
    "  the  cat\tsat\non\u00a0the\u2003mat  ",
    "北京是 a中b 北京",
    "a   b \u2581x AT&T it's U.S. a..b",
    "<s> the cat<mask>sat [MASK]x",
    "é e\u0301 🦜🦜 x",
    "\u200bthe \ufeffx .\u200b \u200b",
    "12  345 6\n7 \t 8",
    "مرحبا שלום عالم",
    *TRICKY,
]


def starts_of(python, text):
    """(word, its first token) of every word of a text."""
    row = python.encode(text)
    found = entities.align_pieces(text, row, python)
    ranges = zip(found.starts, found.ends, found.positions, strict=True)
    return [(text[start:end], python.vocabulary[row.ids[place]]) for start, end, place in ranges]


def test_gpt2_has_a_word_for_each_word(data):
    python = load_tokenizer(data / "tokenizers" / "gpt2_hf_tokenizer.json")
    text = "unbelievable Berlin"
    found = entities.align_pieces(text, python.encode(text), python)
    assert found.positions.tolist() == [0, 4]
    assert (found.starts.tolist(), found.ends.tolist()) == ([0, 13], [12, 19])


@pytest.mark.parametrize("name", MAKERS)
def test_words_are_the_texts_own(name):
    python = tokenizer(name)
    known = "the cat sat on the mat, it's see (x) a:b"
    wanted = ["the", "cat", "sat", "on", "the", "mat", ",", "it's", "see", "(", "x", ")", "a:b"]
    if name == "characters":
        known, wanted = known.replace("a:b", "a.b"), [*wanted[:-1], "a.b"]
    assert [word for word, _ in starts_of(python, known)] == wanted
    spread = known.replace(" ", " \t\u00a0 ")
    assert [word for word, _ in starts_of(python, spread)] == wanted


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        # The lone mark is the word's: only there a tag can have been learned.
        ("xlm-r", "zq the Zq", [("zq", "▁"), ("the", "▁the"), ("Zq", "▁")]),
        ("llama.json", "the 123", [("the", "▁the"), ("123", "▁1")]),
        ("llama.json", "the  cat", [("the", "▁the"), ("cat", "▁cat")]),
        # Numbers take no space in Llama 3's pattern.
        ("llama3", "The cat 123", [("The", "The"), ("cat", "Ġcat"), ("123", "Ġ")]),
        ("llama3", "cat  123", [("cat", "cat"), ("123", "Ġ")]),
        ("llama3", "cat\n123", [("cat", "cat"), ("123", "1")]),
        # Neither line ends nor further spaces begin a word.
        ("gpt2", "cat \n\n the", [("cat", "cat"), ("the", "Ġthe")]),
        ("roberta", "cat   the", [("cat", "cat"), ("the", "Ġthe")]),
        ("characters, unknown", "a cat", [("a", "a"), ("cat", "c")]),
    ],
)
def test_a_words_first_piece(name, text, wanted):
    assert starts_of(tokenizer(name), text) == wanted


@pytest.mark.parametrize("name", MAKERS)
def test_words_with_labels_make_the_rows_of_their_text(name):
    python = tokenizer(name)
    for text in TEXTS:
        split = text.split()
        joined = " ".join(split)
        row, plain = python.encode_words(split), python.encode(joined)
        assert row.ids == plain.ids
        # A word's first piece is the same, whether the word was given or found.
        begins = np.cumsum([0, *(len(word) + 1 for word in split)])
        found = entities.align_pieces(joined, plain, python)
        first = {}
        for start, place in zip(found.starts, found.positions, strict=True):
            first.setdefault(int(np.searchsorted(begins, start, "right")) - 1, int(place))
        given = {}
        for place, word in enumerate(row.word_ids):
            if word is not None:
                given.setdefault(word, place)
        assert given == first, text
        for word, (start, end) in zip(row.word_ids, row.offsets, strict=True):
            assert 0 <= start <= end <= (0 if word is None else len(split[word]))


def test_roberta_with_a_space_before_the_text():
    """As Hugging Face labels words for it: every word, the first too, has its space."""
    vocabulary, merges = learned()
    settings = TokenizerConfig({"add_prefix_space": True})
    python = from_vocabulary(vocabulary, merges, settings)
    row = python.encode_words(["the", "cat", "sat"])
    pieces = [python.vocabulary[number] for number in row.ids]
    assert pieces[row.word_ids.index(0)].startswith("Ġ")
    assert row.ids == python.encode("the cat sat").ids


QUICK = ("gpt2", "roberta", "xlm-r", "llama.json")


@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in MAKERS],
)
@pytest.mark.parametrize("max_length", [None, 7])
def test_the_graph_finds_the_same_words(name, max_length):
    python = tokenizer(name)
    graph, find = python.graph(), GraphWords(python)
    template = python.row_template
    room = None if max_length is None else max_length - template.num_special_tokens

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
    def words_of(texts):
        return find(texts, *(part[:, :room] for part in graph.tokenize_with_offsets(texts)))

    rows = [[] for _ in TEXTS]
    for row, *found in zip(*(part.numpy().tolist() for part in words_of(TEXTS)), strict=True):
        rows[row].append(found)
    for text, row in zip(TEXTS, rows, strict=True):
        encoding = python.encode(text, max_length=max_length)
        found = entities.align_pieces(text, encoding, python)
        places = found.positions - len(template.prefix)
        wanted = [list(word) for word in zip(places, found.starts, found.ends, strict=True)]
        assert row == wanted, repr(text)
    assert words_of(tf.constant([], tf.string)).rows.shape == (0,)


def test_a_vocabulary_of_one_piece_for_several_words():
    """`..."` or several ideographs in one piece: one word, as far as the piece goes."""
    numbers = entities.word_numbers("北京 a")
    marks = np.array([word_alignment.PLAIN, word_alignment.LEADING_SPACE])
    found = word_alignment.word_spans(numbers, np.array([[0, 2], [2, 4]]), marks)
    assert [part.tolist() for part in found[1:]] == [[0, 1], [0, 3], [2, 4]]


def test_answers_of_rows_without_special_tokens_around():
    """GPT-2's rows have none, T5's have one at the end: no piece is cut off."""
    task = tasks.TokenClassification(labels=("O", "B-X"))
    for name in ("gpt2", "t5", "roberta"):
        python = tokenizer(name)
        features = task.features([{"text": "the cat"}], python)
        scores = np.zeros((len(features.token_ids[0]), 2), np.float32)
        scores[features.details[0]["positions"], 1] = 5.0
        found = task.answers([scores], features)[0]["entities"]
        assert [entity["text"] for entity in found] == ["the", "cat"]
        json.dumps(found)


@pytest.mark.parametrize(
    ("name", "tokens", "wanted"),
    [
        ("roberta", ["Ġcat", "Ġthe"], "the cat the sat"),
        ("roberta", ["c", "t"], "thect sat"),
        ("xlm-r", ["▁the", "s"], "the thes sat"),
    ],
)
def test_tokens_in_the_place_of_masks(name, tokens, wanted):
    """No vocabulary's marks stand in a text; Python and graph write the same."""
    python = tokenizer(name)
    ways = [python.fill_mask_texts[python.token_id(token)] for token in tokens]
    text = "the <mask><mask> sat"
    assert fill_masks(text, "<mask>", ways) == wanted
    manners, contents = [way[0] for way in ways], [way[1] for way in ways]
    rows = tf.constant([1, 1], tf.int64)
    found = fill_mask_graph.fill_masks(
        tf.constant(["sat", text]), "<mask>", contents, manners, rows
    )
    assert [one.decode() for one in found.numpy()] == ["sat", wanted]
    assert fill_masks("<mask>", "<mask>", ways[:1]) == ways[0][1]
