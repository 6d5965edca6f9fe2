"""Makes the golden files of encoders: tiny random models of transformers, and what they answer.

Run with transformers and torch installed (the extra [parity]):

    python tests/golden/make_encoders.py

A file of each of SHAPES holds for each head: `config` (config.json as bytes), `tensors` (the
safetensors file as bytes), `inputs/*` (with padding), `logits`.
`--minilm DIR` makes `minilm.npz` from a directory of all-MiniLM-L6-v2: sentences and their
embeddings.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers

HERE = Path(__file__).parent
VOCABULARY = 32
LENGTH = 9
STDDEV = 0.3  # large, so that a wrong bias or a swapped matrix shows
SEED = 0

BERT = {
    "vocab_size": VOCABULARY, "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 8,
    "intermediate_size": 12, "max_position_embeddings": 16,
}  # fmt: skip
DISTILBERT = {
    "vocab_size": VOCABULARY, "n_layers": 2, "n_heads": 2, "dim": 8, "hidden_dim": 12,
    "max_position_embeddings": 16,
}  # fmt: skip
MODERNBERT = {
    **{key: value for key, value in BERT.items() if key != "num_hidden_layers"},
    "num_hidden_layers": 4, "local_attention": 4, "global_attn_every_n_layers": 3,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2,
    "max_position_embeddings": 32,
}  # fmt: skip
SHAPES = {
    "bert": ("Bert", transformers.BertConfig, BERT),
    "distilbert": ("DistilBert", transformers.DistilBertConfig, DISTILBERT),
    "electra": ("Electra", transformers.ElectraConfig, {**BERT, "embedding_size": 6}),
    "roberta": ("Roberta", transformers.RobertaConfig, {**BERT, "type_vocab_size": 1}),
    "xlm-roberta": ("XLMRoberta", transformers.XLMRobertaConfig, BERT),
    "camembert": ("Camembert", transformers.CamembertConfig, {**BERT, "type_vocab_size": 1}),
    "mpnet": ("MPNet", transformers.MPNetConfig, BERT),
    "modernbert": ("ModernBert", transformers.ModernBertConfig, MODERNBERT),
    "modernbert-mean": (
        "ModernBert",
        transformers.ModernBertConfig,
        {
            **MODERNBERT,
            "classifier_pooling": "mean",
            "norm_bias": True,
            "attention_bias": True,
            "mlp_bias": True,
            "classifier_bias": True,
        },
    ),
    "albert": (
        "Albert",
        transformers.AlbertConfig,
        {**BERT, "num_hidden_layers": 4, "num_hidden_groups": 2, "embedding_size": 6},
    ),
}
PADS = {"roberta": 1, "xlm-roberta": 1, "camembert": 1, "mpnet": 1}
NO_SEGMENTS = ("distilbert", "roberta", "camembert", "mpnet", "modernbert", "modernbert-mean")
FIVE = ("embedding", "classification", "token_classification", "question_answering", "masked_lm")
ONLY = {
    "xlm-roberta": ("embedding", "classification", "masked_lm"),
    "camembert": ("embedding", "classification", "masked_lm"),
    "mpnet": FIVE,
    "albert": (*FIVE, "pretraining"),
    "modernbert": FIVE,
    "modernbert-mean": ("classification",),
}
THREE = {
    "id2label": {0: "low", 1: "middle", 2: "high"},
    "label2id": {"low": 0, "middle": 1, "high": 2},
}
ONE = {"id2label": {0: "stars"}, "label2id": {"stars": 0}, "problem_type": "regression"}
TAGS = {
    "id2label": dict(enumerate(["O", "B-PER", "I-PER", "B-LOC", "I-LOC"])),
    "label2id": {tag: i for i, tag in enumerate(["O", "B-PER", "I-PER", "B-LOC", "I-LOC"])},
}
MULTIPLE = {**THREE, "problem_type": "multi_label_classification"}
# Name here: (class after the family's name, more configuration).
HEADS = {
    "embedding": ("Model", {}),
    "classification": ("ForSequenceClassification", THREE),
    "regression": ("ForSequenceClassification", ONE),
    "multi_label": ("ForSequenceClassification", MULTIPLE),
    "token_classification": ("ForTokenClassification", TAGS),
    "question_answering": ("ForQuestionAnswering", {}),
    "masked_lm": ("ForMaskedLM", {}),
    "next_sentence": ("ForNextSentencePrediction", {}),
    "pretraining": ("ForPreTraining", {}),
}
SENTENCES = (
    "A man is playing a guitar on the street.",
    "Someone performs music outdoors.",
    "The stock market fell sharply on Monday.",
    "Ça va très bien, merci!",
    "今天天气很好。",
)


def inputs(family: str) -> dict[str, np.ndarray]:
    """Three rows: full, padded, two segments."""
    generator = np.random.default_rng(SEED)
    lengths = np.array([[LENGTH], [4], [7]])
    mask = (np.arange(LENGTH) < lengths).astype("int32")
    pad = PADS.get(family, 0)
    ids = generator.integers(pad + 1, VOCABULARY, (3, LENGTH)).astype("int32")
    given = {"token_ids": np.where(mask, ids, np.int32(pad)), "padding_mask": mask}
    if family not in NO_SEGMENTS:
        given["segment_ids"] = (np.arange(LENGTH) >= 3).astype("int32") * mask
    return given


def build(family: str, head: str) -> torch.nn.Module | None:
    """A random model, or None where transformers has no such head."""
    name, config_class, shape = SHAPES[family]
    suffix, more = HEADS[head]
    architecture = getattr(transformers, name + suffix, None)
    if architecture is None or head not in ONLY.get(family, HEADS):
        return None
    torch.manual_seed(SEED + list(HEADS).index(head))
    model = architecture(config_class(**shape, **more)).eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            centre = (
                1.0
                if parameter_name.endswith(("LayerNorm.weight", "layer_norm.weight", "norm.weight"))
                else 0.0
            )
            parameter.normal_(centre, STDDEV)
    return model


def answer(model: torch.nn.Module, given: dict[str, np.ndarray]) -> np.ndarray:
    """The raw scores; for a bare encoder the mean of its states at length 1."""
    names = {
        "token_ids": "input_ids",
        "segment_ids": "token_type_ids",
        "padding_mask": "attention_mask",
    }
    with torch.no_grad():
        outputs = model(**{names[key]: torch.tensor(value).long() for key, value in given.items()})
    if "start_logits" in outputs:
        return torch.stack([outputs.start_logits, outputs.end_logits], -1).numpy()
    if "prediction_logits" in outputs:
        return outputs.prediction_logits.numpy()
    if "logits" in outputs:
        return outputs.logits.numpy()
    return pooled(outputs.last_hidden_state, torch.tensor(given["padding_mask"])).numpy()


def pooled(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    kept = mask[..., None].float()
    return torch.nn.functional.normalize((states * kept).sum(1) / kept.sum(1), dim=-1)


def golden(family: str, folder: Path) -> dict[str, np.ndarray]:
    """All heads of one family."""
    arrays: dict[str, np.ndarray] = {}
    for head in HEADS:
        if (model := build(family, head)) is None:
            continue
        model.save_pretrained(folder / head)
        given = inputs(family)
        for name, file in (("config", "config.json"), ("tensors", "model.safetensors")):
            content = (folder / head / file).read_bytes()
            arrays[f"{head}/{name}"] = np.frombuffer(content, np.uint8)
        arrays |= {f"{head}/inputs/{name}": value for name, value in given.items()}
        arrays[f"{head}/logits"] = answer(model, given)
    return arrays


def minilm(directory: Path) -> dict[str, np.ndarray]:
    """Reference embeddings of the real all-MiniLM-L6-v2."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    model = transformers.AutoModel.from_pretrained(directory).eval()
    given = tokenizer(
        list(SENTENCES), padding=True, truncation=True, max_length=256, return_tensors="pt"
    )
    with torch.no_grad():
        states = model(**given).last_hidden_state
    return {
        "sentences": np.array(SENTENCES),
        "token_ids": given["input_ids"].numpy().astype("int32"),
        "padding_mask": given["attention_mask"].numpy().astype("int32"),
        "embeddings": pooled(states, given["attention_mask"]).numpy(),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minilm", type=Path, help="a directory of all-MiniLM-L6-v2")
    parser.add_argument("families", nargs="*", default=list(SHAPES), help="which; all if none")
    arguments = parser.parse_args()
    for family in arguments.families:
        with tempfile.TemporaryDirectory() as temporary:
            np.savez_compressed(HERE / f"{family}.npz", **golden(family, Path(temporary)))
    if arguments.minilm:
        np.savez_compressed(HERE / "minilm.npz", **minilm(arguments.minilm))
    print(f"transformers {transformers.__version__}, torch {torch.__version__}", file=sys.stderr)
