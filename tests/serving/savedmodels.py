"""Small SavedModels with every kind of signature the contract speaks of; made in seconds.

`python -m tests.serving.savedmodels DIR` writes them and a models.config for a real TF Serving:
see docs/serving.md, "The same tests against TF Serving".
"""

from __future__ import annotations

import sys
from pathlib import Path

import tensorflow as tf

LABELS = ["bad", "fine", "good"]
WORDS = 64

CONFIG = """model_config_list {{
  config {{
    name: "toy" base_path: "{root}/toy" model_platform: "tensorflow"
    model_version_policy {{ specific {{ versions: 1 versions: 2 }} }}
    version_labels {{ key: "stable" value: 1 }}
    version_labels {{ key: "canary" value: 2 }}
  }}
  config {{ name: "kinds" base_path: "{root}/kinds" model_platform: "tensorflow" }}
}}
"""


def text_spec(name):
    return tf.TensorSpec([None], tf.string, name=name)


class Toy(tf.Module):
    """Text to label and scores. `offset` makes versions differ: it is answered as `version`."""

    def __init__(self, offset: int):
        super().__init__()
        self.offset = tf.constant(offset, tf.int64)
        table = tf.random.stateless_normal([WORDS, len(LABELS)], [3, 5])
        self.table = tf.Variable(table, name="table")
        self.labels = tf.constant(LABELS)

    def scores(self, text):
        words = tf.strings.split(tf.strings.lower(text))
        ids = tf.strings.to_hash_bucket_fast(words, WORDS)
        rows = tf.gather(self.table, ids)
        return tf.nn.softmax(tf.reduce_sum(rows, axis=1))

    @tf.function(input_signature=[text_spec("text")])
    def serve(self, text):
        scores = self.scores(text)
        label = tf.gather(self.labels, tf.argmax(scores, -1))
        return {
            "label": label,
            "scores": scores,
            "version": tf.fill([tf.size(text)], self.offset),
        }

    @tf.function(input_signature=[text_spec("text"), text_spec("text_pair")])
    def pair(self, text, text_pair):
        same = tf.cast(tf.equal(text, text_pair), tf.float32)
        return {"same": same, "joined": tf.strings.join([text, text_pair], "|")}

    @tf.function(input_signature=[
        tf.TensorSpec([None, None], tf.int32, name="token_ids"),
        tf.TensorSpec([None, None], tf.int32, name="padding_mask"),
    ])  # fmt: skip
    def tokens(self, token_ids, mask):
        rows = tf.gather(self.table, token_ids) * tf.cast(mask, tf.float32)[..., None]
        return {"logits": tf.reduce_sum(rows, axis=1)}

    @tf.function(input_signature=[text_spec("inputs")])
    def classify(self, inputs):
        parsed = tf.io.parse_example(inputs, {"text": tf.io.FixedLenFeature([], tf.string)})
        scores = self.scores(parsed["text"])
        return {"classes": tf.tile(self.labels[None], [tf.size(inputs), 1]), "scores": scores}

    @tf.function(input_signature=[text_spec("inputs")])
    def regress(self, inputs):
        parsed = tf.io.parse_example(inputs, {"text": tf.io.FixedLenFeature([], tf.string)})
        return {"outputs": tf.cast(tf.strings.length(parsed["text"]), tf.float32)}

    @tf.function(input_signature=[text_spec("text")])
    def length(self, text):
        return tf.strings.length(text)


