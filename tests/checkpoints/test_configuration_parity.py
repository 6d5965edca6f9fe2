"""The same edited directories in transformers and here: ties, rotary positions, constants."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.helpers.golden_models import VOCABULARY
from tfllm.checkpoints import huggingface, store

pytestmark = pytest.mark.parity
TOLERANCE = 1e-4  # logits: float32 in another order, over two layers
SHAPE = {
    "vocab_size": len(VOCABULARY), "hidden_size": 16, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 24,
    "max_position_embeddings": 64, "head_dim": 8,
}  # fmt: skip
BERT = {
    key: value for key, value in SHAPE.items() if key not in ("num_key_value_heads", "head_dim")
}
SEQ2SEQ = {
    "vocab_size": len(VOCABULARY), "d_model": 16, "encoder_layers": 1, "decoder_layers": 1,
    "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "decoder_start_token_id": 2, "forced_eos_token_id": 2,
}  # fmt: skip
T5 = {
    "vocab_size": len(VOCABULARY), "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1,
    "num_heads": 2, "decoder_start_token_id": 0,
}  # fmt: skip
# Class, its configuration's settings, the embeddings' name, the logits' own name.
MODELS = {
    "Llama": ("ForCausalLM", SHAPE, "model.embed_tokens.weight", "lm_head.weight"),
    "Mistral": ("ForCausalLM", SHAPE, "model.embed_tokens.weight", "lm_head.weight"),
    "Qwen2": ("ForCausalLM", SHAPE, "model.embed_tokens.weight", "lm_head.weight"),
    "Qwen3": ("ForCausalLM", SHAPE, "model.embed_tokens.weight", "lm_head.weight"),
    "GPT2": ("LMHeadModel", {"vocab_size": len(VOCABULARY), "n_embd": 16, "n_layer": 2,
                             "n_head": 2, "n_positions": 64},
             "transformer.wte.weight", "lm_head.weight"),
    "Bert": ("ForMaskedLM", BERT, "bert.embeddings.word_embeddings.weight",
             "cls.predictions.decoder.weight"),
    "DistilBert": ("ForMaskedLM", {"vocab_size": len(VOCABULARY), "dim": 16, "n_layers": 2,
                                   "n_heads": 2, "hidden_dim": 24, "max_position_embeddings": 64},
                   "distilbert.embeddings.word_embeddings.weight", "vocab_projector.weight"),
    "Electra": ("ForMaskedLM", {**BERT, "embedding_size": 8},
                "electra.embeddings.word_embeddings.weight", "generator_lm_head.weight"),
    "Roberta": ("ForMaskedLM", {**BERT, "pad_token_id": 0},
                "roberta.embeddings.word_embeddings.weight", "lm_head.decoder.weight"),
    "MPNet": ("ForMaskedLM", BERT, "mpnet.embeddings.word_embeddings.weight",
              "lm_head.decoder.weight"),
    "Albert": ("ForMaskedLM", {**BERT, "embedding_size": 8},
               "albert.embeddings.word_embeddings.weight", "predictions.decoder.weight"),
    "ModernBert": ("ForMaskedLM", {**BERT, "pad_token_id": 0},
                   "model.embeddings.tok_embeddings.weight", "decoder.weight"),
    "Bart": ("ForConditionalGeneration", SEQ2SEQ, "model.shared.weight", "lm_head.weight"),
    "MBart": ("ForConditionalGeneration", SEQ2SEQ, "model.shared.weight", "lm_head.weight"),
    "Marian": ("MTModel", {**SEQ2SEQ, "decoder_vocab_size": len(VOCABULARY)},
               "model.shared.weight", "lm_head.weight"),
    "T5": ("ForConditionalGeneration", T5, "shared.weight", "lm_head.weight"),
    "MT5": ("ForConditionalGeneration", T5, "shared.weight", "lm_head.weight"),
}  # fmt: skip
READERS = ("Bart", "MBart", "Marian", "T5", "MT5")
IDS = np.array([[2, 7, 9, 12, 3, 8, 8, 4]], "int32")


def class_of(name):
    transformers = pytest.importorskip("transformers")
    return getattr(transformers, name + MODELS[name][0])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """`made("Llama", folder, edit, tie_word_embeddings=...)`: an edited copy of a random model."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    whole = {}

    def original(name):
        if name not in whole:
            folder = tmp_path_factory.mktemp(name)
            torch.manual_seed(3)
            config = getattr(transformers, f"{name}Config")(**MODELS[name][1])
            model = class_of(name)(config).eval()
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.copy_(torch.randn_like(parameter) * 0.3)
            model.save_pretrained(folder)
            (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
            (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
            whole[name] = folder
        return whole[name]

    def copy(name, folder, edit=dict, drop=(), **config):
        shutil.copytree(original(name), folder)
        path = folder / "model.safetensors"
        save_file(edit(load_file(path)), path, metadata={"format": "pt"})
        data = json.loads((folder / "config.json").read_text()) | config
        data = {key: value for key, value in data.items() if key not in drop}
        (folder / "config.json").write_text(json.dumps(data))
        return folder

    return copy


def theirs(name, folder):
    import torch

    model = class_of(name).from_pretrained(folder).eval()
    ids = torch.tensor(IDS).long()
    given = {"input_ids": ids} | ({"decoder_input_ids": ids} if name in READERS else {})
    with torch.no_grad():
        return model(**given).logits.numpy()


def ours(checkpoint):
    ones = np.ones_like(IDS)
    given = {
        "token_ids": IDS, "padding_mask": ones, "segment_ids": IDS * 0, "source_ids": IDS,
        "source_padding_mask": ones,
    }  # fmt: skip
    return np.asarray(checkpoint.model({name: given[name] for name in checkpoint.model.input}))


def assert_same(name, folder):
    checkpoint = store.load(folder)
    np.testing.assert_allclose(ours(checkpoint), theirs(name, folder), atol=TOLERANCE)
    huggingface.write(checkpoint, folder / "back")
    np.testing.assert_allclose(theirs(name, folder / "back"), ours(checkpoint), atol=TOLERANCE)
    before, after = (load_file(place / "model.safetensors") for place in (folder, folder / "back"))
    assert set(after) == set(before)


@pytest.mark.parametrize("form", ["equal", "different", "the other name", "absent"])
@pytest.mark.parametrize("name", MODELS)
def test_tied(made, tmp_path, name, form):
    _, _, words, head = MODELS[name]

    def edit(tensors):
        table = tensors[words]
        if form == "the other name":
            del tensors[words]
        if form == "absent":
            tensors.pop(head, None)
            return tensors
        other = np.random.default_rng(5).normal(0, 0.3, table.shape).astype("float32")
        return {**tensors, head: other if form == "different" else table.copy()}

    assert_same(name, made(name, tmp_path / "model", edit, tie_word_embeddings=True))


@pytest.mark.parametrize("name", ["Llama", "Mistral", "Qwen2", "Qwen3", "GPT2", "T5", "MT5"])
@pytest.mark.parametrize("form", ["equal", "different"])
def test_untied(made, tmp_path, name, form):
    _, _, words, head = MODELS[name]

    def edit(tensors):
        other = np.random.default_rng(5).normal(0, 0.3, tensors[words].shape).astype("float32")
        return {**tensors, head: other if form == "different" else tensors[words].copy()}

    assert_same(name, made(name, tmp_path / "model", edit, tie_word_embeddings=False))
    assert_same(name, made(name, tmp_path / "unsaid", edit, drop=["tie_word_embeddings"]))


def test_an_untied_bart_of_ours_is_whole_there(tmp_path):
    """Where logits stand alone, transformers ties the embeddings of neither side."""
    pytest.importorskip("torch")
    from tfllm.models import bart
    from tfllm.tasks import build
    from tfllm.tokenizers.wordpiece import WordPiece

    config = bart.Config(
        vocabulary_size=len(VOCABULARY), num_layers=1, num_heads=2, hidden_dim=16,
        max_sequence_length=64, tie_embeddings=False, initializer_range=0.3,
    )  # fmt: skip
    task = build({"kind": "seq2seq", "max_length": 32})
    checkpoint = store.create("bart", config, WordPiece.from_vocabulary(VOCABULARY), task, seed=1)
    huggingface.write(checkpoint, tmp_path / "theirs")
    found = theirs("Bart", tmp_path / "theirs")
    np.testing.assert_allclose(found, ours(checkpoint), atol=TOLERANCE)


LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0}
ORIGINAL = {"original_max_position_embeddings": 16}
ROPES = {
    "one table": {"rope_parameters": {**LLAMA3, **ORIGINAL, "rope_theta": 50.0}},
    "length beside the table": {"rope_parameters": {**LLAMA3, "rope_theta": 50.0}, **ORIGINAL},
    "length beside and inside": {
        "rope_parameters": {**LLAMA3, "rope_theta": 50.0, "original_max_position_embeddings": 32},
        **ORIGINAL,
    },
    "no length": {"rope_parameters": {**LLAMA3, "rope_theta": 50.0}},
    "theta beside the table": {"rope_parameters": {**LLAMA3, **ORIGINAL}, "rope_theta": 50.0},
    "theta beside and inside": {
        "rope_parameters": {**LLAMA3, **ORIGINAL, "rope_theta": 50.0}, "rope_theta": 70.0
    },
    "no theta": {"rope_parameters": {**LLAMA3, **ORIGINAL}},
    "two tables": {
        "rope_parameters": {**LLAMA3, **ORIGINAL, "rope_theta": 50.0},
        "rope_scaling": {"rope_type": "linear", "factor": 2.0}, "rope_theta": 70.0,
    },
    "transformers 4": {"rope_scaling": {**LLAMA3, **ORIGINAL}, "rope_theta": 50.0},
    "transformers 4, length beside": {"rope_scaling": LLAMA3, "rope_theta": 50.0, **ORIGINAL},
    "type": {"rope_scaling": {"type": "linear", "factor": 4.0}, "rope_theta": 50.0},
    "yarn": {"rope_parameters": {**YARN, **ORIGINAL, "rope_theta": 50.0}},
    "yarn, length beside": {"rope_scaling": YARN, "rope_theta": 50.0, **ORIGINAL},
    "yarn, no length": {"rope_scaling": YARN, "rope_theta": 50.0},
    "yarn, factor null": {"rope_parameters": {**YARN, **ORIGINAL, "factor": None,
                                              "rope_theta": 50.0}},
    "linear, length beside": {"rope_scaling": {"rope_type": "linear", "factor": 4.0}, **ORIGINAL},
    "dynamic": {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}},
    "default, length beside": {"rope_parameters": {"rope_type": "default", "rope_theta": 50.0},
                               **ORIGINAL},
}  # fmt: skip


