"""What is told before training: warm-up, targets of one class, class weights that count nothing."""

import dataclasses
import logging

import numpy as np
import pytest

from tests.helpers import recipes
from tfllm.errors import DataError, SettingError
from tfllm.tasks import build
from tfllm.tasks.losses import ordered_class_weights
from tfllm.training import checks
from tfllm.training.recipe import TrainSettings
from tfllm.training.run import train


@dataclasses.dataclass
class Rows:
    targets: list

    def __len__(self):
        return len(self.targets)


def rows(*targets):
    return Rows([np.asarray(target) for target in targets])


def task(labels=("bad", "good"), **settings):
    return build({"kind": "classification", "labels": list(labels), **settings})


def tags(*labels):
    return build({"kind": "token_classification", "labels": list(labels)})


SAME = {
    "one label": (task(), rows(1, 1, 1), "all 3 training examples have the label 'good'"),
    "one tag": (tags("O", "B-P"), rows([-100, 0], [0, -100]), "have the label 'O'"),
    "one set": (task(problem="multi_label"), rows([1, 0], [1, 0]), "have the labels 'bad'"),
    "no label": (task(problem="multi_label"), rows([0, 0], [0, 0]), "have no label"),
    "one number": (task((), problem="regression"), rows(2.0, 2.0), "have the number 2.0"),
}


@pytest.mark.parametrize("case", SAME)
def test_targets_that_are_all_the_same_are_told(case, caplog):
    one, features, message = SAME[case]
    checks.check_targets(one, features)
    assert message in caplog.text


@pytest.mark.parametrize(
    ("one", "features"),
    [
        (task(), rows(0, 1, 1)),
        (tags("O", "B-P"), rows([-100, 0], [1, -100])),
        (task(problem="multi_label"), rows([1, 0], [0, 1])),
        (task((), problem="regression"), rows(2.0, 3.0)),
        (build({"kind": "masked_lm"}), rows([-100, 5])),
    ],
)
def test_others_are_not(one, features, caplog):
    checks.check_targets(one, features)
    assert not caplog.text


def test_one_label_in_all_is_an_error(tmp_path):
    folder = recipes.write_data(tmp_path / "data", train=8)
    text = (folder / "train.tsv").read_text().replace("\tbad", "\tgood")
    (folder / "train.tsv").write_text(text)
    with pytest.raises(DataError, match="All training data has the label 'good'"):
        train(recipes.recipe(folder), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("warmup", "steps", "told"),
    [(500, 20, True), (20, 20, True), (19, 20, False), (0.5, 20, False)],
)
def test_a_warmup_that_does_not_end_is_told(warmup, steps, told, caplog):
    caplog.set_level(logging.WARNING)
    checks.warn_of_warmup(TrainSettings(warmup=warmup, learning_rate=1e-3), steps)
    assert ("never reaches train.learning_rate (1.00e-03)" in caplog.text) is told
    if warmup == 500:
        assert "train.warmup is 500 steps, but the run has 20" in caplog.text
        assert "ends at 3.80e-05" in caplog.text  # 1e-3 * 19 / 500


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"good": -1.0}, "the weight of 'good' is -1.0"),
        ([1.0, float("nan")], "the weight of 'good' is nan"),
        ([float("inf"), 1.0], "the weight of 'bad' is inf"),
        ([0.0, 0.0], "all weights are 0"),
        ({"good": 0, "bad": 0}, "all weights are 0"),
    ],
)
def test_class_weights_that_cannot_be_are_refused(weights, message):
    with pytest.raises(SettingError, match=message):
        ordered_class_weights(weights, ("bad", "good"))


def test_class_weights_may_be_zero_for_some():
    assert ordered_class_weights({"good": 0}, ("bad", "good")) == [1.0, 0.0]
    with pytest.raises(SettingError, match="all labels that the training data has weigh 0"):
        checks.check_targets(task(("a", "b", "c")), rows(0, 1, 0), {"a": 0.0, "b": 0.0})
    checks.check_targets(task(("a", "b", "c")), rows(0, 1, 0), {"a": 0.0, "c": 0.0})


def test_a_recipe_with_a_negative_weight_names_it(tmp_path):
    with pytest.raises(SettingError, match=r"train\.class_weights.*good.*greater than or equal"):
        recipes.recipe(tmp_path, train={"class_weights": {"good": -2.0}})
