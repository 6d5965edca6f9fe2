"""GGUF files, which llama.cpp runs: reading and writing.

    tensors    llama.cpp's names and order           <-> Hugging Face's, by the architecture
    metadata   ARCHITECTURE.block_count, ...         <-> config.json
    tokens     tokenizer.ggml.*                      <-> tokenizer files, by gguf_vocabulary

Shapes are Hugging Face's (outputs, inputs). llama.cpp's converter reorders the rows of queries and
keys of Llama, Granite and SmolLM3 so that rotary pairs are neighbours; GPT-2's matrices, (inputs,
outputs) in Hugging Face's files, are transposed. All of the format's quantized types are read
(dequantized to float32 by the `gguf` package) and float32, float16, bfloat16, q8_0 and q4_0 are
written.

Source: github.com/ggml-org/ggml, docs/gguf.md.
"""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tfllm.checkpoints import gguf_file, huggingface, tensor_names, tied_weights, weights
from tfllm.checkpoints.base import Checkpoint, check_sizes
from tfllm.checkpoints.files import atomic_directory
from tfllm.checkpoints.gguf_file import StoredTensor, read_file
from tfllm.checkpoints.lazy_tensors import LazyTensors
from tfllm.errors import CheckpointError, SettingError, TokenizerError
from tfllm.models import FAMILIES, config_from_hf, get_weight_map
from tfllm.models.decoder_graph import rotary_dim
from tfllm.tasks import Task
from tfllm.tasks.causal_lm import CausalLM
from tfllm.tokenizers import gguf_vocabulary
from tfllm.tokenizers.base import Tokenizer
from tfllm.tokenizers.loading import load_tokenizer

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType, GGUFWriter

log = logging.getLogger("tfllm")

SUFFIX = ".gguf"
DTYPES = ("f32", "f16", "bf16", "q8_0", "q4_0")
SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
# Llama 3's rule of rotary frequencies: all published models differ in the factor alone.
LLAMA3 = {
    "rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
FREQUENCIES = "rope_freqs.weight"
# LongRoPE's key in config.json -> the tensor of its divisors.
LONGROPE = {"short_factor": "rope_factors_short.weight", "long_factor": "rope_factors_long.weight"}
CONSTANTS = (FREQUENCIES, *LONGROPE.values())
FREQUENCY_TOLERANCE = 1e-4  # relative; the file's are float32

_BLOCK = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm.weight": "attn_q_norm.weight",
    "self_attn.k_norm.weight": "attn_k_norm.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_LLAMA_TENSORS = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    **{f"model.layers.{{i}}.{hf}": f"blk.{{i}}.{ours}" for hf, ours in _BLOCK.items()},
}
_GPT2_TENSORS = {
    "transformer.wte.weight": "token_embd.weight",
    "transformer.wpe.weight": "position_embd.weight",
    "transformer.h.{i}.ln_1": "blk.{i}.attn_norm",
    "transformer.h.{i}.attn.c_attn": "blk.{i}.attn_qkv",
    "transformer.h.{i}.attn.c_proj": "blk.{i}.attn_output",
    "transformer.h.{i}.ln_2": "blk.{i}.ffn_norm",
    "transformer.h.{i}.mlp.c_fc": "blk.{i}.ffn_up",
    "transformer.h.{i}.mlp.c_proj": "blk.{i}.ffn_down",
    "transformer.ln_f": "output_norm",
    "lm_head.weight": "output.weight",
}
# Key of config.json -> GGUF's key after the architecture's name.
_LLAMA_SHAPE = {
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "intermediate_size": "feed_forward_length",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
    "head_dim": "attention.key_length",
}
_GPT2_SHAPE = {
    "n_embd": "embedding_length",
    "n_layer": "block_count",
    "n_head": "attention.head_count",
    "n_inner": "feed_forward_length",
    "n_positions": "context_length",
    "layer_norm_epsilon": "attention.layer_norm_epsilon",
}


@dataclass(frozen=True)
class Architecture:
    """The layout of llama.cpp's models of one architecture."""

    family: str
    """A key of `tfllm.models.FAMILIES`."""
    tensors: Mapping[str, str]
    """Hugging Face's name, or its start -> GGUF's; `{i}` is the layer."""
    shape: Mapping[str, str]
    """Key of config.json -> GGUF's key after the architecture's name."""
    defaults: Mapping[str, float | None] = field(default_factory=dict)
    """Key of config.json -> the value that llama.cpp uses where the key is missing."""
    neighbours: bool = False
    """Whether rotary pairs of queries and keys are neighbours, not halves of a head."""
    offset_norms: bool = False
    """Whether norms are written as 1 + scale."""
    model_type: str = ""
    """Hugging Face's, where it is not the architecture's name."""
    transposed: tuple[str, ...] = ()
    """Ends of Hugging Face's names whose matrices are (inputs, outputs) there."""