@pytest.mark.parametrize("name", ["Llama", "Mistral", "Qwen2", "Qwen3"])
@pytest.mark.parametrize("rope", ROPES)
def test_rotary_positions(made, tmp_path, name, rope):
    drop = {"rope_parameters", "rope_theta", "rope_scaling"} - set(ROPES[rope])
    assert_same(name, made(name, tmp_path / "model", drop=drop, **ROPES[rope]))


CONSTANTS = {
    "Llama": ["model.rotary_emb.inv_freq", "model.layers.0.self_attn.rotary_emb.inv_freq"],
    "GPT2": ["transformer.h.0.attn.bias", "transformer.h.1.attn.masked_bias"],
    "Bert": ["bert.embeddings.position_ids", "loss_fct.weight"],
    "Roberta": ["roberta.embeddings.position_ids"],
    "Bart": ["model.encoder.version", "model.decoder.version"],
    "T5": ["decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"],
}


@pytest.mark.parametrize("name", CONSTANTS)
def test_constants(made, tmp_path, name):
    extra = {key: np.ones((4,), np.float32) for key in CONSTANTS[name]}
    folder = made(name, tmp_path / "model", lambda tensors: {**tensors, **extra})
    np.testing.assert_allclose(ours(store.load(folder)), theirs(name, folder), atol=TOLERANCE)


@pytest.mark.parametrize(
    "activation", ["gelu", "gelu_python", "gelu_new", "gelu_fast", "gelu_accurate",
                   "gelu_python_tanh", "gelu_pytorch_tanh", "quick_gelu", "sigmoid", "silu",
                   "swish", "relu", "tanh"],
)  # fmt: skip
def test_activations(activation):
    torch = pytest.importorskip("torch")
    activations = pytest.importorskip("transformers.activations")
    from tfllm.layers.activations import ACTIVATIONS

    x = np.linspace(-6, 6, 241, dtype=np.float32)
    want = activations.ACT2FN[activation](torch.tensor(x)).numpy()
    np.testing.assert_allclose(ACTIVATIONS[activation](x), want, atol=1e-6)  # float32
