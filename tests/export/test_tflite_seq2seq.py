"""Encoder-decoders as .tflite files: encode and decode with caches, and whole loops."""

import pytest

pytest.importorskip("ai_edge_litert")

from tests.helpers.translators import SENTENCES, checkpoint
from tfllm.errors import SettingError
from tfllm.export import export, load_profile, tflite, tflite_generation
from tfllm.generation.seq2seq_generator import Seq2SeqGenerator
from tfllm.runtimes.opening import open_model

SOURCES = [*SENTENCES, "yes"]
LOOP = "prompt_length=72"


@pytest.fixture(scope="module")
def writer():
    return Seq2SeqGenerator(checkpoint())


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """`opened(overrides)`: the predictor of the float32 file."""

    def open_file(*overrides):
        folder = tmp_path_factory.mktemp("lite")
        settings = load_profile("tflite-float32", list(overrides))
        tflite.validate(checkpoint(), settings)
        tflite.write(checkpoint(), settings, folder)
        checks = tflite.check_files(checkpoint(), settings, folder)
        assert [str(check) for check in checks if not check.passed] == []
        tflite.write_metadata(checkpoint(), settings, folder, checks)
        return open_model(folder)

    return open_file


@pytest.mark.parametrize("overrides", [(), (LOOP,)], ids=["steps", "loop"])
def test_texts_equal_the_checkpoints(opened, writer, overrides):
    predictor = opened(*overrides)
    file = predictor.generator
    greedy = writer.generate(SOURCES, writer.generation_config(num_beams=1))
    assert [one["text"] for one in predictor.predict([{"text": text} for text in SOURCES])] == [
        one.text for one in greedy
    ]
    sampled = {"temperature": 0.9, "seed": 3, "max_new_tokens": 6}
    found = file.generate(SOURCES, file.generation_config(**sampled))
    wanted = [writer.generate([text], writer.generation_config(**sampled))[0] for text in SOURCES]
    assert [one.text for one in found] == [one.text for one in wanted]
    with pytest.raises(SettingError, match="num_beams"):
        file.generate(["yes"], file.generation_config(num_beams=3))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tflite-float16", "tflite-int8"])
@pytest.mark.parametrize("overrides", [(), (LOOP,)], ids=["steps", "loop"])
def test_smaller_files_pass_their_checks(tmp_path, name, overrides):
    seen = []
    # A random model's perplexity is that of its vocabulary, and rounding moves it by more.
    limits = ["tolerance.perplexity_increase=0.1"]
    profile = load_profile(name, [*overrides, *limits])
    export(checkpoint(), profile, tmp_path / "out", on_check=seen.append)
    assert any("greedy texts" in check.name for check in seen)


def test_signatures_have_the_names_that_are_documented():
    functions = tflite_generation.build_functions(checkpoint(), load_profile("tflite-float32"))
    assert list(functions) == ["encode", "decode"]
    assert set(functions["encode"].structured_outputs) == {
        "source_padding_mask", "source_k_0", "source_v_0",
    }  # fmt: skip
