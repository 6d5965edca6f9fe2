"""sentence-transformers' files: each setting is done, or refused by name."""

import dataclasses
import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.helpers.language_models import make as make_decoder
from tfllm.checkpoints import huggingface, store
from tfllm.checkpoints.describe import describe
from tfllm.errors import CheckpointError
from tfllm.runtimes.checkpoint import open_checkpoint
from tfllm.tasks.embedding import Embedding

KIND = "sentence_transformers.models."
MODULES = [
    {"type": f"{KIND}Transformer", "path": ""},
    {"type": f"{KIND}Pooling", "path": "1_Pooling"},
    {"type": f"{KIND}Normalize", "path": "2_Normalize"},
]
MEAN = {"pooling_mode_mean_tokens": True}
POOLINGS = ["first", "mean", "max", "last", "weighted_mean", "root_mean"]


def layout(directory, modules=MODULES, pooling=MEAN, settings=None, prompts=None):
    """Writes sentence-transformers' files into a directory."""
    (directory / "modules.json").write_text(json.dumps(modules))
    (directory / "1_Pooling").mkdir(exist_ok=True)
    (directory / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    if settings:
        (directory / "sentence_bert_config.json").write_text(json.dumps(settings))
    if prompts:
        path = directory / "config_sentence_transformers.json"
        path.write_text(json.dumps(prompts))


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_settings_there_and_back(golden, tmp_path, pooling, normalize):
    directory, inputs, _ = golden("bert", "embedding")
    task = Embedding(
        pooling=pooling, normalize=normalize, max_length=12, similarity="dot",
        prompts={"query": "a b ", "document": ""}, prompt_name="query",
    )  # fmt: skip
    checkpoint = store.load(directory, task=task)
    huggingface.write(checkpoint, tmp_path / "back")
    again = store.load(tmp_path / "back")
    assert again.task == task
    np.testing.assert_array_equal(again.model(inputs), checkpoint.model(inputs))


@pytest.mark.parametrize("pooling", POOLINGS)
def test_poolings_by_their_definition(golden, pooling):
    directory, inputs, _ = golden("bert", "embedding")
    mask = np.array(inputs["padding_mask"], "int32")
    mask[0], mask[1, 3:] = 1, 0
    inputs = {**inputs, "padding_mask": mask}
    hidden = store.load(directory, task=Embedding(pooling="first", normalize=False, max_length=16))
    states = np.asarray(_states(hidden, inputs))
    made = store.load(directory, task=Embedding(pooling=pooling, normalize=False, max_length=16))
    found = np.asarray(made.model(inputs))
    for row, kept in enumerate(mask.astype(bool)):
        tokens = states[row][kept]
        place = np.arange(1, len(tokens) + 1)[:, None]
        want = {
            "first": tokens[0],
            "mean": tokens.mean(0),
            "max": tokens.max(0),
            "last": tokens[-1],
            "weighted_mean": (tokens * place).sum(0) / place.sum(),
            "root_mean": tokens.sum(0) / np.sqrt(len(tokens)),
        }[pooling]
        np.testing.assert_allclose(found[row], want, atol=1e-5)  # float32


def _states(checkpoint, inputs):
    import keras

    layer = [one for one in checkpoint.model.layers if one.name.startswith("layer_")][-1]
    return keras.Model(checkpoint.model.input, layer.output)(inputs)


@pytest.mark.parametrize(
    ("mode", "pooling"),
    [
        ({"pooling_mode": "lasttoken"}, "last"),
        ({"pooling_mode": ["cls"]}, "first"),
        ({"pooling_mode_weightedmean_tokens": True, "pooling_mode_mean_tokens": False},
         "weighted_mean"),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, "root_mean"),
        ({"pooling_mode_lasttoken": True, "include_prompt": False}, "last"),
    ],
)  # fmt: skip
def test_spellings_of_poolings(golden, mode, pooling):
    directory, _, _ = golden("bert", "embedding")
    layout(directory, pooling=mode)
    assert store.load(directory).task.pooling == pooling


