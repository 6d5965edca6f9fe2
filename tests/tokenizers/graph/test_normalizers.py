"""Normalizers, pre-tokenizers and the unigram model in the graph, against the package."""

import json
import random

import pytest
import tensorflow as tf
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
)

from tests.helpers.tiny_tokenizers import trained
from tests.tokenizers import hostile
from tests.tokenizers.graph.test_decoders import assert_same
from tests.tokenizers.test_saved_tokenizers import differences
from tests.tokenizers.test_sweep import CHUNK, EVERY
from tfllm.errors import TokenizerError
from tfllm.tokenizers.graph import normalized_string
from tfllm.tokenizers.graph.charsmap import Charsmap, parse_rules
from tfllm.tokenizers.graph.nfc import Composer
from tfllm.tokenizers.graph.unigram import UnigramModel
from tfllm.tokenizers.sentencepiece import SentencePieceJson

PIECES = [("<unk>", 0.0), ("▁", -2.0), ("▁a", -1.0), ("a", -3.0), ("b", -3.0), ("▁b", -1.0)]
FORMS = ("{}", "x{}y", "{}\u0301\u0323", "\u0600{}\u0340", "\r{}\n")


def unigram(normalizer, pre_tokenizer, pieces=PIECES, added=()):
    rust = Tokenizer(models.Unigram(pieces, 0))
    if normalizer:
        rust.normalizer = normalizer
    if pre_tokenizer:
        rust.pre_tokenizer = pre_tokenizer
    rust.decoder = decoders.Metaspace()
    rust.add_tokens(list(added))
    return SentencePieceJson.from_definition(rust.to_str())


def metaspace(scheme="always", split=True):
    return pre_tokenizers.Metaspace(prepend_scheme=scheme, split=split)


def tokens(python, text):
    """Ids and offsets in the graph."""
    ids, starts, ends = (part.to_list()[0] for part in python.graph().tokenize_with_offsets([text]))
    return ids, list(zip(starts, ends, strict=True))


def test_white_space_before_the_marks():
    """mBART as transformers 5 saves it."""
    split = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), metaspace()])
    assert tokens(unigram(None, split), "a\tb") == ([2, 5], [(0, 1), (2, 3)])


def test_runs_of_spaces_before_the_marks():
    """XLM-R and T5 as transformers 4 saves them: offsets have the space."""
    runs = normalizers.Replace(Regex(" {2,}"), "▁")
    normalizer = normalizers.Sequence([normalizers.Strip(left=False), runs])
    python = unigram(normalizer, metaspace())
    assert tokens(python, "a b a") == ([2, 5, 2], [(0, 1), (1, 3), (3, 5)])
    assert tokens(python, "a  b  ") == ([2, 5], [(0, 1), (2, 4)])


NORMALIZERS = {
    "none": lambda: None,
    "strip": lambda: normalizers.Strip(),
    "strip left": lambda: normalizers.Strip(right=False),
    "runs": lambda: normalizers.Replace(Regex(" {2,}"), " "),
    "longer runs": lambda: normalizers.Replace(Regex(" {3,}"), "▁▁"),
    "quotes": lambda: normalizers.Sequence(
        [normalizers.Replace("``", '"'), normalizers.Replace("''", '"')]
    ),
    "albert": lambda: normalizers.Sequence(
        [normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()]
    ),
    "left out": lambda: normalizers.Replace("b", ""),
    "prepend": lambda: normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    ),
    "charsmap": lambda: normalizers.Precompiled(
        trained("unigram").normalizer_spec.precompiled_charsmap
    ),
}
PRE_TOKENIZERS = {
    "none": lambda: None,
    "white space": lambda: pre_tokenizers.WhitespaceSplit(),
    "always": metaspace,
    "first": lambda: metaspace("first"),
    "never": lambda: metaspace("never"),
    "first, whole": lambda: metaspace("first", False),
    "words, first": lambda: pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), metaspace("first")]
    ),
    "marks, words": lambda: pre_tokenizers.Sequence(
        [metaspace(), pre_tokenizers.WhitespaceSplit()]
    ),
}
QUICK = [("runs", "first"), ("strip left", "words, first"), ("charsmap", "always")]
PAIRS = [(one, other) for one in NORMALIZERS for other in PRE_TOKENIZERS]


@pytest.mark.parametrize(
    ("normalizer", "pre_tokenizer"),
    [pair if pair in QUICK else pytest.param(*pair, marks=pytest.mark.slow) for pair in PAIRS],
)
def test_each_after_the_other(normalizer, pre_tokenizer):
    added = [
        AddedToken("<x>", normalized=False),
        AddedToken("a b", normalized=True),
        AddedToken("<m>", normalized=False, lstrip=True),
    ]
    if not normalizer.startswith("strip"):  # which would leave nothing of it
        added.append(AddedToken("  ", normalized=True))
    python = unigram(NORMALIZERS[normalizer](), PRE_TOKENIZERS[pre_tokenizer](), added=added)
    draw = random.Random(0)
    kinds = [
        "a",
        "b",
        " ",
        "  ",
        "\t",
        "▁",
        "<x>",
        "<m>",
        "a b",
        "``",
        "'",
        "é",
        "e\u0301",
        "½",
        "的",
    ]
    texts = ["".join(draw.choices(kinds, k=draw.randrange(9))).encode() for _ in range(300)]
    assert differences(python, python.graph(), [*texts, *hostile.texts(400)]) == []


