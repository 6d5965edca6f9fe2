"""T5's spans against the published functions, written again with numpy."""

from types import SimpleNamespace

import numpy as np
import pytest

from tfllm.errors import SettingError
from tfllm.tasks.objectives import span_corruption


class Permutations:
    """The shuffles that the reference and ours make, told one by one."""

    def __init__(self, seed):
        self.chance = np.random.default_rng(seed)

    def shuffle(self, array):
        self.chance.shuffle(array)


def published_noise_mask(length, noise_density, mean_noise_span_length, shuffle):
    """random_spans_noise_mask of t5/data/preprocessors.py (and of Flax' run_t5_mlm_flax.py)."""
    orig_length = length
    length = max(length, 2)
    num_noise_tokens = int(np.round(np.float32(length) * np.float32(noise_density)))
    num_noise_tokens = min(max(num_noise_tokens, 1), length - 1)
    num_noise_spans = int(
        np.round(np.float32(num_noise_tokens) / np.float32(mean_noise_span_length))
    )
    num_noise_spans = max(num_noise_spans, 1)
    num_nonnoise_tokens = length - num_noise_tokens

    def random_segmentation(num_items, num_segments):
        mask_indices = np.arange(num_items - 1) < (num_segments - 1)
        shuffle(mask_indices)
        first_in_segment = np.pad(mask_indices, [[1, 0]])
        segment_id = np.cumsum(first_in_segment)
        _, segment_length = np.unique(segment_id, return_counts=True)
        return segment_length

    nonnoise_span_lengths = random_segmentation(num_nonnoise_tokens, num_noise_spans)
    noise_span_lengths = random_segmentation(num_noise_tokens, num_noise_spans)
    interleaved = np.reshape(
        np.stack([nonnoise_span_lengths, noise_span_lengths], axis=1), [num_noise_spans * 2]
    )
    span_starts = np.cumsum(interleaved)[:-1]
    span_start_indicator = np.zeros((length,), dtype=np.int8)
    span_start_indicator[span_starts] = True
    span_num = np.cumsum(span_start_indicator)
    return np.equal(span_num % 2, 1)[:orig_length]


@pytest.mark.parametrize("density, mean_span", [(0.15, 3.0), (0.15, 10.0), (0.5, 3.0), (0.3, 1.0)])
def test_the_layout_is_the_published_one(density, mean_span):
    for length in (2, 3, 4, 7, 10, 20, 57, 128, 512, 568):
        for seed in range(5):
            expected = published_noise_mask(length, density, mean_span, Permutations(seed).shuffle)
            found = span_corruption.noise_mask(length, Permutations(seed), density, mean_span)
            assert found.tolist() == expected.tolist(), (length, seed)


def test_short_texts():
    chance = np.random.default_rng(0)
    assert span_corruption.noise_mask(0, chance).tolist() == []
    assert span_corruption.noise_mask(1, chance).tolist() == [False]
    assert span_corruption.noise_mask(2, chance).tolist() == [False, True]


def test_source_and_target():
    ids = np.arange(10, 20)  # Thank you for inviting me to your party last week
    noise = np.zeros(10, bool)
    noise[[2, 3, 8]] = True
    source, target = span_corruption.corrupt(ids, noise, np.array([99, 98, 97]), eos_token_id=1)
    assert source.tolist() == [10, 11, 99, 14, 15, 16, 17, 98, 19, 1]
    # The published target replaces every kept span by a sentinel, the first and the last as well.
    assert target.tolist() == [99, 12, 13, 98, 18, 97, 1]
    assert source.dtype == target.dtype == np.int32


def published_sentinels(tokens, noise_mask, sentinel_of):
    """noise_span_to_unique_sentinel of the same file."""
    prev = np.pad(noise_mask[:-1], [[1, 0]])
    first = np.logical_and(noise_mask, np.logical_not(prev))
    subsequent = np.logical_and(noise_mask, prev)
    segments = np.cumsum(first)
    tokens = np.where(first, [sentinel_of(number) for number in segments], tokens)
    return tokens[np.logical_not(subsequent)]


def test_sentinels_are_the_published_ones():
    """Vocabulary of 32,100: <extra_id_0> is 32,099, and so on downwards."""
    sentinels = np.arange(32099, 31999, -1)
    chance = np.random.default_rng(4)
    for length in (2, 15, 128, 512):
        ids = chance.integers(3, 32000, length)
        noise = span_corruption.noise_mask(length, chance)
        source, target = span_corruption.corrupt(ids, noise, sentinels)
        assert source.tolist() == published_sentinels(ids, noise, lambda n: 32100 - n).tolist()
        assert target.tolist() == published_sentinels(ids, ~noise, lambda n: 32100 - n).tolist()


def test_too_few_sentinels():
    noise = np.array([False, True, False, True])
    with pytest.raises(SettingError, match="2 spans and the vocabulary 1 sentinels"):
        span_corruption.corrupt(np.arange(4), noise, np.array([9]))
    with pytest.raises(SettingError, match="no sentinels"):
        span_corruption.sentinels(SimpleNamespace(token_id=lambda token: None))


def test_lengths_that_need_no_padding():
    """T5's own: sources of 512 tokens and targets of 114 come of texts of 568."""
    assert span_corruption.text_length(512) == (568, 114)
    for inputs in (32, 64, 128):
        length, target = span_corruption.text_length(inputs)
        noise = span_corruption.noise_mask(length, np.random.default_rng(0))
        parts = span_corruption.corrupt(np.arange(length), noise, np.arange(900, 1000), 1)
        assert len(parts[0]) <= inputs and len(parts[1]) == target
        longer = span_corruption.count_spans(length + 1, 0.15, 3.0)
        assert length + 1 - longer[0] + longer[1] + 1 > inputs


def test_rows_of_a_corpus():
    ids = np.arange(100, 400, dtype=np.int32)
    corpus = SimpleNamespace(
        document_starts=np.array([0, 1, 3]),
        token_starts=np.array([0, 120, 200, 300]),
        tokens=lambda begin, end: ids[begin:end],
    )
    names = {f"<extra_id_{number}>": 900 - number for number in range(50)}
    tokenizer = SimpleNamespace(token_id=names.get, eos_token_id=1)
    found = span_corruption.corrupt_corpus(corpus, tokenizer, inputs=32)
    assert found.length == span_corruption.text_length(32)[0]
    for epoch in (0, 1):
        seen = []
        for number in range(len(found)):
            source, target = found.row(number, seed=5, epoch=epoch)
            again = found.row(number, seed=5, epoch=epoch)
            assert all((a == b).all() for a, b in zip((source, target), again, strict=True))
            assert source[-1] == target[-1] == 1 and source[0] >= 100 and target[0] == 900
            seen += [id for part in (source, target) for id in part if 100 <= id < 400]
        assert sorted(seen) == ids.tolist()  # every token once, in the source or in the target
