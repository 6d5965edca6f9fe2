"""Makes the golden files of decoders: tiny random models of transformers, and what they answer.

Run with transformers and torch installed (the extra [parity]):

    python tests/golden/make_decoders.py [NAME ...]

Variants that the file has stay as they are unless they are named.
`decoders.npz` holds for each variant: `config` (config.json as bytes), `tensors` (the safetensors
file as bytes), `inputs/*` (with padding), `logits` of tokens, or of the text where the name ends in
`labels`.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers

HERE = Path(__file__).parent
VOCABULARY = 32
LENGTH = 11
STDDEV = 0.3  # large, so that a wrong bias or a swapped matrix shows
SEED = 0

GPT2 = {"vocab_size": VOCABULARY, "n_layer": 2, "n_head": 2, "n_embd": 8, "n_positions": 16}
LLAMA = {
    "vocab_size": VOCABULARY, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "hidden_size": 16, "intermediate_size": 20,
    "max_position_embeddings": 16,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500.0, "factor": 4.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
}  # fmt: skip
YARN = {
    "rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 8,
}  # fmt: skip
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 500.0,
    "partial_rotary_factor": 0.75,
    "short_factor": [1.0, 1.5, 2.0],
    "long_factor": [1.0, 4.0, 9.0],
}  # of 8 values of a head, 3 pairs are rotated
NEOX = {
    "vocab_size": VOCABULARY,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "hidden_size": 16,
    "intermediate_size": 20,
    "max_position_embeddings": 16,
}
OPT = {
    "vocab_size": VOCABULARY,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "hidden_size": 8,
    "ffn_dim": 12,
    "max_position_embeddings": 16,
}
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
WINDOWS = {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}
GEMMA = {**LLAMA, "head_dim": 6, "pad_token_id": 0, "num_hidden_layers": 3}
GEMMA3_ROPE = {
    "full_attention": {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0},
    "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
}
# Name here: (model class, configuration).
VARIANTS = {
    "gpt2": ("GPT2LMHeadModel", GPT2),
    "distilgpt2": ("GPT2LMHeadModel", {**GPT2, "n_layer": 1, "n_inner": 12}),
    "gpt2_untied": ("GPT2LMHeadModel", {**GPT2, "tie_word_embeddings": False}),
    "llama2": ("LlamaForCausalLM", LLAMA),
    "llama3": ("LlamaForCausalLM", {**LLAMA, "rope_parameters": LLAMA3}),
    "llama_yarn": ("LlamaForCausalLM", {**LLAMA, "rope_parameters": YARN}),
    "llama_biased": ("LlamaForCausalLM", {**LLAMA, "attention_bias": True}),
    "smollm2": ("LlamaForCausalLM", {**LLAMA, "tie_word_embeddings": True}),
    "mistral": ("MistralForCausalLM", {**LLAMA, "sliding_window": 4}),
    "qwen2": ("Qwen2ForCausalLM", {**LLAMA, "tie_word_embeddings": True}),
    "qwen2_untied": ("Qwen2ForCausalLM", {**LLAMA, **WINDOWS}),
    "qwen3": ("Qwen3ForCausalLM", {**LLAMA, "head_dim": 6, "tie_word_embeddings": True}),
    "gemma": ("GemmaForCausalLM", GEMMA),
    "gemma2": (
        "Gemma2ForCausalLM",
        {**GEMMA, "sliding_window": 4, "query_pre_attn_scalar": 9, "attn_logit_softcapping": 2.0,
         "final_logit_softcapping": 3.0},
    ),
    "gemma3": (
        "Gemma3ForCausalLM",
        {**GEMMA, "sliding_window": 4, "query_pre_attn_scalar": 9, "num_hidden_layers": 7,
         "rope_parameters": GEMMA3_ROPE},
    ),
    "smollm3": (
        "SmolLM3ForCausalLM",
        {**LLAMA, **TOKENS, "num_hidden_layers": 3, "no_rope_layer_interval": 2,
         "use_sliding_window": True, "sliding_window": 4},
    ),
    "granite": (
        "GraniteForCausalLM",
        {**LLAMA, "embedding_multiplier": 1.5, "attention_multiplier": 0.3,
         "residual_multiplier": 0.7, "logits_scaling": 3.0},
    ),
    "olmo2": ("Olmo2ForCausalLM", {**LLAMA, **TOKENS}),
    "phi3": ("Phi3ForCausalLM", {**LLAMA, **TOKENS, "sliding_window": 4}),
    "phi3_long": (
        "Phi3ForCausalLM",
        {**LLAMA, **TOKENS, "hidden_size": 32, "tie_word_embeddings": True,
         "max_position_embeddings": 64, "original_max_position_embeddings": 16,
         "rope_parameters": LONGROPE},
    ),
    "pythia": ("GPTNeoXForCausalLM", NEOX),
    "gpt_neox": (
        "GPTNeoXForCausalLM",
        {**NEOX, "use_parallel_residual": False, "attention_bias": False,
         "tie_word_embeddings": True, "hidden_act": "gelu_new",
         "rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 4.0,
                             "partial_rotary_factor": 0.5}},
    ),
    "opt": ("OPTForCausalLM", OPT),
    "opt_350m": (
        "OPTForCausalLM",
        {**OPT, "do_layer_norm_before": False, "word_embed_proj_dim": 6, "pad_token_id": 0},
    ),
    "galactica": (
        "OPTForCausalLM",
        {**OPT, "activation_function": "gelu", "enable_bias": False, "tie_word_embeddings": False},
    ),
    **{
        f"{name}_labels": (
            architecture, {**shape, **TOKENS, "num_labels": 3, "use_cache": False},
        )
        for name, architecture, shape in (
            ("gpt2", "GPT2ForSequenceClassification", GPT2),
            ("llama", "LlamaForSequenceClassification", LLAMA),
            ("qwen3", "Qwen3ForSequenceClassification", {**LLAMA, "head_dim": 6}),
            ("phi3", "Phi3ForSequenceClassification", LLAMA),
            ("gemma", "GemmaForSequenceClassification", GEMMA),
            ("gemma3", "Gemma3TextForSequenceClassification", {**GEMMA, "sliding_window": 4}),
            ("pythia", "GPTNeoXForSequenceClassification", NEOX),
            ("opt", "OPTForSequenceClassification", OPT),
        )
    },
}  # fmt: skip


def inputs() -> dict[str, np.ndarray]:
    """Three rows, two of them padded."""
    generator = np.random.default_rng(SEED)
    mask = (np.arange(LENGTH) < np.array([[LENGTH], [4], [7]])).astype("int32")
    ids = generator.integers(1, VOCABULARY, (3, LENGTH)).astype("int32") * mask
    return {"token_ids": ids, "padding_mask": mask}


def build(name: str) -> torch.nn.Module:
    """A random model."""
    architecture, shape = VARIANTS[name]
    model_class = getattr(transformers, architecture)
    torch.manual_seed(SEED + list(VARIANTS).index(name))
    config = model_class.config_class(**shape, attn_implementation="eager")
    model = model_class(config).eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            is_norm = "norm" in parameter_name or "ln_" in parameter_name
            centre = 1.0 if is_norm and parameter_name.endswith("weight") else 0.0
            parameter.normal_(centre, STDDEV)
    return model


def answer(model: torch.nn.Module, given: dict[str, np.ndarray]) -> np.ndarray:
    """The scores of the next token, or of labels."""
    names = {"token_ids": "input_ids", "padding_mask": "attention_mask"}
    with torch.no_grad():
        outputs = model(**{names[key]: torch.tensor(value).long() for key, value in given.items()})
    return outputs.logits.numpy()


def golden(name: str, folder: Path) -> dict[str, np.ndarray]:
    model = build(name)
    model.save_pretrained(folder)
    given = inputs()
    arrays = {f"{name}/inputs/{key}": value for key, value in given.items()}
    for key, file in (("config", "config.json"), ("tensors", "model.safetensors")):
        arrays[f"{name}/{key}"] = np.frombuffer((folder / file).read_bytes(), np.uint8)
    return {**arrays, f"{name}/logits": answer(model, given)}


if __name__ == "__main__":
    with np.load(HERE / "decoders.npz") as file:
        everything = dict(file)
    # Scores differ by roundings between machines: those that are there stay, unless named.
    done = {key.split("/")[0] for key in everything} - set(sys.argv[1:])
    for name in [name for name in VARIANTS if name not in done]:
        with tempfile.TemporaryDirectory() as temporary:
            everything |= golden(name, Path(temporary))
    np.savez_compressed(HERE / "decoders.npz", **everything)
    print(f"transformers {transformers.__version__}, torch {torch.__version__}", file=sys.stderr)
