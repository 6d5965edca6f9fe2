"""Tokenizers as transformers saves them: Python and the graph agree on hostile texts, or the graph
says by name what it does not know."""

import base64
import functools
import gzip
import json
from pathlib import Path

import pytest
import tensorflow as tf

from tests.tokenizers import hostile
from tfllm.errors import TokenizerError
from tfllm.tokenizers.loading import load_tokenizer

GOLDEN = Path(__file__).parent.parent / "golden"
VERSIONS = ("4.57", "5.23")
BINARY = (".model", ".spm")
COUNT = 2000
BATCH = 250
# What is refused -> words of the message.
REFUSED = {
    "bert cased + tokens": "The added token 'lily<x>' has normalized set",
    "clip": "class CLIPTokenizer is not known here",
}


@functools.cache
def saved(version):
    return json.loads(gzip.decompress((GOLDEN / f"tokenizers-{version}.json.gz").read_bytes()))


EVERY = [(version, name) for version in VERSIONS for name in saved(version)]


def load(version, name, folder):
    folder.mkdir(exist_ok=True)
    for file, text in saved(version)[name].items():
        data = base64.b64decode(text) if file.endswith(BINARY) else text.encode()
        (folder / file).write_bytes(data)
    return load_tokenizer(folder)


def differences(python, graph, texts):
    """(text, tokens in Python, tokens in the graph) where they differ."""
    found = []
    for begin in range(0, len(texts), BATCH):
        batch = texts[begin : begin + BATCH]
        rows = python.encode_batch(
            [text.decode(errors="replace") for text in batch], add_special_tokens=False
        )
        ids, *places = (part.to_list() for part in graph.tokenize_with_offsets(tf.constant(batch)))
        assert graph.tokenize(tf.constant(batch)).to_list() == ids
        for text, row, own, first, last in zip(batch, rows, ids, *places, strict=True):
            wanted = list(zip(row.ids, row.offsets, strict=True))
            got = list(zip(own, zip(first, last, strict=True), strict=True))
            if got != wanted:
                found.append((text, wanted, got))
    return found


def test_every_class_is_there():
    assert {name for _, name in EVERY} >= {
        *(
            "bert uncased",
            "bert chinese",
            "distilbert",
            "electra",
            "roberta",
            "bart",
            "gpt2",
            "qwen2",
        ),
        *("llama", "llama3", "mistral", "t5", "mbart", "mbart50", "xlm-roberta", "marian"),
        *("albert, as written", "gpt-neox", "gemma", "t5 slow", "llama slow", "xlm-roberta slow"),
    }


@pytest.mark.parametrize("lowers", [True, False])
def test_alberts_settings_win_over_its_file(tmp_path, lowers):
    names = ("albert", "albert, as written") if lowers else ("albert, as written", "albert")
    expected, _ = (load("5.23", name, tmp_path / name) for name in names)
    path = tmp_path / names[1] / "tokenizer_config.json"
    settings = {"do_lower_case": lowers, "keep_accents": not lowers}
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    python = load_tokenizer(path.parent)
    for text in ("The Cat's mat, é ``x''", "Über ﬁ [MASK]"):
        assert python.encode(text, "é B") == expected.encode(text, "é B")


@pytest.mark.slow
@pytest.mark.parametrize(("version", "name"), EVERY)
def test_every_saved_tokenizer(version, name, tmp_path):
    if name in REFUSED:
        with pytest.raises(TokenizerError, match=REFUSED[name]):
            load(version, name, tmp_path).graph()
        return
    python = load(version, name, tmp_path)
    for side in {id(side): side for side in (python, python.target)}.values():
        assert differences(side, side.graph(), hostile.texts(COUNT)) == []
