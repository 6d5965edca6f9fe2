"""Which way a measure is better, and measures that the data leave undefined."""

import json

import keras
import numpy as np
import pytest

from tests.helpers import recipes
from tfllm import config
from tfllm.cli import main
from tfllm.errors import SettingError
from tfllm.evaluation.metrics import measure
from tfllm.tasks import TASKS, Classification, metric_directions
from tfllm.training import callbacks
from tfllm.training.monitoring.logs import read_log
from tfllm.training.recipe import EvaluateSettings, Recipe
from tfllm.training.run import train
from tfllm.training.tuning import search
from tfllm.training.validation import direction, is_better

# Of (task, answers, examples) to a measure that a run of four epochs sees in this order.
ORDER = [3.0, 1.0, 2.0, 4.0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return recipes.write_data(tmp_path_factory.mktemp("data"), train=64)


def scripted(name, values=ORDER):
    """A measure with one value after another; the run asks for its name first."""
    left = [values[0], *values]
    return lambda task, answers, examples: {name: left.pop(0)}


def best_of(folder, output, name, values=ORDER, epochs=4, **evaluate):
    settings = {"best": name, **evaluate}
    recipe = recipes.recipe(folder, train={"epochs": epochs}, evaluate=settings)
    return train(recipe, output, measure=scripted(name, values), progress=False).summary


LOWER = ("loss", "mse", "mae", "rmse", "wer", "cer", "ter", "perplexity", "bits_per_byte",
         "bits_per_character", "calibration_error", "hamming_loss")  # fmt: skip
HIGHER = ("accuracy", "f1", "f1_macro", "mcc", "auc", "spearman", "pearson", "mrr", "recall_at_5",
          "exact_match", "no_answer_f1", "bleu", "chrf", "rouge_l", "token_accuracy",
          "masked_accuracy", "next_token_accuracy")  # fmt: skip


@pytest.mark.parametrize("name", LOWER + HIGHER)
def test_a_measure_has_its_direction(name):
    wanted = "minimize" if name in LOWER else "maximize"
    assert direction(EvaluateSettings(best=name)) == wanted


def test_best_and_patience_follow_the_direction(folder, tmp_path):
    summary = best_of(folder, tmp_path / "run", "mae", [4.0, 3.0, 2.0, 1.0], patience=1)
    assert summary["epochs"] == 4 and summary["best"]["value"] == 1.0
    summary = best_of(folder, tmp_path / "other", "mae", [1.0, 2.0, 3.0, 4.0], patience=2)
    assert summary["epochs"] == 3 and summary["best"]["value"] == 1.0


def test_a_measure_of_ones_own_needs_a_direction(folder, tmp_path):
    with pytest.raises(SettingError, match=r"Set evaluate\.direction to maximize or minimize"):
        best_of(folder, tmp_path / "run", "distance")
    assert not (tmp_path / "run").exists()
    summary = best_of(folder, tmp_path / "run", "distance", direction="minimize")
    assert summary["best"]["value"] == 1.0


def test_a_direction_against_the_measures_own_is_refused():
    with pytest.raises(SettingError, match="mse is a measure to minimize"):
        direction(EvaluateSettings(best="mse", direction="maximize"))
    with pytest.raises(SettingError, match="direction needs `best`"):
        EvaluateSettings(direction="maximize")


def test_every_measure_of_evaluation_has_its_direction():
    """Of the kinds whose measures can be had from made-up answers; counts have none."""
    without = {"length_ratio", "has_answer_examples", "no_answer_examples", "tokens", "pairs"}
    scores = {"label": "b", "scores": {"a": 0.4, "b": 0.6}}
    squad = [{"answers": {"text": ["x"]}}, {"answers": {"text": []}}]
    tags = {"words": ["x"], "tags": ["B-P"]}
    hidden = {"ranks": [1], "log_probabilities": [-1.0]}
    scored = {"log_probability": -1.0, "token_count": 1, "correct": 1, "byte_count": 1,
              "character_count": 1}  # fmt: skip
    vectors = {"embedding": [1.0, 0.0], "embedding_pair": [1.0, 0.0]}
    cases = [
        (Classification(), [scores] * 2, [{"label": "a"}, {"label": "b"}]),
        (
            Classification(problem="multi_label"),
            [{**scores, "label": ["b"]}] * 2,
            [{"label": ["a"]}, {"label": ["b"]}],
        ),
        (
            Classification(problem="regression"),
            [{"label": 1.0}, {"label": 2.0}],
            [{"label": 1.0}, {"label": 3.0}],
        ),
        (TASKS["token_classification"](), [{"tags": ["B-P"]}], [tags]),
        (TASKS["question_answering"](), [{"answer": "x"}, {"answer": ""}], squad),
        (TASKS["embedding"](), [vectors], [{"text": "x", "text_pair": "y"}]),
        (TASKS["masked_lm"](), [hidden], [{}]),
        (TASKS["pretraining"](), [{**hidden, "next_sentence": True}], [{}]),
        (TASKS["causal_lm"](), [scored], [{}]),
        (TASKS["seq2seq"](), [{"text": "x", **scored}], [{"source": "x", "target": "x"}]),
    ]
    for task, answers, examples in cases:
        found = measure(task, answers, examples)
        names = {name for name, value in found.items() if isinstance(value, (int, float))}
        assert names and names - without <= {"loss", *task.metric_names}, task.kind
        assert all(metric_directions.direction(name) for name in names - without)


@pytest.mark.parametrize("kind", TASKS)
def test_every_metric_of_a_task_has_its_direction(kind):
    task = TASKS[kind]()
    assert task.metric_names and all(map(metric_directions.direction, task.metric_names))
    assert set(task.headline_metrics) <= set(task.metric_names)


def test_an_undefined_value_is_never_better():
    for way in ("maximize", "minimize"):
        assert not is_better(way, None, 1.0) and not is_better(way, float("nan"), None)
        assert is_better(way, 1.0, None)
    assert is_better("minimize", 0.5, 1.0) and not is_better("maximize", 0.5, 1.0)


def test_a_run_trains_on_where_its_measure_is_undefined(folder, tmp_path, capsys):
    lines = (folder / "validation.tsv").read_text().splitlines()
    one = [line for line in lines if not line.endswith("bad")]
    (tmp_path / "one.tsv").write_text("\n".join(one) + "\n")
    recipe = recipes.recipe(
        folder, data={"validation": str(tmp_path / "one.tsv")},
        evaluate={"best": "auc", "patience": 1}, train={"epochs": 3},
    )  # fmt: skip
    run = train(recipe, tmp_path / "run")
    measured = [line for line in read_log(run.directory / "metrics.jsonl") if "epoch" in line]
    measured = [line["validation_auc"] for line in measured if "validation_auc" in line]
    assert measured == [None] * 3  # patience does not count them
    assert run.summary["best"] == {"measure": "auc", "value": None, "step": None}
    assert (run.directory / "checkpoint" / "model.safetensors").is_file()
    assert "NaN" not in (run.directory / "metrics.jsonl").read_text()
    said = capsys.readouterr().err
    assert said.count("undefined on the validation data") == 1 and "auc undefined" in said


def test_a_measure_that_becomes_defined_is_the_best(folder, tmp_path):
    values = [None, float("nan"), 2.0, None]
    summary = best_of(folder, tmp_path / "run", "spearman", values, patience=1)
    assert summary["best"]["value"] == 2.0 and summary["epochs"] == 4
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert "NaN" not in text and '"validation_spearman": null' in text


def test_answers_of_a_broken_model_leave_measures_undefined():
    nan = float("nan")
    task = Classification(problem="regression")
    found = measure(task, [{"label": nan}, {"label": 1.0}], [{"label": 1.0}, {"label": 2.0}])
    assert set(found.values()) == {None}
    task = Classification()
    answers = [{"label": "a", "scores": {"a": nan, "b": nan}}] * 2
    found = measure(task, answers, [{"label": "a"}, {"label": "b"}])
    assert found["auc"] is None
    json.dumps(found, allow_nan=False)
    task = TASKS["masked_lm"]()
    found = measure(task, [{"ranks": [9], "log_probabilities": [-2000.0]}], [{}])
    assert np.isfinite(found["perplexity"])


def test_a_measure_of_later_examples_may_be_the_best(tmp_path):
    """`no_answer_f1` exists only where some question has no answer; here the tenth."""
    (tmp_path / "vocab.txt").write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "who", "sang", "bob", "ann"])
    )

    def example(number, answered):
        texts, starts = (["bob"], [0]) if answered else ([], [])
        question = {"id": str(number), "question": "who sang", "context": "bob sang ann sang"}
        return {**question, "answers": {"text": texts, "answer_start": starts}}

    for name, size in (("train", 16), ("validation", 12)):
        rows = [example(number, number != 9) for number in range(size)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {"kind": "question_answering", "stride": 4, "no_answer": True}
    settings = recipes.settings(
        tmp_path, task=task, evaluate={"best": "no_answer_f1"}, train={"epochs": 1}
    )
    settings["data"] = {name: str(tmp_path / f"{name}.jsonl") for name in ("train", "validation")}
    recipe = config.build(settings, Recipe)
    run = train(recipe, tmp_path / "run", progress=False)
    assert run.summary["best"]["measure"] == "no_answer_f1"
    assert run.summary["best"]["value"] is not None


def test_an_unknown_measure_is_an_error_before_training(folder, tmp_path, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(recipes.settings(folder, evaluate={"best": "acuracy"})))
    with pytest.raises(SystemExit) as stop:
        main(["train", str(recipe), "--output", str(tmp_path / "run")])
    assert stop.value.code == 2
    assert (
        "evaluate.best: no measure 'acuracy'. Did you mean 'accuracy'?" in capsys.readouterr().err
    )
    assert not (tmp_path / "run").exists()


def test_a_search_knows_the_direction_and_the_measures_of_its_task(folder):
    def of(best, **task):
        task = {"kind": "classification", "max_length": 32, **task}
        return search.measure_of(recipes.recipe(folder, task=task, evaluate={"best": best}))

    assert of("mae", problem="regression") == ("mae", "minimize")
    assert of("auc") == ("auc", "maximize")
    assert search.measure_of(recipes.recipe(folder)) == ("loss", "minimize")
    with pytest.raises(SettingError, match=r"no measure 'mse'"):
        of("mse")


def test_keras_callbacks_find_the_direction():
    """EarlyStopping and ModelCheckpoint with mode="auto" read it from the metric."""
    from tfllm.tasks import metrics

    ways = {"up": True, "down": False}
    for metric, up in (
        (metrics.Accuracy(), True),
        (metrics.Perplexity(), False),
        (metrics.mean_metric("mse", metrics.squared_error), False),
        (metrics.mean_metric("accuracy", metrics.span_accuracy), True),
    ):
        assert ways[metric._direction] is up, metric.name
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, metrics=[metrics.Perplexity()])
    data = {"x": np.ones((4, 2), "float32"), "y": np.ones(4, "int32")}
    stop = keras.callbacks.EarlyStopping(monitor="val_perplexity")
    model.fit(**data, validation_data=tuple(data.values()), callbacks=[stop], verbose=0)
    assert bool(stop.monitor_op(1.0, 2.0)) and not bool(stop.monitor_op(2.0, 1.0))


def test_shown_says_undefined():
    assert (
        callbacks.format_metrics({"auc": None, "loss": 0.5}, "auc") == "auc undefined  loss 0.5000"
    )
