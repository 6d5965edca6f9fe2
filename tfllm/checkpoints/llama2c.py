"""llama2.c's files, a small Llama in one `.bin`: reading.

A file has seven int32 (width, feed-forward width, layers, heads, heads of keys and values,
vocabulary, and positions), then float32 matrices, each for all layers. A negative vocabulary means
that the logits have a matrix of their own. Rotary pairs are neighbours here and halves in Hugging
Face's files.

Source: github.com/karpathy/llama2.c.
"""

from __future__ import annotations

import logging
import math
import struct
from pathlib import Path

import numpy as np

from tfllm.checkpoints import huggingface, tensor_names, tied_weights
from tfllm.checkpoints.base import Checkpoint, FamilyConfig
from tfllm.checkpoints.lazy_tensors import in_memory
from tfllm.errors import CheckpointError
from tfllm.models import llama
from tfllm.tasks import Task
from tfllm.tasks.causal_lm import CausalLM

log = logging.getLogger("tfllm")

HEADER = struct.Struct("<7i")
NEWER = 0x616B3432  # "ak42": files of version 1 and, in int8, 2 begin with it
LARGEST = 2**24  # of any number in the header; other kinds of files begin with larger ones
# run.c begins every text with the start token and ends at the next one: there is no other end.
TOKENS = {"bos_token_id": 1, "eos_token_id": [1, 2]}


def read(path: Path, tokenizer: str | Path | None = None, task: Task | None = None) -> Checkpoint:
    """Read a llama2.c model as a checkpoint.

    Args:
        path: The model's file.
        tokenizer: The tokenizer's file; None: the one beside the model.
        task: The task; None: language modeling.

    Raises:
        CheckpointError: It is no llama2.c model, or there is no tokenizer.
        TokenizerError: The tokenizer is not usable.
    """
    from tfllm.tokenizers.loading import check_vocabulary_size, load_tokenizer

    config = read_config(path)
    vocabulary = Path(tokenizer) if tokenizer else find_tokenizer(path, config.vocabulary_size)
    loaded_tokenizer = load_tokenizer(vocabulary)
    check_vocabulary_size(loaded_tokenizer, config.vocabulary_size, vocabulary)

    own = default_task(config)
    table = llama.WEIGHTS[config.variant]
    hf_config = {
        **llama.to_hf(config),
        "architectures": list(table.architectures[own.kind][:1]),
        **TOKENS,
    }
    raw = in_memory(read_weights(path, config))
    ties = tied_weights.Ties(config, tensor_names.canonical(raw, table), ())
    model, unused_tensors, origin = huggingface.build(
        "llama", table, task, own, raw, ties, path, hf_config
    )
    return Checkpoint(
        family="llama",
        config=config,
        tokenizer=loaded_tokenizer,
        task=task or own,
        model=model,
        path=path,
        unused_tensors=unused_tensors,
        origin=origin,
        generation_config=TOKENS,
    )


def default_task(config: FamilyConfig) -> CausalLM:
    """Return the task of a llama2.c model: language modeling."""
    return CausalLM(max_length=config.max_sequence_length)


