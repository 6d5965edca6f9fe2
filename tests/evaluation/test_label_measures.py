"""Measures of labels and numbers, against sums done by hand and against scikit-learn."""

import numpy as np
import pytest
from sklearn import metrics as sk

from tfllm.errors import DataError
from tfllm.evaluation import classification as measures
from tfllm.tasks.classification import Classification

EXACT = 1e-12


def answers_of(scores, labels):
    scores = np.asarray(scores, float)
    return [
        {
            "label": labels[int(np.argmax(row))],
            "scores": dict(zip(labels, row.tolist(), strict=True)),
        }
        for row in scores
    ]


def examples_of(gold):
    return [{"text": "x", "label": label} for label in gold]


def test_two_labels_by_hand():
    # gold     no  no  yes yes yes ; predicted no yes yes yes no
    scores = [[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.3, 0.7], [0.75, 0.25]]
    result = measures.single_label(
        answers_of(scores, ["no", "yes"]), examples_of(["no", "no", "yes", "yes", "yes"])
    )
    assert result["accuracy"] == pytest.approx(3 / 5)
    assert result["precision"] == pytest.approx(2 / 3)
    assert result["recall"] == pytest.approx(2 / 3)
    assert result["f1"] == pytest.approx(2 / 3)
    assert result["per_class"]["no"]["f1"] == pytest.approx(1 / 2)
    assert result["f1_macro"] == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert result["f1_micro"] == pytest.approx(3 / 5)
    # tp 2, tn 1, fp 1, fn 1: (2*1 - 1*1) / sqrt(3 * 3 * 2 * 2)
    assert result["mcc"] == pytest.approx(1 / 6)
    # positive scores .8 .7 .25 against .1 .6: five of six pairs in order
    assert result["auc"] == pytest.approx(5 / 6)
    assert result["confusion_matrix"] == {"labels": ["no", "yes"], "counts": [[1, 1], [1, 2]]}


def test_many_labels_equal_scikit_learn():
    rng = np.random.default_rng(0)
    labels = ["a", "b", "c", "d"]
    scores = rng.dirichlet(np.ones(4), 200)
    gold = rng.integers(0, 4, 200)
    result = measures.single_label(answers_of(scores, labels), examples_of(gold.tolist()))
    predicted = scores.argmax(1)
    assert result["accuracy"] == pytest.approx(sk.accuracy_score(gold, predicted), abs=EXACT)
    assert result["mcc"] == pytest.approx(sk.matthews_corrcoef(gold, predicted), abs=EXACT)
    for average in ("macro", "micro"):
        expected = sk.f1_score(gold, predicted, average=average)
        assert result[f"f1_{average}"] == pytest.approx(expected, abs=EXACT)
    assert result["auc"] == pytest.approx(
        sk.roc_auc_score(gold, scores, multi_class="ovr", average="macro"), abs=EXACT
    )
    assert "f1" not in result


def test_a_label_by_name_or_by_index():
    given = answers_of([[0.9, 0.1], [0.2, 0.8]], ["0", "1"])
    for gold in ([0, 1], ["0", "1"], [np.int64(0), np.int64(1)]):
        assert measures.single_label(given, examples_of(gold))["accuracy"] == 1


def test_an_unknown_label_is_named_with_its_line():
    given = answers_of([[0.9, 0.1]], ["no", "yes"])
    with pytest.raises(DataError, match="dev.tsv:7: unknown label 'maybe'. Known: no, yes"):
        measures.single_label(given, [{"label": "maybe", "_where": "dev.tsv:7"}])


def test_what_is_undefined_is_none():
    result = measures.single_label(
        answers_of([[0.9, 0.1], [0.8, 0.2]], ["no", "yes"]), examples_of(["no", "no"])
    )
    assert result["auc"] is None
    assert result["f1"] == 0
    assert measures.correlations(np.ones(3), np.arange(3)) == {"pearson": None, "spearman": None}


