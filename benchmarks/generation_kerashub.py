"""New tokens per second: KerasHub's GPT2CausalLM.generate, greedy, ids in and out."""

from __future__ import annotations

import generation
import keras
import keras_hub
import numpy as np
import tensorflow as tf
import workload
from safetensors.numpy import load_file


def main() -> None:
    options = generation.arguments()
    tf.config.threading.set_intra_op_parallelism_threads(options.threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    if options.precision == "bfloat16":
        keras.config.set_dtype_policy("bfloat16")
    backbone = keras_hub.models.GPT2Backbone(
        vocabulary_size=generation.VOCABULARY_SIZE,
        num_layers=12,
        num_heads=12,
        hidden_dim=768,
        intermediate_dim=3072,
        max_sequence_length=1024,
    )
    fill(backbone, load_file(f"{options.model}/model.safetensors"))
    model = keras_hub.models.GPT2CausalLM(backbone, preprocessor=None)
    model.compile(sampler="greedy")
    length = generation.PROMPT_TOKENS + generation.NEW_TOKENS

    def call(ids: list[list[int]]) -> list[list[int]]:
        padded = np.zeros([len(ids), length], np.int32)
        padded[:, : generation.PROMPT_TOKENS] = ids
        mask = np.broadcast_to(np.arange(length) < generation.PROMPT_TOKENS, padded.shape)
        found = model.generate(
            {"token_ids": padded, "padding_mask": mask.astype(np.int32)}, stop_token_ids=None
        )
        return np.asarray(found["token_ids"])[:, generation.PROMPT_TOKENS :].tolist()

    workload.report(
        runner="keras_hub",
        precision=options.precision,
        **generation.rate(call, generation.prompts(options.batch_size), options.repeats),
        keras=keras.__version__,
        keras_hub=keras_hub.__version__,
    )


def fill(backbone: keras_hub.models.GPT2Backbone, tensors: dict[str, np.ndarray]) -> None:
    """transformers' weights, so that all runners write the same tokens."""
    tensors = {name.removeprefix("transformer."): value for name, value in tensors.items()}
    backbone.token_embedding.embeddings.assign(tensors["wte.weight"])
    backbone.position_embedding.position_embeddings.assign(tensors["wpe.weight"])
    for number, block in enumerate(backbone.transformer_layers):
        attention, start = block._self_attention_layer, f"h.{number}."
        kernels = np.split(tensors[start + "attn.c_attn.weight"], 3, axis=1)
        biases = np.split(tensors[start + "attn.c_attn.bias"], 3)
        dense = (attention._query_dense, attention._key_dense, attention._value_dense)
        for layer, kernel, bias in zip(dense, kernels, biases, strict=True):
            layer.kernel.assign(kernel.reshape(layer.kernel.shape))
            layer.bias.assign(bias.reshape(layer.bias.shape))
        for layer, name in (
            (attention._output_dense, "attn.c_proj"),
            (block._feedforward_intermediate_dense, "mlp.c_fc"),
            (block._feedforward_output_dense, "mlp.c_proj"),
        ):
            layer.kernel.assign(tensors[f"{start}{name}.weight"].reshape(layer.kernel.shape))
            layer.bias.assign(tensors[f"{start}{name}.bias"])
        for layer, name in (
            (block._self_attention_layer_norm, "ln_1"),
            (block._feedforward_layer_norm, "ln_2"),
        ):
            layer.gamma.assign(tensors[f"{start}{name}.weight"])
            layer.beta.assign(tensors[f"{start}{name}.bias"])
    backbone.layer_norm.gamma.assign(tensors["ln_f.weight"])
    backbone.layer_norm.beta.assign(tensors["ln_f.bias"])


if __name__ == "__main__":
    main()
