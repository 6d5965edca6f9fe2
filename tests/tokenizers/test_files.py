"""Every setting that tokenizer files can hold gives transformers' ids or is refused by name."""

import json
from pathlib import Path

import pytest

from tests.tokenizers.file_cases import PAIR, TEXTS, cases, write
from tfllm.errors import TokenizerError
from tfllm.tokenizers.loading import load_tokenizer

GOLDEN = Path(__file__).parents[1] / "golden" / "tokenizer_files.json"
MODELS = ("llama", "t5", "xlm-r")  # that have a `.model` file and no tokenizer.json
UNKNOWN = (
    "BertJapaneseTokenizer", "SplinterTokenizer", "CLIPTokenizer",
    "DebertaTokenizer", "WhisperTokenizer", "ReformerTokenizer",
    "XGLMTokenizer", "PegasusTokenizer", "XLNetTokenizer", "NllbTokenizer",
)  # fmt: skip
# Where transformers differs on purpose: see docs/tokenizers.md, "Settings beside a vocabulary".
OTHERWISE = {
    "bert: no class", "gpt2: no class", "llama: no class", "t5: no class", "xlm-r: no class",
    "roberta: no class",
    "t5: additional_special_tokens", "t5: additional_special_tokens as tables",
    "t5: extra_special_tokens, list", "t5: added_tokens.json, special",
    "t5: class LlamaTokenizer", "xlm-r: class LlamaTokenizer",
}  # fmt: skip


def said(maker, setting):
    """What the refusal of a setting names, None where it is honoured."""
    described = maker.endswith(".json")
    if setting == "unknown class":
        return "MyTokenizer is not known"
    if setting.startswith("class ") and setting.removeprefix("class ") in UNKNOWN:
        return f"{setting.removeprefix('class ')} is not known"
    if setting == "auto_map":
        return "'auto_map' names a tokenizer's own code"
    if setting == "a gap":
        return "without a gap"
    others = {
        ("bert", "class GPT2Tokenizer"): "is for byte-level BPE, and this file holds WordPiece",
        ("bert.json", "class GPT2Tokenizer"): "is for byte-level BPE",
        ("gpt2", "class BertTokenizer"): "is for WordPiece, and this file holds byte-level BPE",
        ("llama", "class Qwen2Tokenizer"): "is for byte-level BPE, and this file holds Sent",
        ("llama.json", "class Qwen2Tokenizer"): "is for byte-level BPE",
        ("llama", "class CamembertTokenizer"): "reads unigram models",
        ("llama.json", "class CamembertTokenizer"): "reads unigram models",
        ("xlm-r.json", "class LlamaTokenizer"): "reads BPE models",
        ("xlm-r", "no add_prefix_space"): "'add_prefix_space' false",
        ("xlm-r", "eos_token"): "'eos_token' is 'the'",
        ("xlm-r", "mask_token"): "'mask_token' is 'cat'",
        ("xlm-r", "pad_token"): "'pad_token' is 'the'",
        ("xlm-r", "a new pad_token"): "'pad_token' is '<new pad>'",
        ("xlm-r", "added_tokens.json, other order"): "'eos_token' is ",
        ("xlm-r", "added_tokens_decoder, backwards"): "'eos_token' is ",
        ("xlm-r", "special_tokens_map beside a decoder"): "'eos_token' is ",
        ("xlm-r", "special_tokens_map alone"): "'eos_token' is ",
        ("t5", "split_special_tokens"): "'split_special_tokens'",
        ("xlm-r", "split_special_tokens"): "'split_special_tokens'",
    }
    if maker in MODELS:
        others[maker, "sp_model_kwargs, sampling"] = "'sp_model_kwargs' turns on"
        others[maker, "single_word"] = "'newtok' has single_word"
    if not described:
        for name in ("PreTrainedTokenizerFast", "add_prefix_space, fast", "do_lower_case, fast"):
            others[maker, name] = "PreTrainedTokenizerFast reads a tokenizer.json"
        others[maker, "TokenizersBackend"] = "TokenizersBackend reads a tokenizer.json"
    return others.get((maker, setting))


@pytest.mark.parity
def test_the_goldens_are_what_transformers_gives(monkeypatch, tmp_path):
    pytest.importorskip("transformers")
    from tests.golden import make_tokenizer_files

    monkeypatch.setattr(make_tokenizer_files, "OUTPUT", tmp_path / "again.json")
    make_tokenizer_files.main()
    assert (tmp_path / "again.json").read_bytes() == GOLDEN.read_bytes()


CASES = cases()
GOLDENS = json.loads(GOLDEN.read_text())


@pytest.mark.parametrize("maker", dict.fromkeys(name.split(": ")[0] for name in CASES))
def test_every_setting_is_honoured_or_refused_by_name(maker, tmp_path):
    honoured = 0
    for number, (name, contents) in enumerate(CASES.items()):
        kind, setting = name.split(": ", 1)
        if kind != maker:
            continue
        folder = write(tmp_path / str(number), contents)
        if refusal := said(maker, setting):
            with pytest.raises(TokenizerError, match=refusal):
                load_tokenizer(folder)
            continue
        python = load_tokenizer(folder)
        if name in OTHERWISE:
            continue
        assert GOLDENS["cases"][name], f"{name}: transformers refuses what is read here"
        size, *rows = GOLDENS["cases"][name]
        expected = [[int(i) for i in GOLDENS["rows"][row].split()] for row in rows]
        got = [python.encode(text).ids for text in TEXTS]
        assert [*got, python.encode(*PAIR).ids] == expected, name
        assert python.encode_ids(TEXTS) == got, name
        assert python.vocabulary_size == size, name
        honoured += 1
    assert honoured > 20


@pytest.mark.parametrize("maker", dict.fromkeys(name.split(": ")[0] for name in CASES))
def test_what_is_saved_is_read_back_the_same(maker, tmp_path):
    for number, (name, contents) in enumerate(CASES.items()):
        kind, setting = name.split(": ", 1)
        # Every second one: neighbours differ in one setting, and each kind has them all.
        if kind != maker or number % 2 or said(maker, setting):
            continue
        python = load_tokenizer(write(tmp_path / str(number), contents))
        python.save(tmp_path / f"{number} again")
        again = load_tokenizer(tmp_path / f"{number} again")
        assert [again.encode(text) for text in TEXTS] == [python.encode(text) for text in TEXTS]
        assert (again.vocabulary, again.row_template) == (python.vocabulary, python.row_template), (
            name
        )
        assert again.all_special_ids == python.all_special_ids, name
