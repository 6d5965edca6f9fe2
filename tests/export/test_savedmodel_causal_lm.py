"""Language models as SavedModels: every signature against the checkpoint, row by row."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tests.export.c_program import printed
from tests.helpers.language_models import make
from tfllm.errors import SettingError
from tfllm.evaluation.harness import evaluate
from tfllm.export import export, load_profile, op_compatibility, request_settings, savedmodel
from tfllm.export.verify import common
from tfllm.export.verify.sample_texts import ASCII_SENTENCES
from tfllm.generation.config import generation_config
from tfllm.generation.text_generator import TextGenerator
from tfllm.runtimes.checkpoint import open_checkpoint
from tfllm.runtimes.opening import open_model

WINDOW = 64
NEW = 10
PROMPTS = ["The film was", "Where can I buy a ticket to the airport?", "é€ 😀", "yes"]
SETTINGS = {
    "max_new_tokens": [NEW, 3, NEW, NEW],
    "temperature": [0.0, 0.9, 1.2, 0.7],
    "top_k": [0, 5, 0, 40],
    "top_p": [1.0, 1.0, 0.8, 0.95],
    "seed": [0, 1, 2, 2**31 - 1],
}
KINDS = {"temperature": np.float32, "top_p": np.float32}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make(tmp_path_factory.mktemp("gpt2"), max_sequence_length=WINDOW, num_layers=1)


@pytest.fixture(scope="module")
def writer(checkpoint):
    return TextGenerator(checkpoint)


@pytest.fixture(scope="module")
def version(checkpoint, tmp_path_factory):
    """A version's folder, not checked."""
    folder = tmp_path_factory.mktemp("savedmodel") / "1"
    folder.mkdir()
    settings = load_profile("savedmodel", ["generation.max_new_tokens=7", "warmup_batch_sizes=[1]"])
    savedmodel.validate(checkpoint, settings)
    savedmodel.write(checkpoint, settings, folder)
    savedmodel.write_metadata(checkpoint, settings, folder, [])
    return folder


@pytest.fixture(scope="module")
def module(version):
    return tf.saved_model.load(str(version))


def generate(module, prompts, **settings):
    given = {
        name: tf.constant(np.array(values, KINDS.get(name, np.int32)))
        for name, values in {
            **{n: v[: len(prompts)] for n, v in SETTINGS.items()},
            **settings,
        }.items()
    }
    found = module.signatures["generate"](prompt=tf.constant(prompts), **given)
    return [text.decode() for text in found["text"].numpy()], found["token_count"].numpy().tolist()


def own(writer, prompt, **fields):
    return writer.generate([prompt], generation_config(**fields))[0]


def test_every_input_and_output_is_led_by_the_batch(version):
    signatures = savedmodel.signature_defs(version)
    assert {"serving_default", "generate", "score", "tokens"} <= set(signatures)
    for name, signature in signatures.items():
        if not name.startswith("__"):
            for info in (*signature.inputs.values(), *signature.outputs.values()):
                assert info.tensor_shape.dim[0].size == -1, name
    assert list(signatures["serving_default"].inputs) == ["prompt"]
    assert set(signatures["generate"].inputs) == {"prompt", *request_settings.SAMPLING_SETTINGS}


def test_the_graph_runs_in_servers_and_holds_the_weights_once(checkpoint, version):
    checks = savedmodel.check_files(checkpoint, load_profile("savedmodel"), version)
    assert [check.name for check in checks if not check.passed] == []
    assert op_compatibility.check_graph(version).first_version in ("2.12", "2.20")
    assert not any("Xla" in name for name in op_compatibility.check_graph(version).operations)


def test_the_default_is_greedy_and_of_the_profiles_length(module, writer):
    texts = module.signatures["serving_default"](prompt=tf.constant(PROMPTS))["text"].numpy()
    for prompt, text in zip(PROMPTS, texts, strict=True):
        assert text.decode() == own(writer, prompt, max_new_tokens=7).text


def test_rows_have_their_own_settings_and_no_neighbours(module, writer):
    texts, counts = generate(module, PROMPTS)
    for row, prompt in enumerate(PROMPTS):
        fields = {name: values[row] for name, values in SETTINGS.items()}
        alone = {name: [value] for name, value in fields.items()}
        assert generate(module, [prompt], **alone) == ([texts[row]], [counts[row]])
        expected = own(writer, prompt, **fields)
        assert (texts[row], counts[row]) == (expected.text, expected.token_count)


