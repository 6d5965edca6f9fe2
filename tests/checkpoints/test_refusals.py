"""What a directory says that tfllm does not do is refused by name, before anything is built."""

import dataclasses
import json
import struct

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tfllm.checkpoints import store
from tfllm.checkpoints.describe import describe
from tfllm.errors import CheckpointError, SettingError
from tfllm.models import FAMILIES, build_config


def change(directory, edit=dict, **config):
    path = directory / "model.safetensors"
    save_file(edit(load_file(path)), path, metadata={"format": "pt"})
    data = json.loads((directory / "config.json").read_text()) | config
    (directory / "config.json").write_text(json.dumps(data))


def refused(directory, said):
    """The one line of the refusal."""
    with pytest.raises(CheckpointError, match=said) as error:
        store.load(directory)
    assert "\n" not in str(error.value)
    assert "do not belong" not in str(error.value)


QUANTIZATIONS = {
    "gptq": ({"quant_method": "gptq", "bits": 4, "group_size": 128}, "gptq, 4 bits"),
    "awq": ({"quant_method": "awq", "bits": 4, "version": "gemm"}, "awq, 4 bits"),
    "bnb 4": ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes, 4 bits"),
    "bnb 8, old": ({"load_in_8bit": True}, "bitsandbytes, 8 bits"),
    "fp8": ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8"),
    "fbgemm": ({"quant_method": "fbgemm_fp8"}, "fbgemm_fp8"),
    "compressed-tensors": ({"quant_method": "compressed-tensors"}, "compressed-tensors"),
    "mxfp4": ({"quant_method": "mxfp4"}, "mxfp4"),
    "modelopt": ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "modelopt"),
    "unknown": ({"weights": 3}, "of an unknown method"),
}


@pytest.mark.parametrize("name", QUANTIZATIONS)
def test_quantized_weights_are_named_before_any_shape(golden, name):
    directory, _, _ = golden("decoders", "smollm2")
    settings, method = QUANTIZATIONS[name]
    packed = {"model.layers.0.mlp.up_proj.qweight": np.zeros((2, 3), np.int32)}
    change(directory, lambda t: packed, quantization_config=settings)
    refused(directory, rf"quantized \(quantization_config: {method}\).*before quantization")


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("compression_config", {"format": "int-quantized"}, "compression_config: int-quantized"),
        ("quantization", {"group_size": 64, "bits": 4}, "quantization: 4 bits"),
    ],
)
def test_other_keys_for_quantized_weights(golden, key, value, said):
    directory, _, _ = golden("decoders", "smollm2")
    change(directory, **{key: value})
    refused(directory, said)


@pytest.mark.parametrize(
    ("file", "content", "method"),
    [
        ("quantize_config.json", {"bits": 4, "group_size": 128}, "4 bits"),
        ("quant_config.json", {"w_bit": 4}, "4 bits"),
        ("hf_quant_config.json", {"quantization": {"quant_algo": "FP8"}}, "FP8"),
    ],
)
def test_files_of_quantizers(golden, file, content, method):
    directory, _, _ = golden("decoders", "smollm2")
    (directory / file).write_text(json.dumps(content))
    refused(directory, rf"{file}: the weights are quantized \({method}\)")


@pytest.mark.parametrize(
    "names",
    [
        ["qweight", "qzeros", "g_idx"],
        ["weight", "weight.absmax", "weight.quant_map"],
        ["weight", "SCB"],
        ["weight", "weight_scale_inv"],
        ["weight_packed", "weight_scale"],
    ],
)
def test_names_of_quantized_layers_tell_without_any_key(golden, names):
    directory, _, _ = golden("decoders", "smollm2")
    layer = "model.layers.0.mlp.up_proj"

    def edit(tensors):
        weight = tensors.pop(f"{layer}.weight")
        return {**tensors, **{f"{layer}.{name}": weight.copy() for name in names}}

    change(directory, edit)
    refused(directory, r"the weights are quantized: there are .*before quantization")


