"""Prompts to texts: stop strings, streaming, windows, conversations."""

import functools

import pytest

from tests.helpers.byte_models import TEMPLATE, WINDOW, checkpoint
from tests.helpers.tiny_tokenizers import trained
from tfllm.checkpoints import store
from tfllm.errors import SettingError
from tfllm.generation.chat import ChatSession
from tfllm.generation.config import GenerationConfig
from tfllm.generation.text_generator import StopStringStream, TextGenerator, load_generator
from tfllm.models import llama
from tfllm.runtimes.causal_lm import CausalLMPredictor
from tfllm.tasks.causal_lm import CausalLM
from tfllm.tokenizers import sentencepiece
from tfllm.tokenizers.streaming import TextStream
from tfllm.tokenizers.tokenizer_config import TokenizerConfig

GREEDY = GenerationConfig(max_new_tokens=24)
SAMPLED = GenerationConfig(max_new_tokens=40, temperature=1.0, seed=4, num_return_sequences=3)


@functools.cache
def writer(start: bool = True) -> TextGenerator:
    return TextGenerator(checkpoint(start))


def listened(text: str, stop: tuple[str, ...], context: str = ""):
    """(pieces, listener) of a text that arrives byte by byte."""
    tokenizer = checkpoint().tokenizer
    before = tokenizer.encode_ids([context])[0]
    listener = StopStringStream(TextStream(tokenizer), stop, before)
    pieces = []
    for token in tokenizer.encode_ids([text])[0]:
        pieces.append(listener.push(token))
        if listener.stopped:
            return pieces, listener
    return [*pieces, listener.finish()], listener


@pytest.mark.parametrize(
    ("text", "stop", "wanted"),
    [
        ("one END two", ("END",), "one "),
        ("one EN two", ("END",), "one EN two"),
        ("one EEND two", ("END",), "one E"),
        ("aab aac", ("aac", "b a"), "aa"),
        ("床前明月光，疑是地上霜。", ("，疑",), "床前明月光"),
        ("ends with EN", ("END",), "ends with EN"),
        ("END", ("END",), ""),
        ("no stop strings é", (), "no stop strings é"),
        ("never", ("\x00<unknown token>",), "never"),
    ],
)
def test_stop_strings_cut_exactly_and_are_never_shown(text, stop, wanted):
    pieces, listener = listened(text, stop)
    assert "".join(pieces) == listener.text == wanted
    assert listener.stopped == (wanted != text)


def test_the_stream_holds_no_more_than_it_must():
    pieces, _ = listened("abcXdef", ("XY",))
    assert pieces == ["a", "b", "c", "", "Xd", "e", "f", ""]


