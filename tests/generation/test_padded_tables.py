"""Tables of embeddings with more rows than there are tokens: a row without a token is never
written, whatever its score, and probabilities stay those of the whole softmax."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from tests.helpers import translators
from tests.helpers.byte_models import TEMPLATE
from tests.helpers.tiny_tokenizers import tokenizer as small_tokenizer
from tests.helpers.translation_tokenizers import tokenizer as two_sided
from tests.helpers.vocabularies import SPELLING
from tfllm.checkpoints import store
from tfllm.export import load_profile, savedmodel_causal_lm, savedmodel_seq2seq, tflite_generation
from tfllm.generation import penalties
from tfllm.generation.config import GenerationConfig
from tfllm.generation.seq2seq_generator import Seq2SeqGenerator
from tfllm.generation.text_generator import TextGenerator
from tfllm.models import bert, llama
from tfllm.tasks.causal_lm import CausalLM
from tfllm.tasks.masked_lm import MaskedLM
from tfllm.tasks.seq2seq import Seq2Seq
from tfllm.tokenizers import bytepair
from tfllm.tokenizers.base import valid_id_ranges
from tfllm.tokenizers.byte_level import bytes_to_unicode
from tfllm.tokenizers.streaming import TextStream
from tfllm.tokenizers.tokenizer_config import TokenizerConfig
from tfllm.tokenizers.wordpiece import WordPiece

PADDING = 60  # rows without a token
TEMPTING = 30.0  # rows so long that some of them win in every greedy step if they may
WINDOW = 48
# Two float32 log-probabilities of one token, one read token by token and one all at once.
ROUNDING = 1e-4
SETTINGS = {
    "greedy": GenerationConfig(max_new_tokens=12),
    "hot": GenerationConfig(max_new_tokens=12, temperature=2.0, seed=1, num_return_sequences=4),
    "filtered": GenerationConfig(max_new_tokens=12, temperature=1.0, top_k=5, seed=2),
    "penalised": GenerationConfig(
        max_new_tokens=12, repetition_penalty=1.3, no_repeat_ngram_size=2
    ),
    "beams": GenerationConfig(max_new_tokens=12, num_beams=3, num_return_sequences=3),
}

QUICK = [("llama", "greedy"), ("llama", "hot"), ("t5", "beams")]


def tempted(checkpoint, size):
    """The checkpoint, its rows from `size` on so long that their scores are the largest."""
    for weight in checkpoint.model.weights:
        values = weight.numpy()
        if checkpoint.config.vocabulary_size in values.shape and values.ndim == 2:
            rows = values if len(values) == checkpoint.config.vocabulary_size else values.T
            rows[size:] *= TEMPTING
            weight.assign(values)
    return checkpoint


@functools.cache
def decoder_alone():
    tokens = [*bytes_to_unicode(), bytepair.ENDOFTEXT]
    table = {token: number for number, token in enumerate(tokens)}
    tokenizer = bytepair.from_vocabulary(table, [], TokenizerConfig(chat_template=TEMPLATE))
    config = llama.Config(
        vocabulary_size=len(tokens) + PADDING, num_layers=1, num_heads=2, num_key_value_heads=1,
        hidden_dim=16, intermediate_dim=32, max_sequence_length=WINDOW, initializer_range=0.3,
    )  # fmt: skip
    made = store.create("llama", config, tokenizer, CausalLM(max_length=WINDOW), seed=5)
    return tempted(made, len(tokens))


@functools.cache
def with_sources(family):
    tokenizer = two_sided("marian")
    shape = {
        "vocabulary_size": tokenizer.vocabulary_size + PADDING, "num_layers": 1, "num_heads": 2,
        "hidden_dim": 16, "dropout": 0.0, "max_sequence_length": WINDOW,
        "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    made = store.create(family, shape, tokenizer, Seq2Seq(max_length=WINDOW), seed=5)
    made.generation_config.update(decoder_start_token_id=tokenizer.pad_token_id)  # type: ignore[attr-defined]
    return tempted(made, tokenizer.vocabulary_size)


@functools.cache
def writer(family):
    if family == "llama":
        return TextGenerator(decoder_alone())
    return Seq2SeqGenerator(with_sources(family))


def test_the_ids_that_have_a_token():
    class Gaps:
        vocabulary = ["a", "b", "", "c", ""]

    assert valid_id_ranges(Gaps(), 7) == ((0, 2), (3, 4))
    assert valid_id_ranges(Gaps(), 4) == ((0, 2), (3, 4))
    assert valid_id_ranges(Gaps(), 2) == ()
    logits = tf.constant(np.arange(14.0).reshape(2, 7), tf.float32)
    found = penalties.keep_token_ranges(logits, valid_id_ranges(Gaps(), 7)).numpy()
    assert found[:, [0, 1, 3]].tolist() == logits.numpy()[:, [0, 1, 3]].tolist()
    assert (found[:, [2, 4, 5, 6]] == penalties.MASKED).all()


CASES = [
    pytest.param(family, settings, marks=() if (family, settings) in QUICK else pytest.mark.slow)
    for family in ("llama", "t5", "bart")
    for settings in SETTINGS
]


@pytest.mark.parametrize(("family", "settings"), CASES)
def test_only_tokens_are_written(family, settings):
    generator = writer(family)
    size = generator.tokenizer.target.vocabulary_size
    texts = generator.generate(["The cat sat"], SETTINGS[settings])
    written = [token for text in texts for token in text.token_ids]
    assert written and max(written) < size
    # Without the bar the longest rows win: the test would not fail for nothing.
    generator.engine.token_ranges = ()
    try:
        free = [
            token for text in generator.generate(["The cat sat"], SETTINGS[settings])
            for token in text.token_ids
        ]  # fmt: skip
    finally:
        generator.engine.token_ranges = valid_id_ranges(
            generator.tokenizer.target, generator.engine.limits.vocabulary_size
        )
    assert max(free) >= size


def test_probabilities_are_those_of_the_whole_softmax():
    generator = writer("llama")
    text = generator.generate(["The cat"], SETTINGS["greedy"])[0]
    ids = [*generator.tokenizer.encode_ids(["The cat"])[0], *text.token_ids]
    given = {"token_ids": np.array([ids]), "padding_mask": np.ones([1, len(ids)], np.int32)}
    model = generator.checkpoint.model
    logits = np.asarray(model({name: given[name] for name in model.input}))[0]
    logs = tf.nn.log_softmax(logits).numpy()
    first = len(ids) - len(text.token_ids)
    wanted = [logs[place - 1, ids[place]] for place in range(first, len(ids))]
    np.testing.assert_allclose(text.log_probabilities, wanted, atol=ROUNDING)
    assert max(wanted) < -1.0  # the rows without a token have most of it


def test_the_graphs_of_exported_files_write_tokens_alone():
    checkpoint = decoder_alone()
    size = checkpoint.tokenizer.vocabulary_size
    settings = load_profile("savedmodel", [])
    graph = checkpoint.tokenizer.graph()
    signatures = savedmodel_causal_lm.build_signatures(
        checkpoint, checkpoint.model, graph, settings
    )
    rows = tf.constant([[84, 104, 101], [99, 97, 116]])
    given = {
        "max_new_tokens": [12, 12], "temperature": [0.0, 2.0], "top_k": [0, 0],
        "top_p": [1.0, 1.0], "seed": [0, 1],
    }  # fmt: skip
    tensors = {
        name: tf.constant(value, tf.float32 if name in ("temperature", "top_p") else tf.int32)
        for name, value in given.items()
    }
    found = signatures["generate_tokens"](rows, tf.constant([3, 3]), *tensors.values())
    assert found["token_count"].numpy().min() > 0
    assert found["token_ids"].numpy().max() < size
    own = writer("llama").engine.generate([[84, 104, 101]], SETTINGS["greedy"])[0].ids
    assert found["token_ids"].numpy()[0, : len(own)].tolist() == own

    lite = load_profile("tflite-float32", ["prompt_length=8", f"max_length={WINDOW}"])
    (loop,) = tflite_generation.build_functions(checkpoint, lite).values()
    prompt = tf.constant([[84, 104, 101, 0, 0, 0, 0, 0]])
    more = {
        "temperature": tf.constant([2.0]), "top_k": tf.constant([0]), "top_p": tf.constant([1.0]),
        "min_p": tf.constant([0.0]), "seed": tf.constant([1]),
    }  # fmt: skip
    told = loop(
        token_ids=prompt, lengths=tf.constant([3]), max_new_tokens=tf.constant([12]), **more
    )
    assert told["counts"].numpy().min() > 0 and told["ids"].numpy().max() < size


@pytest.mark.parametrize("target", ["tflite-float32", "litertlm"])
def test_steps_tell_all_scores_but_to_runtimes_that_choose_by_themselves(target):
    checkpoint = decoder_alone()
    size = checkpoint.tokenizer.vocabulary_size
    settings = load_profile(target, [f"max_length={WINDOW}"])
    decode = tflite_generation.build_functions(checkpoint, settings)["decode"]
    first, named = decode.structured_input_signature
    specs = [*first, *named.values()]
    given = {spec.name: tf.zeros(spec.shape, spec.dtype) for spec in specs}
    caches = {name: one for name, one in given.items() if name.startswith("kv_cache")}
    steps = [one for name, one in given.items() if name not in caches]
    logits = decode(*steps, **caches)["logits"].numpy()[0, 0]
    barred = logits[size:] == np.float32(penalties.MASKED)
    assert barred.all() if target == "litertlm" else not barred.any()
    assert (logits[:size] > penalties.MASKED).all()


@pytest.mark.slow
@pytest.mark.parametrize("family", ["t5", "bart"])
def test_the_graphs_of_exported_encoder_decoders(family):
    checkpoint = with_sources(family)
    tokenizer = checkpoint.tokenizer
    graphs = (tokenizer.graph(), tokenizer.target.graph())
    settings = load_profile("savedmodel", [])
    signatures = savedmodel_seq2seq.build_signatures(checkpoint, checkpoint.model, graphs, settings)
    prompts = tf.constant(translators.SENTENCES[:2])
    twos = {"max_new_tokens": tf.constant([9, 9])}
    sampled = signatures["generate"](
        prompts, *twos.values(), tf.constant([2.0, 0.0]), tf.constant([0, 0]),
        tf.constant([1.0, 1.0]), tf.constant([1, 2]),
    )  # fmt: skip
    searched = signatures["beam"](prompts, *twos.values(), tf.constant([1.0, 1.0]))
    for found in (sampled, searched):
        assert found["token_count"].numpy().min() > 0
    rows = tokenizer.encode_batch(list(translators.SENTENCES[:2]), max_length=WINDOW - 8)
    ids = tf.ragged.constant([row.ids for row in rows]).to_tensor()
    lengths = tf.constant([len(row) for row in rows])
    found = signatures["beam_tokens"](ids, lengths, *twos.values(), tf.constant([1.0, 1.0]))
    assert found["token_ids"].numpy().max() < tokenizer.target.vocabulary_size


NAMES = ("gpt2", "roberta", "bpe", "unigram", "t5", "llama.json", "unigram.json", "characters")


@pytest.mark.parametrize("name", NAMES)
def test_ids_without_a_token_have_no_text(name):
    tokenizer = small_tokenizer(name)
    size = tokenizer.vocabulary_size
    ids = tokenizer.encode("the cat sat", add_special_tokens=False).ids
    torn = [size, *ids[:2], size + 7, *ids[2:], size + PADDING]
    for skip in (True, False):
        text = tokenizer.decode(ids, skip_special_tokens=skip)
        assert tokenizer.decode(torn, skip_special_tokens=skip) == text
        stream = TextStream(tokenizer, skip_special_tokens=skip)
        assert "".join([*map(stream.push, torn), stream.finish()]) == text
    detokenized = tokenizer.graph().detokenize(tf.ragged.constant([torn, ids]))
    assert detokenized.numpy()[0] == detokenized.numpy()[1]
    assert tokenizer.decode([size, size + 1]) == ""


def test_masks_are_filled_with_tokens():
    tokenizer = WordPiece.from_vocabulary(SPELLING)
    size = len(SPELLING)
    config = bert.Config(
        vocabulary_size=size + PADDING, num_layers=1, num_heads=2, hidden_dim=16,
        max_sequence_length=WINDOW, initializer_range=0.3,
    )  # fmt: skip
    checkpoint = store.create("bert", config, tokenizer, MaskedLM(max_length=WINDOW, top_k=3))
    checkpoint = tempted(checkpoint, size)
    scores = np.zeros([3, size + PADDING], np.float32)
    scores[:, size:], scores[1, 7] = 9.0, 1.0
    detail = {"tokenizer": tokenizer, "masks": [1], "text": "a [MASK] b"}
    answer = checkpoint.task.mask_answer(scores, detail)
    assert [one["token"] for one in answer["masks"][0]["candidates"]][0] == SPELLING[7]
    assert answer["masks"][0]["score"] < 0.01  # of the whole softmax
    serve = checkpoint.task.signatures(checkpoint.model, tokenizer.graph())["serving_default"]
    found = serve(tf.constant(["a [MASK] b"]))["tokens"].numpy().ravel().tolist()
    assert len(found) == 3 and set(found) <= {token.encode() for token in SPELLING}
