"""GGUF files: written and read back to the bit, under llama.cpp's own names; bad files refused."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tokenizers import normalizers

from tests.helpers import tiny_tokenizers
from tests.tokenizers import hostile
from tests.tokenizers.file_cases import llama_model
from tfllm import tasks
from tfllm.checkpoints import gguf, gguf_file, huggingface, store
from tfllm.checkpoints.describe import describe
from tfllm.cli.convert import convert
from tfllm.errors import CheckpointError, SettingError, TokenizerError
from tfllm.tokenizers import bytepair
from tfllm.tokenizers.sentencepiece import from_proto
from tfllm.tokenizers.tokenizer_config import TokenizerConfig

library = pytest.importorskip("gguf")

SIZES = {"num_layers": 2, "num_heads": 4, "hidden_dim": 64, "max_sequence_length": 128}
LLAMA = {**SIZES, "num_key_value_heads": 2, "intermediate_dim": 96, "initializer_range": 0.3}
GEMMA = {
    **LLAMA,
    "head_dim": 32,
    "query_scalar": 32.0,
    "rope_theta": 1e4,
    "pad_token_id": None,
}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
LONGROPE = {
    "rope_type": "longrope", "short_factor": [1.0, 1.1, 1.5, 2.0, 2.7, 3.3],
    "long_factor": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], "factor": 4.0,
    "original_max_position_embeddings": 512,
}  # fmt: skip


# Gemma's norms are stored as 1 + scale, which rounds to half a float32 step at 1 to 2.
OFFSET_ROUNDING = 1.2e-7


def sentencepiece():
    settings = TokenizerConfig({"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"})
    return from_proto(llama_model(), settings, Path("tokenizer.model"))


def byte_level(name):
    rules = {
        "gpt-2": lambda: tiny_tokenizers.BYTE_LEVEL["gpt2"](),
        "smollm": lambda: tiny_tokenizers.BYTE_LEVEL["smollm2"](),
        "qwen2": lambda: tiny_tokenizers.byte_level(
            tiny_tokenizers.split(bytepair.QWEN_PATTERN), normalizers.NFC()
        ),
        "llama-bpe": lambda: tiny_tokenizers.byte_level(
            tiny_tokenizers.split(tiny_tokenizers.LLAMA3_PATTERN.replace("NUMBERS", r"\p{N}{1,3}")),
            model_options={"ignore_merges": True},
        ),
        "dbrx": lambda: tiny_tokenizers.byte_level(
            tiny_tokenizers.split(tiny_tokenizers.LLAMA3_PATTERN.replace("NUMBERS", r"\p{N}{1,3}"))
        ),
    }
    return rules[name]()


# Name: (family, shape, tokenizer).
MODELS = {
    "llama": ("llama", LLAMA, sentencepiece),
    "llama untied": ("llama", {**LLAMA, "tie_embeddings": False}, sentencepiece),
    "llama with biases": (
        "llama", {**LLAMA, "qkv_bias": True, "output_bias": True}, lambda: byte_level("smollm"),
    ),
    "llama 3": (
        "llama", {**LLAMA, "rope_theta": 500000.0, "rope_scaling": LLAMA3, "head_dim": 32},
        lambda: byte_level("llama-bpe"),
    ),
    "qwen2": (
        "llama", {**LLAMA, "variant": "qwen2", "qkv_bias": True}, lambda: byte_level("qwen2"),
    ),
    "qwen3": (
        "llama", {**LLAMA, "variant": "qwen3", "query_key_norm": True, "head_dim": 32},
        lambda: byte_level("qwen2"),
    ),
    "granite": (
        "llama",
        {**LLAMA, "variant": "granite", "embedding_scale": 12.0, "query_scale": 0.0625,
         "residual_scale": 0.22, "logits_scale": 0.125},
        lambda: byte_level("smollm"),
    ),
    "olmo2": (
        "llama", {**LLAMA, "variant": "olmo2", "query_key_norm": True, "tie_embeddings": False},
        lambda: byte_level("dbrx"),
    ),
    "smollm3": (
        "llama",
        {**LLAMA, "variant": "smollm3", "num_layers": 4,
         "rotary_layers": (True, True, True, False)},
        lambda: byte_level("llama-bpe"),
    ),
    "phi3": ("llama", {**LLAMA, "variant": "phi3", "tie_embeddings": False}, sentencepiece),
    "phi3 long": (
        "llama",
        {**LLAMA, "variant": "phi3", "max_sequence_length": 512, "partial_rotary_factor": 0.75,
         "rope_scaling": LONGROPE},
        sentencepiece,
    ),
    "gemma": ("gemma", {**GEMMA, "variant": "gemma"}, sentencepiece),
    "gemma2": (
        "gemma",
        {**GEMMA, "variant": "gemma2", "attention_softcap": 50.0, "logits_softcap": 30.0,
         "sliding_window": 16},
        sentencepiece,
    ),
    "gemma3": (
        "gemma",
        {**GEMMA, "num_layers": 2, "sliding_window": 16, "rope_theta": 1e6},
        sentencepiece,
    ),
    "gpt2": ("gpt2", {**SIZES, "initializer_range": 0.3}, lambda: byte_level("gpt-2")),
}  # fmt: skip


NEIGHBOURS = ("llama", "granite", "smollm3")  # whose converter reorders queries and keys


def make(name):
    family, shape, tokenizer = MODELS[name]
    read = tokenizer()
    task = tasks.build({"kind": "causal_lm", "max_length": 128})
    config = {"vocabulary_size": read.vocabulary_size, **shape}
    return randomized(store.create(family, config, read, task, seed=3))


def randomized(checkpoint):
    """Norms and biases are no more zeros and ones, so that none of them can be forgotten."""
    draw = np.random.default_rng(5)
    for weight in checkpoint.model.weights:
        if weight.shape.rank == 1:
            weight.assign(weight + draw.normal(0, 0.2, weight.shape))
    return checkpoint


def only_file(folder):
    (path,) = folder.glob("*.gguf")
    return path


def weights_of(checkpoint):
    return {weight.path: np.asarray(weight) for weight in checkpoint.model.weights}


@pytest.mark.parametrize("name", MODELS)
def test_a_file_gives_the_model_and_the_tokenizer_back(name, tmp_path):
    checkpoint = make(name)
    path = only_file(gguf.write(checkpoint, tmp_path / "out", "f32"))
    back = store.load(path)
    # How weights were drawn is not in the format.
    drawn = checkpoint.config.initializer_range
    assert replace(back.config, initializer_range=drawn) == checkpoint.config
    before, after = weights_of(checkpoint), weights_of(back)
    assert before.keys() == after.keys()
    for weight in before:
        limit = OFFSET_ROUNDING if "gemma" in name and "norm" in weight else 0.0
        np.testing.assert_allclose(after[weight], before[weight], 0, limit, err_msg=weight)
    for text in [*tiny_tokenizers.CORPUS[:7], *(text.decode() for text in hostile.texts(200))]:
        same = checkpoint.tokenizer.encode_ids([text], add_special_tokens=False)[0]
        again = back.tokenizer.encode_ids([text], add_special_tokens=False)[0]
        assert list(again) == list(same), text
    assert back.tokenizer.vocabulary == checkpoint.tokenizer.vocabulary


@pytest.mark.parametrize("name", MODELS)
def test_names_are_llama_cpps(name, tmp_path):
    """gguf-py's own table, with which llama.cpp's converter names Hugging Face's tensors."""
    checkpoint = make(name)
    path = only_file(gguf.write(checkpoint, tmp_path / "out", "f32"))
    file = gguf.open_file(path)
    kind = getattr(library.MODEL_ARCH, file.architecture.upper())
    table = library.get_tensor_name_map(kind, checkpoint.config.num_layers)
    huggingface.write(checkpoint, tmp_path / "hf")
    from safetensors.numpy import load_file

    tensors = load_file(tmp_path / "hf" / "model.safetensors")
    named = {table.get_name(key, try_suffixes=(".weight", ".bias")): key for key in tensors}
    assert set(file.tensors) - set(gguf.CONSTANTS) == set(named)
    for ours, theirs in named.items():
        expected = tensors[theirs]
        if theirs.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
            expected = expected.T
        elif file.architecture in NEIGHBOURS and ("q_proj" in theirs or "k_proj" in theirs):
            heads = 4 if "q_proj" in theirs else 2
            expected = permuted(expected, heads)
        elif "gemma" in file.architecture and theirs.endswith("norm.weight"):
            expected = expected + 1.0
        np.testing.assert_array_equal(file.array(ours), expected, err_msg=ours)


