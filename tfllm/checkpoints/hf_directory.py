"""The files of a Hugging Face directory: its config, and the files of its weights."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tfllm.checkpoints.files import read_json, tensor_shapes
from tfllm.checkpoints.locate import FOREIGN_FORMS, PICKLE
from tfllm.checkpoints.weights import listed
from tfllm.errors import CheckpointError
from tfllm.models import model_types

CONFIG = "config.json"
TENSORS = "model.safetensors"
INDEX = "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
GENERATION = "generation_config.json"
TOKEN_ID = "_token_id"
COUNTS = (
    "max_length", "max_new_tokens", "min_length", "min_new_tokens", "num_beams", "top_k",
    "no_repeat_ngram_size", "num_return_sequences",
)  # fmt: skip
# Pattern of files with weights in a form that is not read -> what it is.
OTHER_FORMS = {
    "pytorch_model*.bin": PICKLE,
    "pytorch_model*.bin.index.json": "a list of torch pickles, which can run any code when they "
    "are opened",
    "tf_model.h5": "a TensorFlow 1-style HDF5 file",
    "flax_model.msgpack": "a Flax file",
}
CONVERTED = {"tf_model.h5": ", from_tf=True", "flax_model.msgpack": ", from_flax=True"}
SHARD = re.compile(r"-\d{5}-of-\d{5}\.safetensors$")
# Keys of `config.json`, and other programs' files, of quantized weights.
QUANTIZED_KEYS = ("quantization_config", "compression_config", "quantization")
QUANTIZED_FILES = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")
METHOD_KEYS = ("quant_method", "quant_algo", "quant_type", "format")
# Ends of tensor names of quantized layers only: GPTQ and AWQ, bitsandbytes, fp8 and
# compressed-tensors, mxfp4.
QUANTIZED_NAMES = (
    ".qweight", ".qzeros", ".g_idx", ".SCB", ".weight_format", ".absmax", ".quant_map",
    ".weight_scale", ".weight_scale_inv", ".weight_packed", ".weight_zero_point", ".input_scale",
    "_proj_blocks", "_proj_scales", ".weight_global_scale",
)  # fmt: skip
BEFORE = (
    "Use the checkpoint from before quantization (its model card names it as the base model); "
    "tfllm export quantizes by itself."
)


def read_config(directory: Path) -> dict[str, Any]:
    """Read the `config.json` of a directory whose weights can be read.

    Raises:
        CheckpointError: The weights are quantized, or there is an adapter beside them.
    """
    source = directory / CONFIG
    hf_config = read_json(source)
    check_generation(hf_config, source)
    if method := quantization_of(hf_config):
        raise CheckpointError(f"{source}: the weights are quantized ({method}). {BEFORE}")
    for name in QUANTIZED_FILES:
        if (directory / name).is_file():
            method = _method(read_json(directory / name)) or name
            raise CheckpointError(
                f"{directory / name}: the weights are quantized ({method}). {BEFORE}"
            )
    if (directory / ADAPTER).is_file():
        base = read_json(directory / ADAPTER).get("base_model_name_or_path") or "its base model"
        raise CheckpointError(
            f"{directory / ADAPTER}: an adapter for {base} lies here, which would not be applied. "
            "Merge it (peft: merge_and_unload) and load what that writes, or remove the adapter's "
            "files to load the model without it."
        )
    return hf_config


def read_generation(directory: Path) -> dict[str, Any]:
    """Read the `generation_config.json` of a directory; empty where there is none.

    Raises:
        CheckpointError: A number in it is not valid.
    """
    path = directory / GENERATION
    settings = read_json(path) if path.is_file() else {}
    check_generation(settings, path)
    for key, value in settings.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise CheckpointError(f"{path}: {key} is {value!r}; it must be finite. Correct it.")
    return settings


def check_generation(settings: Mapping[str, Any], path: Path) -> None:
    """Check the token ids and counts among the settings of generation.

    Args:
        settings: The contents of config.json or generation_config.json.
        path: The file, for messages.

    Raises:
        CheckpointError: One is not a whole number.
    """
    for key, value in settings.items():
        many = isinstance(value, list) and key.endswith(TOKEN_ID)
        if not (key in COUNTS or key.endswith(TOKEN_ID)) or value is None:
            continue
        for number in value if many else [value]:
            whole = isinstance(number, int) and not isinstance(number, bool)
            if not whole or (number < 0 and not key.startswith("pad")):
                raise CheckpointError(
                    f"{path}: {key} is {value!r}; it must be a whole number of 0 or more"
                    f"{', or a list of them' if key.endswith(TOKEN_ID) else ''}. Correct it."
                )


def quantization_of(hf_config: Mapping[str, Any]) -> str:
    """Return the method of quantization that a `config.json` names; empty where it names none."""
    for key in QUANTIZED_KEYS:
        if settings := hf_config.get(key):
            return f"{key}: {_method(settings) or 'of an unknown method'}"
    return ""


def _method(settings: object) -> str:
    """The method and bits in the settings of quantization, in the form of any program."""
    if not isinstance(settings, Mapping):
        return str(settings)
    nested = settings.get("quantization")  # ModelOpt
    if isinstance(nested, Mapping):
        return _method(nested)
    named = [str(settings[key]) for key in METHOD_KEYS if settings.get(key)][:1]
    if settings.get("load_in_4bit") or settings.get("load_in_8bit"):
        named = [
            *(named or ["bitsandbytes"]),
            "4 bits" if settings.get("load_in_4bit") else "8 bits",
        ]
    bits = settings.get("bits") or settings.get("w_bit")
    return ", ".join([*named, *([f"{bits} bits"] if bits else [])])


def refuse_quantized(names: Iterable[str], source: str) -> None:
    """Refuse names of tensors that only quantized layers have.

    Raises:
        CheckpointError: There are such names.
    """
    quantized = [name for name in names if name.endswith(QUANTIZED_NAMES)]
    if quantized:
        raise CheckpointError(
            f"{source}: the weights are quantized: there are {listed(quantized)}. {BEFORE}"
        )


def find_family(hf_config: Mapping[str, Any], source: str) -> tuple[str, str]:
    """Return the (family, model type) of a `config.json`.

    Args:
        hf_config: Its contents.
        source: The file, for messages.

    Raises:
        CheckpointError: The model type is missing or unknown.
    """
    families = model_types()
    model_type = hf_config.get("model_type")
    if model_type is None:
        raise CheckpointError(
            f"{source}: the key 'model_type' is missing. Add it; known: {', '.join(families)}."
        )
    if model_type not in families:
        # The nearest name is mostly another architecture: only another spelling is a hint.
        plain = {re.sub(r"\W|_", "", kind): kind for kind in families}
        near = plain.get(re.sub(r"\W|_", "", str(model_type).lower()))
        hint = f"Did you mean '{near}'?" if near else f"Known: {', '.join(families)}."
        raise CheckpointError(
            f"{source}: model_type '{model_type}' is not a family that tfllm has. {hint}"
        )
    return families[model_type], model_type


def tensor_files(directory: Path) -> list[Path]:
    """List the safetensors files of a directory.

    Raises:
        CheckpointError: There are none, or one of several is missing.
    """
    if (directory / TENSORS).is_file():
        return [directory / TENSORS]
    if (directory / INDEX).is_file():
        shards = read_json(directory / INDEX).get("weight_map")
        if not isinstance(shards, Mapping) or not shards:
            raise CheckpointError(f"{directory / INDEX}: 'weight_map' is missing. Copy it again.")
        files = [directory / str(name) for name in dict.fromkeys(shards.values())]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            raise CheckpointError(
                f"'{directory}' lacks {listed(missing)}, which {INDEX} names. "
                "Copy the missing files."
            )
        return files
    raise CheckpointError(other_weights(directory))


def other_weights(directory: Path) -> str:
    """Return what is wrong with a directory without weights that can be read, and what to do."""
    others = sorted(
        file.name
        for file in directory.glob("*.safetensors")
        if not file.name.startswith(("adapter_", "consolidated"))
    )
    if shards := [name for name in others if SHARD.search(name)]:
        return (
            f"'{directory}' has the parts {listed(shards)}, but not {INDEX}, which says what lies "
            "in which. Copy it from where the parts came from."
        )
    if others:
        rename = f"mv '{directory / others[0]}' '{directory / TENSORS}'"
        return (
            f"'{directory}' has no {TENSORS}, but {listed(others)}. Weights are read from "
            f"{TENSORS} alone: if these are the model's, rename the file: {rename}."
        )
    for pattern, meaning in OTHER_FORMS.items():
        for file in sorted(directory.glob(pattern))[:1]:
            return (
                f"'{file}' is {meaning}. Convert it once, where transformers and torch are "
                f"installed, with: {_conversion(directory, file.name)}"
            )
    for pattern, meaning in FOREIGN_FORMS.items():
        for file in sorted(directory.glob(pattern))[:1]:
            return f"'{file}' {meaning}. Weights are read from {TENSORS} alone."
    if any(directory.glob("adapter_model.*")):
        return (
            f"'{directory}' holds the weights of an adapter only. Merge them into their base model "
            "(peft: merge_and_unload), and load that."
        )
    return f"'{directory}' has no {TENSORS}. Copy the weights of the checkpoint into it."


def _conversion(directory: Path, name: str) -> str:
    """A line of Python that writes safetensors beside another form."""
    path = directory / CONFIG
    named = (read_json(path).get("architectures") if path.is_file() else None) or ["AutoModel"]
    return (
        f'python -c "import transformers as t; '
        f"t.{named[0]}.from_pretrained('{directory}'{CONVERTED.get(name, '')})"
        f".save_pretrained('{directory}', safe_serialization=True)\""
    )


def read_shapes(directory: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    """Read the (shape, dtype) of every tensor, without the tensors."""
    shapes: dict[str, tuple[tuple[int, ...], str]] = {}
    for file in tensor_files(directory):
        shapes |= tensor_shapes(file)
    return shapes