_LLAMA_DEFAULTS = {"rope_theta": 10000.0}
# Gemma 2 and 3 normalize the output of each part too; Gemma 1 has llama's names.
_GEMMA_TENSORS = {
    **_LLAMA_TENSORS,
    "model.layers.{i}.post_attention_layernorm.weight": "blk.{i}.post_attention_norm.weight",
    "model.layers.{i}.pre_feedforward_layernorm.weight": "blk.{i}.ffn_norm.weight",
    "model.layers.{i}.post_feedforward_layernorm.weight": "blk.{i}.post_ffw_norm.weight",
}
_GEMMA_SHAPE = {
    **_LLAMA_SHAPE,
    "sliding_window": "attention.sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
    "query_pre_attn_scalar": "attention.query_pre_attn_scalar",
    "rope_local_base_freq": "rope.freq_base_swa",
}
# OLMo 2 normalizes the output of each part alone.
_OLMO2_TENSORS = {
    **{
        theirs: ours
        for theirs, ours in _LLAMA_TENSORS.items()
        if ours not in ("blk.{i}.attn_norm.weight", "blk.{i}.ffn_norm.weight")
    },
    "model.layers.{i}.post_attention_layernorm.weight": "blk.{i}.post_attention_norm.weight",
    "model.layers.{i}.post_feedforward_layernorm.weight": "blk.{i}.post_ffw_norm.weight",
}
_PHI3_TENSORS = {
    **{
        theirs: ours
        for theirs, ours in _LLAMA_TENSORS.items()
        if not ours.endswith(("attn_q", "attn_k", "attn_v", "ffn_gate", "ffn_up"))
    },
    "model.layers.{i}.self_attn.qkv_proj": "blk.{i}.attn_qkv",
    "model.layers.{i}.mlp.gate_up_proj": "blk.{i}.ffn_up",
}
_GRANITE_SHAPE = {
    **_LLAMA_SHAPE,
    "embedding_multiplier": "embedding_scale",
    "attention_multiplier": "attention.scale",
    "residual_multiplier": "residual_scale",
    "logits_scaling": "logit_scale",
}
_GRANITE_DEFAULTS = {
    **_LLAMA_DEFAULTS, "embedding_multiplier": 1.0, "residual_multiplier": 1.0,
    "logits_scaling": 1.0,
}  # fmt: skip
_PHI3_SHAPE = {**_LLAMA_SHAPE, "sliding_window": "attention.sliding_window"}
# Missing in files of llama.cpp's converter; the same in all models except those of 27B.
_GEMMA_DEFAULTS = {"query_pre_attn_scalar": 256, "sliding_window": 4096}
ARCHITECTURES = {
    "llama": Architecture("llama", _LLAMA_TENSORS, _LLAMA_SHAPE, _LLAMA_DEFAULTS, neighbours=True),
    "qwen2": Architecture("llama", _LLAMA_TENSORS, _LLAMA_SHAPE, _LLAMA_DEFAULTS),
    "qwen3": Architecture("llama", _LLAMA_TENSORS, _LLAMA_SHAPE, _LLAMA_DEFAULTS),
    "gemma": Architecture(
        "gemma", _LLAMA_TENSORS, _LLAMA_SHAPE, {"rope_theta": 10000.0}, offset_norms=True,
    ),
    "gemma2": Architecture(
        "gemma", _GEMMA_TENSORS, _GEMMA_SHAPE,
        {
            **_GEMMA_DEFAULTS, "rope_theta": 10000.0, "rope_local_base_freq": 10000.0,
            "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
        },
        offset_norms=True,
    ),
    "gemma3": Architecture(
        "gemma", _GEMMA_TENSORS, _GEMMA_SHAPE,
        {
            **_GEMMA_DEFAULTS, "rope_theta": 1e6, "rope_local_base_freq": 10000.0,
            "attn_logit_softcapping": None, "final_logit_softcapping": None,
        },
        offset_norms=True, model_type="gemma3_text",
    ),
    "granite": Architecture(
        "llama", _LLAMA_TENSORS, _GRANITE_SHAPE, _GRANITE_DEFAULTS, neighbours=True,
    ),
    "olmo2": Architecture("llama", _OLMO2_TENSORS, _LLAMA_SHAPE, _LLAMA_DEFAULTS),
    "smollm3": Architecture(
        "llama", _LLAMA_TENSORS, _LLAMA_SHAPE, _LLAMA_DEFAULTS, neighbours=True,
    ),
    "phi3": Architecture(
        "llama", _PHI3_TENSORS, _PHI3_SHAPE, {**_LLAMA_DEFAULTS, "sliding_window": 0},
    ),
    "gpt2": Architecture(
        "gpt2", _GPT2_TENSORS, _GPT2_SHAPE,
        transposed=("c_attn.weight", "c_proj.weight", "c_fc.weight"),
    ),
}  # fmt: skip
PHI3_TOKENS = {"<unk>", "<s>", "</s>", "<|endoftext|>"}
# Of the shape, what is no count; config.json may have a whole number there.
REALS = (
    "rope_theta", "rope_local_base_freq", "rms_norm_eps", "layer_norm_epsilon",
    "attn_logit_softcapping", "final_logit_softcapping", "embedding_multiplier",
    "attention_multiplier", "residual_multiplier", "logits_scaling",
)  # fmt: skip
# Hugging Face's model types that llama.cpp writes under another name.
WRITTEN_AS = {"mistral": "llama", "gemma3_text": "gemma3"}


