"""What CONTRIBUTING says of adding something, one file and one line, done inside the test."""

import ast
import json
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import keras
import numpy as np
import pytest
import tensorflow as tf

from tests.helpers import commands, recipes
from tfllm import tasks
from tfllm.checkpoints import store
from tfllm.errors import SettingError
from tfllm.evaluation.harness import evaluate, headline
from tfllm.layers import heads
from tfllm.runtimes.opening import open_model
from tfllm.tasks import losses, serving_graph
from tfllm.tasks.base import Task
from tfllm.tasks.features import encode_texts, features_from_encodings
from tfllm.tasks.objectives import OBJECTIVES
from tfllm.tasks.objectives.packing import CorpusTokenStream
from tfllm.tasks.objectives.seq2seq_features import EpochPairs

PACKAGE = Path(__file__).parent.parent / "tfllm"


class Polarity(Task):
    """The share of good words in a text, as one probability: a task that tfllm has not."""

    label_fields: ClassVar = ("label",)
    head_layers: ClassVar = ("pooler", "classifier")
    pooled: ClassVar = True

    kind: Literal["polarity"] = "polarity"
    threshold: float = 0.5

    @property
    def measure(self):
        return share_right

    @property
    def headline_metrics(self):
        return ("polarity_accuracy",)

    def model(self, backbone, config):
        logits = heads.classification_head(backbone.output, config, 1)
        return keras.Model(backbone.input, logits, name=self.kind)

    def features(self, examples, tokenizer, *, targets=True):
        encodings = encode_texts(examples, tokenizer, self.max_length)
        if not targets or "label" not in examples[0]:
            return features_from_encodings(encodings, tokenizer)
        labels = [np.array([example["label"] == "good"], np.float32) for example in examples]
        return features_from_encodings(encodings, tokenizer, targets=labels)

    def loss(self, label_smoothing=0.0, class_weights=None):
        return losses.SigmoidCrossEntropy(label_smoothing)

    def metrics(self):
        return []

    def answers(self, outputs, features):
        return [self._answer(1 / (1 + np.exp(-float(output[0])))) for output in outputs]

    def answer_from_signature(self, example, outputs):
        return self._answer(float(outputs["polarity"]))

    def _answer(self, polarity):
        return {"label": "good" if polarity > self.threshold else "bad", "polarity": polarity}

    def signatures(self, model, graph_tokenizer):
        @serving_graph.signature(serving_graph.text_inputs("text"))
        def serve(text):
            logits = serving_graph.run_model(
                model, graph_tokenizer(text, max_length=self.max_length)
            )
            return {"polarity": tf.sigmoid(logits[:, 0])}

        return {"serving_default": serve, "tokens": serving_graph.tokens_signature(model)}


def share_right(answers, examples):
    right = [a["label"] == e["label"] for a, e in zip(answers, examples, strict=True)]
    return {"polarity_accuracy": float(np.mean(right))}


def run(capsys, *arguments):
    status, printed, errors = commands.run(capsys, *arguments)
    assert status == 0, errors
    return printed


def test_a_task_is_one_file_and_one_line(monkeypatch, tmp_path, capsys):
    """Trains, evaluates, predicts, exports and loads it under another model's head."""
    monkeypatch.setitem(tasks.TASKS, "polarity", Polarity)
    folder = recipes.write_data(tmp_path / "data")
    settings = recipes.settings(folder, task={"kind": "polarity", "max_length": 32})
    recipe, checkpoint = tmp_path / "recipe.yaml", tmp_path / "run" / "checkpoint"
    recipe.write_text(json.dumps(settings))
    run(capsys, "train", recipe, "--output", tmp_path / "run", "--set", "train.epochs=3")

    loaded = store.load(checkpoint)
    assert loaded.task == Polarity(max_length=32)
    assert json.loads((checkpoint / "tfllm.json").read_text())["task"]["kind"] == "polarity"
    fresh = tmp_path / "other"
    store.save(
        store.load(checkpoint, task=tasks.Classification(labels=("a", "b"), max_length=32)), fresh
    )
    assert store.load(fresh, task=Polarity(max_length=32)).task == loaded.task

    validation, columns = folder / "validation.tsv", ["--set", "columns.text=sentence"]
    result = tmp_path / "result.json"
    run(capsys, "evaluate", checkpoint, "--data", validation, *columns, "--output", result)
    measured = json.loads(result.read_text())["metrics"]
    assert measured["polarity_accuracy"] > 0.9
    examples = [{"text": "red and green", "label": "good"}, {"text": "one is two", "label": "bad"}]
    predictor = open_model(checkpoint)
    name, value = headline(predictor.task, evaluate(predictor, examples))
    assert (name, value) == ("polarity_accuracy", 1.0)

    out = run(capsys, "predict", checkpoint, "red and green", "one is two")
    answers = [json.loads(line) for line in out.splitlines()]
    assert [answer["label"] for answer in answers] == ["good", "bad"]

    exported = tmp_path / "exported"
    arguments = ["--data", validation, "--output", exported]
    run(capsys, "export", checkpoint, "--to", "savedmodel", *arguments)
    served = open_model(exported).predict(examples)
    for answer, other in zip(served, answers, strict=True):
        assert answer["label"] == other["label"]
        assert answer["polarity"] == pytest.approx(other["polarity"], abs=1e-5)