def permuted(weights, heads):
    """`LlamaModel.permute` of llama.cpp's convert_hf_to_gguf.py."""
    return (
        weights.reshape(heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:])
        .swapaxes(1, 2)
        .reshape(weights.shape)
    )


def test_what_llama_cpp_reads_of_the_shape(tmp_path):
    path = only_file(gguf.write(make("llama 3"), tmp_path / "out", "f16"))
    file = gguf.open_file(path)
    assert file.metadata["llama.block_count"] == 2
    assert file.metadata["llama.attention.head_count_kv"] == 2
    assert file.metadata["llama.attention.key_length"] == 32
    assert file.metadata["llama.rope.dimension_count"] == 32
    assert file.metadata["llama.rope.freq_base"] == 500000.0
    assert file.metadata["general.file_type"] == library.LlamaFileType.MOSTLY_F16
    factors = file.array(gguf.FREQUENCIES)
    assert factors.shape == (16,) and factors.min() == 1.0 and factors.max() == 8.0


@pytest.mark.parametrize("dtype", gguf.DTYPES)
def test_every_dtype_holds_what_its_blocks_can(dtype, tmp_path):
    checkpoint = make("llama")
    path = only_file(gguf.write(checkpoint, tmp_path / "out", dtype))
    file = gguf.open_file(path)
    stored = {name: tensor.tensor_type.name for name, tensor in file.tensors.items()}
    assert stored["blk.0.ffn_up.weight"] == dtype.upper()
    assert stored["token_embd.weight"] == ("Q8_0" if dtype == "q4_0" else dtype.upper())
    assert stored["blk.0.attn_norm.weight"] == "F32"
    before, after = weights_of(checkpoint), weights_of(store.load(path))
    # Of the largest weight of a block: float16 keeps 11 bits, bfloat16 8, q8_0 127 steps, q4_0 8;
    # the step itself is a float16, which moves 127 of them by 0.06.
    error = {"f32": 0.0, "f16": 2**-11, "bf16": 2**-8, "q8_0": 0.57 / 127, "q4_0": 1 / 8}[dtype]
    for name, value in before.items():
        limit = error * np.abs(value).max() * 1.01
        assert np.abs(after[name] - value).max() <= limit, name
    if dtype.startswith("q"):
        assert any(np.any(after[name] != before[name]) for name in before)


