"""GGUF files that tfllm writes, in llama.cpp itself and in transformers' reader."""

import numpy as np
import pytest

from tests.checkpoints.llama_cpp import LlamaCpp
from tests.checkpoints.test_gguf import MODELS, damaged, make, only_file
from tests.helpers import tiny_tokenizers
from tfllm.checkpoints import gguf, store
from tfllm.tokenizers import gguf_vocabulary

pytestmark = pytest.mark.parity

# llama.cpp sums in another order, and looks GELU (GPT-2) up in a table of float16. Of logits up to
# some tens.
LOGITS_TOLERANCE = 5e-3
# Nats. llama.cpp rounds activations to 8 bits in blocks of 32 before it multiplies with q8_0.
Q8_DIVERGENCE = 5e-3
TEXTS = [text for text in tiny_tokenizers.CORPUS[:7] if "\u2581" not in text]


def logits_of(checkpoint, ids):
    rows = np.array([ids], np.int32)
    return np.asarray(checkpoint.model({"token_ids": rows, "padding_mask": np.ones_like(rows)}))[0]


def divergence(expected, found):
    def log_probabilities(logits):
        logits = logits - logits.max(-1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(-1, keepdims=True))

    first, second = log_probabilities(expected), log_probabilities(found)
    return float((np.exp(first) * (first - second)).sum(-1).mean())


@pytest.mark.parametrize("name", MODELS)
def test_llama_cpp_gives_the_same_ids_and_logits(name, tmp_path):
    checkpoint = make(name)
    path = only_file(gguf.write(checkpoint, tmp_path / "out", "f32"))
    runtime = LlamaCpp(path)
    for text in TEXTS:
        expected = list(checkpoint.tokenizer.encode_ids([text], add_special_tokens=False)[0])
        assert runtime.encode(text) == expected, text
    ids = expected[:40]
    found = runtime.logits(ids)
    expected = logits_of(checkpoint, ids)
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(found[:, : expected.shape[1]], expected, atol=LOGITS_TOLERANCE)


@pytest.mark.parametrize("alias", gguf_vocabulary.ALIASES)
def test_llama_cpp_splits_words_alike_under_other_names(alias, tmp_path):
    rule = gguf_vocabulary.ALIASES[alias]
    name = {"llama-bpe": "llama 3", "gpt-2": "gpt2", "dbrx": "olmo2", "smollm": "granite"}
    checkpoint = make(name.get(rule, rule))
    path = only_file(gguf.write(checkpoint, tmp_path / "out", "f32"))
    path = damaged(path, **{"tokenizer.ggml.pre": alias})
    runtime = LlamaCpp(path)
    again = store.load(path)
    for text in TEXTS:
        expected = list(checkpoint.tokenizer.encode_ids([text], add_special_tokens=False)[0])
        assert runtime.encode(text) == expected, text
        assert list(again.tokenizer.encode_ids([text], add_special_tokens=False)[0]) == expected


def test_a_q8_0_file_has_nearly_the_same_probabilities(data, tmp_path):
    checkpoint = store.load(data / "checkpoints" / "stories260K.bin")
    story = "Once upon a time, there was a little girl named Lily. She loved to play outside."
    ids = list(checkpoint.tokenizer.encode(story).ids)
    expected = logits_of(checkpoint, ids)
    path = only_file(gguf.write(checkpoint, tmp_path / "out", "q8_0"))
    found = LlamaCpp(path).logits(ids)
    assert 0 < divergence(expected, found) < Q8_DIVERGENCE


@pytest.mark.parametrize("name", ["llama", "llama untied", "qwen2", "qwen3", "gpt2"])
def test_transformers_reads_the_same_model(name, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    checkpoint = make(name)
    path = only_file(gguf.write(checkpoint, tmp_path / "out", "f32"))
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    ).eval()
    ids = list(range(3, 40))
    with torch.no_grad():
        found = model(torch.tensor([ids])).logits[0].numpy()
    np.testing.assert_allclose(found, logits_of(checkpoint, ids), atol=LOGITS_TOLERANCE)