@dataclass(frozen=True)
class File:
    """An open GGUF file: its metadata, and its memory-mapped tensors."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]
    """GGUF's name -> the tensor."""

    @property
    def architecture(self) -> str:
        """`general.architecture`. Raises CheckpointError for one that is not known."""
        name = self.metadata.get("general.architecture")
        if name not in ARCHITECTURES:
            raise CheckpointError(
                f"{self.path}: the architecture is {name!r}; read are "
                f"{', '.join(ARCHITECTURES)}. Use the checkpoint that it was made from, if tfllm "
                "has its family."
            )
        return str(name)

    def value(self, key: str) -> Any:
        """Return a value of the architecture, or None; a list of equal ones per layer is one.

        Args:
            key: GGUF's key after the architecture's name.

        Raises:
            CheckpointError: The value differs between layers.
        """
        value = self.metadata.get(f"{self.architecture}.{key}")
        if isinstance(value, float):
            return float(str(np.float32(value)))  # 1e-05, not 9.999999747378752e-06
        if not isinstance(value, list):
            return value
        if len(set(value)) > 1:
            raise CheckpointError(
                f"{self.path}: {self.architecture}.{key} differs between layers, which tfllm's "
                f"{ARCHITECTURES[self.architecture].family} has not."
            )
        return value[0] if value else None

    def array(self, name: str) -> np.ndarray:
        """Read a tensor as float32 (outputs, inputs), dequantized where needed."""
        return self.tensors[name].array()


def open_file(path: Path) -> File:
    """Open a GGUF file, or all parts of one that is split.

    Raises:
        CheckpointError: It is no GGUF file, is cut off, or a part of it is missing.
    """
    metadata: dict[str, Any] = {}
    tensors: dict[str, StoredTensor] = {}
    for part in _parts(path):
        contents, stored = read_file(part)
        metadata = {**contents, **metadata}
        tensors |= stored
    return File(path, metadata, tensors)


def _parts(path: Path) -> list[Path]:
    split = SHARD.search(path.name)
    if split is None:
        return [path]
    stem, count = path.name[: split.start()], int(split[2])
    parts = [path.with_name(f"{stem}-{n:05d}-of-{count:05d}.gguf") for n in range(1, count + 1)]
    if missing := [part.name for part in parts if not part.is_file()]:
        raise CheckpointError(
            f"{path}: the model is split into {count} files, and {weights.listed(missing)} "
            "is not beside it. Copy the missing files."
        )
    return parts


