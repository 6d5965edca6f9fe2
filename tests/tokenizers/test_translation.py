"""Tokenizers with a side for sources and one for targets, in Python and as TensorFlow ops."""

import json

import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.tiny_tokenizers import CORPUS, TRICKY, tokenizer, trained
from tests.helpers.translation_tokenizers import (
    CODES,
    ENGLISH,
    OTHERS,
    graphs,
    learned,
    pair,
    write_mbart,
)
from tests.helpers.translation_tokenizers import tokenizer as two_sided
from tests.tokenizers.graph.test_decoders import assert_same
from tests.tokenizers.test_command import run
from tfllm.errors import TokenizerError
from tfllm.tokenizers import marian, mbart
from tfllm.tokenizers.loading import load_tokenizer
from tfllm.tokenizers.parity_check import check_file

NAMES = ("marian", "marian apart")
TEXTS = [*CORPUS[:7], *TRICKY, f"{CODES[0]} the cat", f"{CODES[0]}the cat", "a >>xyz<< b", "</s>a"]


@pytest.mark.parametrize("name", NAMES)
def test_the_graph_gives_the_same_on_both_sides(name):
    python = two_sided(name)
    for side, ops in zip((python, python.target), graphs(name), strict=True):
        assert_same(side, ops, TEXTS)
        rows = ops.encode(tf.constant(TEXTS[:3])).to_list()
        assert rows == [side.encode(text).ids for text in TEXTS[:3]]


ALPHABET = st.one_of(
    st.characters(codec="utf-8"),
    st.sampled_from([*"abcthe  ▁<>.,", *CODES, "</s>", "<pad>", "<unk>", "你", "é", "Über"]),
)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=30, deadline=None)
@given(texts=st.lists(st.lists(ALPHABET, max_size=30).map("".join), min_size=1, max_size=8))
def test_random_texts(name, texts):
    python = two_sided(name)
    for side, ops in zip((python, python.target), graphs(name), strict=True):
        assert_same(side, ops, texts)


def test_pieces_have_the_ids_of_the_table():
    python = two_sided("marian")
    table = json.loads(python.table)
    assert python.vocabulary_size == len(table) == python.pad_token_id + 1
    assert (python.eos_token_id, python.unk_token_id, python.bos_token_id) == (0, 1, None)
    for side, model, line in zip((python, python.target), pair(), (ENGLISH[0], OTHERS[1]),
                                 strict=True):  # fmt: skip
        processor = marian.create_processor(model, "model")
        pieces = processor.encode(line, out_type=str)
        assert side.encode(line).ids == [table.get(piece, 1) for piece in pieces] + [0]
        assert 1 in side.encode(line).ids  # pieces that the table lacks
    # The other language's letters are no pieces of this model, and of the table they are.
    assert 1 not in python.encode("ß").ids or "ß" not in table


def test_a_language_code_is_one_token():
    python = two_sided("marian")
    first, *rest = python.encode(f"{CODES[1]} the cat").ids
    assert python.vocabulary[first] == CODES[1]
    assert rest == python.encode("the cat").ids
    assert CODES[1] in python.decode([first, *rest])


def test_texts_come_back():
    python = two_sided("marian apart")
    for line, side in ((ENGLISH[1], python), (OTHERS[1], python.target)):
        ids = side.encode(line).ids
        if side.unk_token_id not in ids:
            assert side.decode(ids) == line
    target = python.target
    ids = [target.encode("und").ids[0], target.pad_token_id, target.eos_token_id]
    kept = target.decode(ids, skip_special_tokens=False)
    assert kept.endswith("<pad> </s>") and not target.decode(ids).endswith("</s>")


@pytest.mark.parametrize("name", NAMES)
def test_a_directory_keeps_both_sides(name, tmp_path):
    python = two_sided(name)
    python.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again == python and again.target == python.target
    assert (tmp_path / marian.TARGET_IDS).exists() == (name == "marian apart")
    assert again.config.get("source_lang") == python.config.get("source_lang")
    for text in TEXTS:
        assert again.encode(text) == python.encode(text)
        assert again.target.encode(text) == python.target.encode(text)


def test_bpe_models_serve_as_well():
    models = [learned(lines, 120, "bpe") for lines in (ENGLISH, OTHERS)]
    from tests.helpers.translation_tokenizers import table_of

    table = table_of(models)
    python = marian.from_protos(models, (table, table))
    assert_same(python, python.graph(), TEXTS[:8])


@pytest.mark.parametrize(
    ("file", "edit", "said"),
    [
        ("target.spm", None, "no target.spm"),
        ("vocab.json", None, "no vocab.json"),
        ("source.spm", b"model", "not a SentencePiece model"),
        ("vocab.json", b'{"<unk>": 0, "<pad>": 1}', "lacks </s>"),
        ("vocab.json", b'{"<unk>": 0, "<pad>": 1, "</s>": 3}', "must be 0 to 2"),
        ("vocab.json", b'{"<unk>": 0, "<pad>": 1, "</s>": "2"}', "tokens with their ids"),
        ("vocab.json", b"[]", "expected a JSON object"),
    ],
)
def test_files_that_do_not_belong_together(tmp_path, file, edit, said):
    two_sided("marian").save(tmp_path)
    (tmp_path / file).unlink() if edit is None else (tmp_path / file).write_bytes(edit)
    with pytest.raises(TokenizerError, match=said):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("kind", mbart.LANGUAGE_CODES)