def test_calibration_by_hand():
    # bins of 1/15: .62 and .65 share (9/15, 10/15], .95 stands alone, 1.0 in the last
    confidence = np.array([0.62, 0.65, 0.925, 1.0])
    correct = np.array([True, False, True, True])
    expected = (2 * abs(0.635 - 0.5) + abs(0.925 - 1) + 0) / 4
    assert measures.calibration_error(confidence, correct) == pytest.approx(expected)


def test_calibration_edges_belong_to_the_lower_bin():
    rows = measures.calibration_bins(np.array([0.0, 0.5, 0.50001, 1.0]), np.ones(4), bins=2)
    assert [(row["lower"], row["count"]) for row in rows] == [(0.0, 2), (0.5, 2)]


def test_several_labels_by_hand():
    labels = ["x", "y", "z"]
    given = [
        {"label": ["x"], "scores": {"x": 0.9, "y": 0.2, "z": 0.1}},
        {"label": ["x", "y"], "scores": {"x": 0.6, "y": 0.7, "z": 0.4}},
        {"label": [], "scores": {"x": 0.1, "y": 0.3, "z": 0.2}},
    ]
    gold = [["x"], ["y"], ["z"]]
    result = measures.multi_label(given, [{"label": names} for names in gold])
    assert result["accuracy"] == pytest.approx(1 / 3)
    assert result["hamming_loss"] == pytest.approx(2 / 9)
    # tp 2 (x, y), fp 1 (x), fn 1 (z)
    assert result["f1_micro"] == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert result["f1_macro"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert list(result["per_class"]) == labels
    # x: .9 > .6, .1 ; y: .7 > .2, .3 ; z: .2 against .1 and .4
    assert result["auc"] == pytest.approx((1 + 1 + 0.5) / 3)


def test_numbers_equal_scipy_and_hand():
    answers = [{"label": value} for value in (1.0, 2.0, 4.0)]
    result = measures.regression(answers, examples_of([1, "2.5", 3]))
    assert result["mse"] == pytest.approx((0 + 0.25 + 1) / 3)
    assert result["mae"] == pytest.approx(0.5)
    assert result["spearman"] == pytest.approx(1)
    assert result["pearson"] == pytest.approx(np.corrcoef([1, 2, 4], [1, 2.5, 3])[0, 1])
    with pytest.raises(DataError, match="not a number"):
        measures.regression(answers, examples_of([1, "two", 3]))


def test_several_numbers_an_example_are_measured_as_a_mean():
    gold = np.array([[1.0, 5.0], [2.0, 4.0], [4.0, 6.0]])
    predicted = gold + np.array([[0.5, 1.0], [-0.5, 1.0], [0.5, -2.0]])
    answers = [{"scores": dict(zip("ab", row.tolist(), strict=True))} for row in predicted]
    result = measures.regression(answers, examples_of(gold.tolist()))
    assert result["mse"] == pytest.approx(np.mean([0.25, (1 + 1 + 4) / 3]), abs=EXACT)
    assert result["mae"] == pytest.approx(np.mean([0.5, 4 / 3]), abs=EXACT)
    both = [measures.correlations(predicted[:, c], gold[:, c]) for c in range(2)]
    for name in ("pearson", "spearman"):
        assert result[name] == pytest.approx(np.mean([each[name] for each in both]), abs=EXACT)


ONE = [
    {"label": ["LABEL_0"], "scores": {"LABEL_0": 0.9}},
    {"label": [], "scores": {"LABEL_0": 0.2}},
]


@pytest.mark.parametrize("gold", [(1, 0), ("1", "0"), (1.0, 0.0), (["LABEL_0"], []), (True, False)])
def test_of_one_label_alone_the_gold_is_yes_or_no(gold):
    """A reranker's: 0 is not the place of its label."""
    found = measures.multi_label(ONE, [{"label": label} for label in gold])
    assert found["accuracy"] == found["auc"] == 1.0
    task = Classification(labels=("LABEL_0",), problem="multi_label")
    assert [task.target({"label": label}).tolist() for label in gold] == [[1.0], [0.0]]


def test_other_numbers_need_a_regression():
    with pytest.raises(DataError, match=r"dev.tsv:3: the label is 3.8.*task.problem: regression"):
        measures.multi_label(ONE[:1], [{"label": 3.8, "_where": "dev.tsv:3"}])