def read(path: Path, task: Task | None = None) -> Checkpoint:
    """Read a GGUF file as a checkpoint, for language modeling or with a new head for `task`.

    Raises:
        CheckpointError: The architecture is unknown, or what the file says is not supported.
        TokenizerError: The vocabulary cannot be rebuilt exactly.
    """
    file = open_file(path)
    family, config, hf_config = read_config(file)
    tokenizer = read_tokenizer(file)
    check_sizes(tokenizer, config, path)
    own = CausalLM(max_length=config.max_sequence_length)
    table = get_weight_map(family, config)
    hf_config = {**hf_config, "architectures": list(table.architectures[own.kind][:1])}
    raw = _tensors(file, config)
    ties = tied_weights.Ties(config, tensor_names.canonical(raw, table), ())
    model, unused_tensors, origin = huggingface.build(
        family, table, task, own, raw, ties, path, hf_config
    )
    return Checkpoint(
        family=family,
        config=config,
        tokenizer=tokenizer,
        task=task or own,
        model=model,
        path=path,
        unused_tensors=unused_tensors,
        origin=origin,
        generation_config=_generation_config(file),
    )


def read_config(file: File) -> tuple[str, Any, dict[str, Any]]:
    """Read the shape of the model in an open file.

    Returns:
        The family, its Config, and the contents of a config.json.

    Raises:
        CheckpointError: A key is missing, or what the file says is not supported.
    """
    kind = ARCHITECTURES[file.architecture]
    hf_config: dict[str, Any] = {"model_type": kind.model_type or file.architecture}
    assumed = []
    for theirs, ours in kind.shape.items():
        if (value := file.value(ours)) is not None:
            hf_config[theirs] = value
        elif theirs in kind.defaults:
            hf_config[theirs] = default = kind.defaults[theirs]
            if default is not None:
                assumed.append(f"{file.architecture}.{ours} ({default:g})")
        elif theirs not in ("head_dim", "num_key_value_heads"):
            raise CheckpointError(
                f"{file.path}: the key {file.architecture}.{ours} is missing. The file is damaged "
                "or was made by another program; convert the checkpoint again."
            )
    if assumed:
        log.info("%s: not in the file, and taken as llama.cpp takes it: %s.", file.path,
                 ", ".join(assumed))  # fmt: skip
    windows = () if "sliding_window" in kind.shape else ("attention.sliding_window",)
    for key in ("expert_count", *windows):
        if file.value(key):
            raise CheckpointError(
                f"{file.path}: {file.architecture}.{key} is {file.value(key)}, which tfllm does "
                "not read from GGUF files. Use the checkpoint that it was made from."
            )
    hf_config |= {
        "vocab_size": _rows(file, "token_embd.weight"),
        "tie_word_embeddings": "output.weight" not in file.tensors,
    }
    if kind.family != "gpt2":
        hf_config |= _rope_part(file, hf_config)
        hf_config["rope_scaling"] = scaling = _rope_scaling(file, hf_config)
        if scaling and scaling["rope_type"] == "longrope":  # there transformers looks for Phi-3's
            key = "original_max_position_embeddings"
            hf_config[key] = scaling[key]
        hf_config["attention_bias"] = False
    else:
        hf_config["activation_function"] = "gelu_new"
    for role in ("bos", "eos", "pad"):
        key = gguf_vocabulary.PREFIX + gguf_vocabulary.ROLES[f"{role}_token"]
        if (token_id := file.metadata.get(key)) is not None:
            hf_config[f"{role}_token_id"] = token_id
    if "blk.0.attn_q.bias" in file.tensors:
        if file.architecture != "qwen2" and "blk.0.attn_output.bias" not in file.tensors:
            raise CheckpointError(
                f"{file.path}: queries, keys and values have biases and the output has none, which "
                f"Hugging Face's {file.architecture} has not. Use the checkpoint that it was made "
                "from."
            )
        hf_config["attention_bias"] = True
    return kind.family, config_from_hf(kind.family, hf_config), hf_config


def _rows(file: File, name: str) -> int:
    if name not in file.tensors:
        raise CheckpointError(f"{file.path}: the tensor {name} is missing. Copy the file again.")
    return file.tensors[name].shape[0]


def _rope_part(file: File, hf_config: Mapping[str, Any]) -> dict[str, float]:
    """`partial_rotary_factor` of config.json, where less than a head is rotated."""
    width = hf_config.get("head_dim")
    width = width or hf_config["hidden_size"] // hf_config["num_attention_heads"]
    rotated = file.value("rope.dimension_count") or width
    return {} if rotated == width else {"partial_rotary_factor": rotated / width}


