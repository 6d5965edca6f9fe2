"""The search: spaces, trials, pruning, failures, stopping and going on, several at once.

Most trials here are not trained: a small program stands in for `tfllm train`, with its files and
exit statuses. `test_a_search_trains` and tests/cli/test_tune.py run the real one.
"""

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import yaml

from tests.helpers import recipes
from tests.helpers.waiting import wait_for
from tfllm import config
from tfllm.errors import SettingError, StorageError, TrainingFailed
from tfllm.training.recipe import Recipe
from tfllm.training.tuning import report, search, space, trials

pytest.importorskip("optuna")

# `train RECIPE --output RUN [--resume]`: the loss falls to the distance of the rate from 0.01.
TRAINER = """
import json, os, pathlib, signal, sys, time, yaml
recipe = yaml.safe_load(open(sys.argv[1]))
run = pathlib.Path(sys.argv[3])
settings = recipe["train"]
if settings["batch_size"] == 13:
    print("tfllm: 13 brings bad luck. Take 14.", file=sys.stderr); sys.exit(2)
run.mkdir(parents=True, exist_ok=True)
(run / "checkpoint").mkdir(exist_ok=True)
(run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
metrics = run / "metrics.jsonl"
lines = metrics.read_text().splitlines() if "--resume" in sys.argv else []
stopped = []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
pause = float(os.environ.get("PAUSE", "0.02"))
for epoch in range(len(lines), settings["epochs"]):
    time.sleep(pause)
    loss = abs(settings["learning_rate"] - 0.01) + 1 / (1 + epoch)
    lines.append(json.dumps({"step": epoch + 1, "epoch": epoch + 1.0, "validation_loss": loss}))
    metrics.write_text("\\n".join(lines) + "\\n")
    if stopped:
        (run / "state").mkdir(exist_ok=True)
        sys.exit(143)
(run / "summary.json").write_text("{}")
"""

SPACE = {
    "train.learning_rate": {"low": 1e-4, "high": 1.0, "log": True},
    "train.batch_size": {"choices": [16, 32]},
}


@pytest.fixture
def trainer(tmp_path, monkeypatch):
    path = tmp_path / "trainer.py"
    path.write_text(TRAINER)
    monkeypatch.setattr(trials, "COMMAND", (sys.executable, str(path)))
    monkeypatch.setattr(search, "POLL_SECONDS", 0.02)


def recipe(folder, **parts):
    data = recipes.settings(folder, **parts)
    data["train"].setdefault("epochs", 3)
    return data


def read(tmp_path, data, of):
    path = tmp_path / "space.yaml"
    path.write_text(yaml.safe_dump(data, sort_keys=False))
    return space.read_space(path, of)


def tune(tmp_path, count=4, of=None, over=None, **options):
    of = of or recipe(tmp_path)
    found = read(tmp_path, over or SPACE, of)
    return search.tune(of, found, count, tmp_path / "study", **options)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "train.learing_rate: {low: 1, high: 2}",
            "space.yaml:1: unknown key 'train.learing_rate'.",
        ),
        ("train:\n  learing_rate: {low: 1, high: 2}", "Did you mean 'learning_rate'?"),
        ("model.num_layer: {low: 1, high: 2}", "Did you mean 'num_layers'?"),
        ("train.learning_rate: {low: 2, high: 1}", "low (2) is not below high (1)"),
        ("train.learning_rate: {low: 0, high: 1, log: true}", "log needs a low above 0"),
        ("train.learning_rate: {low: 1.0, hihg: 2}", "the key 'high' is missing"),
        ("train.learning_rate: {low: 1.0, high: 2, logg: true}", "Did you mean 'log'?"),
        ("train.batch_size: {choices: [16]}", "choices"),
        ("train.batch_size: {choices: [16, large]}", "train.batch_size"),
        ("train.batch_size: {low: 0.5, high: 2.5}", "train.batch_size"),
        ("train.batch_size: 16", "Write {low: …, high: …} or {choices: […]}"),
        ("evaluate.best: {choices: [loss, accuracy]}", "decides what trials are compared by"),
        ("train.warmup: {low: 0.0, high: -1.0}", "is not below high"),
        ("train.dropuot.rate: {low: 0.0, high: 1.0}", "unknown key"),
        ("{}", "no key to tune"),
    ],
)
def test_a_wrong_space_is_told_with_its_line(text, message, tmp_path):
    path = tmp_path / "space.yaml"
    path.write_text(text)
    with pytest.raises(SettingError) as error:
        space.read_space(path, recipe(tmp_path))
    assert message in str(error.value) and "space.yaml" in str(error.value)