class Kinds(tf.Module):
    """What does not depend on text: all number types, awkward outputs, rows that fail."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def half(self, x):
        return {"y": x / 2}

    @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.float64, name="x")])
    def wide(self, x):
        return {"y": x, "sum": tf.reduce_sum(x, 1)}

    @tf.function(input_signature=[
        tf.TensorSpec([None], getattr(tf, name), name=name)
        for name in ("bool", "int8", "uint8", "int16", "int32", "int64", "uint32", "uint64")
    ])  # fmt: skip
    def types(self, *values):
        return {value.name.split(":")[0] + "_out": tf.identity(value) for value in values}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="raw")])
    def raw(self, raw):
        return {"plain": raw, "same_bytes": raw}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def total(self, x):
        return {"total": tf.reduce_sum(x), "x": x}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def uneven(self, x):
        return {"a": x, "b": x[:1]}

    @tf.function(input_signature=[tf.TensorSpec([], tf.float32, name="x")])
    def scalar(self, x):
        return {"y": x + 1.0}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def sixteen(self, x):
        return {"y": tf.cast(x, tf.bfloat16)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int32, name="divisor")])
    def divide(self, divisor):
        check = tf.debugging.assert_none_equal(divisor, 0, message="poison")
        with tf.control_dependencies([check]):
            return {"quotient": 840 // divisor}

    @tf.function(input_signature=[text_spec("text")])
    def slow(self, text):
        """About a tenth of a second of work, whatever the batch."""
        x = tf.fill([256, 256], tf.cast(tf.size(text), tf.float32) * 1e-9)
        x = tf.while_loop(lambda i, x: i < 60, lambda i, x: (i + 1, tf.tanh(x @ x)), [0, x])[1]
        return {"echo": text, "zero": tf.zeros([tf.size(text)]) * x[0, 0]}


class Loops(tf.Module):
    """Loops that turn `turns` times: as good as endless where that is 2^31 - 1."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int32, name="turns")])
    def plain(self, turns):
        most = tf.reduce_max(turns)
        i = tf.while_loop(lambda i: i < most, lambda i: [i + 1], [0])[0]
        return {"turned": turns * 0 + i}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int32, name="turns")])
    def mapped(self, turns):
        """A loop of each row by itself, inside a function, inside another loop."""

        @tf.function
        def row(most):
            return tf.while_loop(lambda i: i < most, lambda i: [i + 1], [0])[0]

        return {"turned": tf.map_fn(row, turns)}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int32, name="turns")])
    def decode(self, turns):
        """As generation: a step of some work, until every row has ended."""
        most = tf.reduce_max(turns)
        state = tf.fill([64, 64], tf.cast(most, tf.float32) * 1e-9)
        i, state = tf.while_loop(
            lambda i, x: tf.reduce_any(i < turns), lambda i, x: [i + 1, tf.tanh(x @ x)], [0, state]
        )
        return {"turned": turns * 0 + i, "zero": tf.cast(turns, tf.float32) * 0 * state[0, 0]}

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def half(self, x):
        return {"y": x / 2}


def save(module, directory: Path, signatures, warm_up=()) -> Path:
    """Writes one version with its warm-up records (PredictionLog protos), by rename."""
    temporary = directory.with_name(f"tmp.{directory.name}")
    tf.saved_model.save(module, str(temporary), signatures=signatures)
    if warm_up:
        (temporary / "assets.extra").mkdir()
        with tf.io.TFRecordWriter(
            str(temporary / "assets.extra" / "tf_serving_warmup_requests")
        ) as writer:
            for record in warm_up:
                writer.write(record.SerializeToString())
    temporary.rename(directory)
    return directory


def save_toy(directory: Path, offset: int, warm_up=()) -> Path:
    """One version of the `toy` model; answers carry `offset` as `version`."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    module = Toy(offset)
    names = ("pair", "tokens", "classify", "regress", "length")
    signatures = {"serving_default": module.serve} | {n: getattr(module, n) for n in names}
    return save(module, directory, signatures, warm_up)


def save_kinds(directory: Path) -> Path:
    """The one version of the `kinds` model."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    module = Kinds()
    names = "wide types raw total uneven scalar sixteen divide slow".split()
    signatures = {"serving_default": module.half} | {n: getattr(module, n) for n in names}
    return save(module, directory, signatures)


def save_loops(directory: Path, warm_up=()) -> Path:
    """The one version of a model with long calls, and quick ones under `serving_default`."""
    directory.parent.mkdir(parents=True, exist_ok=True)
    module = Loops()
    names = ("plain", "mapped", "decode")
    signatures = {"serving_default": module.half} | {n: getattr(module, n) for n in names}
    return save(module, directory, signatures, warm_up)


def save_all(root: Path) -> Path:
    """All models of the contract tests, and their models.config, which is returned."""
    save_toy(root / "toy" / "1", 1)
    save_toy(root / "toy" / "2", 2)
    save_kinds(root / "kinds" / "1")
    config = root / "models.config"
    config.write_text(CONFIG.format(root=root))
    return config


if __name__ == "__main__":
    print(save_all(Path(sys.argv[1]).absolute()))
