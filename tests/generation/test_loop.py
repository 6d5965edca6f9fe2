"""The loop in one graph writes what the engine writes: as a SavedModel's function and in LiteRT."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from tests.generation.goldens import gpt2
from tfllm.generation import cache, loop
from tfllm.generation.config import (
    GenerationConfig,
    GraphFlags,
    batch_configs,
    batched_config_specs,
    graph_flags,
)
from tfllm.generation.engine import Engine

PROMPTS = [[3, 5, 11, 2], [8], [40, 41, 7, 7, 7, 1]]
NEW = 12
SETTINGS = [
    GenerationConfig(max_new_tokens=NEW),
    GenerationConfig(max_new_tokens=7, temperature=1.0, top_k=9, seed=12),
    GenerationConfig(max_new_tokens=NEW, temperature=0.8, top_p=0.9, seed=2**31 - 1),
]
SAMPLING = graph_flags(SETTINGS[1])


@functools.cache
def engine():
    return Engine(gpt2())


def padded(prompts, width):
    ids = np.zeros([len(prompts), width], np.int32)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = prompt
    return ids, np.array([len(prompt) for prompt in prompts], np.int32)


def rows_of(settings):
    limits = [len(p) + s.max_new_tokens for p, s in zip(PROMPTS, settings, strict=True)]
    return batch_configs(settings, limits)


def assert_same(texts, results, log_probabilities=True):
    for row, result in enumerate(results):
        count = int(texts.counts[row])
        assert texts.ids[row, :count].tolist() == result.ids
        assert not texts.ids[row, count:].any()
        assert int(texts.finished[row]) == {"stop": 1, "length": 2}[result.finish_reason]
        if log_probabilities:
            np.testing.assert_allclose(
                texts.log_probabilities[row, :count], result.log_probabilities, atol=1e-4
            )


def as_numpy(texts):
    return loop.GeneratedBatch(*(one.numpy() for one in texts))


def test_the_loop_equals_the_engine():
    """Dynamic shapes, a row of each kind; then with stop ids."""

    @tf.function(
        autograph=False,
        input_signature=[
            tf.TensorSpec([None, None], tf.int32),
            tf.TensorSpec([None], tf.int32),
            batched_config_specs(),
            tf.TensorSpec([], tf.int32),
        ],
    )
    def whole(token_ids, lengths, settings, most_new):
        return loop.generate(gpt2(), token_ids, lengths, settings, SAMPLING, most_new)

    results = engine().generate(PROMPTS, SETTINGS)
    got = as_numpy(whole(*padded(PROMPTS, 8), rows_of(SETTINGS), NEW))
    assert_same(got, results)
    stop = {"eos_token_id": (results[0].ids[5], results[2].ids[3])}
    stopping = [one.model_copy(update=stop) for one in SETTINGS]
    results = engine().generate(PROMPTS, stopping)
    assert "stop" in {one.finish_reason for one in results}
    assert_same(as_numpy(whole(*padded(PROMPTS, 8), rows_of(stopping), NEW)), results)
    names = {node.op for node in whole.get_concrete_function().graph.as_graph_def().node}
    for function in whole.get_concrete_function().graph.as_graph_def().library.function:
        names |= {node.op for node in function.node_def}
    assert not [name for name in names if "Xla" in name]


def tflite(needs: GraphFlags, batch: int, width: int) -> bytes:
    """A whole-loop file of fixed shapes; settings of the rows are inputs."""
    specs = batched_config_specs()
    fixed = {
        name: tf.TensorSpec([batch], getattr(specs, name).dtype, name)
        for name in specs._fields
        if name not in ("bad_words_ids", "eos_token_id")
    }

    @tf.function(
        autograph=False,
        input_signature=[
            tf.TensorSpec([batch, width], tf.int32, "token_ids"),
            tf.TensorSpec([batch], tf.int32, "lengths"),
            *fixed.values(),
        ],
    )
    def whole(token_ids, lengths, *values):
        settings = specs._replace(
            **dict(zip(fixed, values, strict=True)),
            eos_token_id=tf.fill([batch, 1], -1),
            bad_words_ids=tf.zeros([batch, 0, 4], tf.int32),
        )
        texts = loop.generate(gpt2(), token_ids, lengths, settings, needs, NEW, cache.select)
        return texts._asdict()

    module = tf.Module()
    module.kept = [
        variable._value for layer in gpt2().layers.values() for variable in layer.weights
    ]
    converter = tf.lite.TFLiteConverter.from_concrete_functions(
        [whole.get_concrete_function()], module
    )
    return converter.convert()


@pytest.mark.edge
@pytest.mark.parametrize("needs", [GraphFlags(), SAMPLING], ids=["greedy", "sampling"])
def test_litert_writes_the_same_with_its_own_operations(needs):
    interpreter = pytest.importorskip("ai_edge_litert.interpreter")
    from tfllm.export import flatbuffer

    content = tflite(needs, batch=3, width=8)
    found = flatbuffer.count_operations(content)
    assert not found.custom
    runner = interpreter.Interpreter(model_content=content).get_signature_runner()
    settings = SETTINGS if needs.sampling else [SETTINGS[0]] * 3
    token_ids, lengths = padded(PROMPTS, 8)
    wanted = runner.get_input_details()
    inputs = {"token_ids": token_ids, "lengths": lengths, **rows_of(settings)._asdict()}
    got = runner(**{name: inputs[name] for name in wanted})
    texts = loop.GeneratedBatch(**{name: got[name] for name in loop.GeneratedBatch._fields})
    assert_same(texts, engine().generate(PROMPTS, settings))
