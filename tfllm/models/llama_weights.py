"""Where the weights of Llama, Mistral, Qwen2 and Qwen3 lie in a Hugging Face file."""

from __future__ import annotations

from tfllm.models.weight_map import Row, Weights, linear, scale


def _weights(*architectures: str) -> Weights:
    """One table for all: a model has no variables for the rows that its variant lacks."""
    layer = "model.layers.{i}"
    return Weights(
        prefix="model.",
        backbone={
            "token_embedding/embeddings": "model.embed_tokens.weight",
            **scale("layer_{i}/attention_norm", f"{layer}.input_layernorm"),
            **linear("layer_{i}/attention/query", f"{layer}.self_attn.q_proj"),
            **linear("layer_{i}/attention/key", f"{layer}.self_attn.k_proj"),
            **linear("layer_{i}/attention/value", f"{layer}.self_attn.v_proj"),
            **linear("layer_{i}/attention/attention_output", f"{layer}.self_attn.o_proj"),
            **scale("layer_{i}/attention/query_norm", f"{layer}.self_attn.q_norm"),
            **scale("layer_{i}/attention/key_norm", f"{layer}.self_attn.k_norm"),
            **scale("layer_{i}/feedforward_norm", f"{layer}.post_attention_layernorm"),
            **linear("layer_{i}/gate", f"{layer}.mlp.gate_proj"),
            **linear("layer_{i}/up", f"{layer}.mlp.up_proj"),
            **linear("layer_{i}/down", f"{layer}.mlp.down_proj"),
            **scale("final_norm", "model.norm"),
        },
        heads={"causal_lm": {"logits/kernel": Row("lm_head.weight", 1)}},
        architectures={"causal_lm": architectures},
        tied={"lm_head.weight": "model.embed_tokens.weight"},
    )


WEIGHTS = {
    "llama": _weights("LlamaForCausalLM", "LlamaModel"),
    "mistral": _weights("MistralForCausalLM", "MistralModel"),
    "qwen2": _weights("Qwen2ForCausalLM", "Qwen2Model"),
    "qwen3": _weights("Qwen3ForCausalLM", "Qwen3Model"),
}