def test_a_space_may_be_written_as_a_recipe_is(tmp_path):
    nested = read(tmp_path, {"train": {"epochs": {"low": 1, "high": 3}}}, recipe(tmp_path))
    assert nested == {"train.epochs": space.Range(low=1, high=3)}


def test_the_recipes_own_values(tmp_path):
    of = recipe(tmp_path, train={"learning_rate": 0.01})
    built = config.build(of, Recipe)

    def own(data):
        return space.recipe_values(built, read(tmp_path, data, of))

    assert own({"train.learning_rate": {"low": 0.001, "high": 0.1}}) == {
        "train.learning_rate": 0.01
    }
    assert own({"train.learning_rate": {"low": 0.1, "high": 0.2}}) is None
    assert own({"train.warmup": {"low": 0.0, "high": 0.6, "step": 0.06}}) == {"train.warmup": 0.06}
    assert own({"train.warmup": {"low": 0.0, "high": 0.5, "step": 0.5}}) is None
    assert own({"model.num_heads": {"choices": [1, 2]}}) == {"model.num_heads": 2}, "the recipe's"
    layers = own({"model.layer_norm_epsilon": {"low": 0.0, "high": 1.0}})
    assert layers == {"model.layer_norm_epsilon": 1e-12}, "the family's default"


@pytest.mark.parametrize(
    ("direction", "values", "keeps_best", "expected"),
    [
        ("minimize", [3.0, 1.0, 2.0], True, 1.0),
        ("minimize", [3.0, 1.0, 2.0], False, 2.0),
        ("maximize", [0.3, 0.9, 0.5], True, 0.9),
        ("maximize", [None, 0.3, None], True, 0.3),
        ("maximize", [0.3, None], False, None),
        ("maximize", [None, None], True, None),
        ("maximize", [], True, None),
    ],
)
def test_what_a_trial_counts(direction, values, keeps_best, expected):
    assert trials.trial_value(direction, values, keeps_best) == expected


# The same `train` with the values of a file, as measurements of the measure in the recipe.
SCRIPTED = """
import json, pathlib, sys, yaml
recipe = yaml.safe_load(open(sys.argv[1]))
run = pathlib.Path(sys.argv[3])
run.mkdir(parents=True, exist_ok=True)
values = json.loads((pathlib.Path(__file__).parent / "values.json").read_text())
name = "validation_" + recipe["evaluate"]["best"]
rows = values[str(recipe["train"]["batch_size"])]
lines = [json.dumps({"step": n + 1, "epoch": n + 1.0, name: v}) for n, v in enumerate(rows)]
(run / "metrics.jsonl").write_text("\\n".join(lines) + "\\n")
(run / "summary.json").write_text("{}")
"""


@pytest.fixture
def scripted(tmp_path, trainer):
    def write(values):
        (tmp_path / "trainer.py").write_text(SCRIPTED)
        (tmp_path / "values.json").write_text(json.dumps(values))

    return write


