"""The Python tokenizer gives what the `tokenizers` package gives, truncation and windows too."""

import json

import pytest
from tokenizers import Tokenizer as Rust

from tests.helpers.vocabularies import VOCABULARY
from tfllm.errors import SettingError, TokenizerError
from tfllm.tokenizers.loading import FILES, check_vocabulary_size, load_tokenizer
from tfllm.tokenizers.rows import truncated_lengths, window_ranges
from tfllm.tokenizers.wordpiece import BertSpecialTokens, WordPiece

TEXTS = [
    "The cat sat on the mat.",
    "UNWANTED, running",
    "",
    "Où [MASK] 的人 ? zzz\u0301",
    "a" * 101,
]


@pytest.fixture(scope="module")
def tokenizer():
    return WordPiece.from_vocabulary(VOCABULARY)


@pytest.fixture
def reference(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    return Rust.from_file(str(tmp_path / "tokenizer.json"))


def tokens(tokenizer, encoding):
    return [tokenizer.vocabulary[i] for i in encoding.ids]


def test_pieces(tokenizer):
    row = tokenizer.encode("Unwanted [MASK]!")
    assert tokens(tokenizer, row) == ["[CLS]", "un", "##want", "##ed", "[MASK]", "!", "[SEP]"]
    assert row.offsets == [(0, 0), (0, 2), (2, 6), (6, 8), (9, 15), (15, 16), (0, 0)]
    assert row.word_ids == [None, 0, 0, 0, 1, 2, None]
    assert row.sequence_ids == [None, 0, 0, 0, 0, 0, None]


@pytest.mark.parametrize("max_length", [3, 4, 7, 8, 9, 12, 13, None])
def test_rows_equal_the_reference(tokenizer, reference, max_length):
    if max_length:
        reference.enable_truncation(max_length)
    for text in TEXTS:
        for pair in [None, *TEXTS]:
            theirs = reference.encode(text, pair)
            ours = tokenizer.encode(text, pair, max_length=max_length)
            assert ours.ids == theirs.ids, (text, pair)
            assert ours.type_ids == theirs.type_ids
            assert ours.offsets == theirs.offsets
            assert ours.word_ids == theirs.word_ids
            assert ours.sequence_ids == theirs.sequence_ids


@pytest.mark.parametrize(("max_length", "stride"), [(10, 0), (10, 3), (12, 6), (16, 5), (100, 20)])
def test_windows_equal_the_reference(tokenizer, reference, max_length, stride):
    reference.enable_truncation(max_length, stride=stride, strategy="only_second")
    for context in ["", "cat", "the cat sat on the mat " * 4]:
        first = reference.encode("the cat", context)
        theirs = [first, *first.overflowing]
        ours = tokenizer.encode_windows("the cat", context, max_length=max_length, stride=stride)
        assert [row.ids for row in ours] == [row.ids for row in theirs]
        assert [row.offsets for row in ours] == [row.offsets for row in theirs]


def test_a_question_without_room_for_the_context_is_cut(tokenizer):
    rows = tokenizer.encode_windows("cat " * 50, "mat " * 9, max_length=12, stride=4)
    assert all(len(row.ids) <= 12 for row in rows)
    assert [row.sequence_ids.count(1) for row in rows] == [6, 6, 5]


@pytest.mark.parametrize("stride", [-1, 9, 50])
def test_a_stride_that_does_not_fit_is_named(tokenizer, stride):
    with pytest.raises(SettingError, match=f"stride {stride}"):
        tokenizer.encode_windows("a", "b", max_length=12, stride=stride)


def test_a_length_below_the_special_tokens_is_named(tokenizer):
    with pytest.raises(SettingError, match="max_length 2"):
        tokenizer.encode("a", "b", max_length=2)


def test_kept_lengths_never_pass_the_budget():
    for budget in range(12):
        for first in range(14):
            for second in range(14):
                a, b = truncated_lengths(first, second, budget)
                assert a + b == min(budget, first + second)
                assert a <= first and b <= second


def test_window_ranges_cover_everything():
    for length in range(30):
        for size in range(1, 12):
            for stride in range(size):
                ranges = window_ranges(length, size, stride)
                covered = {i for start, stop in ranges for i in range(start, stop)}
                assert covered == set(range(length))
                assert all(stop - start <= size for start, stop in ranges)


def test_words(tokenizer):
    row = tokenizer.encode_words(["The", "\u200b", "unwanted", "mat!"], max_length=7)
    assert tokens(tokenizer, row) == ["[CLS]", "the", "un", "##want", "##ed", "mat", "[SEP]"]
    assert row.word_ids == [None, 0, 2, 2, 2, 3, None]


def test_lone_surrogates_are_replaced(tokenizer):
    assert tokenizer.encode("the \ud800 cat").ids == tokenizer.encode("the \ufffd cat").ids


def test_decode(tokenizer):
    assert tokenizer.decode(tokenizer.encode("The running cat").ids) == "the running cat"
    assert tokenizer.decode([2, 3], skip_special_tokens=False) == "[CLS] [SEP]"
    assert tokenizer.decode([99999]) == ""  # a row of a padded embedding table
    with pytest.raises(TokenizerError, match="no token -1"):
        tokenizer.decode([-1])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lowercase": False},
        {"lowercase": True, "strip_accents": False},
        {"lowercase": False, "strip_accents": True, "chinese_characters": False},
        {"clean_text": False},
        {"added": ["[unused1]", "Zoë"], "model_size": len(VOCABULARY)},
        {"max_word_characters": 5},
    ],
)
def test_saved_files_read_back(tmp_path, options):
    added = options.get("added", [])
    tokenizer = WordPiece.from_vocabulary([*VOCABULARY, *added], **options)
    tokenizer.save(tmp_path)
    assert load_tokenizer(tmp_path) == tokenizer
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)
    text = "Zoë [unused1] ZOË running unwanted"
    theirs = Rust.from_file(str(tmp_path / "tokenizer.json")).encode(text)
    assert tokenizer.encode(text).ids == theirs.ids


