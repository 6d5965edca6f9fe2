"""Encoder-decoders as SavedModels: two SentencePiece models and the search in the graph."""

import dataclasses
import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from tests.export.c_program import printed
from tests.helpers.translators import SENTENCES, checkpoint
from tfllm.errors import SettingError
from tfllm.export import export, load_profile, op_compatibility, request_settings, savedmodel
from tfllm.generation.seq2seq_generator import Seq2SeqGenerator
from tfllm.runtimes.opening import open_model

SCORES = 1e-4  # sums of some float32 log-probabilities, in another batch
SECONDS = 300.0  # for a server to warm up six signatures
SOURCES = [*SENTENCES, "yes", "é€ 😀"]


@pytest.fixture(scope="module")
def source():
    return checkpoint(profile="translate")


@pytest.fixture(scope="module")
def writer(source):
    return Seq2SeqGenerator(source)


@pytest.fixture(scope="module")
def version(source, tmp_path_factory):
    """A version's folder, not checked."""
    folder = tmp_path_factory.mktemp("savedmodel") / "1"
    folder.mkdir()
    settings = load_profile("savedmodel", ["warmup_batch_sizes=[1]"])
    savedmodel.validate(source, settings)
    savedmodel.write(source, settings, folder)
    savedmodel.write_metadata(source, settings, folder, [])
    return folder


@pytest.fixture(scope="module")
def module(version):
    return tf.saved_model.load(str(version))


def asked(module, signature, prompts, **settings):
    kinds = {**request_settings.SAMPLING_SETTINGS, **request_settings.BEAM_SETTINGS}
    given = {name: tf.constant(values, kinds[name]) for name, values in settings.items()}
    found = module.signatures[signature](prompt=tf.constant(prompts), **given)
    return {name: value.numpy().tolist() for name, value in found.items()}


def texts_of(found):
    return [text.decode() for text in found["text"]]


def test_every_input_and_output_is_led_by_the_batch(version):
    signatures = savedmodel.signature_defs(version)
    assert {"serving_default", "translate", "generate", "beam", "tokens"} <= set(signatures)
    for name, signature in signatures.items():
        if not name.startswith("__"):
            for info in (*signature.inputs.values(), *signature.outputs.values()):
                assert info.tensor_shape.dim[0].size == -1, name
    assert list(signatures["translate"].inputs) == ["prompt"]


def test_the_graph_runs_in_servers_and_holds_the_weights_once(source, version):
    checks = savedmodel.check_files(source, load_profile("savedmodel"), version)
    assert [str(check) for check in checks if not check.passed] == []
    assert not any("Xla" in name for name in op_compatibility.check_graph(version).operations)


def test_the_default_writes_what_the_checkpoint_does(module, writer):
    found = asked(module, "serving_default", SOURCES)
    expected = writer.generate(SOURCES)
    assert texts_of(found) == [text.text for text in expected]
    np.testing.assert_allclose(found["score"], [text.score for text in expected], atol=SCORES)
    assert asked(module, "translate", SOURCES) == found
    for row, text in enumerate(SOURCES[:2]):
        assert texts_of(asked(module, "translate", [text])) == [expected[row].text]


def test_rows_have_their_own_settings_and_no_neighbours(module, writer):
    rows = {
        "max_new_tokens": [9, 3, 9],
        "temperature": [0.0, 0.9, 1.2],
        "top_k": [0, 5, 0],
        "top_p": [1.0, 1.0, 0.8],
        "seed": [0, 1, 2],
    }
    found = asked(module, "generate", SOURCES[:3], **rows)
    for row, text in enumerate(SOURCES[:3]):
        given = {name: values[row] for name, values in rows.items()}
        expected = writer.generate([text], writer.generation_config(num_beams=1, **given))[0]
        assert (texts_of(found)[row], found["token_count"][row]) == (
            expected.text, expected.token_count,
        )  # fmt: skip
    penalties = [0.0, 1.0, 2.5]
    found = asked(module, "beam", SOURCES[:3], max_new_tokens=[9, 4, 9], length_penalty=penalties)
    for row, text in enumerate(SOURCES[:3]):
        settings = writer.generation_config(
            max_new_tokens=[9, 4, 9][row], length_penalty=penalties[row]
        )
        (expected,) = writer.generate([text], settings)
        assert texts_of(found)[row] == expected.text
        assert found["score"][row] == pytest.approx(expected.score, abs=SCORES)


def test_wrong_settings_and_ids_are_refused_by_their_name(module):
    plain = {"max_new_tokens": 3, "temperature": 0.0, "top_k": 0, "top_p": 1.0, "seed": 0}
    ids = {"token_ids": tf.constant([[1, -1]], tf.int32), "lengths": tf.constant([2], tf.int32)}

    def refused(signature, name, inputs, settings):
        kinds = {**request_settings.SAMPLING_SETTINGS, **request_settings.BEAM_SETTINGS}
        given = {key: tf.constant([value], kinds[key]) for key, value in settings.items()}
        with pytest.raises(tf.errors.InvalidArgumentError, match=f"input {name} must be"):
            module.signatures[signature](**inputs, **given)

    prompt = {"prompt": tf.constant(SOURCES[:1])}
    beam = {"max_new_tokens": 3, "length_penalty": 1.0}
    for name, value in (("temperature", float("nan")), ("top_p", 0.0), ("seed", -1)):
        refused("generate", name, prompt, {**plain, name: value})
    refused("beam", "length_penalty", prompt, {**beam, "length_penalty": float("nan")})
    refused("generate_tokens", "token_ids", ids, plain)
    refused("beam_tokens", "token_ids", ids, beam)


