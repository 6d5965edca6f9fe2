"""Rows of a stream: every token told once, documents apart, and the same after a shift."""

import numpy as np
import pytest

from tfllm.errors import DataError, SettingError
from tfllm.models import bert, gpt2
from tfllm.tasks import CausalLM, build
from tfllm.tasks.features import IGNORED
from tfllm.tasks.objectives import packing
from tfllm.tokenizers.characters import from_characters

START, END = 0, 1


@pytest.fixture(scope="module")
def letters():
    return from_characters("abcdefghij \n", specials=("<s>", "</s>"))


def spelled(tokenizer, ids):
    return tokenizer.decode(list(ids), skip_special_tokens=True)


def examples(*texts):
    return [{"text": text} for text in texts]


def rows_of(features):
    inputs, targets = features.batch(range(len(features)))
    return inputs["token_ids"], inputs["padding_mask"], targets


def told(features):
    """(token, next token) of every place that counts, sorted."""
    ids, _, targets = rows_of(features)
    seen = targets != IGNORED
    return sorted(zip(ids[seen].tolist(), targets[seen].tolist(), strict=True))


def test_packed_rows_are_full_and_documents_do_not_mix(letters):
    task = CausalLM(max_length=4)
    features = task.features(examples("abc", "de", "fghij"), letters)
    ids, mask, targets = rows_of(features)
    assert features.lengths.tolist() == [4, 4, 4, 4]
    assert ids.ravel().tolist() == [0, 2, 3, 4, 1, 0, 5, 6, 1, 0, 7, 8, 9, 10, 11, 1]
    assert mask.tolist() == [[1, 1, 1, 1], [1, 2, 2, 2], [1, 2, 2, 2], [1, 1, 1, 1]]
    # The next token, also over the end of a row; nothing after the end of a document.
    assert targets.ravel().tolist() == [2, 3, 4, 1, -100, 5, 6, 1, -100, 7, 8, 9, 10, 11, 1, -100]


@pytest.mark.parametrize("epoch", [0, 1, 2, 3])
def test_every_epoch_tells_every_token_once(letters, epoch):
    task = CausalLM(max_length=4)
    features = task.features(examples("abc", "de", "fghij", "a"), letters)
    moved = task.for_epoch(features, seed=3, epoch=epoch)
    assert told(moved) == told(features)
    assert moved.lengths.tolist() == features.lengths.tolist()
    again = task.for_epoch(features, seed=3, epoch=epoch)
    assert np.array_equal(rows_of(moved)[0], rows_of(again)[0])


def test_epochs_differ(letters):
    task = CausalLM(max_length=8)
    features = task.features(examples("abcdefghij" * 5), letters)
    rows = {rows_of(task.for_epoch(features, 1, epoch))[0].tobytes() for epoch in range(6)}
    assert len(rows) > 3


def test_one_text_as_a_stream(letters):
    task = CausalLM(max_length=5, documents=False)
    text = "abc de\nfghij"
    features = task.features(examples(text), letters)
    ids, mask, targets = rows_of(features)
    assert spelled(letters, ids[mask > 0]) == text
    assert (targets != IGNORED).sum() == len(text) - 1
    lines = task.features(examples("abc de", "fghij"), letters)
    assert spelled(letters, lines.token_ids[0]) == text[:5] and told(lines) == told(features)


def test_one_document_a_row(letters):
    task = CausalLM(max_length=4, packing=False)
    ids, mask, targets = rows_of(task.features(examples("ab", "cdefg"), letters))
    assert mask.tolist() == [[1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 0]]
    assert targets.tolist() == [[2, 3, 1, -100], [4, 5, 6, 7], [8, 1, -100, -100]]
    assert ids[2].tolist() == [7, 8, 1, 0]


def test_whole_rows_hold_what_fits():
    starts = np.array([0, 3, 5, 9, 10])
    begins, lengths = packing.pack_documents(starts, 14, 6)
    assert begins.tolist() == [0, 5, 10] and lengths.tolist() == [5, 5, 4]


def test_a_long_text_is_cut_where_byte_level_tokenizers_cut():
    text = "a line of text \n\n  and the next\n" * 50
    parts = list(packing.chunk_text(text, 100))
    assert "".join(parts) == text and max(map(len, parts)) <= 100
    assert all(part[0].isspace() and not part[:-1].endswith("\n") for part in parts[1:-1])
    assert "".join(packing.chunk_text("x" * 1000, 64)) == "x" * 1000


def test_paragraphs_are_joined(letters):
    features = CausalLM(max_length=16).features([{"text": ["ab", "cd"]}], letters)
    assert spelled(letters, features.token_ids[0]) == "ab\ncd"


def test_a_stream_of_a_large_vocabulary_is_small():
    documents = ((np.arange(1000), None) for _ in range(3))
    assert packing.build_stream(documents, 50257).ids.nbytes == 6000
    assert packing.build_stream([(np.array([70000]), None)], 100_000).ids.dtype == np.int32


def test_what_cannot_be_learned_is_refused(letters):
    with pytest.raises(DataError, match="f.txt:1: the texts have 1 tokens"):
        CausalLM(documents=False).features([{"text": "a", "_where": "f.txt:1"}], letters)
    with pytest.raises(DataError, match="'text' is missing"):
        CausalLM().features([{"label": "a"}], letters)
    with pytest.raises(DataError, match="not a conversation"):
        CausalLM().features([{"messages": []}], letters)
    config = bert.Config(vocabulary_size=8, num_layers=1, num_heads=2, hidden_dim=4)
    with pytest.raises(SettingError, match="needs a decoder"):
        CausalLM().model(bert.backbone(config), config)


def test_the_loss_of_packed_rows_is_that_of_each_document_alone(letters):
    """Attention does not cross documents, positions begin anew, and every target counts alike."""
    config = gpt2.Config(
        vocabulary_size=letters.vocabulary_size, num_layers=2, num_heads=2, hidden_dim=8,
        max_sequence_length=16, dropout=0.0, embedding_dropout=0.0, attention_dropout=0.0,
        initializer_range=0.5,
    )  # fmt: skip
    task = build({"kind": "causal_lm", "max_length": 16})
    model, loss = task.model(gpt2.backbone(config), config), task.loss()
    texts = examples("abc", "defg", "hij")
    packed, targets = task.features(texts, letters).batch([0])
    together = float(loss(targets, model({name: packed[name] for name in model.input})))
    total = count = 0
    for text in texts:
        alone, own = task.features([text], letters).batch([0])
        logits = model({name: alone[name] for name in model.input})
        total += float(loss(own, logits)) * (own != IGNORED).sum()
        count += (own != IGNORED).sum()
    assert together == pytest.approx(total / count, rel=1e-5)
