"""The weights of every product in a .tflite file are the kernels of the Keras model."""

import re

import numpy as np
import pytest

from tests.export.products import differing
from tests.helpers.encoders import TASKS, VOCABULARY
from tests.helpers.language_models import tokenizer as bytepair
from tests.helpers.translation_tokenizers import tokenizer as translation
from tfllm import tasks
from tfllm.checkpoints import store
from tfllm.export import load_profile, mediapipe, tflite, tflite_activation_scaling
from tfllm.export.flatbuffer import TFLITE_FILE
from tfllm.models import FAMILIES
from tfllm.tokenizers.wordpiece import WordPiece

# As trained models have them: from a little below 0 to some hundreds.
SMALLEST_GAIN, LARGEST_GAIN = -1.0, 200.0
WIDTH = 64  # whole groups of int4, and no kernel too small for the converter to quantize
SHAPE = {"num_layers": 1, "num_heads": 4, "hidden_dim": WIDTH, "intermediate_dim": 96}
LENGTH = 16
# A loop's first step knows its token: up to the first cross-attention all is a constant, which the
# converter computes. Its query is a factor and no weight.
FIRST_QUERY = re.compile(r"BATCH_MATMUL layer_0\w*/cross_attention\w*/transpose\S* \([48], 16\) ")

ENCODERS = {
    "bert classification": {},
    "bert embedding": {},
    "bert token_classification": {},
    "bert question_answering": {},
    "bert masked_lm": {},
    "bert embedding pooler": {},
    "bert classification distilbert": {"variant": "distilbert", "num_segments": 0},
    "bert classification roberta": {"variant": "roberta", "num_segments": 1, "pad_token_id": 0},
    "bert classification mpnet": {"variant": "mpnet", "num_segments": 0},
    "bert classification albert": {
        "variant": "albert",
        "num_layers": 2,
        "num_groups": 1,
        "embedding_dim": 32,
        "activation": "gelu_new",
    },
    "bert masked_lm albert": {
        "variant": "albert",
        "num_layers": 2,
        "num_groups": 1,
        "embedding_dim": 32,
        "activation": "gelu_new",
    },
    "modernbert classification": {"num_layers": 2, "sliding_window": 4, "pad_token_id": 0},
    "modernbert masked_lm": {"num_layers": 2, "sliding_window": 4, "pad_token_id": 0},
    "bert classification electra": {"variant": "electra", "embedding_dim": 32},
}
DECODERS = {
    "gpt2": {},
    "gpt2 untied": {"tie_embeddings": False},
    "llama": {},
    "llama untied": {"tie_embeddings": False},
    "llama mistral": {"variant": "mistral", "num_key_value_heads": 2, "sliding_window": 3},
    "llama qwen2": {"variant": "qwen2", "qkv_bias": True},
    "llama qwen3": {"variant": "qwen3", "query_key_norm": True, "head_dim": 32},
    "llama smollm3": {
        "variant": "smollm3",
        "num_layers": 2,
        "rotary_layers": (True, False),
    },
    "llama granite": {
        "variant": "granite",
        "embedding_scale": 12.0,
        "query_scale": 0.02,
        "residual_scale": 0.22,
        "logits_scale": 0.125,
    },
    "llama olmo2": {"variant": "olmo2", "query_key_norm": True},
    "llama phi3": {
        "variant": "phi3",
        "partial_rotary_factor": 0.75,
        "rope_scaling": {
            "rope_type": "longrope",
            "short_factor": [1.0, 1.5, 2.0, 2.5, 3.0, 3.5],
            "long_factor": [9.0] * 6,
            "factor": 8.0,
            "original_max_position_embeddings": 64,
        },
    },
    "gemma": {"variant": "gemma", "num_key_value_heads": 2, "head_dim": 32},
    "gemma 2": {
        "variant": "gemma2",
        "num_key_value_heads": 2,
        "head_dim": 32,
        "sliding_window": 3,
        "attention_softcap": 50.0,
        "logits_softcap": 30.0,
    },
    "gpt_neox": {},
    "gpt_neox sequential": {"parallel_residual": False, "tie_embeddings": True},
    "opt": {},
    "opt post-norm": {"pre_norm": False, "embedding_dim": 32},
    "gemma 3": {"num_key_value_heads": 2, "head_dim": 32, "sliding_window": 3},
}
PAIRS = {
    "transformer": {},
    "transformer pre-norm": {"pre_norm": True, "tie_embeddings": False, "logits_bias": False},
    "t5": {},
    "t5 untied": {"tie_embeddings": False},
    "t5 gated": {
        "gated": True, "activation": "gelu_new", "tie_embeddings": False, "scale_logits": False,
    },
    "t5 mt5": {"variant": "mt5", "scale_logits": False},
    "bart": {},
    "bart mbart": {"variant": "mbart", "scale_embeddings": True},
}  # fmt: skip


def of_wide_norms(checkpoint):
    """The checkpoint with random gains, biases and kernels that are not small by accident."""
    draw = np.random.default_rng(4)
    for weight in checkpoint.model.weights:
        if weight.path.endswith(("gamma", "scale")):
            weight.assign(draw.uniform(SMALLEST_GAIN, LARGEST_GAIN, weight.shape))
        else:
            weight.assign(draw.normal(0.0, 0.3, weight.shape))
    return checkpoint