def test_what_a_row_gives_wrongly_fails_nobody(module, writer):
    long = " ".join(SENTENCES * 9)
    prompts = [b"", b"yes", b"\xff", b"  ", long.encode()]
    found = asked(module, "serving_default", prompts)
    texts = texts_of(found)
    assert (texts[0], texts[3], found["score"][0]) == ("", "", 0.0)
    assert texts[1] == writer.generate(["yes"])[0].text
    assert texts[4] == writer.generate([long], truncate="right")[0].text


def test_the_file_is_asked_as_the_checkpoint_is(version, writer):
    predictor = open_model(version)
    examples = [{"text": text} for text in SOURCES]
    expected = writer.generate(SOURCES)
    answers = predictor.predict(examples)
    assert [answer["text"] for answer in answers] == [text.text for text in expected]
    generator = predictor.generator
    sampled = {"temperature": 0.8, "seed": 4, "max_new_tokens": 6}
    found = generator.generate(SOURCES[:2], generator.generation_config(**sampled))
    again = writer.generate(SOURCES[:2], writer.generation_config(**sampled))
    assert [one.text for one in found] == [one.text for one in again]
    with pytest.raises(SettingError, match="3 beams, or with 1"):
        generator.generate(["yes"], generator.generation_config(num_beams=5))
    with pytest.raises(SettingError, match="repetition_penalty"):
        generator.generate(["yes"], generator.generation_config(repetition_penalty=1.3))


@pytest.mark.slow
def test_a_greedy_checkpoint_is_greedy_and_has_beams_of_the_profile(source, tmp_path):
    greedy = dataclasses.replace(
        source, generation_config={**source.generation_config, "num_beams": 1}
    )
    folder = tmp_path / "1"
    folder.mkdir()
    savedmodel.write(
        greedy,
        load_profile("savedmodel", ["warmup_batch_sizes=[1]", "generation.num_beams=2"]),
        folder,
    )
    module = tf.saved_model.load(str(folder))
    writer = Seq2SeqGenerator(greedy)
    found = asked(module, "serving_default", SOURCES)
    assert texts_of(found) == [text.text for text in writer.generate(SOURCES)]
    found = asked(module, "beam", ["yes"], max_new_tokens=[8], length_penalty=[1.0])
    settings = writer.generation_config(num_beams=2, max_new_tokens=8)
    assert texts_of(found) == [writer.generate(["yes"], settings)[0].text]


@pytest.mark.slow
def test_a_whole_export_passes_all_checks(source, tmp_path):
    seen = []
    export(source, load_profile("savedmodel"), tmp_path / "out", on_check=seen.append)
    names = " ".join(check.name for check in seen)
    assert "equal texts of" in names and "equal texts with 3 beams" in names
    described = json.loads((tmp_path / "out/1/assets/tfllm.json").read_text())
    assert described["num_beams"] == 3 and described["generation"]["num_beams"] == 3


@pytest.mark.slow
def test_real_sentences_equal_the_checkpoint(data, module, writer):
    """200 of the validation sentences of multi30k, English and German."""
    lines = [
        line
        for name in ("val.en.gz", "val.de.gz")
        for line in gzip.decompress((data / "multi30k" / name).read_bytes()).decode().splitlines()
    ][:: 2 * 1014 // 200][:200]
    expected = writer.generate(lines, truncate="right")
    for start in range(0, len(lines), 50):
        found = texts_of(asked(module, "translate", lines[start : start + 50]))
        assert found == [text.text for text in expected[start : start + 50]]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("gcc"), reason="compiles a C program: needs gcc")
def test_a_c_program_writes_the_same_texts(version, module, tmp_path):
    import tensorflow_text

    operations = sorted((Path(tensorflow_text.__file__).parent / "python" / "ops").glob("_*.so"))
    lines = printed(tmp_path, version, "prompt", "text", operations, SOURCES)
    texts = texts_of(asked(module, "serving_default", SOURCES))
    assert lines == [text.replace("\n", "\\n") for text in texts]


@pytest.mark.slow
def test_a_server_answers_with_it(version, module):
    """REST of tfllm serve."""
    httpx = pytest.importorskip("httpx")

    from tests.helpers.servers import serving
    from tests.helpers.waiting import wait_for
    from tfllm.serving.schema import ModelEntry

    expected = asked(module, "translate", SOURCES)
    entry = ModelEntry(name="en-de", base_path=str(version.parent))
    with serving([entry], ready=False) as running:
        wait_for(lambda: running.server.ready, seconds=SECONDS)
        body = {
            "signature_name": "translate",
            "instances": [{"prompt": text} for text in SOURCES],
        }
        answer = httpx.post(f"{running.url}/v1/models/en-de:predict", json=body, timeout=SECONDS)
        rows = answer.json()["predictions"]
        assert [row["text"] for row in rows] == texts_of(expected)
        np.testing.assert_allclose([row["score"] for row in rows], expected["score"], atol=SCORES)
