"""Where the weights of Marian's models, BART and mBART lie in a Hugging Face file."""

from __future__ import annotations

from tfllm.models.weight_map import Row, Table, Weights, linear, norm

LOGITS_BIAS = "final_logits_bias"
LOGITS = {
    "logits/kernel": Row("lm_head.weight", 1),
    "token_bias/bias": Row(LOGITS_BIAS, 1),  # (1, tokens) in the file, one axis in the variable
}
SHARED = "model.shared.weight"
TIED = {
    "model.encoder.embed_tokens.weight": SHARED,
    "model.decoder.embed_tokens.weight": SHARED,
    "lm_head.weight": SHARED,
}


def blocks() -> Table:
    """The rows of all layers of encoder and decoder: both have the same but for the decoder's
    attention to the source."""
    rows: dict[str, str | Row] = {}
    for side, theirs in (("encoder_", "model.encoder"), ("", "model.decoder")):
        ours, layer = f"{side}layer_{{i}}", f"{theirs}.layers.{{i}}"
        for name, short in (("query", "q"), ("key", "k"), ("value", "v")):
            rows |= linear(f"{ours}/attention/{name}", f"{layer}.self_attn.{short}_proj")
        rows |= linear(f"{ours}/attention/attention_output", f"{layer}.self_attn.out_proj")
        rows |= norm(f"{ours}/attention_norm", f"{layer}.self_attn_layer_norm")
        rows |= linear(f"{ours}/up", f"{layer}.fc1") | linear(f"{ours}/down", f"{layer}.fc2")
        rows |= norm(f"{ours}/feedforward_norm", f"{layer}.final_layer_norm")
        rows |= norm(f"{side}embedding_norm", f"{theirs}.layernorm_embedding")
        rows |= norm(f"{side}final_norm", f"{theirs}.layer_norm")
    source = "model.decoder.layers.{i}.encoder_attn"
    rows |= linear("layer_{i}/cross_attention/query", f"{source}.q_proj")
    rows |= linear("layer_{i}/cross_attention/attention_output", f"{source}.out_proj")
    rows |= norm("layer_{i}/cross_norm", f"{source}_layer_norm")
    rows |= linear("cross_{i}/key", f"{source}.k_proj")
    rows |= linear("cross_{i}/value", f"{source}.v_proj")
    return rows


def _marian(embeddings: Table, tied: dict[str, str]) -> Weights:
    return Weights(
        prefix="model.",
        backbone={**embeddings, **blocks()},
        heads={"seq2seq": LOGITS},
        architectures={"seq2seq": ("MarianMTModel",)},
        tied=tied,
        ignored=("model.encoder.embed_positions.weight", "model.decoder.embed_positions.weight"),
        optional=(LOGITS_BIAS,),
    )


WEIGHTS = {
    "marian": _marian({"token_embedding/embeddings": SHARED}, TIED),
    "marian_apart": _marian(
        {
            "token_embedding/embeddings": "model.decoder.embed_tokens.weight",
            "encoder_token_embedding/embeddings": "model.encoder.embed_tokens.weight",
        },
        {"lm_head.weight": "model.decoder.embed_tokens.weight"},
    ),
}