PROMPTED = {"prompts": {"query": "a "}, "default_prompt_name": "query"}


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"modules": [*MODULES[:2], {"type": f"{KIND}Dense", "path": "2_Dense"}]},
         "module 'Dense' in '2_Dense' is not known"),
        ({"modules": {"a": 1}}, "not a list of modules"),
        ({"modules": MODULES[:1]}, "no module Pooling"),
        ({"modules": [MODULES[0], MODULES[2], MODULES[1]]}, "each once and in this order"),
        ({"modules": [{"type": f"{KIND}Transformer", "path": "0_T"}, *MODULES[1:]]}, "'0_T'"),
        ({"pooling": {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}},
         "exactly one"),
        ({"pooling": {"pooling_mode_median_tokens": True}}, "pools by pooling_mode_median_tokens"),
        ({"pooling": {"pooling_mode": ["cls", "mean"]}}, "exactly one"),
        ({"pooling": {}}, "pools by nothing"),
        ({"settings": {"max_seq_length": "long"}}, "max_seq_length is 'long'"),
        ({"settings": {"max_seq_length": float("nan")}}, "max_seq_length is nan"),
        ({"prompts": {"default_prompt_name": "query"}}, "default_prompt_name is 'query'"),
        ({"prompts": {"prompts": ["a"]}}, "not a table of names and texts"),
        ({"prompts": {"similarity_fn_name": "angle"}}, "similarity_fn_name is 'angle'"),
        ({"prompts": PROMPTED, "pooling": {**MEAN, "include_prompt": False}},
         "include_prompt is false"),
    ],
)  # fmt: skip
def test_what_is_not_done_is_refused(golden, files, said):
    directory, _, _ = golden("bert", "embedding")
    layout(directory, **files)
    with pytest.raises(CheckpointError, match=said) as error:
        store.load(directory)
    assert "\n" not in str(error.value)


def test_a_prompt_stands_before_every_text(golden):
    directory, _, _ = golden("bert", "embedding")
    layout(directory)
    plain = open_checkpoint(store.load(directory))
    layout(directory, prompts=PROMPTED)
    prompted = open_checkpoint(store.load(directory))
    texts = [{"text": "b c", "text_pair": "d"}]
    with_prompt = [{"text": "a b c", "text_pair": "a d"}]
    assert prompted.predict(texts) == plain.predict(with_prompt)
    assert prompted.predict(texts) != plain.predict(texts)


def test_prompts_without_a_default_change_nothing(golden):
    directory, _, _ = golden("bert", "embedding")
    layout(directory, prompts={"prompts": {"query": "a "}, "default_prompt_name": None})
    task = store.load(directory).task
    assert (task.prompts, task.prompt) == ({"query": "a "}, "")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cosine", 11 / np.sqrt(5 * 25)),
        ("dot", 11.0),
        ("euclidean", -np.sqrt(8)),
        ("manhattan", -4),
    ],
)
def test_how_vectors_are_compared(golden, name, value):
    directory, _, _ = golden("bert", "embedding")
    layout(directory, prompts={"similarity_fn_name": name})
    task = store.load(directory).task
    found = task.pair_answer(np.array([1.0, 2.0]), np.array([3.0, 4.0]))["similarity"]
    assert found == pytest.approx(value)