def test_an_empty_quantization_is_none(golden):
    directory, _, _ = golden("decoders", "smollm2")
    change(directory, quantization_config=None)
    store.load(directory)


def retype(directory, name, kind, size):
    """Gives a tensor of `model.safetensors` another dtype, its bytes being zero."""
    path = directory / "model.safetensors"
    tensors = {key: value.astype(np.float32) for key, value in load_file(path).items()}
    shape = tensors.pop(name).shape
    header, parts, place = {}, [], 0
    for key, value in tensors.items():
        content = value.tobytes()
        ends = [place, place + len(content)]
        header[key] = {"dtype": "F32", "shape": list(value.shape), "data_offsets": ends}
        parts.append(content)
        place += len(content)
    amount = int(np.prod(shape) * size)
    header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [place, place + amount]}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(parts) + bytes(amount))


@pytest.mark.parametrize(
    ("kind", "size"),
    [
        ("F8_E4M3", 1), ("F8_E5M2", 1), ("F8_E8M0", 1), ("F4", 0.5), ("I8", 1), ("U8", 1),
        ("I64", 8), ("I32", 4), ("U16", 2), ("BOOL", 1), ("C64", 8),
    ],
)  # fmt: skip
def test_numbers_that_are_no_weights(golden, kind, size):
    directory, _, _ = golden("bert", "embedding")
    name = "encoder.layer.0.output.dense.weight"
    name = next(key for key in load_file(directory / "model.safetensors") if key.endswith(name))
    retype(directory, name, kind, size)
    refused(directory, rf"{name} is .*before quantization")
    assert sum(describe(directory)["dtypes"].values()) > 1  # inspect only reads names and shapes


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (["pytorch_model.bin"], r"pytorch_model.bin' is a torch pickle.*save_pretrained"),
        (["pytorch_model.fp16.bin"], r"pytorch_model.fp16.bin' is a torch pickle"),
        (["pytorch_model.bin.index.json"], r"a list of torch pickles.*save_pretrained"),
        (["tf_model.h5"], "from_tf=True"),
        (["flax_model.msgpack"], "from_flax=True"),
        (["model.fp16.safetensors"], r"but model.fp16.safetensors.*mv '.*model.fp16.safetensors'"),
        (["weights.safetensors"], r"but weights.safetensors.*mv"),
        (["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
         r"has the parts model-00001-of-00002.safetensors, .* not model.safetensors.index.json"),
        (["consolidated.safetensors"], r"names of Mistral's own code. Copy the files model"),
        (["consolidated.00.pth", "params.json"], r"layout of Meta's own code"),
        (["model-q4_0.gguf"], r"is a GGUF file. Give the file itself"),
        (["model.onnx"], "is an ONNX graph"),
        (["best.ckpt"], "is a torch pickle"),
        (["adapter_model.safetensors"], "of an adapter only.*merge_and_unload"),
        ([], r"has no model.safetensors. Copy the weights"),
    ],
)  # fmt: skip
def test_weights_under_another_name(golden, files, said):
    directory, _, _ = golden("bert", "embedding")
    (directory / "model.safetensors").unlink()
    for name in files:
        (directory / name).write_bytes(b"{}")
    refused(directory, said)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (["model-q4_0.gguf"], "is a GGUF file. Give the file itself"),
        (["consolidated.safetensors", "params.json"], "Mistral's own code"),
        (["adapter_config.json", "adapter_model.safetensors"], "holds only adapters"),
        (["model.safetensors"], "no config.json"),
        (["modules.json", "0_Transformer/config.json"], r"'0_Transformer'.*beside modules.json"),
    ],
)
def test_a_directory_without_a_configuration(tmp_path, files, said):
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('[{"type": "a.Transformer", "path": "0_Transformer"}]')
    refused(tmp_path, said)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("model.gguf", "cut off or is damaged|not a GGUF file"),
        ("model.safetensors", "directory that it lies in"),
    ],
)
def test_a_file_instead_of_a_directory(tmp_path, name, said):
    (tmp_path / name).write_bytes(b"GGUF")
    refused(tmp_path / name, said)