def _rope_scaling(file: File, hf_config: Mapping[str, Any]) -> dict[str, Any] | None:
    """`rope_scaling` of config.json. Raises CheckpointError for a rule that is not known."""
    if FREQUENCIES in file.tensors:
        return _llama3_scaling(file, hf_config)
    if LONGROPE["short_factor"] in file.tensors:
        return _longrope_scaling(file, hf_config)
    kind = file.value("rope.scaling.type") or "none"
    if kind == "none":
        return None
    scaling = {"rope_type": kind, "factor": file.value("rope.scaling.factor")}
    if kind == "yarn":
        original = file.value("rope.scaling.original_context_length")
        scaling["original_max_position_embeddings"] = original
    elif kind != "linear":
        raise CheckpointError(
            f"{file.path}: rotary positions are scaled by {kind!r}; none, linear, yarn and Llama "
            "3's are read. Use the checkpoint that it was made from."
        )
    return scaling


def _llama3_scaling(file: File, hf_config: Mapping[str, Any]) -> dict[str, Any]:
    """Llama 3's rule, of which a file has only the factor of each frequency."""
    from tfllm.layers import rotary

    factors = file.array(FREQUENCIES).reshape(-1).astype(np.float64)
    scaling = {**LLAMA3, "factor": float(factors.max())}
    theta = hf_config["rope_theta"]
    longest = hf_config["max_position_embeddings"]
    plain, _ = rotary.frequencies(2 * len(factors), theta, {}, longest)
    scaled, _ = rotary.frequencies(2 * len(factors), theta, scaling, longest)
    expected = np.asarray(plain, np.float64) / np.asarray(scaled, np.float64)
    if not np.allclose(expected, factors, rtol=FREQUENCY_TOLERANCE):
        raise CheckpointError(
            f"{file.path}: {FREQUENCIES} are not those of Llama 3's rule with a factor of "
            f"{scaling['factor']:g}. Use the checkpoint that it was made from."
        )
    return scaling


def _longrope_scaling(file: File, hf_config: Mapping[str, Any]) -> dict[str, Any]:
    """LongRoPE's tables; the factor of cosines and sines where it is not the rule's."""
    from tfllm.layers import rotary

    longest = hf_config["max_position_embeddings"]
    original = file.value("rope.scaling.original_context_length") or longest
    scaling: dict[str, Any] = {
        "rope_type": "longrope", "factor": longest / original,
        "original_max_position_embeddings": original,
    }  # fmt: skip
    for key, name in LONGROPE.items():
        if name not in file.tensors:
            raise CheckpointError(f"{file.path}: the tensor {name} is missing. Copy it again.")
        values = file.array(name).reshape(-1)
        scaling[key] = [float(str(value)) for value in values]  # 1.1, not 1.100000023841858
    attention = file.value("rope.scaling.attn_factor")
    width = 2 * len(scaling["short_factor"])
    _, rule = rotary.frequencies(width, hf_config["rope_theta"], scaling, original)
    if attention is not None and not np.isclose(attention, rule, rtol=FREQUENCY_TOLERANCE):
        scaling["attention_factor"] = attention
    return scaling


def _generation_config(file: File) -> dict[str, Any]:
    """The contents of Hugging Face's generation_config.json."""
    generation: dict[str, Any] = {}
    bos = file.metadata.get(f"{gguf_vocabulary.PREFIX}bos_token_id")
    if bos is not None:
        generation["bos_token_id"] = bos
    if ends := gguf_vocabulary.end_ids(file.metadata):
        generation["eos_token_id"] = ends
    return generation


def read_tokenizer(file: File) -> Tokenizer:
    """Build the tokenizer from the file's vocabulary.

    Raises:
        TokenizerError: The vocabulary is damaged or not supported.
    """
    with tempfile.TemporaryDirectory() as folder:
        gguf_vocabulary.write_files(file.metadata, Path(folder), file.path)
        try:
            return load_tokenizer(folder)
        except TokenizerError as error:
            raise TokenizerError(error.cli_message.replace(folder, str(file.path))) from None