def test_values_that_were_tried_are_not_trained_again(tmp_path, scripted):
    scripted({"16": [0.5, 0.4], "32": [0.3, 0.2]})
    of = recipe(tmp_path, evaluate={"best": "accuracy"}, train={"batch_size": 16})
    told = []
    tuned = tune(tmp_path, 6, of, {"train.batch_size": {"choices": [16, 32]}}, notify=told.append)
    assert tuned.count == 6 and tuned.best["value"] == 0.5
    rows = json.loads((tuned.folder / "trials.json").read_text())["trials"]
    first = {}
    for row in rows:
        size = row["values"]["train.batch_size"]
        assert row["repeats"] == first.setdefault(size, row["number"]) or row["repeats"] is None
        assert row["value"] == (0.5 if size == 16 else 0.3)
        assert row["measurements"] == ([0.5, 0.4] if size == 16 else [0.3, 0.2])
        assert (row["repeats"] is None) is (first[size] == row["number"])
    assert len(list((tuned.folder / "trials").glob("*.log"))) == len(first) == 2
    assert sum("not trained again" in text for text in told) == 4
    assert "done as trial 0" in (tuned.folder / "trials.txt").read_text()


def test_a_search_keeps_the_lowest_error(tmp_path, scripted):
    scripted({"16": [0.5, 0.4], "32": [0.2, 0.9]})
    of = recipe(tmp_path, task={"problem": "regression"}, evaluate={"best": "mae"})
    tuned = tune(tmp_path, 4, of, {"train.batch_size": {"choices": [16, 32]}})
    assert tuned.best["value"] == 0.2 and tuned.best["values"] == {"train.batch_size": 32}
    assert json.loads((tuned.folder / "trials.json").read_text())["direction"] == "lower is better"


def test_undefined_measurements_are_no_values(tmp_path, scripted):
    scripted({"16": [None, 0.7, None], "32": [None, None]})
    of = recipe(tmp_path, evaluate={"best": "auc"}, train={"batch_size": 16})
    tuned = tune(tmp_path, 3, of, {"train.batch_size": {"choices": [16, 32]}})
    assert tuned.best["value"] == 0.7 and tuned.best["measurements"][:2] == [None, 0.7]
    rows = json.loads((tuned.folder / "trials.json").read_text())["trials"]
    undefined = [row for row in rows if row["values"]["train.batch_size"] == 32]
    assert all("auc is undefined on the validation data" in row["error"] for row in undefined)


def test_a_search_whose_measure_is_never_defined_says_so(tmp_path, scripted):
    scripted({"16": [None], "32": [None]})
    of = recipe(tmp_path, evaluate={"best": "auc"})
    with pytest.raises(SettingError, match="auc is undefined on the validation data"):
        tune(tmp_path, 5, of, {"train.batch_size": {"choices": [16, 32]}})


def test_a_search(tmp_path, trainer):
    of = recipe(tmp_path, train={"learning_rate": 0.5})
    told = []
    tuned = tune(tmp_path, 8, of, notify=told.append)
    assert tuned.count == 8 and tuned.signal is None
    assert tuned.first["values"] == {"train.learning_rate": 0.5, "train.batch_size": 32}
    assert tuned.best["value"] < tuned.first["value"]
    data = json.loads((tuned.folder / "trials.json").read_text())
    assert data["measure"] == "loss" and data["direction"] == "lower is better"
    assert [row["number"] for row in data["trials"]] == list(range(8))
    assert set(data["importance"] or {"train.learning_rate"}) <= set(SPACE)
    assert all(len(row["measurements"]) >= 1 for row in data["trials"])
    best = config.load(tuned.folder / "best.yaml", Recipe)
    assert best.name == "tiny-tuned"
    assert best.train.learning_rate == tuned.best["values"]["train.learning_rate"]
    assert best.task.kind == "classification"
    lines = (tuned.folder / "trials.txt").read_text().splitlines()
    assert len(lines) == 9 and lines[1].split()[0] == str(tuned.best["number"])
    for name in ("history.png", "parameters.png"):
        assert (tuned.folder / name).read_bytes().startswith(b"\x89PNG")
    kept = [path.parent.name for path in tuned.folder.glob("trials/*/checkpoint")]
    assert kept == [f"{tuned.best['number']:04d}"], "only the best one's weights are kept"
    assert any("starts" in text for text in told) and any("(best" in text for text in told)