def test_a_vocabulary_alone_is_enough(tmp_path):
    (tmp_path / "vocab.txt").write_text("\r\n".join(VOCABULARY) + "\r\n", newline="")
    assert load_tokenizer(tmp_path) == WordPiece.from_vocabulary(VOCABULARY)
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false, "never_split": null}')
    assert load_tokenizer(tmp_path) == WordPiece.from_vocabulary(VOCABULARY, lowercase=False)


def test_the_config_wins_over_the_tokenizer_file(tmp_path):
    WordPiece.from_vocabulary(VOCABULARY).save(tmp_path)
    config = {"tokenizer_class": "BertTokenizer", "do_lower_case": False}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert not load_tokenizer(tmp_path).lowercase
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert load_tokenizer(tmp_path).lowercase  # without a class, tokenizer.json stands as it is


def test_other_names_of_special_tokens(tmp_path):
    names = ["<pad>", "<unk>", "<s>", "</s>", "<mask>"]
    tokenizer = WordPiece.from_vocabulary([*names, "a"], special_tokens=BertSpecialTokens(*names))
    tokenizer.save(tmp_path)
    assert load_tokenizer(tmp_path) == tokenizer
    (tmp_path / "tokenizer.json").unlink()
    assert load_tokenizer(tmp_path) == tokenizer


BROKEN = {
    "an empty vocabulary": ({"vocab.txt": ""}, "vocab.txt:1"),
    "an empty line": ({"vocab.txt": "[PAD]\n\na\n"}, "vocab.txt:2"),
    "a repeated token": ({"vocab.txt": "[PAD]\na\na\n"}, "vocab.txt:3"),
    "no special tokens": ({"vocab.txt": "a\nb\n"}, r"lacks \[PAD\]"),
    "not UTF-8": ({"vocab.txt": b"[PAD]\n\xff\n"}, "byte 6"),
    "not JSON": ({"tokenizer.json": "{"}, "tokenizer.json:1: not JSON"),
    "not an object": ({"tokenizer.json": "[]"}, "JSON object"),
    "another model": ({"tokenizer.json": '{"model": {"type": "BPE"}}'}, "'model' is a BPE"),
    "nothing": ({}, "neither tokenizer.json nor vocab.txt"),
    "a wrong setting": (
        {"vocab.txt": "\n".join(VOCABULARY), "tokenizer_config.json": '{"do_lower_case": "yes"}'},
        "do_lower_case",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_are_named(tmp_path, case):
    contents, said = BROKEN[case]
    for name, content in contents.items():
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(TokenizerError, match=said):
        load_tokenizer(tmp_path)


def edited(tmp_path, edit):
    WordPiece.from_vocabulary(VOCABULARY).save(tmp_path)
    path = tmp_path / "tokenizer.json"
    data = json.loads(path.read_text())
    edit(data)
    path.write_text(json.dumps(data))
    return tmp_path


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda d: d.update(normalizer={"type": "NFKC"}), "'normalizer' is a NFKC"),
        (lambda d: d.update(normalizer=None), "'normalizer' is missing"),
        (lambda d: d.update(pre_tokenizer={"type": "Whitespace"}), "'pre_tokenizer' is a Whi"),
        (lambda d: d.update(post_processor=None), "post-processor"),
        (
            lambda d: d["model"].update(continuing_subword_prefix="@@"),
            "subword prefix '@@'",
        ),
        (lambda d: d["model"]["vocab"].update(b=9999), "none has the id"),
        (lambda d: d["added_tokens"][0].pop("content"), "without 'content'"),
    ],
)
def test_settings_that_would_change_the_ids_are_refused(tmp_path, edit, said):
    with pytest.raises(TokenizerError, match=said):
        load_tokenizer(edited(tmp_path, edit))


def test_a_directory_that_is_not_there(tmp_path):
    with pytest.raises(TokenizerError, match="no directory"):
        load_tokenizer(tmp_path / "none")


def test_the_size_of_the_embedding_table(tokenizer):
    check_vocabulary_size(tokenizer, tokenizer.vocabulary_size + 6, "here")
    with pytest.raises(TokenizerError, match="here: the vocabulary has"):
        check_vocabulary_size(tokenizer, tokenizer.vocabulary_size - 1, "here")