def test_an_adapter_beside_the_model_is_not_left_out_silently(golden):
    directory, _, _ = golden("bert", "classification")
    settings = {"base_model_name_or_path": "google-bert/bert-base-uncased"}
    (directory / "adapter_config.json").write_text(json.dumps(settings))
    refused(directory, r"an adapter for google-bert/bert-base-uncased.*would not be applied.*peft")


# Every number of a configuration, by family: each bad value is refused under its own key.
NUMBERS = {
    ("decoders", "smollm2"): [
        "vocab_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
        "hidden_size", "intermediate_size", "head_dim", "max_position_embeddings", "rms_norm_eps",
        "attention_dropout", "initializer_range", "rope_theta",
    ],
    ("decoders", "mistral"): ["sliding_window"],
    ("decoders", "gemma3"): [
        "vocab_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
        "hidden_size", "intermediate_size", "head_dim", "max_position_embeddings", "rms_norm_eps",
        "query_pre_attn_scalar", "attn_logit_softcapping", "sliding_window",
    ],
    ("decoders", "granite"): [
        "embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling",
    ],
    ("decoders", "phi3"): ["sliding_window", "resid_pdrop", "partial_rotary_factor"],
    ("decoders", "pythia"): [
        "vocab_size", "num_attention_heads", "hidden_size", "intermediate_size", "hidden_dropout",
        "attention_dropout", "layer_norm_eps", "rotary_emb_base", "rotary_pct",
    ],
    ("decoders", "opt"): [
        "vocab_size", "num_attention_heads", "hidden_size", "ffn_dim", "word_embed_proj_dim",
        "max_position_embeddings", "dropout", "attention_dropout", "init_std",
    ],
    ("decoders", "qwen2_untied"): ["max_window_layers", "sliding_window"],
    ("decoders", "gpt2"): [
        "vocab_size", "n_layer", "n_head", "n_embd", "n_positions", "n_inner",
        "layer_norm_epsilon", "resid_pdrop", "embd_pdrop", "attn_pdrop", "initializer_range",
    ],
    ("bert", "classification"): [
        "vocab_size", "num_hidden_layers", "num_attention_heads", "hidden_size",
        "intermediate_size", "max_position_embeddings", "type_vocab_size", "layer_norm_eps",
        "hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout",
        "initializer_range",
    ],
    ("distilbert", "classification"): ["dim", "n_layers", "n_heads", "hidden_dim", "dropout",
                                       "attention_dropout", "seq_classif_dropout"],
    ("electra", "classification"): ["embedding_size"],
    ("roberta", "classification"): ["max_position_embeddings"],
    ("mpnet", "classification"): ["max_position_embeddings"],
    ("modernbert", "classification"): [
        "vocab_size", "num_hidden_layers", "hidden_size", "intermediate_size", "local_attention",
        "norm_eps", "mlp_dropout", "embedding_dropout", "classifier_dropout",
    ],
    ("albert", "classification"): [
        "embedding_size", "num_hidden_groups", "classifier_dropout_prob"
    ],
    ("encoder_decoders", "t5"): [
        "vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_decoder_layers", "num_heads",
        "relative_attention_num_buckets", "relative_attention_max_distance", "dropout_rate",
        "layer_norm_epsilon",
    ],
    ("encoder_decoders", "bart"): [
        "vocab_size", "d_model", "encoder_layers", "decoder_layers", "encoder_attention_heads",
        "decoder_ffn_dim", "max_position_embeddings", "dropout", "activation_dropout", "init_std",
    ],
    ("encoder_decoders", "marian"): ["vocab_size", "decoder_vocab_size", "d_model"],
}  # fmt: skip
BAD = [float("nan"), float("inf"), -float("inf"), -1, 10**18, "8", [8]]
# What is no number at all is wrong for every key; these may be told by a neighbouring key.
CASES = [(model, key) for model, keys in NUMBERS.items() for key in keys]


