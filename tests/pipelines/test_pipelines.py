"""Pipelines by transformers' names, with tiny random models."""

import dataclasses

import pytest

import tfllm
from tests.helpers import byte_models, translators
from tests.helpers.translators import SENTENCES
from tfllm.errors import SettingError
from tfllm.generation.seq2seq_generator import Seq2SeqGenerator
from tfllm.generation.text_generator import TextGenerator


@pytest.fixture(scope="module")
def translator():
    return tfllm.pipeline("translation", model=translators.checkpoint())


def test_translations_are_the_checkpoints_texts(translator):
    writer = Seq2SeqGenerator(translators.checkpoint())
    expected = [{"translation_text": text.text} for text in writer.generate(SENTENCES)]
    assert translator(list(SENTENCES)) == expected
    assert translator(SENTENCES[0]) == expected[:1]
    several = translator(list(SENTENCES), num_return_sequences=2)
    assert [one[0] for one in several] == expected
    assert len(several[0]) == 2
    greedy = writer.generate(SENTENCES[:1], writer.generation_config(num_beams=1, max_new_tokens=4))
    short = translator(SENTENCES[0], num_beams=1, max_length=5)
    assert short == [{"translation_text": greedy[0].text}]


def test_summaries_and_texts_have_their_own_names():
    checkpoint = translators.checkpoint()
    for task, name in (
        ("summarization", "summary_text"),
        ("text2text-generation", "generated_text"),
        ("translation_en_to_zh", "translation_text"),
    ):
        (answer,) = tfllm.pipeline(task, model=checkpoint, num_beams=1, max_new_tokens=2)("yes")
        assert list(answer) == [name]


def test_a_checkpoints_own_settings_for_a_task_are_taken():
    checkpoint = translators.checkpoint()
    own = {"summarization": {"prefix": "the ", "max_length": 4, "num_beams": 1}}
    generation = {**checkpoint.generation_config, "task_specific_params": own}
    asking = dataclasses.replace(checkpoint, generation_config=generation)
    (answer,) = tfllm.pipeline("summarization", model=asking)("film")
    writer = Seq2SeqGenerator(checkpoint)
    expected = writer.generate(
        ["the film"], writer.generation_config(num_beams=1, max_new_tokens=3)
    )
    assert answer == {"summary_text": expected[0].text}


def test_texts_go_on_with_the_prompt_in_front():
    checkpoint = byte_models.checkpoint()
    pipe = tfllm.pipeline("text-generation", model=checkpoint, max_new_tokens=5)
    writer = TextGenerator(checkpoint)
    expected = writer.generate(["Hello"], writer.generation_config(max_new_tokens=5))[0].text
    assert pipe("Hello") == [{"generated_text": "Hello" + expected}]
    assert pipe(["Hello"], return_full_text=False) == [[{"generated_text": expected}]]
    sampled = pipe("Hello", do_sample=True, seed=3, num_return_sequences=2)
    assert len(sampled) == 2
    messages = [{"role": "user", "content": "Hi"}]
    (answer,) = pipe(messages)
    assert answer["generated_text"][:-1] == messages
    assert answer["generated_text"][-1]["role"] == "assistant"


@pytest.mark.parametrize(
    ("task", "model", "options", "words"),
    [
        ("translatoin", "m", {}, "Did you mean 'translation'"),
        ("translation", None, {}, "needs a model"),
        ("text-generation", translators.checkpoint, {}, "and this one is for seq2seq"),
        ("translation", translators.checkpoint, {"num_beam": 3}, "Did you mean 'num_beams'"),
    ],
    ids=["task", "model", "kind", "option"],
)
def test_what_there_is_not_is_named(task, model, options, words):
    with pytest.raises(SettingError, match=words):
        tfllm.pipeline(task, model=model() if callable(model) else model, **options)