def test_mbart_says_the_language_of_every_row(tmp_path, kind):
    python = load_tokenizer(write_mbart(tmp_path, kind, src_lang="de_DE", tgt_lang="zh_CN"))
    german, chinese = python.token_id("de_DE"), python.token_id("zh_CN")
    ids = python.encode("the cat", add_special_tokens=False).ids
    first = kind == "MBartTokenizer"
    assert python.encode("the cat").ids == ([*ids, 2, german] if first else [german, *ids, 2])
    want = [*ids, 2, chinese] if first else [chinese, *ids, 2]
    assert python.target.encode("the cat").ids == want
    for side, texts in ((python, TEXTS[:3]), (python.target, TEXTS[3:6])):
        rows = side.graph().encode(tf.constant(texts)).to_list()
        assert rows == [side.encode(text).ids for text in texts]
    assert python.decode(want) == python.decode(ids)
    assert python.vocabulary[-1] == "<mask>"

    python.save(tmp_path / "again")
    again = load_tokenizer(tmp_path / "again")
    assert again.target.encode("the cat").ids == want
    turned = mbart.with_languages(again, "zh_CN", "de_DE")
    turned.save(tmp_path / "turned")
    assert load_tokenizer(tmp_path / "turned").encode("the cat").ids == want
    with pytest.raises(TokenizerError, match="Did you mean 'de_DE'"):
        mbart.with_languages(again, "de_DF", "zh_CN")


def test_mbart_from_a_tokenizer_json(tmp_path):
    """transformers 5 writes no .model file, and into the file what was asked last."""
    from tokenizers import Tokenizer, processors

    python = tokenizer("unigram.json")
    rust = Tokenizer.from_str(python.definition)
    rust.add_special_tokens(["en_XX", "ro_RO"])
    rust.post_processor = processors.TemplateProcessing(
        single="$A </s> ro_RO", pair="$A $B </s> ro_RO",
        special_tokens=[(token, rust.token_to_id(token)) for token in ("</s>", "ro_RO")],
    )  # fmt: skip
    rust.save(str(tmp_path / "tokenizer.json"))
    config = {"tokenizer_class": "MBartTokenizer", "eos_token": "</s>", "tgt_lang": "ro_RO"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    loaded = load_tokenizer(tmp_path)
    assert loaded.row_template.suffix == (loaded.eos_token_id, loaded.token_id("en_XX"))
    assert loaded.target.row_template.suffix == (loaded.eos_token_id, loaded.token_id("ro_RO"))
    rows = loaded.target.graph().encode(tf.constant(["the cat"])).to_list()
    assert rows == [loaded.target.encode("the cat").ids]


def test_others_have_one_side_and_no_languages():
    for name in ("gpt2", "unigram.json", "unigram"):
        python = tokenizer(name)
        assert python.target is python
        with pytest.raises(TokenizerError, match="no languages"):
            mbart.with_languages(python, "en_XX", "de_DE")


@pytest.mark.parametrize(
    ("kind", "count", "named"),
    [("T5Tokenizer", 100, True), ("MT5Tokenizer", 0, True), ("T5Tokenizer", 100, False)],
)
def test_t5_adds_the_ids_of_its_sentinels(tmp_path, kind, count, named):
    (tmp_path / "spiece.model").write_bytes(trained("unigram").SerializeToString())
    settings = {"tokenizer_class": kind, "extra_ids": count}
    if named:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    else:  # as the first files were
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "t5"}))
    python = load_tokenizer(tmp_path)
    ids = python.encode("the <extra_id_0> cat<extra_id_1>").ids
    assert ids[-1] == python.eos_token_id
    if count:
        assert python.vocabulary[-1] == "<extra_id_0>"
        assert {python.vocabulary_size - 1, python.vocabulary_size - 2} < set(ids)
    rows = python.graph().encode(tf.constant(["the <extra_id_0> cat<extra_id_1>"])).to_list()
    assert rows == [ids]
    assert python.target is python


@pytest.mark.slow
@pytest.mark.parametrize(
    ("source", "target"),
    [("multi30k/val.en.gz", "multi30k/val.de.gz"), ("multi30k/val.fr.gz", "multi30k/val.en.gz")],
)
def test_every_line_of_real_text(data, source, target):
    """No difference between Python and graph, on the side that a line is meant for or not."""
    from tests.helpers.translation_tokenizers import table_of
    from tfllm.tokenizers.parity_check import read_lines

    models = [
        learned([line.decode() for line in read_lines(data / name)], 2000)
        for name in (source, target)
    ]
    table = table_of(models, 20)
    python = marian.from_protos(models, (table, table))
    for side in (python, python.target):
        ops = side.graph()
        for name in (source, target, "tatoeba_cmn_eng/cmn-eng.train.tsv.gz"):
            report = check_file(data / name, side, ops)
            assert (report.different, report.examples) == (0, [])
            assert report.lines > 1000


def test_the_command_takes_either_side(tmp_path, capsys):
    python = two_sided("marian apart")
    model, lines = tmp_path / "model", tmp_path / "lines.txt"
    python.save(model)
    lines.write_text("\n".join(OTHERS[:3]) + "\n", encoding="utf-8")
    for side, options in ((python, ()), (python.target, ("--target",))):
        ids = side.encode("the cat").ids
        status, out, _ = run(capsys, "encode", model, "the cat", *options)
        assert (status, out.split("\n")[0]) == (0, " ".join(map(str, ids)))
        assert run(capsys, "decode", model, *ids, *options)[:2] == (0, side.decode(ids) + "\n")
        assert run(capsys, "check", model, lines, *options)[0] == 0