def _tensors(file: File, config: Any) -> LazyTensors:
    """Every tensor under Hugging Face's name and in its order of rows."""
    kind = ARCHITECTURES[file.architecture]
    known = {ours: theirs for theirs, ours in _names(kind, config.num_layers)}
    names = {name: _renamed(name, known) for name in file.tensors if name not in CONSTANTS}
    if leftover := [name for name, theirs in names.items() if theirs is None]:
        raise CheckpointError(
            f"{file.path}: {weights.listed(leftover)} {'has' if len(leftover) == 1 else 'have'} no "
            f"place in a model of the architecture {file.architecture}. Use the checkpoint that it "
            "was made from."
        )
    ours = {theirs: name for name, theirs in names.items() if theirs is not None}
    transposed = {name for name in ours if kind.transposed and name.endswith(kind.transposed)}

    def read(theirs: str) -> np.ndarray:
        value = file.array(ours[theirs])
        if theirs in transposed:
            value = value.T
        if kind.neighbours and (heads := _rotary_heads(theirs, config)):
            value = _to_halves(value, heads)
        if kind.offset_norms and theirs.endswith("norm.weight"):
            value = value - 1.0
        return value

    shapes = {theirs: file.tensors[name].shape for theirs, name in ours.items()}
    return LazyTensors(
        {name: shape[::-1] if name in transposed else shape for name, shape in shapes.items()},
        dict.fromkeys(ours, "float32"),
        read,
    )


def tensor_shapes(file: File) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return the (shape, type) of every tensor by GGUF's name."""
    return {
        name: (tensor.shape, tensor.tensor_type.name)
        for name, tensor in file.tensors.items()
        if name not in CONSTANTS
    }


def _names(kind: Architecture, num_layers: int) -> Iterator[tuple[str, str]]:
    """Pairs of Hugging Face's and GGUF's names, or starts of names before weight and bias."""
    for theirs, ours in kind.tensors.items():
        if "{i}" not in theirs:
            yield theirs, ours
            continue
        for i in range(num_layers):
            yield theirs.format(i=i), ours.format(i=i)


def _renamed(name: str, known: Mapping[str, str]) -> str | None:
    """The other name of a tensor, by a table of names and of names before the last dot."""
    if name in known:
        return known[name]
    start, _, end = name.rpartition(".")
    return f"{known[start]}.{end}" if start in known else None


def _rotary_heads(name: str, config: Any) -> int:
    """The heads of a tensor whose rows are rotated, 0 for any other."""
    if ".q_proj." in name:
        return config.num_heads
    return config.num_key_value_heads if ".k_proj." in name else 0


