"""Language models as .tflite files: steps with a cache, whole loops, int8 and int4 weights."""

import numpy as np
import pytest

pytest.importorskip("ai_edge_litert")

from tests.export.files import changed, with_copies, without_weights
from tests.helpers.language_models import make
from tfllm.errors import ArtifactError, CheckFailed, SettingError
from tfllm.evaluation.harness import evaluate
from tfllm.export import (
    artifact,
    export,
    flatbuffer,
    load_profile,
    tflite,
    tflite_decoding_graphs,
    tflite_generation,
    tflite_quantization,
)
from tfllm.export.flatbuffer import TFLITE_FILE
from tfllm.export.verify.sample_texts import ASCII_SENTENCES
from tfllm.generation.config import generation_config
from tfllm.generation.text_generator import TextGenerator
from tfllm.runtimes.checkpoint import open_checkpoint
from tfllm.runtimes.opening import open_model
from tfllm.runtimes.tflite_steps import TFLiteSteps

CONTEXT = 48
LENGTHS = (1, 2, 5, 21, 40, 47)  # of prompts: below, at and over prefill rows; near the end
OPTIONS = [f"max_length={CONTEXT}", "prefill_lengths=[4,16]"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make(tmp_path_factory.mktemp("gpt2"), max_sequence_length=64, num_layers=1)


@pytest.fixture(scope="module")
def writer(checkpoint):
    return TextGenerator(checkpoint)


@pytest.fixture(scope="module")
def content(checkpoint):
    """The float32 file of steps."""
    return tflite_generation.convert(checkpoint, load_profile("tflite-float32", OPTIONS))


@pytest.fixture(scope="module")
def opened(checkpoint, content, tmp_path_factory):
    """`opened(bits)`: the predictor of the file, quantized where `bits` says so."""

    def open_file(bits=None):
        folder = tmp_path_factory.mktemp("lite")
        size = checkpoint.config.vocabulary_size
        data = tflite_quantization.quantize_weights(content, bits, size) if bits else content
        (folder / TFLITE_FILE).write_bytes(data)
        name = f"tflite-int{bits}" if bits else "tflite-float32"
        tflite.write_assets(checkpoint, folder)
        tflite.write_metadata(checkpoint, load_profile(name, OPTIONS), folder, [])
        return open_model(folder)

    return open_file


def prompts(checkpoint):
    (stream,) = checkpoint.tokenizer.encode_ids([" ".join(ASCII_SENTENCES)])
    return [stream[:length] for length in LENGTHS]


def test_signatures_are_those_of_litert_lm(checkpoint, content):
    model = flatbuffer.parse(content)
    by_name = {one.signatureKey.decode(): one for one in model.signatureDefs}
    assert set(by_name) == {"prefill_4", "prefill_16", "decode"}

    def shapes(name, kind):
        graph = model.subgraphs[by_name[name].subgraphIndex]
        return {
            one.name.decode(): graph.tensors[one.tensorIndex].shape.tolist()
            for one in getattr(by_name[name], kind)
        }

    cache = {f"kv_cache_{part}_0": [1, 4, CONTEXT, 8] for part in "kv"}
    row = {"tokens": [1, 16], "input_pos": [16], "mask": [1, 1, 16, CONTEXT]}
    assert shapes("prefill_16", "inputs") == {**row, **cache}
    assert shapes("prefill_16", "outputs") == cache
    size = checkpoint.config.vocabulary_size
    assert shapes("decode", "outputs") == {**cache, "logits": [1, 1, size]}


def test_only_built_in_operations_and_one_copy_of_the_weights(checkpoint, content):
    found = flatbuffer.count_operations(content)
    assert found.custom == {} and "DYNAMIC_UPDATE_SLICE:FLOAT32" in found.builtin
    settings = load_profile("tflite-float32", OPTIONS)
    assert tflite_generation.check_weights(checkpoint, settings, content).passed


def test_steps_write_what_the_engine_writes(checkpoint, writer, opened):
    engine = opened().generator.engine
    rows = prompts(checkpoint)
    for settings in (
        generation_config(max_new_tokens=9),
        generation_config(max_new_tokens=9, temperature=1.1, seed=5),
    ):
        for row in rows:
            (found,) = engine.generate([row], settings)
            (expected,) = writer.engine.generate([row], settings)
            room = CONTEXT - len(row)
            assert found.ids == expected.ids[:room]
            np.testing.assert_allclose(
                found.log_probabilities, expected.log_probabilities[:room], atol=1e-4
            )


def test_a_new_text_sees_nothing_of_the_last_one(checkpoint, opened):
    engine = opened().generator.engine
    long, short = prompts(checkpoint)[4], prompts(checkpoint)[2]
    alone = engine.generate([short], generation_config(max_new_tokens=9))[0]
    engine.generate([long], generation_config(max_new_tokens=5))
    assert engine.generate([short], generation_config(max_new_tokens=9))[0] == alone


def test_the_file_is_measured_as_the_checkpoint_is(checkpoint, opened):
    examples = [{"text": text} for text in ASCII_SENTENCES[:3]]
    task = checkpoint.task.model_copy(update={"max_length": CONTEXT})
    from dataclasses import replace

    expected = evaluate(open_checkpoint(replace(checkpoint, task=task)), examples)
    assert evaluate(opened(), examples) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("bits", "rise"), [(8, 0.05), (4, 0.6)])