def test_a_row_may_ask_for_too_much_or_nothing(module, writer):
    long = " ".join(ASCII_SENTENCES)
    texts, counts = generate(
        module,
        ["", "yes", long, "yes"],
        max_new_tokens=[5, 0, 8, 10**9],
        temperature=[0.0] * 4,
        top_k=[0, 10**9, 0, 0],
        top_p=[1.0] * 4,
        seed=[0] * 4,
    )
    assert (texts[1], counts[1]) == ("", 0)
    cut = writer.generate([long], generation_config(max_new_tokens=8), truncate="left")[0]
    assert (texts[2], counts[2]) == (cut.text, cut.token_count)
    whole = own(writer, "yes", max_new_tokens=1000)
    assert (texts[3], counts[3]) == (whole.text, whole.token_count)
    assert counts[0] <= 5


WRONG = [
    ("temperature", float("nan")), ("temperature", -0.5), ("temperature", float("inf")),
    ("top_k", -3), ("top_p", 0.0), ("top_p", 5.0), ("top_p", float("nan")), ("seed", -1),
    ("max_new_tokens", -1),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_wrong_setting_is_refused_by_its_name(module, name, value):
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"input {name} must be"):
        generate(module, PROMPTS[:2], **{name: [SETTINGS[name][0], value]})


def generate_tokens(module, ids, lengths):
    given = {
        name: tf.constant(np.array(values[: len(ids)], KINDS.get(name, np.int32)))
        for name, values in SETTINGS.items()
    }
    return module.signatures["generate_tokens"](
        token_ids=tf.constant(ids, tf.int32), lengths=tf.constant(lengths, tf.int32), **given
    )


def test_wrong_ids_are_refused_by_their_name(checkpoint, module):
    size = checkpoint.config.vocabulary_size
    for ids, lengths, name in (
        ([[1, -1]], [2], "token_ids"),
        ([[1, 2], [size, 2]], [2, 1], "token_ids"),
        ([[1, 2]], [3], "lengths"),
        ([[1, 2]], [-1], "lengths"),
    ):
        with pytest.raises(tf.errors.InvalidArgumentError, match=f"input {name} must be"):
            generate_tokens(module, ids, lengths)
    found = generate_tokens(module, [[1, 2, -1]], [2])  # what fills a row is not looked at
    assert np.array_equal(found["token_ids"], generate_tokens(module, [[1, 2]], [2])["token_ids"])
    mask = tf.constant([[1, 1]], tf.int32)
    with pytest.raises(tf.errors.InvalidArgumentError, match="input token_ids must be"):
        module.signatures["tokens"](token_ids=tf.constant([[1, -1]], tf.int32), padding_mask=mask)


def test_stop_ids_end_a_text_and_are_not_in_it(checkpoint, writer, tmp_path):
    from dataclasses import replace

    ids = writer.engine.generate([writer.tokenizer.encode_ids(["yes"])[0]], generation_config())[
        0
    ].ids
    stopping = replace(checkpoint, generation_config={"eos_token_id": [ids[4]]})
    folder = tmp_path / "1"
    folder.mkdir()
    savedmodel.write(stopping, load_profile("savedmodel", ["warmup_batch_sizes=[1]"]), folder)
    texts, counts = generate(tf.saved_model.load(str(folder)), ["yes"])
    assert counts == [ids.index(ids[4])]
    assert (
        texts[0]
        == TextGenerator(stopping).generate(["yes"], generation_config(max_new_tokens=NEW))[0].text
    )


def test_scores_are_the_checkpoints(checkpoint, module):
    texts = ["The film was bad.", "", "a", "It's fine. Nothing more, nothing less."]
    found = module.signatures["score"](text=tf.constant(texts))
    expected = open_checkpoint(checkpoint).score([{"text": text} for text in texts], stride=WINDOW)
    wanted = [one["log_probability"] for one in expected]
    np.testing.assert_allclose(found["log_probability"].numpy(), wanted, atol=1e-4)
    assert found["token_count"].numpy().tolist() == [one["token_count"] for one in expected]


def test_the_file_is_measured_and_asked_as_the_checkpoint_is(checkpoint, version, writer):
    predictor = open_model(version)
    examples = [{"text": text} for text in ASCII_SENTENCES[:6]]
    expected = evaluate(open_checkpoint(checkpoint), examples)
    assert evaluate(predictor, examples) == pytest.approx(expected, rel=1e-5)
    settings = generation_config(max_new_tokens=NEW, temperature=0.8, seed=4)
    found = predictor.generator.generate(PROMPTS, settings, stop=["e"])
    assert [one.text for one in found] == [
        one.text for one in writer.generate(PROMPTS, settings, stop=["e"])
    ]
    with pytest.raises(SettingError, match="repetition_penalty"):
        predictor.generator.generate(["yes"], generation_config(repetition_penalty=1.3))


