"""LiteRT-LM bundles: what is inside, and what the litert-lm package writes with them."""

import json
from dataclasses import replace

import pytest

pytest.importorskip("litert_lm_builder")

from tests.helpers.language_models import CHAT_TEMPLATE, make
from tfllm.checkpoints import store
from tfllm.errors import ArtifactError, SettingError
from tfllm.export import export, litertlm, litertlm_prompt, load_profile, tflite_generation
from tfllm.runtimes.litertlm import FILE_NAME, MODEL, open_bundle


@pytest.fixture
def checkpoint(tmp_path):
    return make(tmp_path / "tokenizer")


@pytest.fixture
def folder(checkpoint, tmp_path, monkeypatch):
    """A bundle with four bytes in the place of a model."""
    monkeypatch.setattr(tflite_generation, "convert", lambda *_: b"\0\0\0\0TFL3")
    folder = tmp_path / "bundle"
    folder.mkdir()
    litertlm.write(checkpoint, load_profile("litertlm"), folder)
    return folder


def test_metadata_says_what_the_runtime_needs(folder, checkpoint):
    bundle = open_bundle(folder / FILE_NAME)
    kinds = [section.kind for section in bundle.sections]
    assert kinds == ["LlmMetadataProto", "TFLiteModel", "HF_Tokenizer_Zlib"]
    assert bundle.read(MODEL) == b"\0\0\0\0TFL3"
    found = bundle.metadata()
    assert not found.HasField("start_token")
    assert [list(stop.token_ids.ids) for stop in found.stop_tokens] == [[0]]
    assert found.max_num_tokens == 128 and found.sampler_params.k == 1
    assert found.jinja_prompt_template.endswith(CHAT_TEMPLATE)
    assert '{% set eos_token = "<|endoftext|>" %}' in found.jinja_prompt_template


def test_settings_of_the_profile_are_the_samplers(checkpoint):
    settings = load_profile("litertlm", ["generation.temperature=0.7", "generation.top_p=0.9"])
    sampler = litertlm.llm_metadata(checkpoint, settings).sampler_params
    assert (sampler.p, sampler.temperature) == (pytest.approx(0.9), pytest.approx(0.7))
    assert sampler.k > 1


def test_a_damaged_bundle_is_named(folder, tmp_path):
    path = folder / FILE_NAME
    content = path.read_bytes()
    path.write_bytes(content[:-10])
    with pytest.raises(ArtifactError, match="cut short"):
        open_bundle(path)
    path.write_bytes(b"GGUF" + content[4:])
    with pytest.raises(ArtifactError, match="no LiteRT-LM bundle"):
        open_bundle(path)


def test_a_classifier_is_refused(classifier, tmp_path):
    with pytest.raises(SettingError, match="language models"):
        export(classifier, load_profile("litertlm"), tmp_path / "out")


def test_the_start_token_is_written_once(data):
    stories = store.load(data / "checkpoints" / "stories260K.bin")
    assert litertlm.llm_metadata(stories, load_profile("litertlm")).start_token.token_ids.ids == [1]
    template = "{{ bos_token }}{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    chatting = replace(stories.tokenizer, chat_template=template)
    assert litertlm_prompt.start_token_ids(chatting)
    assert '{% set bos_token = "" %}' in litertlm_prompt.prompt_template(chatting)
    silent = replace(stories.tokenizer, chat_template=template.removeprefix("{{ bos_token }}"))
    assert not litertlm_prompt.start_token_ids(silent)


def test_blocks_of_training_are_left_out(checkpoint):
    template = (
        "{% for m in messages %}{%- generation %}{{ m.content }}{% endgeneration -%}{% endfor %}"
    )
    found = litertlm_prompt.prompt_template(replace(checkpoint.tokenizer, chat_template=template))
    assert found.endswith("{% for m in messages %}{#- #}{{ m.content }}{# -#}{% endfor %}")


@pytest.mark.edge
@pytest.mark.parametrize("chat", [True, False], ids=["template", "plain"])
def test_the_package_writes_the_checkpoints_texts(chat, tmp_path):
    """Byte-level BPE: three lengths of prompts, and a chat of two turns."""
    pytest.importorskip("litert_lm")
    checkpoint = make(tmp_path / "tokenizer", chat=chat)
    artifact = export(checkpoint, load_profile("litertlm"), tmp_path / "out")
    checked = [check for check in artifact.checks if check.name.startswith("litert-lm")]
    assert len(checked) == 2 and all(check.value == "1" for check in checked)


@pytest.mark.edge
def test_a_stop_token_inside_of_an_answer(tmp_path):
    pytest.importorskip("litert_lm")
    from tfllm.export.verify.litertlm_package import USER_MESSAGES, conversation
    from tfllm.generation.text_generator import TextGenerator

    checkpoint = make(tmp_path / "tokenizer", "llama")
    ids = checkpoint.tokenizer.apply_chat_template([{"role": "user", "content": USER_MESSAGES[0]}])
    from tfllm.generation.config import generation_config

    new = (
        TextGenerator(checkpoint)
        .engine.generate([ids], generation_config(max_new_tokens=12))[0]
        .ids
    )
    stopping = replace(checkpoint, generation_config={"eos_token_id": [0, new[6]]})
    assert len(conversation(stopping, TextGenerator(stopping), USER_MESSAGES)) == 2
    assert not export(stopping, load_profile("litertlm"), tmp_path / "out").failed


@pytest.mark.edge
@pytest.mark.parametrize("name", ["litertlm", "litertlm-int8"])
def test_stories_with_sentencepiece(name, data, tmp_path):
    pytest.importorskip("litert_lm")
    stories = store.load(data / "checkpoints" / "stories260K.bin")
    artifact = export(stories, load_profile(name, ["max_length=192"]), tmp_path / "out")
    described = json.loads((artifact.path / "tfllm.json").read_text())
    assert described["context"] == 192 and described["eos_token_id"] == [1, 2]
    if name == "litertlm":
        checked = [check for check in artifact.checks if check.name.startswith("litert-lm")]
        assert [check.value for check in checked] == ["1", "1"]