def test_texts_are_lowered_where_the_files_say_so(golden):
    directory, _, _ = golden("bert", "embedding")
    (directory / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    layout(directory)
    assert store.load(directory).tokenizer.encode("AB é").ids.count(1) == 2  # unknown words
    layout(directory, settings={"do_lower_case": True})
    tokenizer = store.load(directory).tokenizer
    assert tokenizer.encode("AB").ids == tokenizer.encode("ab").ids
    assert tokenizer.encode("é").ids == tokenizer.encode("É").ids != tokenizer.encode("e").ids


def test_a_tokenizer_that_cannot_lower_is_refused(tmp_path):
    made = make_decoder(tmp_path / "tokenizer", "llama")
    huggingface.write(made, tmp_path / "model")
    layout(tmp_path / "model", settings={"do_lower_case": True})
    with pytest.raises(CheckpointError, match="do_lower_case is true"):
        store.load(tmp_path / "model")


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_decoder_with_modules_gives_vectors(tmp_path, family):
    """The layout of Qwen3-Embedding: a causal language model, the last token, length 1."""
    made = make_decoder(tmp_path / "tokenizer", family)
    huggingface.write(made, tmp_path / "model")
    layout(tmp_path / "model", pooling={"pooling_mode_lasttoken": True})
    checkpoint = store.load(tmp_path / "model")
    assert checkpoint.task.kind == describe(tmp_path / "model")["task"]["kind"] == "embedding"
    assert (checkpoint.task.pooling, checkpoint.task.normalize) == ("last", True)
    ids = np.array([[5, 6, 7, 8], [5, 6, 0, 0]], "int32")
    mask = np.array([[1, 1, 1, 1], [1, 1, 0, 0]], "int32")
    vectors = np.asarray(checkpoint.model({"token_ids": ids, "padding_mask": mask}))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    short = checkpoint.model({"token_ids": ids[1:, :2], "padding_mask": mask[1:, :2]})
    np.testing.assert_allclose(vectors[1], np.asarray(short)[0], atol=1e-5)  # padding is not seen

    huggingface.write(checkpoint, tmp_path / "back")
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("model", "back"))
    assert set(after) == set(before)
    again = store.load(tmp_path / "back")
    assert again.task == checkpoint.task
    np.testing.assert_array_equal(again.model({"token_ids": ids, "padding_mask": mask}), vectors)
    bare = dataclasses.replace(checkpoint, origin=None, unused_tensors={})
    huggingface.write(bare, tmp_path / "bare")
    config = json.loads((tmp_path / "bare" / "config.json").read_text())
    assert config["architectures"] == [{"llama": "LlamaModel", "gpt2": "GPT2Model"}[family]]
    again = store.load(tmp_path / "bare")
    np.testing.assert_array_equal(again.model({"token_ids": ids, "padding_mask": mask}), vectors)


def test_a_masked_model_with_modules_gives_vectors(golden):
    directory, _, _ = golden("bert", "masked_lm")
    layout(directory)
    assert store.load(directory).task.kind == "embedding"


def test_an_encoder_decoder_with_modules_is_refused(golden):
    directory, _, _ = golden("encoder_decoders", "t5")
    layout(directory)
    with pytest.raises(CheckpointError, match="an embedding model, and in tfllm the family t5"):
        store.load(directory)


@pytest.mark.parametrize(
    ("head", "named", "length"),
    [
        ("classification", None, 16),
        ("classification", 12, 12),
        ("classification", 10**30, 16),
        ("classification", "x", 16),
        ("token_classification", 12, 12),
        ("masked_lm", 12, 12),
        ("question_answering", 12, 12),
        ("embedding", None, 16),
    ],
)
def test_the_longest_row_is_the_models_or_its_tokenizers(golden, head, named, length):
    directory, _, _ = golden("bert", head)
    if named is not None:
        (directory / "tokenizer_config.json").write_text(json.dumps({"model_max_length": named}))
    assert store.load(directory).task.max_length == length


def test_long_classifiers_take_long_texts(golden):
    """More than 128 positions are used, which was the limit."""
    directory, _, _ = golden("bert", "classification")
    path = directory / "model.safetensors"
    tensors = load_file(path)
    name = "bert.embeddings.position_embeddings.weight"
    tensors[name] = np.random.default_rng(0).normal(size=(300, 8)).astype("float32")
    save_file(tensors, path, metadata={"format": "pt"})
    config = json.loads((directory / "config.json").read_text()) | {"max_position_embeddings": 300}
    (directory / "config.json").write_text(json.dumps(config))
    predictor = open_checkpoint(store.load(directory))
    assert predictor.task.max_length == 300
    words = " ".join("abcdefgh"[i % 8] for i in range(400))
    longer, shorter = predictor.predict([{"text": words}, {"text": words[: 2 * 126]}])
    assert longer != shorter