@pytest.mark.parametrize(("model", "key"), CASES, ids=lambda x: x if isinstance(x, str) else x[1])
def test_numbers_out_of_their_range(golden, model, key):
    directory, _, _ = golden(*model)
    for value in BAD:
        change(directory, **{key: value})
        refused(directory, rf"config.json: {key} .*must be")


ZEROS = [
    ("smollm2", "intermediate_size"), ("gemma3", "intermediate_size"),
    ("gemma3", "num_key_value_heads"), ("gemma3", "head_dim"), ("granite", "logits_scaling"),
]  # fmt: skip


@pytest.mark.parametrize(("model", "key"), ZEROS)
def test_zeros_that_no_layer_can_have(golden, model, key):
    directory, _, _ = golden("decoders", model)
    change(directory, **{key: 0})
    refused(directory, "config.json: .*must be")


def test_one_table_of_rotary_positions_for_gemma_3(golden):
    directory, _, _ = golden("decoders", "gemma3")
    change(directory, rope_parameters={"rope_type": "default", "rope_theta": 500.0})
    refused(directory, "rope_parameters is one table.*full_attention.*sliding_attention")


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ({"rope_type": "default", "rope_theta": 500.0}, "one table for 'full_attention'"),
        ({"full_attention": {"rope_type": "yarn", "factor": 2.0}}, "without scaled rotary"),
        ({"sliding_attention": {"rope_theta": -1.0}}, "rope_theta is -1.0"),
    ],
)
def test_rotary_positions_of_modernbert(golden, tables, said):
    directory, _, _ = golden("modernbert", "classification")
    change(directory, rope_parameters=tables)
    refused(directory, f"config.json: rope.*{said}|config.json: {said}")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -2.0, 0, "x", [1]])
@pytest.mark.parametrize("key", ["factor", "low_freq_factor", "original_max_position_embeddings"])
def test_numbers_of_rotary_positions(golden, key, value):
    directory, _, _ = golden("decoders", "llama3")
    rope = json.loads((directory / "config.json").read_text())["rope_parameters"]
    change(directory, rope_parameters={**rope, key: value})
    refused(directory, f"{key}|no number")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"short_factor": None}, "short_factor of the rotary .* a list of them"),
        ({"short_factor": [1.0, 2.0]}, "short_factor has 2 factors, and 3 pairs"),
        ({"short_factor": [1.0, -2.0, 3.0]}, "short_factor of the rotary .* above 0"),
        ({"long_factor": 3.0}, "long_factor of the rotary .* a list of them"),
        ({"rope_type": "linear", "factor": 2.0}, "the kind 'linear' are none of Phi-3's"),
        ({"partial_rotary_factor": 0.4}, "head_dim times partial_rotary_factor is 3"),
        ({"attention_factor": "much"}, "no number"),
    ],
    ids=str,
)
def test_tables_of_longrope(golden, changes, said):
    directory, _, _ = golden("decoders", "phi3_long")
    rope = json.loads((directory / "config.json").read_text())["rope_parameters"]
    change(directory, rope_parameters={**rope, **changes})
    refused(directory, said)


def test_no_text_is_longer_than_what_longrope_holds_for(golden):
    """Keys are rotated by another table beyond it; transformers computes cached ones anew."""
    directory, _, _ = golden("decoders", "phi3_long")
    checkpoint = store.load(directory)
    assert json.loads((directory / "config.json").read_text())["max_position_embeddings"] == 64
    assert checkpoint.config.max_sequence_length == 16
    shape = {**dataclasses.asdict(checkpoint.config), "max_sequence_length": 17}
    with pytest.raises(SettingError, match="change beyond 16 tokens .* Lower it"):
        build_config("llama", shape)


