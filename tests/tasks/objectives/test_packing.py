"""A prepared corpus gives the rows that the same texts give from memory."""

from types import SimpleNamespace

import numpy as np
import pytest

from tfllm import tasks
from tfllm.tasks.features import IGNORED
from tfllm.tasks.objectives import memory_corpus, packing
from tfllm.tasks.objectives.packing import CorpusTokenStream

DOCUMENTS = [[7, 8, 9], [10], [11, 12, 13, 14, 15], [16, 17]]
TEXTS = ["The film was good. It was very good.", "Ann lives in new york.", "Who made it? Bad."] * 6


def corpus_of(parts):
    sizes = [len(part) for part in parts]
    ids = np.concatenate(parts).astype(np.int32)
    return SimpleNamespace(
        document_starts=np.arange(len(parts) + 1),
        token_starts=np.concatenate([[0], np.cumsum(sizes)]),
        tokens=lambda begin, end: ids[begin:end],
        digest="0",
    )


@pytest.mark.parametrize(
    ("before", "after"), [((), ()), ((1,), ()), ((), (2,)), ((1,), (2,)), ((1, 3), (2,))]
)
def test_it_is_the_stream_in_memory(before, after):
    ids = [np.array([*before, *document, *after]) for document in DOCUMENTS]
    expected = packing.build_stream(((each, None) for each in ids), 100)
    stream = CorpusTokenStream(corpus_of([np.array(d) for d in DOCUMENTS]), before, after)
    assert len(stream) == len(expected)
    assert stream.starts.tolist() == expected.starts.tolist()
    for begin in range(2 * len(stream)):
        for length in (1, 4, len(stream)):
            places = np.arange(begin, begin + length)
            for name in ("tokens", "document_ids", "targets"):
                found = getattr(stream, name)(places)
                assert found.dtype == np.int32
                assert found.tolist() == getattr(expected, name)(places).tolist(), (name, begin)


def test_all_documents_may_be_one_text():
    stream = CorpusTokenStream(corpus_of([np.array(d) for d in DOCUMENTS]), documents=False)
    assert stream.starts.tolist() == [0]
    places = np.arange(len(stream))
    assert stream.tokens(places).tolist() == [id for part in DOCUMENTS for id in part]
    assert stream.targets(places).tolist() == [*range(8, 18), IGNORED]
    assert set(stream.document_ids(places)) == {1}


def test_causal_rows(tokenizer):
    examples = [{"text": text} for text in TEXTS]
    task = tasks.CausalLM(max_length=16)
    found = task.corpus_features(memory_corpus.tokenize_corpus(examples, tokenizer), tokenizer)
    expected = task.features(examples, tokenizer)
    for epoch in (0, 1):
        ours, theirs = (task.for_epoch(each, 1, epoch) for each in (found, expected))
        for row in range(len(expected)):
            inputs, targets = ours.batch([row], 16)
            others, told = theirs.batch([row], 16)
            assert targets.tolist() == told.tolist()
            assert all(inputs[name].tolist() == others[name].tolist() for name in inputs)


def test_full_windows_hide_tokens_and_no_separators(tokenizer):
    task = tasks.MaskedLM(max_length=16, packing=True)
    features = task.features([{"text": text} for text in TEXTS], tokenizer)
    assert (features.lengths[:-1] == 16).all() and features.lengths[-1] <= 16
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    seen = []
    for epoch in (0, 1):
        drawn = task.for_epoch(features, 1, epoch)
        tokens = []
        for row in range(len(drawn)):
            made = drawn.masked_row(row)
            plain = np.where(made.target != IGNORED, made.target, made.ids)
            assert plain[0] == start and plain[-1] == end
            assert not np.isin(made.target, [start, end]).any()
            assert (made.target != IGNORED).sum() == max(1, round(0.15 * len(plain)))
            tokens.extend(plain[1:-1].tolist())
        seen.append(tokens)
    stream = [id for text in TEXTS for id in _ids(tokenizer, text) + [end]]
    assert seen[0] == stream
    moved = packing.epoch_shift(14, 1, 1)
    assert moved and seen[1] == stream[moved:] + stream[:moved]


def _ids(tokenizer, text):
    return tokenizer.encode(text, add_special_tokens=False).ids
