"""The serving signatures say what `answers` says, for one text and for many."""

import functools

import numpy as np
import pytest
import tensorflow as tf

from tfllm import tasks
from tfllm.tasks import entities

TEXTS = [
    "the film was very good", "", "Ann Lee lives in New York.", "unwatchable, (bad) a-b a. b&c",
    "北京 in 中国!", "the [MASK] was [MASK] [MASK].", " \u200bx\u00e9\u0301 [SEP] d ",
    "\ufeffthe film",
    "a b c d e f g a b c d e f g a b [MASK] d e f g", "q \U0001f600 paris?!",
]  # fmt: skip
PAIRS = ["good", "a b c", "", "the film", "中", "a", "b", "x", "very bad " * 9, "?"]
QUESTIONS = ["who made it ?", "", "Paris?"]
CONTEXTS = ["a b c d e f g paris a b c d " * 3, "the \u00e9 film was 中国 good", "", "new york"]


close = functools.partial(np.testing.assert_allclose, atol=2e-6, rtol=2e-6)


def served(function, **inputs):
    """A signature's outputs as numpy arrays."""
    return {key: value.numpy() for key, value in function(**inputs).items()}


def alone(function, **inputs):
    """The outputs of each row in a batch of its own."""
    rows = range(len(next(iter(inputs.values()))))
    return [served(function, **{k: v[row : row + 1] for k, v in inputs.items()}) for row in rows]


def answered(task, model, tokenizer, run, examples):
    features = task.features(examples, tokenizer, targets=False)
    return task.answers(run(model, features), features)


@pytest.mark.parametrize("problem, pair", [("single_label", True), ("multi_label", False)])
def test_classification(tokenizer, in_graph, tiny, run, problem, pair):
    task = tasks.Classification(
        labels=("no", "ja", "是"), problem=problem, pair=pair, max_length=12
    )
    model = tiny(task)
    inputs = {"text": TEXTS, **({"text_pair": PAIRS} if pair else {})}
    examples = [dict(zip(inputs, row, strict=True)) for row in zip(*inputs.values(), strict=True)]
    wanted = answered(task, model, tokenizer, run, examples)
    signatures = task.signatures(model, in_graph)
    found = served(signatures["serving_default"], **inputs)
    scores = [list(answer["scores"].values()) for answer in wanted]
    close(found["scores"], scores)
    assert found["scores"].dtype == np.float32
    best = [task.labels[np.argmax(row)].encode() for row in scores]
    assert found["label"].tolist() == best
    single = alone(signatures["serving_default"], **inputs)
    close([row["scores"][0] for row in single], scores)

    protos = [tf.train.Example() for _ in examples]
    for proto, example in zip(protos, examples, strict=True):
        for name, text in example.items():
            proto.features.feature[name].bytes_list.value.append(text.encode())
    serialized = [proto.SerializeToString() for proto in protos]
    classes = served(signatures["classify"], inputs=tf.constant(serialized))
    close(classes["scores"], scores)
    assert classes["classes"].shape == classes["scores"].shape
    assert [name.decode() for name in classes["classes"][-1]] == list(task.labels)


def test_regression(tokenizer, in_graph, tiny, run):
    task = tasks.Classification(problem="regression")
    model = tiny(task)
    wanted = [
        a["label"] for a in answered(task, model, tokenizer, run, [{"text": t} for t in TEXTS])
    ]
    signatures = task.signatures(model, in_graph)
    close(served(signatures["serving_default"], text=TEXTS)["score"], wanted)
    assert set(signatures) == {"serving_default", "regress", "tokens"}
    proto = tf.train.Example()
    proto.features.feature["text"].bytes_list.value.append(TEXTS[0].encode())
    outputs = signatures["regress"](tf.constant([proto.SerializeToString()]))["outputs"]
    close(outputs, wanted[:1])


