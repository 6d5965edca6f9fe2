"""Sources to texts with a tiny Marian."""

import numpy as np
import pytest

from tests.helpers.translators import LONGEST, SENTENCES, checkpoint
from tfllm.errors import SettingError
from tfllm.generation.seq2seq_generator import Seq2SeqGenerator

ROUNDING = 1e-5


@pytest.fixture(scope="module")
def writer():
    return Seq2SeqGenerator(checkpoint())


def test_the_checkpoints_settings_are_the_defaults(writer):
    texts = writer.generate(SENTENCES)
    tokenizer = checkpoint().tokenizer
    assert [text.prompt for text in texts] == list(SENTENCES)
    assert len({text.text for text in texts}) > 1
    for text in texts:
        assert text.text == tokenizer.target.decode(text.token_ids)
        assert text.score == pytest.approx(text.score)
        assert len(text.token_ids) == text.token_count == len(text.log_probabilities) <= 11
    again = writer.generate(
        SENTENCES, writer.generation_config(num_beams=3, num_return_sequences=2)
    )
    assert [text.text for text in again[::2]] == [text.text for text in texts]
    assert all(a.score >= b.score for a, b in zip(again[::2], again[1::2], strict=True))


def test_greedy_texts_are_told_as_they_are_written(writer):
    heard = {}
    settings = writer.generation_config(num_beams=1)
    texts = writer.generate(
        SENTENCES, settings, on_text=lambda n, piece: heard.update({n: heard.get(n, "") + piece})
    )
    assert [heard.get(number, "") for number in range(len(texts))] == [t.text for t in texts]


def test_a_prefix_stands_before_every_source(writer):
    prefixed = Seq2SeqGenerator(checkpoint(prefix="the "))
    assert prefixed.encode_prompt("film") == writer.encode_prompt("the film")


def test_alignments_have_a_row_for_each_token_and_a_column_for_each_source_token(writer):
    texts = writer.generate(SENTENCES[:2], writer.generation_config(num_beams=1))
    for text, found in zip(texts, writer.alignments(texts), strict=True):
        assert found.shape == (text.token_count, len(writer.encode_prompt(text.prompt)))
        np.testing.assert_allclose(found.sum(axis=1), 1.0, atol=ROUNDING)


def test_sources_that_cannot_be_read_are_named(writer):
    long = " ".join(SENTENCES * 9)
    with pytest.raises(SettingError, match=f"model reads {LONGEST}.*truncate=.right"):
        writer.generate([long])
    assert len(writer.encode_prompt(long, None, "right")) == LONGEST
    assert writer.encode_prompt(long, None, "right")[-1] == checkpoint().tokenizer.eos_token_id
    with pytest.raises(SettingError, match="source is empty"):
        writer.generate([" "])
    with pytest.raises(SettingError, match='truncate="left"'):
        writer.encode_prompt("yes", None, "left")