def test_going_on_with_more_trials_repeats_nothing(tmp_path, trainer):
    tune(tmp_path, 3)
    tuned = tune(tmp_path, 6)
    assert tuned.count == 6
    rows = json.loads((tuned.folder / "trials.json").read_text())["trials"]
    rates = [row["values"]["train.learning_rate"] for row in rows]
    assert len(set(rates)) == 6
    again = tune(tmp_path, 6)
    assert again.count == 6 and again.best == tuned.best


def test_another_recipe_or_space_is_refused(tmp_path, trainer):
    tune(tmp_path, 1)
    with pytest.raises(SettingError, match="another recipe .*train"):
        tune(tmp_path, 1, recipe(tmp_path, train={"seed": 9}))
    with pytest.raises(SettingError, match="another space"):
        tune(tmp_path, 1, over={"train.epochs": {"low": 1, "high": 2}})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "notes.txt").write_text("mine")
    with pytest.raises(StorageError, match="holds no search"):
        search.tune(
            recipe(tmp_path), read(tmp_path, SPACE, recipe(tmp_path)), 1, tmp_path / "other"
        )


def test_bad_trials_are_ended_early(tmp_path, trainer, monkeypatch):
    monkeypatch.setenv("PAUSE", "0.1")
    of = recipe(tmp_path, train={"epochs": 12, "learning_rate": 0.01})
    # One at a time, so that the sampler's choices are the same on every machine; most are bad.
    over = {"train.learning_rate": {"choices": [0.01, 3.0, 4.0, 5.0]}}
    tuned = tune(tmp_path, 10, of, over)
    rows = json.loads((tuned.folder / "trials.json").read_text())["trials"]
    early = [row for row in rows if row["state"] == "pruned"]
    assert early, rows
    assert all(row["values"]["train.learning_rate"] > 0.01 for row in early)
    assert min(len(row["measurements"]) for row in early) < 12
    assert not list(tuned.folder.glob("trials/*/state")), "nobody will go on with these"


def test_a_failed_trial_is_one_line_of_the_table(tmp_path, trainer):
    over = {"train.batch_size": {"choices": [13, 14]}}
    of = recipe(tmp_path, train={"batch_size": 14})
    tuned = tune(tmp_path, 8, of, over)
    rows = json.loads((tuned.folder / "trials.json").read_text())["trials"]
    failed = [row for row in rows if row["state"] == "failed"]
    assert failed and all(row["error"] == "13 brings bad luck. Take 14." for row in failed)
    assert "failed: 13 brings bad luck" in (tuned.folder / "trials.txt").read_text()
    assert tuned.best["values"]["train.batch_size"] == 14


def test_a_recipe_that_always_fails_ends_the_search_with_its_message(tmp_path, trainer):
    of = recipe(tmp_path, train={"batch_size": 13})
    over = {"train.learning_rate": {"low": 0.1, "high": 0.2}}
    with pytest.raises(SettingError, match="13 brings bad luck"):
        tune(tmp_path, 50, of, over)
    assert len(list((tmp_path / "study" / "trials").glob("*.log"))) == 3


def test_a_search_that_goes_wrong_later_ends_too(tmp_path, trainer, monkeypatch):
    tune(tmp_path, 1)
    monkeypatch.setattr(trials, "COMMAND", (sys.executable, "-c", "raise SystemExit('no disk')"))
    with pytest.raises(TrainingFailed, match="6 trials in a row have failed.*no disk"):
        tune(tmp_path, 50)
    rows = json.loads((tmp_path / "study" / "trials.json").read_text())["trials"]
    assert len(rows) == 7 and rows[0]["state"] == "done"