@pytest.mark.parametrize("variant", ["bert", "distilbert"])
@pytest.mark.parametrize("kind", ["classification", "question_answering", "embedding"])
def test_tokens_take_the_models_inputs(tokenizer, in_graph, tiny, kind, variant):
    named = {"labels": ["O", "B-X"]} if "classification" in kind else {}
    task = tasks.build({"kind": kind, **named})
    types = 0 if variant == "distilbert" else 2
    model = tiny(task, variant=variant, num_segments=types)
    function = task.signatures(model, in_graph)["tokens"]
    ids = np.array([[2, 5, 6, 3], [2, 7, 3, 0]], np.int32)
    inputs = {"token_ids": ids, "segment_ids": 0 * ids, "padding_mask": (ids > 0).astype(np.int32)}
    inputs = {name: inputs[name] for name in model.input}
    outputs = function(**{name: tf.constant(value) for name, value in inputs.items()})
    (value,) = outputs.values()
    close(value, model(inputs))
    assert value.dtype == tf.float32


def test_next_sentence(tokenizer, in_graph, tiny, run):
    task = tasks.NextSentence(max_length=12)
    model = tiny(task)
    examples = [{"text": a, "text_pair": b} for a, b in zip(TEXTS, PAIRS, strict=True)]
    wanted = answered(task, model, tokenizer, run, examples)
    function = task.signatures(model, in_graph)["serving_default"]
    found = served(function, text=TEXTS, text_pair=PAIRS)["is_next"]
    close(found, [a["scores"]["is_next"] for a in wanted])


def test_embedding(tokenizer, in_graph, tiny, run):
    task = tasks.Embedding(max_length=12)
    model = tiny(task)
    wanted = answered(task, model, tokenizer, run, [{"text": text} for text in TEXTS])
    function = task.signatures(model, in_graph)["serving_default"]
    found = served(function, text=TEXTS)["embedding"]
    close(found, [answer["embedding"] for answer in wanted])


@pytest.mark.parametrize("max_length", [128, 9])
def test_token_classification(tokenizer, in_graph, tiny, run, max_length):
    labels = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
    task = tasks.TokenClassification(labels=labels, max_length=max_length)
    model = tiny(task)
    wanted = answered(task, model, tokenizer, run, [{"text": text} for text in TEXTS])
    function = task.signatures(model, in_graph)["serving_default"]
    found = served(function, text=TEXTS)
    assert any(answer["entities"] for answer in wanted)
    details = task.features([{"text": text} for text in TEXTS], tokenizer).details
    for row, (text, answer) in enumerate(zip(TEXTS, wanted, strict=True)):
        tags = [tag.decode() for tag in found["labels"][row]]
        count = len(details[row]["positions"])
        assert "" not in tags[:count] and set(tags[count:]) <= {""}
        joined = entities.join_entities(
            text, tags, found["starts"][row], found["ends"][row], found["scores"][row]
        )
        for entity in [*joined, *answer["entities"]]:
            entity["score"] = pytest.approx(entity["score"], abs=1e-5)
        assert joined == answer["entities"]
    nothing = served(function, text=[""])
    assert {value.shape for value in nothing.values()} == {(1, 0)}


@pytest.mark.parametrize("no_answer", [False, True])
def test_question_answering(tokenizer, in_graph, tiny, run, no_answer):
    task = tasks.QuestionAnswering(
        max_length=16, stride=3, max_answer_length=4, no_answer=no_answer
    )
    model = tiny(task, initializer_range=0.9)
    both = [(question, context) for question in QUESTIONS for context in CONTEXTS]
    examples = [{"question": question, "context": context} for question, context in both]
    wanted = answered(task, model, tokenizer, run, examples)
    inputs = {"question": [a for a, _ in both], "context": [b for _, b in both]}
    function = task.signatures(model, in_graph)["serving_default"]
    whole, single = served(function, **inputs), alone(function, **inputs)
    assert any(answer["answer"] for answer in wanted)
    for row, answer in enumerate(wanted):
        for found, place in ((whole, row), (single[row], 0)):
            assert found["answer"][place].decode() == answer["answer"]
            assert (found["start"][place], found["end"][place]) == (answer["start"], answer["end"])
            assert found["score"][place] == pytest.approx(answer["score"], rel=1e-4)