def test_a_matrix_that_blocks_do_not_divide_is_float16(tmp_path):
    family, shape, tokenizer = MODELS["llama"]
    read = tokenizer()
    task = tasks.build({"kind": "causal_lm", "max_length": 128})
    config = {"vocabulary_size": read.vocabulary_size, **shape, "intermediate_dim": 40}
    checkpoint = store.create(family, config, read, task, seed=3)
    file = gguf.open_file(only_file(gguf.write(checkpoint, tmp_path / "out", "q8_0")))
    stored = {name: tensor.tensor_type.name for name, tensor in file.tensors.items()}
    assert (stored["blk.0.ffn_down.weight"], stored["blk.0.ffn_up.weight"]) == ("F16", "Q8_0")


def test_rows_without_a_token_stay_without_one(tmp_path):
    family, shape, tokenizer = MODELS["qwen2"]
    read = tokenizer()
    task = tasks.build({"kind": "causal_lm", "max_length": 128})
    config = {**shape, "vocabulary_size": read.vocabulary_size + 5}
    checkpoint = store.create(family, config, read, task, seed=3)
    path = only_file(gguf.write(checkpoint, tmp_path / "out", "f32"))
    back = store.load(path)
    assert back.config.vocabulary_size == read.vocabulary_size + 5
    assert back.tokenizer.vocabulary_size == read.vocabulary_size


def test_a_split_file_is_read_whole(tmp_path):
    checkpoint = make("gpt2")
    whole = only_file(gguf.write(checkpoint, tmp_path / "out", "f32"))
    file = gguf.open_file(whole)
    writer = library.GGUFWriter(
        tmp_path / "split.gguf", "gpt2", split_max_tensors=10, small_first_shard=False
    )
    for key, value in file.metadata.items():
        if not key.startswith(("GGUF.", "general.architecture")):
            gguf._add(writer, key, value)
    for name in file.tensors:
        writer.add_tensor(name, file.array(name))
    writer.write_header_to_file(tmp_path / "split.gguf")
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    parts = sorted(tmp_path.glob("split-*.gguf"))
    assert len(parts) > 1
    back = store.load(parts[0])
    for name, value in weights_of(checkpoint).items():
        np.testing.assert_array_equal(weights_of(back)[name], value)
    parts[1].unlink()
    with pytest.raises(CheckpointError, match="is not beside it"):
        store.load(parts[0])