def test_weights_in_fewer_bits_tell_nearly_the_same(checkpoint, opened, bits, rise):
    examples = [{"text": text} for text in ASCII_SENTENCES[:3]]
    before = evaluate(opened(), examples)["perplexity"]
    found = opened(bits)
    assert evaluate(found, examples)["perplexity"] == pytest.approx(before, rel=rise)
    path = found.checkpoint.path / TFLITE_FILE
    data = path.read_bytes()
    kinds = flatbuffer.count_operations(data)
    assert "EMBEDDING_LOOKUP:FLOAT32" in kinds.builtin  # the tied table, read where it is
    assert tflite_generation.check_weights(
        checkpoint, load_profile(f"tflite-int{bits}", OPTIONS), data
    ).passed


def test_scales_are_written_once_for_all_signatures(checkpoint, content):
    """A table of 262,144 tokens has 3 MB of them."""
    size = checkpoint.config.vocabulary_size
    data = tflite_quantization.quantize_weights(content, 8, size)
    named, written = 0, set()
    for graph in flatbuffer.parse(data).subgraphs:
        for tensor in graph.tensors:
            scale = tensor.quantization.scale if tensor.quantization else None
            if scale is not None and len(scale) == size:
                named += 1
                written.add(scale.tobytes())
    (scales,) = written
    assert named >= 3 and data.count(scales) == 1


def test_rows_and_groups_round_to_the_nearest():
    weights = np.random.default_rng(0).normal(size=(6, 64)).astype(np.float32)
    rows, groups = (
        tflite_quantization.quantize_rows(weights),
        tflite_quantization.quantize_groups(weights),
    )
    np.testing.assert_allclose(
        rows.values * rows.scales[:, None], weights, atol=float(rows.scales.max()) / 2 + 1e-6
    )
    scales = np.repeat(groups.scales.astype(np.float32), tflite_quantization.GROUP_SIZE, axis=1)
    np.testing.assert_allclose(groups.values * scales, weights, atol=float(scales.max()) * 0.51)
    stored = groups.packed
    assert stored.shape == (6 * 32,)
    low = (stored & 15).astype(np.int8)
    assert np.array_equal(np.where(low > 7, low - 16, low), groups.values.reshape(-1)[0::2])
    assert tflite_quantization.quantize_rows(np.zeros([2, 4], np.float32)).values.any() == np.False_