def test_masked_lm(tokenizer, in_graph, tiny, run):
    task = tasks.MaskedLM(max_length=12, top_k=3)
    model = tiny(task)
    texts = [*TEXTS, "[MASK]", "un[MASK] \t [MASK]x"]
    wanted = answered(task, model, tokenizer, run, [{"text": text} for text in texts])
    function = task.signatures(model, in_graph)["serving_default"]
    found = served(function, text=texts)
    for row, answer in enumerate(wanted):
        assert found["text"][row].decode() == answer["text"]
        for place, mask in enumerate(answer["masks"]):
            names = [candidate["token"] for candidate in mask["candidates"]]
            assert [name.decode() for name in found["tokens"][row, place]] == names
            scores = [candidate["score"] for candidate in mask["candidates"]]
            close(found["scores"][row, place], scores)
    nothing = served(function, text=["the film"])
    assert nothing["tokens"].shape == nothing["scores"].shape == (1, 0, 3)


def test_invalid_utf8_gives_valid_texts(tokenizer, in_graph, tiny):
    bad = [b"the \xff film \xe4\xb8", b"\xf0\x9f"]
    task = tasks.QuestionAnswering(max_answer_length=50)
    found = served(
        task.signatures(tiny(task), in_graph)["serving_default"], question=bad, context=bad
    )
    for text, answer in zip(bad, found["answer"], strict=True):
        assert answer.decode() in text.decode(errors="replace")
    task = tasks.MaskedLM()
    found = served(
        task.signatures(tiny(task), in_graph)["serving_default"], text=[bad[0] + b"[MASK]"]
    )
    found["text"][0].decode()


def test_an_empty_batch(tokenizer, in_graph, tiny):
    task = tasks.Classification(labels=("a", "b"))
    found = served(
        task.signatures(tiny(task), in_graph)["serving_default"], text=tf.zeros([0], tf.string)
    )
    assert found["scores"].shape == (0, 2)


# Decoders are saved in tests/export; pretraining leaves as masked_lm.
ELSEWHERE = ("causal_lm", "seq2seq", "pretraining")


@pytest.mark.parametrize(
    "kind",
    [
        kind if kind == "question_answering" else pytest.param(kind, marks=pytest.mark.slow)
        for kind in tasks.TASKS
        if kind not in ELSEWHERE
    ],
)
def test_saved_and_loaded(tokenizer, in_graph, tiny, kind, tmp_path):
    """Every signature saves with a module that holds weights and tokenizer, and is the same."""
    named = {"labels": ["O", "B-X"]} if "classification" in kind else {}
    task = tasks.build({"kind": kind, **named})
    model = tiny(task)
    module = tf.Module()
    module.weights = [weight._value for weight in model.weights]
    module.tokenizer = in_graph
    functions = task.signatures(model, module.tokenizer)
    tf.saved_model.save(module, str(tmp_path), signatures=functions)
    loaded = tf.saved_model.load(str(tmp_path)).signatures
    assert set(loaded) == set(functions)
    function = functions["serving_default"]
    inputs = {spec.name: tf.constant(TEXTS) for spec in function.input_signature}
    wanted, found = function(**inputs), loaded["serving_default"](**inputs)
    assert set(wanted) == set(found)
    for name in wanted:
        if wanted[name].dtype == tf.string:
            assert wanted[name].numpy().tolist() == found[name].numpy().tolist()
        else:
            close(wanted[name], found[name])
    operations = {
        node.op
        for function in loaded["serving_default"].graph.as_graph_def().library.function
        for node in function.node_def
    }
    assert not {op for op in operations if "Xla" in op or "PyFunc" in op}
