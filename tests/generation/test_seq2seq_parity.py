"""Live against transformers: longer texts of wider models than the goldens hold."""

import numpy as np
import pytest

from tests.helpers.golden_models import VOCABULARY
from tfllm.checkpoints import store
from tfllm.generation.config import generation_config
from tfllm.generation.cpu_decoding import optimize_for_cpu
from tfllm.generation.engine import Engine
from tfllm.models.encoder_decoder import get_encoder_decoder

pytestmark = pytest.mark.parity
SIZE, NEW = 90, 40
SCORES = {"atol": 2e-4, "rtol": 1e-5}  # sums of some dozen float32 log-probabilities
BART = {
    "vocab_size": SIZE, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48, "max_position_embeddings": 128, "pad_token_id": 1, "eos_token_id": 2,
    "decoder_start_token_id": 2, "bos_token_id": 0,
}  # fmt: skip
T5 = {
    "vocab_size": SIZE, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4,
    "decoder_start_token_id": 0,
}  # fmt: skip
MODELS = {
    "marian": ("MarianMTModel", {**BART, "scale_embedding": True}),
    "t5": ("T5ForConditionalGeneration", T5),
    "bart": ("BartForConditionalGeneration", BART),
}
CASES = {
    "sums": {"length_penalty": 1.2},
    "early": {"early_stopping": True, "no_repeat_ngram_size": 3, "min_new_tokens": 9},
    "never": {"early_stopping": "never", "length_penalty": 0.5, "forced_bos_token_id": 7},
}
NAMES = {
    "no_repeat_ngram_size": "no_repeat_ngram_size",
    "forced_bos_token_id": "forced_bos_token_id",
}


def loaded(name, folder, torch, transformers):
    kind, shape = MODELS[name]
    model_class = getattr(transformers, kind)
    torch.manual_seed(11)
    model = model_class(model_class.config_class(**shape)).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "norm" in key and key.endswith("weight"):
                parameter.normal_(0.0, 1.5)
            elif parameter.ndim > 1 and "embed_positions" not in key:
                parameter.normal_(0.0, 0.3)
    model.generation_config.forced_eos_token_id = None
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    checkpoint = store.load(folder)
    ours = get_encoder_decoder(checkpoint.model, checkpoint.family, checkpoint.config)
    return model, Engine(optimize_for_cpu(ours)), checkpoint


@pytest.mark.parametrize("name", MODELS)
def test_beams_equal_transformers(name, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model, engine, checkpoint = loaded(name, tmp_path, torch, transformers)
    draw = np.random.default_rng(0)
    sources = [draw.integers(3, SIZE, length).tolist() for length in (25, 6, 17)]
    width = max(map(len, sources))
    ids = torch.tensor([row + [3] * (width - len(row)) for row in sources])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in sources])
    (stop,) = checkpoint.eos_token_id
    for case in CASES.values():
        out = model.generate(
            ids, attention_mask=mask, num_beams=4, num_return_sequences=2, max_new_tokens=NEW,
            do_sample=False, return_dict_in_generate=True, output_scores=True, **case,
        )  # fmt: skip
        expected = [row[1:] for row in out.sequences.tolist()]
        expected = [row[: row.index(stop)] if stop in row else row for row in expected]
        settings = generation_config(
            num_beams=4, num_return_sequences=2, max_new_tokens=NEW, eos_token_id=(stop,),
            **{NAMES.get(key, key): value for key, value in case.items()},
        )  # fmt: skip
        found = engine.generate(
            [[checkpoint.decoder_start_token_id]] * 3, settings, sources=sources
        )
        assert [one.ids for one in found] == expected, case
        scores = [one.score for one in found]
        np.testing.assert_allclose(scores, out.sequences_scores.tolist(), **SCORES)