def read_config(path: Path) -> llama.Config:
    """Read the shape of a model from the header of its file.

    Raises:
        CheckpointError: It is no llama2.c model, of another version, or cut off.
    """
    try:
        with path.open("rb") as file:
            numbers = HEADER.unpack(file.read(HEADER.size))
    except (struct.error, OSError):
        numbers = (0,) * 7
    width, inner, layers, heads, shared_heads, vocabulary, positions = numbers
    if width == NEWER:
        raise CheckpointError(
            f"{path}: a llama2.c file of version {inner}, and version 0 is read. Export the model "
            "again with: python export.py model.bin --version 0."
        )
    sizes = (width, inner, layers, heads, shared_heads, abs(vocabulary), positions)
    if (
        min(sizes) < 1
        or max(sizes) > LARGEST
        or width % heads
        or heads % shared_heads
        or (width // heads) % 2
    ):
        raise CheckpointError(
            f"{path}: not a model of llama2.c. If it is a part of a Hugging Face checkpoint, give "
            "the directory."
        )
    config = llama.Config(
        vocabulary_size=abs(vocabulary),
        num_layers=layers,
        num_heads=heads,
        num_key_value_heads=shared_heads,
        hidden_dim=width,
        intermediate_dim=inner,
        max_sequence_length=positions,
        layer_norm_epsilon=1e-5,
        tie_embeddings=vocabulary > 0,
    )
    expected = HEADER.size + 4 * sum(math.prod(shape) for _, shape in blocks(config))
    if path.stat().st_size != expected:
        raise CheckpointError(
            f"{path} has {path.stat().st_size} bytes, and a llama2.c model of this shape "
            f"{expected}. It was cut off or is of another kind; copy it again."
        )
    return config


def blocks(config: llama.Config) -> list[tuple[str, tuple[int, ...]]]:
    """List what follows the header, in order: Hugging Face's name, `{i}` for all layers, and shape.

    The two tables of rotary angles have no name, since they are computed.
    """
    width, inner, count = config.hidden_dim, config.intermediate_dim, config.num_layers
    queries = config.num_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    layer = "model.layers.{i}"
    angles = (config.max_sequence_length, config.head_dim // 2)
    return [
        ("model.embed_tokens.weight", (config.vocabulary_size, width)),
        (f"{layer}.input_layernorm.weight", (count, width)),
        (f"{layer}.self_attn.q_proj.weight", (count, queries, width)),
        (f"{layer}.self_attn.k_proj.weight", (count, keys, width)),
        (f"{layer}.self_attn.v_proj.weight", (count, keys, width)),
        (f"{layer}.self_attn.o_proj.weight", (count, width, queries)),
        (f"{layer}.post_attention_layernorm.weight", (count, width)),
        (f"{layer}.mlp.gate_proj.weight", (count, inner, width)),
        (f"{layer}.mlp.down_proj.weight", (count, width, inner)),
        (f"{layer}.mlp.up_proj.weight", (count, inner, width)),
        ("model.norm.weight", (width,)),
        ("", angles),
        ("", angles),
        *([] if config.tie_embeddings else [("lm_head.weight", (config.vocabulary_size, width))]),
    ]


def tensor_shapes(config: llama.Config) -> dict[str, tuple[tuple[int, ...], str]]:
    """Return the (shape, dtype) of every tensor by Hugging Face's name."""
    shapes: dict[str, tuple[tuple[int, ...], str]] = {}
    for name, shape in blocks(config):
        if "{i}" in name:
            shapes |= {name.format(i=i): (shape[1:], "F32") for i in range(shape[0])}
        elif name:
            shapes[name] = (shape, "F32")
    return shapes


def read_weights(path: Path, config: llama.Config) -> dict[str, np.ndarray]:
    """Read the weights under Hugging Face's names and in its order of rows."""
    numbers = np.memmap(path, "<f4", "r", offset=HEADER.size)
    tensors: dict[str, np.ndarray] = {}
    offset = 0
    for name, shape in blocks(config):
        block = numbers[offset : offset + math.prod(shape)].reshape(shape)
        offset += block.size
        if "q_proj" in name or "k_proj" in name:
            block = _halves(block, config.head_dim)
        if "{i}" in name:
            tensors |= {name.format(i=i): part for i, part in enumerate(block)}
        elif name:
            tensors[name] = block
    return tensors


def _halves(block: np.ndarray, head_dim: int) -> np.ndarray:
    """Rows of each head (L, N * head_dim, D) from pairs of neighbours to two halves."""
    layers, rows, width = block.shape
    pairs = block.reshape(layers, rows // head_dim, head_dim // 2, 2, width)
    return pairs.swapaxes(2, 3).reshape(block.shape)


def find_tokenizer(path: Path, vocabulary_size: int) -> Path:
    """Find the tokenizer file beside a model by its name.

    Raises:
        CheckpointError: There is none, or there are several.
    """
    name = path.stem.rstrip("0123456789KM")  # stories260K goes with stories_tok512.bin too
    for pattern in (f"{path.stem}_tok*.bin", f"{name}*tok*.bin", "tokenizer.bin",
                    f"tok{vocabulary_size}.bin", "*tok*.bin"):  # fmt: skip
        files = [file for file in sorted(path.parent.glob(pattern)) if file != path]
        if len(files) == 1:
            log.info("%s: with the tokenizer %s.", path, files[0])
            return files[0]
    raise CheckpointError(
        f"{path}: no tokenizer lies beside it, or several do. Name it: --tokenizer "
        f"{path.parent / 'tokenizer.bin'}."
    )