def _to_halves(value: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head from pairs of neighbours to two halves."""
    pairs = value.reshape(heads, -1, 2, *value.shape[1:])
    return pairs.swapaxes(1, 2).reshape(value.shape)


def _to_neighbours(value: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head from two halves to pairs of neighbours."""
    halves = value.reshape(heads, 2, -1, *value.shape[1:])
    return halves.swapaxes(1, 2).reshape(value.shape)


def write(checkpoint: Checkpoint, directory: str | Path, dtype: str = "f16") -> Path:
    """Write a language model as one GGUF file into a new directory, all or nothing.

    Vectors are float32. A matrix whose rows q8_0 or q4_0 cannot split into blocks of 32 is written
    in float16, and with q4_0 the embeddings are q8_0.

    Args:
        checkpoint: A causal language model of a family that llama.cpp runs.
        directory: New or empty.
        dtype: One of DTYPES.

    Raises:
        CheckpointError: llama.cpp has no place for this model.
        TokenizerError: llama.cpp does not implement what its tokenizer does.
        SettingError: `dtype` is unknown.
    """
    if dtype not in DTYPES:
        raise SettingError(f"--dtype {dtype}: choose one of {', '.join(DTYPES)}.")
    if checkpoint.task.generates != "continuation":
        raise CheckpointError(
            f"A model for {checkpoint.task.kind.replace('_', ' ')} has no form in GGUF; only "
            "language models are written. Convert it to huggingface instead."
        )
    hf_config = FAMILIES[checkpoint.family].to_hf(checkpoint.config)
    architecture = WRITTEN_AS.get(hf_config["model_type"], hf_config["model_type"])
    if architecture not in ARCHITECTURES:
        raise CheckpointError(
            f"GGUF files of {hf_config['model_type']} are not written; {', '.join(ARCHITECTURES)} "
            "are. Convert it to huggingface instead."
        )
    _check_attention(checkpoint.config, architecture)
    with atomic_directory(directory) as part:
        _write(checkpoint, architecture, hf_config, part, dtype)
    return Path(directory)


def _check_attention(config: Any, architecture: str) -> None:
    """Refuse what llama.cpp's attention of an architecture does not do."""
    kind = ARCHITECTURES[architecture]
    window = getattr(config, "sliding_window", 0)
    # llama.cpp reads Phi-3's window and leaves it out.
    harmless = "sliding_window" in kind.shape and window >= config.max_sequence_length
    if window and kind.family != "gemma" and not harmless:
        raise CheckpointError(
            "llama.cpp's form of this family has no sliding window, and this model looks back "
            f"{window} tokens only. Keep it in another form."
        )
    if architecture == "phi3" and config.num_heads * config.head_dim != config.hidden_dim:
        raise CheckpointError(
            "llama.cpp's Phi-3 has heads of hidden_dim / num_heads, and these are "
            f"{config.head_dim} wide (head_dim). Keep it in another form."
        )
    rotates = getattr(config, "rotary_layers", ())
    if architecture == "smollm3":
        fourth = tuple((i + 1) % 4 != 0 for i in range(config.num_layers))
        if (rotates or (True,) * config.num_layers) != fourth:
            raise CheckpointError(
                "llama.cpp's SmolLM3 has rotary positions in all layers but every fourth, and this "
                "model in others (rotary_layers). Keep it in another form."
            )


def _write(
    checkpoint: Checkpoint,
    architecture: str,
    hf_config: Mapping[str, Any],
    folder: Path,
    dtype: str,
) -> None:
    gguf = gguf_file.package()

    name = Path(checkpoint.path or architecture).stem or architecture
    writer = gguf.GGUFWriter(folder / f"{name}-{dtype}{SUFFIX}", architecture)
    writer.add_file_type(gguf.LlamaFileType[_file_type(dtype)])
    if dtype.startswith("q"):
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    metadata = _shape_metadata(architecture, hf_config, checkpoint.config)
    with tempfile.TemporaryDirectory() as files:
        checkpoint.tokenizer.save(files)
        rows = checkpoint.config.vocabulary_size
        metadata |= gguf_vocabulary.read_files(Path(files), rows)
    metadata |= _end_metadata(checkpoint, metadata)
    writer.add_name(_general_name(name, metadata[f"{gguf_vocabulary.PREFIX}tokens"]))
    for key, value in metadata.items():
        _add(writer, key, value)
    for tensor_name, value in _gguf_tensors(checkpoint, architecture):
        kind = _tensor_type(tensor_name, value, dtype)
        writer.add_tensor(tensor_name, _encode(value, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _general_name(name: str, tokens: list[str]) -> str:
    """The model's name; llama.cpp looks tokens up where it has Phi-3 in it, and fails without."""
    return name if PHI3_TOKENS <= set(tokens) else re.sub("(?i)phi-?3", "phi", name)


def _file_type(dtype: str) -> str:
    return {"f32": "ALL_F32"}.get(dtype, f"MOSTLY_{dtype.upper()}")


def _shape_metadata(architecture: str, hf_config: Mapping[str, Any], config: Any) -> dict[str, Any]:
    kind = ARCHITECTURES[architecture]
    metadata = {
        f"{architecture}.{ours}": float(hf_config[theirs]) if theirs in REALS else hf_config[theirs]
        for theirs, ours in kind.shape.items()
        if hf_config.get(theirs) is not None
    }
    if kind.family == "gpt2":
        return metadata
    metadata[f"{architecture}.attention.value_length"] = config.head_dim
    metadata[f"{architecture}.rope.dimension_count"] = rotary_dim(config)
    metadata[f"{architecture}.vocab_size"] = config.vocabulary_size
    scaling = config.rope_scaling
    rule = scaling.get("rope_type") if scaling else None
    if rule in ("linear", "yarn"):
        metadata[f"{architecture}.rope.scaling.type"] = rule
        metadata[f"{architecture}.rope.scaling.factor"] = float(scaling["factor"])
        if original := scaling.get("original_max_position_embeddings"):
            metadata[f"{architecture}.rope.scaling.original_context_length"] = original
    elif rule == "longrope" and architecture == "phi3":
        prefix = f"{architecture}.rope.scaling"
        _, factor = _rotary_frequencies(config, scaling)
        metadata[f"{prefix}.attn_factor"] = factor
        original = scaling["original_max_position_embeddings"]
        metadata[f"{prefix}.original_context_length"] = original
    elif rule not in (None, "default", "llama3"):
        raise CheckpointError(
            f"Rotary positions scaled by {rule!r} have no form in GGUF here; none, linear, yarn "
            "and llama3 have, and Phi-3's longrope. Convert it to huggingface instead."
        )
    return metadata


def _end_metadata(checkpoint: Checkpoint, metadata: Mapping[str, Any]) -> dict[str, int]:
    """The keys of ids that end a text: the first the end of a text, a second that of a turn."""
    ends = list(checkpoint.eos_token_id)
    keys = ("eos_token_id", *gguf_vocabulary.OTHER_END_KEYS)
    bos = metadata.get(f"{gguf_vocabulary.PREFIX}bos_token_id")
    ends = sorted(ends, key=lambda token_id: token_id == bos)  # a start token ends no turn
    return {gguf_vocabulary.PREFIX + key: end for key, end in zip(keys, ends, strict=False)}


# Type of a value of metadata -> method of the writer. Counts are uint32 in llama.cpp.
_ADDERS: tuple[tuple[type, str], ...] = (
    (bool, "add_bool"), (int, "add_uint32"), (float, "add_float32"), (str, "add_string"),
    (list, "add_array"),
)  # fmt: skip


def _add(writer: GGUFWriter, key: str, value: object) -> None:
    for kind, adder in _ADDERS:
        if isinstance(value, kind):
            getattr(writer, adder)(key, value)
            return
    raise TypeError(f"{key}: {value!r}")


def _gguf_tensors(checkpoint: Checkpoint, architecture: str) -> Iterator[tuple[str, np.ndarray]]:
    """Every tensor by GGUF's name, float32 in GGUF's order of rows."""
    kind = ARCHITECTURES[architecture]
    config = checkpoint.config
    table = get_weight_map(checkpoint.family, config)
    variables = weights.variables_of(checkpoint.model)
    rows = weights.rows_of(variables, {**table.backbone, **table.heads["causal_lm"]})
    if unmapped := [path for path in variables if path not in rows]:
        raise CheckpointError(
            f"GGUF has no place for {weights.listed(unmapped)}. Merge adapters first."
        )
    known = dict(_names(kind, config.num_layers))
    for theirs, value in weights.to_tensors(rows, variables).items():
        name = _renamed(theirs, known)
        if name is None:
            raise CheckpointError(f"GGUF has no place for {theirs} of {architecture}.")
        if kind.transposed and theirs.endswith(kind.transposed):
            value = value.T
        if kind.neighbours and (heads := _rotary_heads(theirs, config)):
            value = _to_neighbours(value, heads)
        if kind.offset_norms and theirs.endswith("norm.weight"):
            value = value + 1.0
        yield name, np.ascontiguousarray(value)
    scaling = getattr(config, "rope_scaling", None)
    if scaling and scaling.get("rope_type") == "llama3":
        yield FREQUENCIES, _frequency_factors(config)
    if scaling and scaling.get("rope_type") == "longrope":
        for key, name in LONGROPE.items():
            yield name, np.asarray(scaling[key], np.float32)


def _frequency_factors(config: Any) -> np.ndarray:
    """The divisor of each rotary frequency in llama.cpp: float32 [head_dim / 2]."""
    plain, _ = _rotary_frequencies(config, {})
    scaled, _ = _rotary_frequencies(config, config.rope_scaling)
    return np.asarray(np.asarray(plain, np.float64) / np.asarray(scaled, np.float64), np.float32)


def _rotary_frequencies(config: Any, scaling: Mapping[str, Any]) -> tuple[np.ndarray, float]:
    from tfllm.layers import rotary

    longest = config.max_sequence_length
    return rotary.frequencies(rotary_dim(config), config.rope_theta, scaling, longest)


def _tensor_type(name: str, value: np.ndarray, dtype: str) -> GGMLQuantizationType:
    """The type in which a tensor is written."""
    gguf = gguf_file.package()

    types = gguf.GGMLQuantizationType
    if value.ndim < 2 or name == "position_embd.weight":
        return types.F32
    if dtype.startswith("q"):
        if value.shape[-1] % gguf.GGML_QUANT_SIZES[types.Q8_0][0]:
            return types.F16
        if dtype == "q4_0" and name in ("token_embd.weight", "output.weight"):
            return types.Q8_0
    return types[dtype.upper()]


def _encode(value: np.ndarray, kind: GGMLQuantizationType) -> np.ndarray:
    gguf = gguf_file.package()

    plain: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "F32": lambda array: array.astype(np.float32),
        "F16": lambda array: array.astype(np.float16),
    }
    if kind.name in plain:
        return plain[kind.name](value)
    return gguf.quants.quantize(value, kind)