def test_an_added_token_of_which_nothing_is_left_is_refused():
    added = [AddedToken("  ", normalized=True)]
    with pytest.raises(TokenizerError, match="nothing is left of the added token"):
        unigram(normalizers.Strip(), metaspace(), added=added)


@pytest.mark.parametrize(
    ("normalizer", "pre_tokenizer", "said"),
    [
        (normalizers.NFKD(), metaspace(), "'normalizer' {'type': 'NFKD'"),
        (normalizers.NFC(), metaspace(), "'normalizer' {'type': 'NFC'"),
        (normalizers.Replace(Regex(r"\s+"), " "), metaspace(), "'normalizer' {'type': 'Replace'"),
        (normalizers.Replace("ab", "c"), metaspace(), "'normalizer' {'type': 'Replace'"),
        (None, pre_tokenizers.Metaspace("_"), "'pre_tokenizer' {'type': 'Metaspace'"),
        (None, pre_tokenizers.Punctuation(), "'pre_tokenizer' {'type': 'Punctuation'"),
    ],
)
def test_what_the_graph_does_not_know_is_named(normalizer, pre_tokenizer, said):
    python = unigram(normalizer, pre_tokenizer)
    assert python.encode("a b").ids  # in Python it works
    with pytest.raises(TokenizerError, match=said):
        python.graph()


def test_the_best_of_equal_paths_is_the_packages():
    """The kernel of SentencePiece decides otherwise: `mm m`."""
    pieces = [("<unk>", 0.0), ("m", -1.5), ("mm", -2.25), ("mmm", -9.0), ("▁", -3.0)]
    python = unigram(None, metaspace(), pieces)
    assert_same(python, python.graph(), ["mmm", "m" * 41, "mm mmmm 的的m的", ""])


@pytest.mark.parametrize("exact", [True, False])
def test_the_best_paths_of_random_models(exact):
    """Scores that float32 holds are summed in parts, others from the start of each word."""
    draw = random.Random(1)
    letters = "abcd"
    names = sorted({"".join(draw.choices(letters, k=draw.randint(1, 4))) for _ in range(40)})
    scores = [-draw.randrange(1, 40) / (8 if exact else 10) for _ in names]
    pieces = [("<unk>", 0.0), *zip(names, scores, strict=True)]
    rust = Tokenizer(models.Unigram(pieces, 0))
    words = ["".join(draw.choices(letters + "e", k=draw.randrange(1, 60))) for _ in range(400)]
    model = UnigramModel(json.loads(rust.to_str())["model"])
    assert model._exact_sums is exact
    ids, starts, ends = (part.to_list() for part in model.tokenize_with_offsets(tf.constant(words)))
    for word, *found in zip(words, ids, starts, ends, strict=True):
        wanted = rust.encode(word)
        assert found[0] == wanted.ids
        assert list(zip(*found[1:], strict=True)) == wanted.offsets


def differing(normalize, reference, points, form):
    """Code points of which the graph makes other texts."""
    found = []
    for begin in range(0, len(points), CHUNK):
        texts = [form.format(chr(point)) for point in points[begin : begin + CHUNK]]
        result = normalize(normalized_string.decode(tf.constant(texts)))
        written = normalized_string.encode(result.points, result.splits).numpy()
        found += [
            hex(point)
            for point, text, got in zip(points[begin:], texts, written, strict=False)
            if reference.normalize_str(text) != got.decode()
        ]
    return found


def charsmap():
    blob = trained("unigram").normalizer_spec.precompiled_charsmap
    return Charsmap(blob), normalizers.Precompiled(blob)


MAPS = {"charsmap": charsmap, "nfc": lambda: (Composer(), normalizers.NFC())}


@pytest.mark.parametrize("name", MAPS)
def test_some_code_points(name):
    points = [*range(0x400), *EVERY[0x400::301]]
    for form in FORMS[1:3]:
        assert differing(*MAPS[name](), points, form) == []


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", MAPS)
def test_every_code_point(name, form):
    assert differing(*MAPS[name](), EVERY, form) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", MAPS)
def test_random_marks(name):
    normalize, reference = MAPS[name]()
    draw = random.Random(2)
    kinds = [
        *hostile.MARKS,
        *hostile.LETTERS,
        *hostile.EAST,
        "\u1161",
        "\u11a8",
        "\r",
        "\n",
        "\u200d",
    ]
    for _ in range(20):
        texts = ["".join(draw.choices(kinds, k=draw.randrange(12))) for _ in range(500)]
        result = normalize(normalized_string.decode(tf.constant(texts)))
        written = normalized_string.encode(result.points, result.splits).numpy()
        assert [text.decode() for text in written] == [*map(reference.normalize_str, texts)]


def test_a_charsmap_that_is_cut_short_is_named():
    blob = trained("unigram").normalizer_spec.precompiled_charsmap
    with pytest.raises(TokenizerError, match="cut short"):
        parse_rules(blob[:1000])