def test_the_verbs(tmp_path, capsys):
    checkpoint = make("llama")
    store.save(checkpoint, tmp_path / "own")
    convert(str(tmp_path / "own"), str(tmp_path / "out"), to="gguf", dtype="q8_0")
    path = only_file(tmp_path / "out")
    facts = describe(path)
    assert (facts["form"], facts["family"]) == ("GGUF file", "llama")
    assert facts["parameters"] == checkpoint.model.count_params()
    convert(str(path), str(tmp_path / "hf"), to="huggingface")
    assert weights_of(store.load(tmp_path / "hf")).keys() == weights_of(checkpoint).keys()
    capsys.readouterr()
    with pytest.raises(SettingError, match="choose one of f32, f16"):
        convert(str(tmp_path / "own"), str(tmp_path / "other"), to="gguf", dtype="q3")
    assert not (tmp_path / "other").exists()


def damaged(path, **changes):
    """The same file with other metadata."""
    file = gguf.open_file(path)
    metadata = {**file.metadata, **changes}
    writer = library.GGUFWriter(
        path.with_name("changed.gguf"), metadata.pop("general.architecture")
    )
    for key, value in metadata.items():
        if not key.startswith("GGUF.") and value is not None:
            gguf._add(writer, key, value)
    for name in file.tensors:
        writer.add_tensor(name, file.array(name))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.with_name("changed.gguf")


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"general.architecture": "rwkv7"}, CheckpointError, "architecture is 'rwkv7'"),
        ({"tokenizer.ggml.pre": "chameleon"}, TokenizerError, "rule named 'chameleon'"),
        ({"tokenizer.ggml.model": "bert"}, TokenizerError, "of the kind 'bert'"),
        ({"qwen2.block_count": None}, CheckpointError, "qwen2.block_count is missing"),
        ({"qwen2.expert_count": 8}, CheckpointError, "expert_count is 8"),
        ({"tokenizer.ggml.eos_token_id": 99999}, TokenizerError, "is 99999, and there are"),
        ({"qwen2.attention.head_count_kv": [1, 2]}, CheckpointError, "differs between layers"),
        ({"qwen2.rope.scaling.type": "longrope"}, CheckpointError, "scaled by 'longrope'"),
    ],
)
def test_what_cannot_be_honoured_is_refused(changes, error, match, tmp_path):
    path = only_file(gguf.write(make("qwen2"), tmp_path / "out", "f32"))
    with pytest.raises(error, match=match) as caught:
        store.load(damaged(path, **changes))
    assert "changed.gguf" in str(caught.value)


