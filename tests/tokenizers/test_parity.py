"""Against transformers, which reads the same files."""

import pytest

from tests.helpers.tiny_tokenizers import TRICKY, tokenizer, trained
from tests.tokenizers.test_sweep import DECODERS
from tfllm.tokenizers.loading import load_tokenizer

pytestmark = pytest.mark.parity
NAMES = ("gpt2", "neox", "llama3", "qwen2", "smollm2", "roberta", "llama.json", "unigram.json")


@pytest.mark.parametrize("name", NAMES)
def test_transformers_reads_what_was_saved(name, tmp_path):
    transformers = pytest.importorskip("transformers")
    python = tokenizer(name)
    python.save(tmp_path)
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(tmp_path)
    for text in TRICKY:
        for pair in (None, "a pair"):
            row = python.encode(text, pair)
            assert theirs(text, pair)["input_ids"] == row.ids, repr(text)
        for skip in (True, False):
            expected = theirs.decode(
                row.ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False
            )
            assert python.decode(row.ids, skip_special_tokens=skip) == expected


@pytest.mark.parametrize("name", [name for name in DECODERS if name.endswith(".model")])
def test_the_sentencepiece_package_gives_the_same(data, name):
    import sentencepiece

    path = data / "tokenizers" / name
    python = load_tokenizer(path)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    for text in TRICKY:
        if not any(token in text for token in python.matched_token_texts):
            ids = python.encode(text, add_special_tokens=False).ids
            assert ids == processor.encode(text)
            assert python.decode(ids) == processor.decode(
                [i for i in ids if i not in python.all_special_ids]
            )


def test_xlm_r_as_transformers_numbers_it(tmp_path):
    pytest.importorskip("transformers")
    from transformers.models.xlm_roberta.tokenization_xlm_roberta import XLMRobertaTokenizer

    model = trained("unigram", pad_id=-1)
    (tmp_path / "sentencepiece.bpe.model").write_bytes(model.SerializeToString())
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "XLMRobertaTokenizer"}')
    theirs = XLMRobertaTokenizer.from_pretrained(tmp_path)
    python = load_tokenizer(tmp_path)
    assert python.vocabulary == theirs.convert_ids_to_tokens(list(range(len(theirs))))
    for text in ("the cat sat", "  Über  den 你好", "1974"):
        assert python.encode(text, "cat").ids == theirs(text, "cat")["input_ids"]


def assert_as_transformers(python, theirs, texts):
    """Rows of sources and of targets, and texts back from targets' rows.

    With two tables transformers takes the sources' ids of special tokens for the targets' too.
    """
    python, sources = python.target, python
    apart = python.vocabulary != sources.vocabulary
    for text in texts:
        if apart and any(token in text for token in python.special_tokens.tokens()):
            continue
        row = python.encode(text).ids
        assert theirs(text)["input_ids"] == sources.encode(text).ids, repr(text)
        assert theirs(text_target=text)["input_ids"] == row, repr(text)
        for skip in () if apart else (False, True):
            want = theirs.decode(row, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
            assert python.decode(row, skip_special_tokens=skip) == want, repr(text)


@pytest.mark.parametrize("name", ["marian", "marian apart"])
def test_marian(name, tmp_path):
    transformers = pytest.importorskip("transformers")
    from tests.helpers.translation_tokenizers import CODES
    from tests.helpers.translation_tokenizers import tokenizer as two_sided

    python = two_sided(name)
    python.save(tmp_path)
    theirs = transformers.MarianTokenizer.from_pretrained(tmp_path)
    # transformers reads a code at the start only, and one after a special token elsewhere.
    assert_as_transformers(python, theirs, [*TRICKY, f"{CODES[0]} the cat", f"{CODES[0]}cat"])


@pytest.mark.parametrize("kind", ["MBartTokenizer", "MBart50Tokenizer"])
def test_mbart(kind, tmp_path):
    transformers = pytest.importorskip("transformers")
    from tests.helpers.translation_tokenizers import write_mbart

    write_mbart(tmp_path, kind, src_lang="de_DE", tgt_lang="zh_CN")
    theirs = getattr(transformers, kind).from_pretrained(tmp_path)
    python = load_tokenizer(tmp_path)
    texts = ["the cat sat", "Über den Wolken", "1974"]
    for text in texts:
        assert python.encode(text).ids == theirs(text)["input_ids"]
        assert python.target.encode(text).ids == theirs(text_target=text)["input_ids"]
    theirs.save_pretrained(tmp_path / "theirs")
    again = load_tokenizer(tmp_path / "theirs")
    for text in texts:
        assert again.encode(text).ids == theirs(text)["input_ids"]
        assert again.target.encode(text).ids == theirs(text_target=text)["input_ids"]
