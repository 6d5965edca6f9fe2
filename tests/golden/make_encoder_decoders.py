"""Makes the golden files of encoder-decoders: tiny random models of transformers and their scores.

Run with transformers and torch installed (the extra [parity]):

    python tests/golden/make_encoder_decoders.py

`encoder_decoders.npz` holds for each variant: `config` (config.json as bytes), `generation`
(generation_config.json), `tensors` (the safetensors file as bytes), `inputs/*` (with padding),
`logits`.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers

HERE = Path(__file__).parent
VOCABULARY = 40
SOURCE_LENGTHS, TARGET_LENGTHS = (11, 4, 7), (3, 9, 6)
STDDEV = 0.3  # large, so that a wrong bias or a swapped matrix shows
SEED = 0

BART = {
    "vocab_size": VOCABULARY, "d_model": 8, "encoder_layers": 2, "decoder_layers": 2,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 12,
    "decoder_ffn_dim": 12, "max_position_embeddings": 16, "pad_token_id": 1, "bos_token_id": 0,
    "eos_token_id": 2, "decoder_start_token_id": 2, "forced_eos_token_id": 2,
}  # fmt: skip
UNEQUAL = {"encoder_layers": 1, "encoder_attention_heads": 4, "encoder_ffn_dim": 20}
END = VOCABULARY - 1
MARIAN = {
    **BART, "pad_token_id": END, "eos_token_id": 0, "bos_token_id": None,
    "decoder_start_token_id": END, "forced_eos_token_id": 0, "scale_embedding": True,
    "activation_function": "swish",
}  # fmt: skip
T5 = {
    "vocab_size": VOCABULARY, "d_model": 8, "d_kv": 6, "d_ff": 12, "num_layers": 2,
    "num_heads": 2, "relative_attention_num_buckets": 8, "relative_attention_max_distance": 6,
    "decoder_start_token_id": 0,
}  # fmt: skip
GATED = {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
# Name here: (model class, configuration).
VARIANTS = {
    "marian": ("MarianMTModel", MARIAN),
    "marian_apart": (
        "MarianMTModel",
        {**MARIAN, **UNEQUAL, "share_encoder_decoder_embeddings": False, "vocab_size": 34,
         "decoder_vocab_size": VOCABULARY, "pad_token_id": 33, "decoder_start_token_id": 33},
    ),
    "t5": ("T5ForConditionalGeneration", T5),
    "flan_t5": ("T5ForConditionalGeneration", {**GATED, "num_decoder_layers": 1}),
    "mt5": ("MT5ForConditionalGeneration", {**GATED, "relative_attention_max_distance": 128}),
    "bart": ("BartForConditionalGeneration", BART),
    "bart_unequal": ("BartForConditionalGeneration", {**BART, **UNEQUAL}),
    "mbart": ("MBartForConditionalGeneration", {**BART, "scale_embedding": True}),
}  # fmt: skip
UNTIED = ("flan_t5", "mt5")


def padded(lengths: tuple[int, ...], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Random ids below every vocabulary, and their mask."""
    generator = np.random.default_rng(seed)
    mask = (np.arange(max(lengths)) < np.array(lengths)[:, None]).astype("int32")
    return generator.integers(3, 29, mask.shape).astype("int32") * mask, mask


def inputs() -> dict[str, np.ndarray]:
    """Three pairs, padded."""
    source_ids, source_padding_mask = padded(SOURCE_LENGTHS, SEED)
    token_ids, mask = padded(TARGET_LENGTHS, SEED + 1)
    return {
        "source_ids": source_ids,
        "source_padding_mask": source_padding_mask,
        "token_ids": token_ids,
        "padding_mask": mask,
    }


def build(name: str) -> torch.nn.Module:
    """A random model, its buffers too."""
    architecture, shape = VARIANTS[name]
    model_class = getattr(transformers, architecture)
    torch.manual_seed(SEED + list(VARIANTS).index(name))
    config = model_class.config_class(**shape, attn_implementation="eager")
    model = model_class(config).eval()
    if name in UNTIED:
        model.lm_head.weight = torch.nn.Parameter(torch.empty_like(model.lm_head.weight))
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if "embed_positions" in parameter_name and "Marian" in architecture:
                continue
            is_norm = "norm" in parameter_name
            centre = 1.0 if is_norm and parameter_name.endswith("weight") else 0.0
            parameter.normal_(centre, STDDEV)
        if hasattr(model, "final_logits_bias"):
            model.final_logits_bias.normal_(0.0, STDDEV)
    return model


def answer(model: torch.nn.Module, given: dict[str, np.ndarray]) -> np.ndarray:
    """The scores of the next token of the target."""
    names = {
        "source_ids": "input_ids",
        "source_padding_mask": "attention_mask",
        "token_ids": "decoder_input_ids",
        "padding_mask": "decoder_attention_mask",
    }
    with torch.no_grad():
        outputs = model(**{names[key]: torch.tensor(value).long() for key, value in given.items()})
    return outputs.logits.numpy()


def golden(name: str, folder: Path) -> dict[str, np.ndarray]:
    model = build(name)
    model.generation_config.num_beams = 4
    model.generation_config.bad_words_ids = [[END]]
    model.save_pretrained(folder)
    given = inputs()
    arrays = {f"{name}/inputs/{key}": value for key, value in given.items()}
    for key, file in (
        ("config", "config.json"),
        ("generation", "generation_config.json"),
        ("tensors", "model.safetensors"),
    ):
        arrays[f"{name}/{key}"] = np.frombuffer((folder / file).read_bytes(), np.uint8)
    again = type(model).from_pretrained(folder, attn_implementation="eager").eval()
    logits = answer(model, given)
    np.testing.assert_allclose(answer(again, given), logits, atol=1e-6)
    return {**arrays, f"{name}/logits": logits}


if __name__ == "__main__":
    everything: dict[str, np.ndarray] = {}
    for name in VARIANTS:
        with tempfile.TemporaryDirectory() as temporary:
            everything |= golden(name, Path(temporary))
    np.savez_compressed(HERE / "encoder_decoders.npz", **everything)
    print(f"transformers {transformers.__version__}, torch {torch.__version__}", file=sys.stderr)