def test_prefill_rows_leave_room():
    assert tflite_decoding_graphs.prefill_lengths(1024) == (4, 16, 64, 256)
    assert tflite_decoding_graphs.prefill_lengths(4096) == (4, 16, 64, 256, 1024)
    assert tflite_decoding_graphs.prefill_lengths(6) == (1,)


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("tflite-int8-full", [], "float32, float16, int8, int4"),
        ("tflite-float32", ["max_length=65"], "64 positions"),
        ("tflite-float32", ["extra_lengths=[8]"], "extra_lengths"),
        ("tflite-float32", ["batch_sizes=[2]"], "one row"),
        ("tflite-float32", ["prefill_lengths=[100]"], "prefill_lengths"),
        ("tflite-loop", ["prompt_length=64"], "no room"),
        ("litertlm", ["prompt_length=8"], "prompt_length is for tflite"),
    ],
)
def test_what_cannot_be_written_is_refused_first(checkpoint, name, overrides, message, tmp_path):
    with pytest.raises(SettingError, match=message):
        export(checkpoint, load_profile(name, overrides), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_file_is_named(tmp_path, content):
    path = tmp_path / "model.tflite"
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(ArtifactError, match="Export"):
        TFLiteSteps(path)


@pytest.mark.parametrize("change", [without_weights, with_copies])
def test_a_failing_check_leaves_nothing(change, checkpoint, content, tmp_path, monkeypatch):
    monkeypatch.setattr(tflite_generation, "convert", lambda *_: changed(content, change))
    with pytest.raises(CheckFailed, match="weights stored once"):
        export(checkpoint, load_profile("tflite-float32", OPTIONS), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_tied_matrix_is_one_with_every_norm(tmp_path):
    """The scale of Llama's norm is not multiplied into the logits' weights."""
    checkpoint = make(tmp_path, "llama", num_layers=1, hidden_dim=64, max_sequence_length=64)
    settings = load_profile("tflite-float32", [f"max_length={CONTEXT}", "prefill_lengths=[4]"])
    content = tflite_generation.convert(checkpoint, settings)
    table = 4 * checkpoint.config.vocabulary_size * 64
    buffers = [len(one.data) for one in flatbuffer.parse(content).buffers if one.data is not None]
    assert buffers.count(table) == 1


@pytest.mark.edge
@pytest.mark.parametrize("name", ["tflite-float32", "tflite-float16", "tflite-int8", "tflite-int4"])
def test_stories_are_exported_and_told(name, data, tmp_path):
    """A trained model: the perplexity limit of each profile is that of real use."""
    from tfllm.checkpoints import store

    stories = store.load(data / "checkpoints" / "stories260K.bin")
    options = ["max_length=192"]
    if name == "tflite-int4":  # 64 channels in groups of 32 lose more than large models do
        options += ["tolerance.perplexity_increase=0.25", "tolerance.agreement=0.6"]
    artifact = export(stories, load_profile(name, options), tmp_path / "out")
    text = (
        open_model(artifact.path)
        .generator.generate(["Once upon a time"], generation_config())[0]
        .text
    )
    assert text.startswith(", there was a little girl named Lily.")


@pytest.mark.edge
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_whole_loops(family, tmp_path):
    checkpoint = make(tmp_path / "tokenizer", family, max_sequence_length=64)
    settings = load_profile("tflite-loop", ["prompt_length=24", "batch_sizes=[1,2]"])
    artifact = export(checkpoint, settings, tmp_path / "out")
    assert {"equal sampled tokens", "generated tokens per second, this machine"} <= {
        check.name for check in artifact.checks
    }
    names = flatbuffer.parse((artifact.path / TFLITE_FILE).read_bytes()).signatureDefs
    assert {one.signatureKey.decode() for one in names} == {"generate", "generate_batch_2"}


@pytest.mark.edge
def test_a_loop_of_two_rows_takes_any_number_of_prompts(tmp_path):
    checkpoint = make(tmp_path / "tokenizer", "gpt2", max_sequence_length=64)
    settings = load_profile("tflite-loop", ["prompt_length=24", "batch_sizes=[2]"])
    engine = open_model(export(checkpoint, settings, tmp_path / "out").path).generator.engine
    rows = prompts(checkpoint)[:3]
    each = [generation_config(max_new_tokens=n, temperature=0.9, seed=n) for n in (5, 9, 7)]
    together = engine.generate(rows, each)
    alone = [engine.generate([row], [one])[0] for row, one in zip(rows, each, strict=True)]
    assert [text.ids for text in together] == [text.ids for text in alone]
    assert [len(text.ids) for text in together] == [5, 9, 7]


@pytest.mark.edge
@pytest.mark.parametrize(
    "shape",
    [
        {"variant": "mistral", "sliding_window": 8},
        {"variant": "qwen3", "query_key_norm": True, "head_dim": 16, "tie_embeddings": False},
    ],
    ids=["window", "untied"],
)
def test_variants_step_as_they_run(shape, tmp_path):
    checkpoint = make(tmp_path / "tokenizer", "llama", max_sequence_length=64, **shape)
    assert not export(checkpoint, load_profile("tflite-float32", OPTIONS), tmp_path / "out").failed


def test_the_converter_gets_no_custom_operations(checkpoint):
    functions = tflite_generation.build_functions(
        checkpoint, load_profile("tflite-float32", OPTIONS)
    )
    assert list(functions) == ["prefill_4", "prefill_16", "decode"]
    assert artifact.variables_module(checkpoint.model).weights