@pytest.mark.parametrize("settings", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_streamed_pieces_are_the_text(settings):
    heard = {}

    def on_text(number, piece):
        heard[number] = heard.get(number, "") + piece

    prompts = ["Hello", "床前"]
    texts = writer().generate(prompts, settings, on_text=on_text)
    quiet = writer().generate(prompts, settings)
    assert [heard.get(number, "") for number in range(len(texts))] == [one.text for one in texts]
    assert [one.text for one in quiet] == [one.text for one in texts]
    for one in texts:
        assert len(one.log_probabilities) == one.token_count <= settings.max_new_tokens
        one.text.encode("utf-8")


def test_stop_strings_end_texts_of_a_batch_apart():
    whole = writer().generate(["Hello", "abc"], SAMPLED)
    stop = whole[0].text[4:6]
    cut = writer().generate(["Hello", "abc"], SAMPLED, stop=[stop])
    for one, full in zip(cut, whole, strict=True):
        place = full.text.find(stop)
        assert one.text == (full.text if place < 0 else full.text[:place])
        assert one.finish_reason == (full.finish_reason if place < 0 else "stop")
    assert cut[0].token_count < whole[0].token_count


def test_beams_hear_stop_strings_too():
    settings = GenerationConfig(num_beams=2, max_new_tokens=16)
    whole = writer().generate(["Hello"], settings)[0]
    stop = whole.text[3:5]
    heard = []
    cut = writer().generate(
        ["Hello"], settings, stop=[stop], on_text=lambda number, piece: heard.append(piece)
    )[0]
    assert cut.text == whole.text[: whole.text.find(stop)] == "".join(heard)
    assert cut.finish_reason == "stop"


def test_prompts_that_are_too_long():
    long = "x" * 300
    with pytest.raises(SettingError, match='truncate="left"'):
        writer().generate([long], GREEDY)
    cut = writer().generate([long + "yz"], GREEDY, truncate="left")[0]
    kept = writer().generate(["x" * (WINDOW - 24 - 2) + "yz"], GREEDY)[0]
    assert cut.text == kept.text
    assert cut.token_count == kept.token_count


def test_the_start_token_stays_in_front_of_a_cut_prompt():
    start = checkpoint().tokenizer.bos_token_id
    ids = writer().truncate([start, *range(200)], GREEDY)
    assert ids[0] == start
    assert ids[1:] == list(range(97, 200))
    assert len(ids) + GREEDY.max_new_tokens == WINDOW


def test_empty_prompts():
    with_start = writer().generate([""], GREEDY)[0]
    assert with_start.prompt == ""
    with pytest.raises(SettingError, match="no start token"):
        writer(False).generate([""], GREEDY)


def test_bad_words_do_not_appear():
    whole = writer().generate(["Hello"], GREEDY)[0]
    word = next(letter for letter in whole.text if letter.isascii() and letter.isprintable())
    settings = GREEDY.model_copy(update={"bad_words_ids": writer().encode_bad_words([word])})
    assert word not in writer().generate(["Hello"], settings)[0].text


def test_other_tasks_cannot_write(tiny_checkpoint):
    with pytest.raises(SettingError, match="classification"):
        load_generator(str(tiny_checkpoint))


CHAT = GenerationConfig(max_new_tokens=10, temperature=1.0)


def test_a_conversation_remembers_and_forgets_its_oldest_turns():
    session = ChatSession(writer(), system="Be brief.")
    heard = []
    first = session.reply("Hi", CHAT, on_text=heard.append)
    assert "".join(heard) == first.text
    assert [one["role"] for one in session.messages] == ["user", "assistant"]
    assert session.messages[1]["content"] == first.text.strip()
    for number in range(6):
        session.reply(f"turn {number}", CHAT)
    assert session.messages[-2]["content"] == "turn 5"
    assert session.messages[0]["role"] == "user"
    assert len(session.messages) < 14
    ids = session.generator.tokenizer.apply_chat_template([*session.system, *session.messages[:-1]])
    assert len(ids) + CHAT.max_new_tokens <= WINDOW
    assert session.system[0]["content"] == "Be brief."
    session.reset()
    assert session.reply("Hi", CHAT).text == first.text


def test_a_message_beyond_the_window_leaves_the_history_as_it_was():
    session = ChatSession(writer())
    session.reply("Hi", CHAT)
    before = list(session.messages)
    with pytest.raises(SettingError, match="window"):
        session.reply("x" * 300, CHAT)
    assert session.messages == before


def test_stories_begin_as_they_should(data):
    stories = load_generator(str(data / "checkpoints" / "stories260K.bin"))
    text = stories.generate([""], GenerationConfig(max_new_tokens=60))[0]
    wanted = "Once upon a time, there was a little girl named Lily. She loved to play outside in"
    assert text.text.startswith(wanted)
    assert text.token_count == 60


@pytest.fixture(scope="module")
def words():
    """A random model of a SentencePiece vocabulary that writes tokens with a space before them."""
    tokenizer = sentencepiece.from_proto(
        trained("unigram"), TokenizerConfig(chat_template=TEMPLATE)
    )
    config = llama.Config(
        vocabulary_size=tokenizer.vocabulary_size, num_layers=1, num_heads=2, hidden_dim=16,
        intermediate_dim=16, max_sequence_length=256,
    )  # fmt: skip
    model = store.create("llama", config, tokenizer, CausalLM(max_length=64), seed=0)
    predictor = CausalLMPredictor(model, {}, None)
    predictor.generator.engine.token_ranges = tuple(
        (number, number + 1)
        for number, token in enumerate(tokenizer.vocabulary)
        if token.startswith("▁") and len(token) > 1
    )
    return predictor


def test_predict_and_generate_decode_replies_and_continuations_alike(words):
    """A continuation keeps the space after its prompt; a reply begins by itself."""
    examples = [
        {"messages": [{"role": "user", "content": "the cat"}]},
        {"prompt": "the cat"},
        {"messages": [{"role": "user", "content": "a house"}]},
    ]
    config = GenerationConfig()
    texts = [text.text for text in words.generator.generate_examples(examples, config)]
    assert [text.startswith(" ") for text in texts] == [False, True, False]
    for example, text in zip(examples, texts, strict=True):
        assert [each.text for each in words.generator.generate_examples([example], config)] == [
            text
        ]
    predictions = words.predict(examples, batch_size=2)
    assert [prediction["text"] for prediction in predictions] == texts