def test_a_trial_without_the_measure_is_told(tmp_path, trainer):
    of = recipe(tmp_path, evaluate={"best": "accuracy"})
    with pytest.raises(TrainingFailed, match="measured no accuracy"):
        tune(tmp_path, 1, of)


def test_without_validation_there_is_nothing_to_compare(tmp_path):
    of = recipe(tmp_path)
    del of["data"]["validation"]
    with pytest.raises(SettingError, match=r"data\.validation_share"):
        tune(tmp_path, 1, of)
    assert not (tmp_path / "study").exists()


SEARCH = """
import sys, yaml
from pathlib import Path
from tfllm.training.tuning import search, space, trials
folder = Path(sys.argv[1])
trials.COMMAND = (sys.executable, str(folder / "trainer.py"))
recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
found = space.read_space(folder / "space.yaml", recipe)
say = lambda text: print(text, flush=True)
tuned = search.tune(recipe, found, int(sys.argv[2]), folder / "study", int(sys.argv[3]), say)
print("signal", tuned.signal, "count", tuned.count, flush=True)
"""


def start(tmp_path, count, processes=1):
    (tmp_path / "trainer.py").write_text(TRAINER)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe(tmp_path, train={"epochs": 6})))
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(SPACE))
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SEARCH), str(tmp_path), str(count), str(processes)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        cwd=Path(__file__).parents[2], env={**os.environ, "PAUSE": "0.3"},
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_search_loses_nothing(tmp_path, how, trainer, monkeypatch):
    process = start(tmp_path, 4)
    first = tmp_path / "study" / "trials" / "0001" / "metrics.jsonl"
    wait_for(lambda: first.exists() and len(first.read_text().splitlines()) >= 2, process)
    process.send_signal(how)
    out, error = process.communicate(timeout=60)
    if how != signal.SIGKILL:
        assert process.returncode == 0, error
        assert f"signal {int(how)}" in out
        assert (first.parent / "state").is_dir(), "the trial has saved its state"
    before = len(first.read_text().splitlines())
    told = []
    of = yaml.safe_load((tmp_path / "recipe.yaml").read_text())
    tuned = tune(tmp_path, 4, of, notify=told.append)
    assert tuned.count == 4
    assert any(text.startswith("trial 1 starts again") for text in told), told
    rows = json.loads((tuned.folder / "trials.json").read_text())["trials"]
    assert [row["state"] for row in rows] == ["done"] * 4
    assert len(rows[1]["measurements"]) == 6 > before - 1


@pytest.mark.slow
def test_two_searches_share_one_study(tmp_path):
    one, two = start(tmp_path, 7), start(tmp_path, 7, processes=2)
    texts = []
    for process in (one, two):
        out, error = process.communicate(timeout=300)
        assert process.returncode == 0, error
        texts.append(out)
    rows = json.loads((tmp_path / "study" / "trials.json").read_text())["trials"]
    assert len(rows) == 7 and all(row["state"] in ("done", "pruned") for row in rows)
    begun = [line.split()[1] for text in texts for line in text.splitlines() if "starts" in line]
    assert sorted(begun) == [str(number) for number in range(7)], "each by one of them"
    assert all("starts" in text for text in texts), "both took part"


def test_plots_of_choices_and_many_keys(tmp_path, trainer):
    over = {
        "train.schedule": {"choices": ["linear", "cosine"]},
        "train.clip_norm": {"choices": [None, 1.0]},
        "train.weight_decay": {"low": 0.0, "high": 0.1},
    }
    tuned = tune(tmp_path, 6, over=over)
    assert (tuned.folder / report.PARAMETERS).stat().st_size > 10_000
    best = config.load(tuned.folder / "best.yaml", Recipe)
    assert best.train.clip_norm == tuned.best["values"]["train.clip_norm"]