def test_more_positions_than_the_model_has_are_refused(checkpoint):
    with pytest.raises(SettingError, match="64 positions"):
        savedmodel.validate(checkpoint, load_profile("savedmodel", ["max_length=65"]))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_whole_export_passes_all_checks(family, tmp_path):
    checkpoint = make(tmp_path / "tokenizer", family)
    seen = []
    export(checkpoint, load_profile("savedmodel"), tmp_path / "out", on_check=seen.append)
    names = " ".join(check.name for check in seen)
    assert "equal greedy texts of 100 prompts" in names and "difference of `score`" in names
    described = json.loads((tmp_path / "out/1/assets/tfllm.json").read_text())
    assert described["eos_token_id"] == [0] and described["context"] == 128


@pytest.mark.slow
def test_bfloat16_is_half_the_size(tmp_path):
    checkpoint = make(tmp_path / "tokenizer")
    artifact = export(checkpoint, load_profile("savedmodel-bfloat16"), tmp_path / "out")
    numbers, size = savedmodel.stored_size(artifact.path)
    assert size < 2.1 * numbers


@pytest.mark.slow
def test_xla_is_written_when_asked_for(tmp_path):
    checkpoint = make(tmp_path / "tokenizer", num_layers=1)
    settings = load_profile("savedmodel-xla", ["warmup_batch_sizes=[1]"])
    artifact = export(checkpoint, settings, tmp_path / "out")
    assert any("XLA" in problem for problem in op_compatibility.check_graph(artifact.path).problems)


@pytest.mark.slow
def test_the_same_texts_under_the_servers_tensorflow(version, module):
    """Set TFLLM_TF220_PYTHON to the Python of an environment with tensorflow 2.20."""
    python = os.environ.get("TFLLM_TF220_PYTHON")
    if not python:
        pytest.skip("no tensorflow 2.20: set TFLLM_TF220_PYTHON")
    request = {"signature": "generate", "inputs": {"prompt": PROMPTS, **SETTINGS}}
    found = common.run_savedmodel(version, [request], python)
    assert found["versions"]["tensorflow"].startswith("2.20")
    assert found["outputs"][0]["text"] == generate(module, PROMPTS)[0]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("gcc"), reason="compiles a C program: needs gcc")
def test_a_c_program_writes_the_same_texts(version, module, tmp_path):
    import tensorflow_text

    operations = sorted((Path(tensorflow_text.__file__).parent / "python" / "ops").glob("_*.so"))
    lines = printed(tmp_path, version, "prompt", "text", operations, PROMPTS)
    texts = module.signatures["serving_default"](prompt=tf.constant(PROMPTS))["text"].numpy()
    assert lines == [text.decode().replace("\n", "\\n") for text in texts]


@pytest.mark.slow
def test_a_server_answers_with_it(version, module):
    """REST and gRPC of tfllm serve."""
    grpc = pytest.importorskip("grpc")
    httpx = pytest.importorskip("httpx")
    from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

    from tests.helpers.servers import serving
    from tfllm.serving.schema import ModelEntry

    expected, counts = generate(module, PROMPTS)
    entry = ModelEntry(name="writer", base_path=str(version.parent))
    with serving([entry]) as running:
        rows = [
            {"prompt": prompt, **{name: values[row] for name, values in SETTINGS.items()}}
            for row, prompt in enumerate(PROMPTS)
        ]
        body = {"signature_name": "generate", "instances": rows}
        answer = httpx.post(f"{running.url}/v1/models/writer:predict", json=body, timeout=60)
        assert answer.json()["predictions"] == [
            {"text": text, "token_count": count}
            for text, count in zip(expected, counts, strict=True)
        ]
        wrong = [rows[0], {**rows[1], "temperature": -0.5}]
        body = {"signature_name": "generate", "instances": wrong}
        answer = httpx.post(f"{running.url}/v1/models/writer:predict", json=body, timeout=60)
        assert answer.status_code == 400
        assert "input temperature must be a finite number" in answer.json()["error"]
        request = predict_pb2.PredictRequest()
        request.model_spec.name, request.model_spec.signature_name = "writer", "generate"
        request.inputs["prompt"].CopyFrom(tf.make_tensor_proto(PROMPTS))
        for name, values in SETTINGS.items():
            array = np.array(values, KINDS.get(name, np.int32))
            request.inputs[name].CopyFrom(tf.make_tensor_proto(array))
        with grpc.insecure_channel(running.address) as channel:
            stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
            found = tf.make_ndarray(stub.Predict(request, 60).outputs["text"])
        assert [text.decode() for text in found] == expected
