"""Pictures are written, with the labels this machine can draw."""

import warnings

import numpy as np
import pytest

from tfllm.evaluation import plots
from tfllm.evaluation.classification import regression, single_label

PNG = b"\x89PNG\r\n"


def answers_and_examples(labels, count=60):
    rng = np.random.default_rng(1)
    gold = rng.integers(0, len(labels), count)
    scores = rng.dirichlet(np.ones(len(labels)) * 0.5, count)
    scores[np.arange(count), gold] += 0.5
    scores /= scores.sum(1, keepdims=True)
    answers = [
        {
            "label": labels[row.argmax()],
            "scores": dict(zip(labels, row.tolist(), strict=True)),
        }
        for row in scores
    ]
    return answers, [{"label": labels[index]} for index in gold]


@pytest.mark.parametrize(
    "labels",
    [["negative", "positive"], ["体育", "财经", "a label that is far too long to stand in full"],
     [f"class {index}" for index in range(30)]],
    ids=["two", "three", "many"],
)  # fmt: skip
def test_both_pictures(tmp_path, labels):
    answers, examples = answers_and_examples(labels)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a missing glyph would be a warning
        files = plots.write_plots(
            single_label(answers, examples), answers, examples, tmp_path / "new" / "plots"
        )
    assert [path.name for path in files] == ["confusion_matrix.png", "calibration.png"]
    assert all(path.read_bytes().startswith(PNG) for path in files)


def test_numbers_have_no_picture(tmp_path):
    answers = [{"label": 1.0}, {"label": 2.0}]
    assert plots.write_plots(regression(answers, answers), answers, answers, tmp_path / "p") == []
    assert not (tmp_path / "p").exists()


def test_labels_that_no_font_has_become_numbers(monkeypatch):
    monkeypatch.setattr(plots, "_characters", lambda: frozenset(map(ord, "abc")))
    assert [plots._drawable(label, 3) for label in ("cab", "体育")] == ["cab", "#3"]