def test_damaged_files_are_refused(tmp_path):
    path = only_file(gguf.write(make("gpt2"), tmp_path / "out", "f16"))
    content = path.read_bytes()
    for size in (0, 3, 10, 200, len(content) // 2, len(content) - 100):
        cut = tmp_path / "cut.gguf"
        cut.write_bytes(content[:size])
        with pytest.raises(CheckpointError, match="copy it again|Copy it again"):
            store.load(cut)
    (tmp_path / "other.gguf").write_bytes(b"PK\x03\x04" + content[4:])
    with pytest.raises(CheckpointError, match="not a GGUF file"):
        store.load(tmp_path / "other.gguf")


def test_what_llama_cpp_cannot_say_is_not_written(tmp_path):
    family, shape, _ = MODELS["gpt2"]
    read = tiny_tokenizers.BYTE_LEVEL["neox"]()
    task = tasks.build({"kind": "causal_lm", "max_length": 128})
    checkpoint = store.create(
        family, {"vocabulary_size": read.vocabulary_size, **shape}, read, task, seed=3
    )
    with pytest.raises(TokenizerError, match="by the name of its splitting rule"):
        gguf.write(checkpoint, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    windowed = {**LLAMA, "variant": "mistral", "sliding_window": 8}
    read = sentencepiece()
    checkpoint = store.create(
        "llama", {"vocabulary_size": read.vocabulary_size, **windowed}, read, task, seed=3
    )
    with pytest.raises(CheckpointError, match="no sliding window"):
        gguf.write(checkpoint, tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("phi3", {"sliding_window": 64}, "looks back 64 tokens only"),
        ("phi3", {"head_dim": 32}, "these are 32 wide"),
        ("smollm3", {"rotary_layers": (True, False, True, True)}, "in all layers but every fourth"),
    ],
)
def test_what_the_architecture_has_fixed_is_not_written(name, changes, said, tmp_path):
    family, shape, tokenizer = MODELS[name]
    read = tokenizer()
    task = tasks.build({"kind": "causal_lm", "max_length": 128})
    config = {"vocabulary_size": read.vocabulary_size, **shape, **changes}
    with pytest.raises(CheckpointError, match=said):
        gguf.write(store.create(family, config, read, task, seed=3), tmp_path / "out")


def test_whole_numbers_of_config_json_are_written_as_reals(tmp_path):
    """llama.cpp refuses a count where it reads a real number."""
    checkpoint = make("granite")
    config = replace(checkpoint.config, rope_theta=10000, embedding_scale=12)
    path = only_file(gguf.write(replace(checkpoint, config=config), tmp_path / "out", "f32"))
    fields = library.GGUFReader(path).fields
    for key in ("rope.freq_base", "embedding_scale", "logit_scale", "attention.scale"):
        assert fields[f"granite.{key}"].types == [library.GGUFValueType.FLOAT32], key


def test_a_window_that_no_text_reaches_is_harmless(tmp_path):
    checkpoint = make("phi3")
    config = replace(checkpoint.config, sliding_window=4096)
    path = only_file(gguf.write(replace(checkpoint, config=config), tmp_path / "out", "f32"))
    assert store.load(path).config.sliding_window == 4096


@pytest.mark.parametrize("dtype", ["f32", "bf16", "q4_0"])
@pytest.mark.parametrize("name", ["llama 3", "gpt2"])
def test_files_are_read_as_the_package_reads_them(name, dtype, tmp_path):
    path = only_file(gguf.write(make(name), tmp_path / "out", dtype))
    metadata, tensors = gguf_file.read_file(path)
    reader = library.GGUFReader(path)
    contents = {key: value.contents() for key, value in reader.fields.items()}
    assert metadata == {k: v for k, v in contents.items() if not k.startswith("GGUF.")}
    assert list(tensors) == [tensor.name for tensor in reader.tensors]
    for tensor in reader.tensors:
        found = tensors[tensor.name]
        assert found.tensor_type == tensor.tensor_type
        assert found.shape == tuple(tensor.shape.tolist()[::-1])
        values = library.dequantize(tensor.data, tensor.tensor_type).reshape(found.shape)
        np.testing.assert_array_equal(found.array(), values)


def test_headers_that_lie_are_refused(tmp_path):
    """Any byte of a header may be damaged: an error that says so, and never another one."""
    path = only_file(gguf.write(make("gpt2"), tmp_path / "out", "f16"))
    content = path.read_bytes()
    draw = np.random.default_rng(0)
    damaged = tmp_path / "damaged.gguf"
    refused = 0
    for _ in range(300):
        changed = bytearray(content)
        for place in draw.integers(4, 2000, 3):
            changed[place] = draw.integers(256)
        damaged.write_bytes(changed)
        try:
            gguf_file.read_file(damaged)
        except CheckpointError as error:
            assert "cannot be read as GGUF" in str(error)
            refused += 1
    assert refused > 100
    for version, text in ((1, "version 1; versions 2 and 3"), (0x03000000, "big-endian")):
        damaged.write_bytes(content[:4] + version.to_bytes(4, "little") + content[8:])
        with pytest.raises(CheckpointError, match=text):
            gguf_file.read_file(damaged)


@pytest.mark.parametrize(("name", "prefix"), [("gemma3", False), ("llama", False), ("llama", True)])
def test_the_class_in_the_files_puts_no_space_before_texts_where_the_vocabulary_has_none(
    name, prefix, tmp_path
):
    """transformers goes by the class: Llama's puts a space before a text, Gemma's does not."""
    path = only_file(gguf.write(make(name), tmp_path / "out", "f32"))
    path = damaged(path, **{"tokenizer.ggml.add_space_prefix": prefix})
    huggingface.write(store.load(path), tmp_path / "hf")
    settings = json.loads((tmp_path / "hf" / "tokenizer_config.json").read_text())
    gemma = name == "gemma3"
    assert settings["tokenizer_class"] == ("GemmaTokenizer" if gemma else "LlamaTokenizer")
    assert settings.get("add_prefix_space") is (None if prefix or gemma else False)
    again = store.load(tmp_path / "hf").tokenizer
    texts = ["good film", " two", ""]
    assert again.encode_ids(texts) == store.load(path).tokenizer.encode_ids(texts)
    first = again.encode_ids(["good"], add_special_tokens=False)[0]
    assert again.decode(first, skip_special_tokens=False).startswith(" ") is False