@pytest.mark.parametrize(
    ("model", "config", "said"),
    [
        (("decoders", "phi3"), {"lm_head_bias": True}, "without a bias of the logits"),
        (("decoders", "pythia"), {"use_parallel_residual": 1}, "use_parallel_residual is 1; .*tr"),
        (("decoders", "pythia"), {"attention_bias": "no"}, "attention_bias is 'no'; .*true or"),
        (("decoders", "pythia"), {"num_attention_heads": 3}, "cannot be split into 3 equal heads"),
        (("decoders", "pythia"), {"rope_parameters": {"partial_rotary_factor": 0.4}}, "is 3; .*ev"),
        (("decoders", "opt"), {"do_layer_norm_before": None, "enable_bias": 0}, "enable_bias is 0"),
        (("decoders", "opt"), {"_remove_final_layer_norm": True}, "without the norm at the end be"),
        (("decoders", "opt"), {"layer_norm_elementwise_affine": False}, "norms that have no weig"),
        (("decoders", "opt"), {"layerdrop": 0.1}, "without layers that are left out at random"),
        (("decoders", "opt"), {"activation_function": "squared"}, "unknown activation 'squared'"),
        (("decoders", "smollm2"), {"tie_word_embeddings": "yes"}, "tie_word_embeddings is 'yes'"),
        (("decoders", "smollm2"), {"attention_bias": 1}, "attention_bias is 1; .*true or false"),
        (("decoders", "smollm2"), {"mlp_bias": "no"}, "mlp_bias is 'no'; .*true or false"),
        (("decoders", "qwen2"), {"use_sliding_window": "no"}, "use_sliding_window is 'no'"),
        (("decoders", "qwen2_untied"), {"layer_types": 3}, "layer_types is 3"),
        (("decoders", "smollm2"), {"rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor":
                                                       0.5}}, "partly rotated"),
        (("bert", "classification"), {"id2label": None, "num_labels": float("nan")}, "outputs|num"),
    ],
)  # fmt: skip
def test_words_where_yes_or_no_is_meant(golden, model, config, said):
    directory, _, _ = golden(*model)
    change(directory, **config)
    if "num_labels" in config:  # the file's classifier says how many there are
        assert len(store.load(directory).task.labels) == 3
        return
    refused(directory, said)


OTHER_GRAPHS = {
    "mpnet": [("relative_attention_num_buckets", 16), ("pad_token_id", 0)],
    "modernbert": [("decoder_bias", False), ("rope_scaling", {"rope_type": "yarn", "factor": 2.0})],
    "albert": [("inner_group_num", 2), ("position_embedding_type", "relative_key")],
}


@pytest.mark.parametrize(
    ("family", "key", "value"),
    [(family, *entry) for family, entries in OTHER_GRAPHS.items() for entry in entries],
)
def test_other_graphs_of_encoders(golden, family, key, value):
    directory, _, _ = golden(family, "classification")
    change(directory, **{key: value})
    refused(directory, rf"config.json: {key} is .*tfllm builds {family} without")


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("eos_token_id", float("nan")), ("eos_token_id", [1, "x"]), ("bos_token_id", -1),
        ("max_length", float("inf")), ("num_beams", "4"), ("decoder_start_token_id", 1.5),
    ],
)  # fmt: skip
def test_numbers_of_generation(golden, file, key, value):
    directory, _, _ = golden("decoders", "smollm2")
    path = directory / file
    data = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**data, key: value}))
    refused(directory, rf"{file}: {key} is .*must be a whole number")


def test_temperatures_are_finite(golden):
    directory, _, _ = golden("decoders", "smollm2")
    (directory / "generation_config.json").write_text('{"temperature": NaN}')
    refused(directory, r"generation_config.json: temperature is nan; it must be finite")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("value", [float("nan"), -1.0, float("inf")])
