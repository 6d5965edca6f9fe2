"""Vocabularies of decoders: what is read, what is written, what is refused."""

import json
import struct

import pytest
from tokenizers import Tokenizer as Rust

from tests.helpers.tiny_tokenizers import MAKERS, ROBERTA, TRICKY, learned, tokenizer, trained
from tfllm.errors import TokenizerError
from tfllm.tokenizers import sentencepiece_proto as proto
from tfllm.tokenizers.loading import load_tokenizer
from tfllm.tokenizers.sentencepiece import from_proto


@pytest.mark.parametrize("name", MAKERS)
def test_saved_files_read_back(name, tmp_path):
    python = tokenizer(name)
    python.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.vocabulary == python.vocabulary
    assert (again.kind, again.row_template, again.special_tokens) == (
        python.kind,
        python.row_template,
        python.special_tokens,
    )
    for text in TRICKY:
        assert again.encode(text) == python.encode(text)
    if (tmp_path / "tokenizer.json").is_file():
        rust = Rust.from_file(str(tmp_path / "tokenizer.json"))
        for text in TRICKY:
            row, expected = python.encode(text, "pair"), rust.encode(text, "pair")
            assert (row.ids, row.type_ids) == (expected.ids, expected.type_ids)
            if name == "characters":  # the package does not count the characters it leaves out
                pair = zip(row.ids, row.offsets, row.sequence_ids, strict=True)
                for number, (start, end), which in pair:
                    if which is not None:
                        assert (text, "pair")[which][start:end] == python.vocabulary[number]
            else:
                assert row.offsets == expected.offsets
            assert python.decode(row.ids) == rust.decode(expected.ids)


@pytest.mark.parametrize("names", [("vocab.json", "merges.txt"), ("encoder.json", "vocab.bpe")])
def test_vocabulary_and_merges(names, tmp_path):
    tokenizer("gpt2").save(tmp_path / "all")
    for name, source in zip(names, ("vocab.json", "merges.txt"), strict=True):
        (tmp_path / name).write_bytes((tmp_path / "all" / source).read_bytes())
    python = load_tokenizer(tmp_path)
    for text in TRICKY:
        plain = text.replace("<|", "")  # the file of merges does not know the added tokens
        assert python.encode(plain).ids == tokenizer("gpt2").encode(plain).ids


def test_roberta_rows():
    python = tokenizer("roberta")
    tokens = [python.vocabulary[i] for i in python.encode("cat", "mat").ids]
    assert [tokens[0], tokens[-1]] == ["<s>", "</s>"]
    assert tokens.count("</s>") == 3
    assert set(python.encode("cat", "mat").type_ids) == {0}
    ids = python.bos_token_id, python.eos_token_id, python.mask_token_id
    assert [python.vocabulary[i] for i in ids] == ["<s>", "</s>", "<mask>"]
    assert python.vocabulary[python.encode("the  <mask>").ids[-2]] == "<mask>"


def test_xlm_r_numbers():
    python, model = tokenizer("xlm-r"), trained("unigram", pad_id=-1)
    assert python.vocabulary[:4] == ["<s>", "<pad>", "</s>", "<unk>"]
    assert python.vocabulary[-1] == "<mask>"
    assert python.vocabulary_size == len(model.pieces) + 2
    plain = from_proto(model)
    ids = plain.encode_ids(["the cat"], add_special_tokens=False)[0]
    assert python.encode("the cat").ids == [0, *(i + 1 for i in ids), 2]


def test_camembert_numbers():
    python, model = tokenizer("camembert"), trained("unigram", pad_id=-1)
    assert python.vocabulary[:7] == [
        "<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED", "<s>", "</s>"
    ]  # fmt: skip
    assert python.vocabulary[-1] == "<mask>"
    assert python.vocabulary_size == len(model.pieces) + 5
    ids = from_proto(model).encode_ids(["the cat"], add_special_tokens=False)[0]
    assert python.encode("the cat", "the cat").ids == [
        5, *(i + 4 for i in ids), 6, 6, *(i + 4 for i in ids), 6
    ]  # fmt: skip
    assert (python.pad_token_id, python.unk_token_id) == (1, 3)


def test_t5_sentinels_count_down():
    python = tokenizer("t5")
    size = len(trained("unigram").pieces)
    assert python.vocabulary_size == size + 100
    assert python.token_id("<extra_id_0>") == size + 99
    assert python.encode("a <extra_id_0> b").ids.count(size + 99) == 1