@dataclass(frozen=True)
class ReversedPairs(EpochPairs):
    """Texts, and the same backwards: an objective that tfllm has not."""

    stream: CorpusTokenStream
    size: int
    end: int

    def __len__(self):
        return len(self.stream) // self.size

    def pair(self, row):
        begin = row * self.size + self.draw[1]
        ids = self.stream.tokens(np.arange(begin, begin + self.size))
        return np.append(ids, self.end), np.append(ids[::-1], self.end)

    @property
    def lengths(self):
        every = np.full(len(self), self.size + 1)
        return every, every


def reversed_pairs(corpus, tokenizer, *, source_length, noise_density, mean_span):
    stream = CorpusTokenStream(corpus, documents=False)
    return ReversedPairs(stream, source_length - 1, tokenizer.eos_token_id)


@pytest.mark.slow
def test_an_objective_is_one_file_and_one_line(monkeypatch, tmp_path, capsys):
    """Trains on plain texts; loads, evaluates, predicts and exports."""
    monkeypatch.setitem(OBJECTIVES, "reversal", reversed_pairs)
    (tmp_path / "texts.txt").write_text("one two six ten nine\n" * 30)
    settings = {
        "name": "reversal",
        "model": {"family": "transformer", "num_layers": 1, "num_heads": 2, "hidden_dim": 16,
                  "max_sequence_length": 32},
        "task": {"kind": "seq2seq", "objective": "reversal", "max_length": 8},
        "tokenizer": {"kind": "characters"},
        "data": {"train": str(tmp_path / "texts.txt")},
        "train": {"steps": 4, "batch_size": 8, "precision": "float32", "log_every": 2},
    }  # fmt: skip
    recipe, checkpoint = tmp_path / "recipe.yaml", tmp_path / "run" / "checkpoint"
    recipe.write_text(json.dumps(settings))
    run(capsys, "train", recipe, "--output", tmp_path / "run")
    assert store.load(checkpoint).task.objective == "reversal"

    data, result = tmp_path / "pairs.jsonl", tmp_path / "result.json"
    data.write_text(json.dumps({"source": "ten", "target": "net"}) + "\n")
    run(capsys, "evaluate", checkpoint, "--data", data, "--output", result)
    assert json.loads(result.read_text())["metrics"]["perplexity"] > 0
    (answer,) = map(json.loads, run(capsys, "predict", checkpoint, "ten").splitlines())
    assert isinstance(answer["text"], str)

    exported = tmp_path / "exported"
    run(capsys, "export", checkpoint, "--to", "savedmodel", "--data", data, "--output", exported)
    (served,) = open_model(exported).predict([{"source": "ten"}])
    assert served["text"] == answer["text"]


def test_an_unknown_objective_names_the_known():
    with pytest.raises(SettingError, match="unknown objective 'span_coruption'. Did you mean"):
        tasks.build({"kind": "seq2seq", "objective": "span_coruption"})


def kinds_named(tree: ast.AST):
    """Lines that compare a task's kind with a name, or list names of several kinds."""

    def names(node):
        parts = node.elts if isinstance(node, ast.Tuple | ast.List | ast.Set) else [node]
        return [p.value for p in parts if isinstance(p, ast.Constant) and p.value in tasks.TASKS]

    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            kind = any(isinstance(side, ast.Attribute) and side.attr == "kind" for side in sides)
            if kind and any(map(names, sides)):
                yield node.lineno
        elif isinstance(node, ast.Tuple | ast.List | ast.Set) and len(names(node)) > 1:
            yield node.lineno
        elif isinstance(node, ast.Dict):
            if len([key for key in node.keys if key is not None and names(key)]) > 1:
                yield node.lineno


# A family's weights name the heads that its Hugging Face classes have.
FAMILIES = PACKAGE / "models"


@pytest.mark.parametrize(
    "path",
    [
        path
        for path in sorted(PACKAGE.rglob("*.py"))
        if not path.is_relative_to(PACKAGE / "tasks") and not path.is_relative_to(FAMILIES)
    ],
    ids=lambda path: str(path.relative_to(PACKAGE)),
)
def test_no_other_file_lists_kinds_of_task(path):
    assert list(kinds_named(ast.parse(path.read_text()))) == []


def test_a_list_of_kinds_is_found():
    for line in (
        'task.kind == "classification"',
        'task.kind in ("causal_lm", "other")',
        'T = ("classification", "embedding")',
        'T = {"classification": 1, "embedding": 2}',
    ):
        assert list(kinds_named(ast.parse(line))) == [1]
    assert list(kinds_named(ast.parse('answer = {"embedding": vector}'))) == []
