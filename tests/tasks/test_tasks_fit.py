"""Every task learns a tiny data set through Keras' own compile and train_on_batch."""

import keras
import pytest

from tfllm import tasks

PAIR = {"text": "the film", "text_pair": "was good"}
EXAMPLES = {
    "classification": [{"text": "good", "label": "yes"}, {"text": "very bad", "label": "no"}],
    "token_classification": [
        {"words": ["ann", "lives"], "tags": ["B-PER", "O"]},
        {"words": ["in", "new", "york"], "tags": ["O", "B-LOC", "I-LOC"]},
    ],
    "question_answering": [
        {"question": "who ?", "context": "ann lee", "answers": {"text": ["ann"], "start": [0]}},
        {"question": "who ?", "context": "a lee b", "answers": {"text": ["lee b"], "start": [2]}},
    ],
    "embedding": [PAIR, {"text": "a b", "text_pair": "c d e"}],
    "masked_lm": [{"text": "the film was good"}, {"text": "ann lives in paris"}],
    "next_sentence": [{**PAIR, "label": "is_next"}, {"text": "a", "text_pair": "b", "label": 1}],
}
KINDS = {
    **{kind: {"kind": kind} for kind in tasks.TASKS if kind in EXAMPLES},  # an encoder's
    "multi_label": {"kind": "classification", "problem": "multi_label"},
    "regression": {"kind": "classification", "problem": "regression"},
}


@pytest.mark.parametrize("name", KINDS)
def test_the_loss_falls(tokenizer, tiny, name):
    examples = EXAMPLES[KINDS[name]["kind"]]
    if name == "regression":
        examples = [{**example, "label": place} for place, example in enumerate(examples)]
    task = tasks.build(KINDS[name]).infer_settings(examples)
    features = task.for_epoch(task.features(examples, tokenizer))
    rows = features.units[::-1].ravel()
    inputs, targets = features.batch(rows, length=12)
    model = tiny(task, dropout=0.0, attention_dropout=0.0)
    model = task.training_model(model) if features.group > 1 else model
    model.compile(
        keras.optimizers.Adam(0.005),
        loss=task.loss(),
        metrics=task.metrics(),
        run_eagerly=True,
    )
    fed = {key: inputs[key] for key in model.input}
    losses = [float(model.train_on_batch(fed, targets)[0]) for _ in range(6)]
    assert losses[-1] < 0.95 * losses[0], losses
    named = model.evaluate(fed, targets, return_dict=True, verbose=0)
    assert {metric.name for metric in task.metrics()} < set(named)