def test_shapes_of_recipes_have_the_same_limits(family, value):
    with pytest.raises(SettingError, match="attention_dropout is .*a number from 0 to 1|dropout"):
        build_config(family, {"attention_dropout" if family != "t5" else "dropout": value})


# Names that any file may have; they are no weights, and transformers leaves them out.
CONSTANTS = {
    ("decoders", "smollm2"): [
        "model.rotary_emb.inv_freq", "model.layers.0.self_attn.rotary_emb.inv_freq",
        "model.layers.1.self_attn.rotary_emb.cos_cached", "rotary_emb.inv_freq",
    ],
    ("decoders", "gemma3"): [
        "model.rotary_emb_local.inv_freq", "model.rotary_emb.sliding_attention_inv_freq",
        "model.rotary_emb.full_attention_original_inv_freq",
    ],
    ("decoders", "gpt2"): ["transformer.h.0.attn.bias", "h.1.attn.masked_bias"],
    ("decoders", "pythia"): [
        "gpt_neox.layers.0.attention.bias", "gpt_neox.layers.1.attention.masked_bias",
        "gpt_neox.layers.0.attention.rotary_emb.inv_freq",
    ],
    ("bert", "classification"): [
        "bert.embeddings.position_ids", "embeddings.token_type_ids", "loss_fct.weight",
        "loss_fct.pos_weight", "criterion.weight", "bert.norm.num_batches_tracked",
    ],
    ("roberta", "classification"): ["roberta.embeddings.position_ids", "loss.weight"],
    ("distilbert", "masked_lm"): ["distilbert.embeddings.position_ids"],
    ("encoder_decoders", "bart"): ["model.encoder.version", "decoder.version"],
    ("encoder_decoders", "t5"): [
        "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
    ],
    ("encoder_decoders", "marian"): ["model.encoder.embed_positions.weight"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("model", "names"), CONSTANTS.items(), ids=lambda x: x[1] if isinstance(x, tuple) else ""
)
def test_constants_are_left_out(golden, model, names):
    directory, _, _ = golden(*model)
    parameters = describe(directory)["parameters"]
    before = store.load(directory)
    change(directory, lambda t: {**t, **{name: np.ones(3, np.float32) for name in names}})
    after = store.load(directory)
    for one, other in zip(before.model.weights, after.model.weights, strict=True):
        np.testing.assert_array_equal(one, other)
    assert describe(directory)["parameters"] == parameters


def test_other_tensors_are_still_named(golden):
    directory, _, _ = golden("bert", "classification")
    change(directory, lambda t: {**t, "bert.extra.weight": np.ones(3, np.float32)})
    with pytest.raises(CheckpointError, match=r"without a place in the model: bert.extra.weight"):
        store.load(directory)


OF_DECODERS = "causal_lm, classification or embedding"
HEADS = {
    ("decoders", "smollm2"): (
        "LlamaForTokenClassification",
        "causal_lm, classification or embedding",
    ),
    ("decoders", "gpt2"): ("GPT2DoubleHeadsModel", OF_DECODERS),
    ("encoder_decoders", "bart"): ("BartForSequenceClassification", "seq2seq alone"),
    ("encoder_decoders", "t5"): ("T5EncoderModel", "seq2seq alone"),
    ("bert", "classification"): ("BertForMultipleChoice", "train a recipe with model.from"),
}


@pytest.mark.parametrize(("model", "head"), HEADS.items(), ids=lambda x: x[0])
def test_the_way_out_goes_with_the_family(golden, model, head):
    directory, _, _ = golden(*model)
    change(directory, architectures=[head[0]])
    with pytest.raises(CheckpointError, match=rf"'{head[0]}' has no task in tfllm.*{head[1]}") as e:
        store.load(directory)
    assert str(e.value).count("Known:") == 1
