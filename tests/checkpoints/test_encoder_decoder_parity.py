"""Encoder-decoders against transformers itself: long texts, and what we write read there."""

import dataclasses

import numpy as np
import pytest

from tests.helpers.golden_models import VOCABULARY
from tfllm.checkpoints import huggingface, store
from tfllm.layers import relative
from tfllm.models import bart, t5, transformer
from tfllm.tasks import build
from tfllm.tokenizers.wordpiece import WordPiece

pytestmark = pytest.mark.parity
TOLERANCE = 1e-4  # two orders of summation in float32, over two layers and 150 keys
SHAPE = {"vocabulary_size": 40, "num_layers": 2, "num_heads": 2, "hidden_dim": 16}
GATED = {"gated": True, "activation": "gelu_new", "tie_embeddings": False, "scale_logits": False}
# Source and target are longer than T5 tells distances apart.
SOURCE_LENGTH, TARGET_LENGTH = 150, 140
CONFIGS = {
    "transformer": transformer.Config(max_sequence_length=160, pad_token_id=39, **SHAPE),
    "transformer apart": transformer.Config(
        max_sequence_length=160, share_embeddings=False, source_vocabulary_size=36, pad_token_id=35,
        tie_embeddings=False, **SHAPE,
    ),
    "t5": t5.Config(**SHAPE),
    "t5 gated": t5.Config(num_encoder_layers=1, head_dim=5, **GATED, **SHAPE),
    "t5 mt5": t5.Config(variant="mt5", **GATED, **SHAPE),
    "bart": bart.Config(max_sequence_length=160, num_encoder_heads=4, **SHAPE),
    "bart mbart": bart.Config(
        variant="mbart", max_sequence_length=160, scale_embeddings=True, **SHAPE
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=CONFIGS)
def both(request, tmp_path_factory):
    """Our model of large random weights, and theirs from the directory that we wrote."""
    transformers = pytest.importorskip("transformers")
    config = CONFIGS[request.param]
    tokenizer = WordPiece.from_vocabulary(VOCABULARY, lowercase=True)
    task = build({"kind": "seq2seq", "max_length": 160})
    made = store.create(request.param.split()[0], config, tokenizer, task)
    generator = np.random.default_rng(0)
    for weight in made.model.weights:
        centre = 1.0 if weight.path.endswith(("gamma", "scale")) else 0.0
        weight.assign(generator.normal(centre, 0.2, weight.shape))
    folder = tmp_path_factory.mktemp("both") / "theirs"
    huggingface.write(made, folder)
    theirs, told = transformers.AutoModelForSeq2SeqLM.from_pretrained(
        folder, output_loading_info=True, attn_implementation="eager"
    )
    assert not told["unexpected_keys"] and not told["mismatched_keys"]
    assert all("embed_positions" in key for key in told["missing_keys"])
    return made, theirs.eval(), folder


def test_scores_of_long_texts(both):
    import torch

    made, theirs, _ = both
    generator = np.random.default_rng(1)
    source_padding_mask = (np.arange(SOURCE_LENGTH) < np.array([[SOURCE_LENGTH], [90]])).astype(
        "int32"
    )
    mask = np.ones((2, TARGET_LENGTH), "int32")
    inputs = {
        "source_ids": generator.integers(3, 32, source_padding_mask.shape).astype("int32"),
        "source_padding_mask": source_padding_mask,
        "token_ids": generator.integers(3, 32, mask.shape).astype("int32"),
        "padding_mask": mask,
    }
    ids, mask, written, _ = (torch.tensor(value).long() for value in inputs.values())
    with torch.no_grad():
        want = theirs(input_ids=ids, attention_mask=mask, decoder_input_ids=written).logits
    np.testing.assert_allclose(made.model(inputs), want.numpy(), atol=TOLERANCE)


def test_what_they_save_is_the_same_model(both, tmp_path):
    made, theirs, _ = both
    theirs.save_pretrained(tmp_path)
    made.tokenizer.save(tmp_path)
    again = store.load(tmp_path)
    # Written with transformers' own names, which leave out what follows from the rest.
    assert dataclasses.asdict(again.config) == dataclasses.asdict(made.config)
    for ours, back in zip(made.model.get_weights(), again.model.get_weights(), strict=True):
        np.testing.assert_array_equal(ours, back)


def test_they_generate_from_what_we_wrote(both):
    import torch

    made, theirs, _ = both
    settings = theirs.generation_config
    assert settings.decoder_start_token_id == made.decoder_start_token_id
    assert settings.eos_token_id == made.tokenizer.eos_token_id
    if made.config.num_encoder_layers < made.config.num_layers:
        return  # transformers 5 gives T5's cache as many layers as the encoder has
    ids = theirs.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=5, do_sample=False)
    assert ids[0, 0] == made.decoder_start_token_id


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(
    ("number", "far"), [(32, 128), (8, 6), (64, 200), (32, 256), (32, 20), (16, 1000)]
)
def test_buckets_of_distances(number, far, bidirectional):
    pytest.importorskip("transformers")
    import torch
    from transformers.models.t5.modeling_t5 import T5Attention

    distances = torch.arange(-far, far + 1)
    want = T5Attention._relative_position_bucket(distances, bidirectional, number, far)
    np.testing.assert_array_equal(
        relative.distance_buckets(number, far, bidirectional), want.numpy()
    )