def checkpoint_of(name, folder):
    family, *_ = name.split()
    if name in ENCODERS:
        _, kind, *_ = name.split()
        made = WordPiece.from_vocabulary(VOCABULARY)
        settings = {**TASKS.get(kind, {}), "max_length": LENGTH}
        if kind == "question_answering":
            settings |= {"stride": 4, "max_answer_length": 4}
        if name.endswith("pooler"):
            settings["pooling"] = "pooler"
        task, own = tasks.build({"kind": kind, **settings}), ENCODERS[name]
    elif name in DECODERS:
        made = bytepair(folder)
        task, own = tasks.build({"kind": "causal_lm", "max_length": LENGTH}), DECODERS[name]
    else:
        made = translation("marian")
        task = tasks.build({"kind": "seq2seq", "max_length": LENGTH})
        own = {"pad_token_id": made.pad_token_id, **PAIRS[name]}
    shape = {
        **SHAPE, "vocabulary_size": made.vocabulary_size, "max_sequence_length": 2 * LENGTH, **own,
    }  # fmt: skip
    return of_wide_norms(store.create(family, shape, made, task, seed=3))


def scales(checkpoint):
    """What the converter multiplies into kernels: one number for the whole of a kernel, so that
    rounding rows or groups keeps as much as without. Rotary positions stand behind queries."""
    config = checkpoint.config
    residual = getattr(config, "residual_scale", 1.0)
    factors = {"attention_output": residual, "down": residual}
    rotates = getattr(config, "rope_theta", 0) and not getattr(config, "rotary_layers", ())
    if rotates or checkpoint.family == "t5":
        return factors
    width = getattr(config, "head_dim", config.hidden_dim // config.num_heads)
    return {**factors, "query": width**-0.5}


def is_tied(checkpoint):
    encoder = checkpoint.family in ("bert", "modernbert")
    has_head = not encoder or checkpoint.task.kind == "masked_lm"
    return has_head and checkpoint.config.tie_embeddings


def test_every_family_is_there():
    names = (*ENCODERS, *DECODERS, *PAIRS)
    assert {name.split()[0] for name in names} == set(FAMILIES)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """(checkpoint, its float32 file)."""
    checkpoint = checkpoint_of("llama", tmp_path_factory.mktemp("llama"))
    settings = load_profile("tflite-float32", ["prefill_lengths=[4]"])
    return checkpoint, tflite.convert(checkpoint, settings)


def test_a_float32_file_holds_the_kernels(llama):
    checkpoint, content = llama
    assert differing(content, checkpoint.model, True, scales(checkpoint)) == []


def check(name, profile_name, overrides, folder, converted=tflite.convert):
    checkpoint = checkpoint_of(name, folder)
    content = converted(checkpoint, load_profile(profile_name, overrides))
    wrong = differing(content, checkpoint.model, is_tied(checkpoint), scales(checkpoint))
    assert [line for line in wrong if not FIRST_QUERY.match(line)] == []


ALL = [
    (name, quantization)
    for name in (*ENCODERS, *DECODERS, *PAIRS)
    for quantization in ("float32", "float16", "int8", "int4")
    if (name not in ENCODERS or quantization != "int4")
    and (name, quantization) != ("llama", "float32")
]
QUICK = [
    ("bert classification", "int8"), ("gpt2", "int8"), ("llama", "int4"), ("gemma 3", "int8"),
    ("t5", "int8"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "quantization"),
    [one if one in QUICK else pytest.param(*one, marks=pytest.mark.slow) for one in ALL],
)
def test_the_weights_of_products_are_the_kernels(name, quantization, tmp_path):
    steps = ["prefill_lengths=[4]"] if name in DECODERS else []
    check(name, "tflite-float32", [f"quantization={quantization}", *steps], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "profile_name", "overrides"),
    [
        ("llama", "tflite-loop", ["quantization=int8", "prompt_length=4"]),
        ("t5", "tflite-loop", ["quantization=int8", "prompt_length=4", "batch_sizes=[1,2]"]),
        ("bert classification", "tflite-int8", ["extra_lengths=[8]", "batch_sizes=[1,4]"]),
        ("bert classification", "tflite-text", ["quantization=int8"]),
        ("bert classification", "tflite-int8-full", []),
    ],
)
def test_those_of_other_kinds_of_file_are_too(name, profile_name, overrides, tmp_path, monkeypatch):
    # Channels that full int8 divides by their ranges are divided in the file too.
    monkeypatch.setattr(tflite_activation_scaling, "UNEVEN_RATIO", np.inf)
    check(name, profile_name, overrides, tmp_path)


@pytest.mark.slow
def test_those_of_mediapipes_file_are_too(tmp_path):
    def converted(checkpoint, settings):
        mediapipe.write(checkpoint, settings, tmp_path)
        return (tmp_path / TFLITE_FILE).read_bytes()

    check("bert classification", "mediapipe", ["quantization=int8"], tmp_path, converted)


@pytest.mark.parametrize("folded", ["gains", "one number"])
def test_what_the_test_looks_for_is_found(folded, llama):
    checkpoint, content = llama
    block = checkpoint.model.get_layer("layer_0")
    kernel = np.asarray(block.up.kernel)
    gains = np.asarray(block.feedforward_norm.scale)[:, None] if folded == "gains" else 1.001
    try:
        block.up.kernel.assign(kernel * gains)
        found = differing(content, checkpoint.model, True, scales(checkpoint))
    finally:
        block.up.kernel.assign(kernel)
    assert len(found) == 2 and "layer_0/up/kernel is not in the file" in found


def test_a_table_written_twice_is_found(llama):
    checkpoint, content = llama
    table = checkpoint.model.get_layer("token_embedding").embeddings
    values = np.asarray(table)
    try:
        table.assign(values * 0.125)
        found = differing(content, checkpoint.model, True, scales(checkpoint))
    finally:
        table.assign(values)
    assert "token_embedding/embeddings is not in the file" in found