def test_special_tokens_are_told_apart():
    python = tokenizer("gpt2")
    ids = python.encode("<|im_start|>cat").ids
    assert python.decode(ids) == "cat"
    assert python.decode(ids, skip_special_tokens=False) == "<|im_start|>cat"
    assert (python.pad_token_id, python.mask_token_id) == (None, None)
    assert python.bos_token_id == python.eos_token_id == python.token_id("<|endoftext|>")
    llama = tokenizer("bpe")
    assert llama.encode("cat").ids[0] == llama.bos_token_id
    assert llama.encode("cat", add_special_tokens=False).ids == llama.encode("cat").ids[1:]


def test_settings_name_the_special_tokens(tmp_path):
    tokenizer("gpt2").save(tmp_path)
    settings = {"eos_token": "<|im_end|>", "pad_token": {"content": "<|endoftext|>"},
                "bos_token": None, "chat_template": "{{ messages }}"}  # fmt: skip
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "special_tokens_map.json").unlink()
    python = load_tokenizer(tmp_path)
    assert python.vocabulary[python.eos_token_id] == "<|im_end|>"
    assert python.vocabulary[python.pad_token_id] == "<|endoftext|>"
    assert python.bos_token_id is None
    assert python.chat_template == "{{ messages }}"
    python.save(tmp_path / "again")
    assert load_tokenizer(tmp_path / "again") == python


def llama2c(pieces):
    head = struct.pack("<i", max(len(piece.encode()) for piece, _ in pieces))
    return head + b"".join(
        struct.pack("<fi", score, len(piece.encode())) + piece.encode() for piece, score in pieces
    )


def test_llama2c_joins_the_best_scores_first(tmp_path):
    pieces = [("<unk>", 0.0), ("\n<s>\n", 0.0), ("\n</s>\n", 0.0)]
    pieces += [(token, 0.0) for token in proto.BYTES]
    pieces += [(" ", -9), ("a", -8), ("b", -7), ("c", -6), ("bc", -1), ("ab", -2), (" a", -3)]
    (tmp_path / "tokenizer.bin").write_bytes(llama2c(pieces))
    python = load_tokenizer(tmp_path)
    tokens = [python.vocabulary[i] for i in python.encode("abc é").ids]
    assert tokens == ["<s>", "▁a", "bc", "▁", "<0xC3>", "<0xA9>"]
    assert python.decode(python.encode("abc é").ids) == "abc é"
    assert (python.bos_token_id, python.eos_token_id) == (1, 2)


def test_llama2c_of_real_data(data):
    python = load_tokenizer(data / "checkpoints" / "stories260K_tok512.bin")
    text = "Once upon a time, there was a little girl named Lily."
    ids = python.encode(text).ids
    assert (python.vocabulary_size, ids[0]) == (512, 1)
    assert python.decode(ids) == text


BROKEN = {
    "no merges": ({"vocab.json": "{}"}, "neither tokenizer.json"),
    "a merge of one": ({"vocab.json": '{"a": 0}', "merges.txt": "#version: 0.2\na\n"}, "txt:2"),
    "a merge of nothing known": (
        {"vocab.json": '{"a": 0, "b": 1}', "merges.txt": "a b\n"}, "lacks 'ab'"
    ),
    "words with an end": ({"vocab.json": '{"a</w>": 0}', "merges.txt": ""}, "over characters"),
    "ids that are no numbers": ({"vocab.json": '{"a": "b"}', "merges.txt": ""}, "with their ids"),
    "no model": ({"tokenizer.model": "nothing"}, "not a SentencePiece model"),
    "an empty model": ({"spiece.model": ""}, "not a SentencePiece model"),
    "half a llama2.c file": ({"tokenizer.bin": "abcdefgh"}, "llama2.c"),
    "json of no tokenizer": (
        {"tokenizer.json": '{"model": {"type": "Unigram", "vocab": 3}}'}, "not a usable"
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_are_named(case, tmp_path):
    contents, said = BROKEN[case]
    for name, content in contents.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(TokenizerError, match=said):
        load_tokenizer(tmp_path)


def test_other_classes_of_the_same_file_are_refused(tmp_path):
    (tmp_path / "sentencepiece.bpe.model").write_bytes(trained("unigram").SerializeToString())
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "NllbTokenizer"}')
    with pytest.raises(TokenizerError, match="NllbTokenizer"):
        load_tokenizer(tmp_path)


def test_a_vocabulary_without_all_bytes_has_no_graph():
    from tokenizers import models, pre_tokenizers

    from tfllm.tokenizers.bytepair import BytePair

    vocabulary = {token: n for n, token in enumerate(t for t in learned()[0] if t != "z")}
    merges = [pair for pair in learned()[1] if "z" not in "".join(pair)]
    rust = Rust(models.BPE(vocabulary, merges))
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    with pytest.raises(TokenizerError, match="lacks 1 of the bytes"):
        BytePair.from_definition(rust.to_str()).graph()
    assert set(ROBERTA) - set(vocabulary)
