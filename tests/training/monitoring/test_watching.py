"""What a run tells beside its losses: FLOPs, memory, energy, samples, profile, time left."""

import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow.python.framework import convert_to_constants

from tests.helpers import recipes
from tfllm.keras_internals import all_layers
from tfllm.models import bert, gpt2
from tfllm.tasks import CausalLM, Classification, MaskedLM
from tfllm.tokenizers.wordpiece import WordPiece
from tfllm.training.monitoring import energy, profiling, progress, resources, samples, utilization
from tfllm.training.monitoring.logs import RunLog
from tfllm.training.validation import Validation

# TensorFlow also counts what is no matrix product: biases, GELU, normalisation. In a model of
# this width they are some hundredths.
OTHER_FLOPS = 0.1


def classifier(**shape):
    config = bert.Config(
        **{"vocabulary_size": 40, "num_layers": 2, "num_heads": 2, "hidden_dim": 128, **shape}
    )
    return Classification(labels=("bad", "good")).model(bert.backbone(config), config)


def counted_flops(model, rows, tokens):
    """TensorFlow's own count for a forward pass."""
    signature = {name: tf.TensorSpec((rows, tokens), tf.int32) for name in model.input}
    function = tf.function(lambda x: model(x, training=False)).get_concrete_function(signature)
    frozen = convert_to_constants.convert_variables_to_constants_v2(function)
    options = tf.compat.v1.profiler.ProfileOptionBuilder.float_operation()
    options["output"] = "none"
    return tf.compat.v1.profiler.profile(frozen.graph, options=options).total_float_ops


@pytest.mark.parametrize(("rows", "tokens"), [(3, 8), (1, 64)])
def test_flops_of_a_classifier_are_three_times_those_of_the_forward_pass(rows, tokens):
    model = classifier()
    ours = utilization.step_flops(model).of_batch(rows * tokens, rows) / 3
    counted = counted_flops(model, rows, tokens)
    assert ours < counted < ours * (1 + OTHER_FLOPS)


def test_flops_of_a_decoder_count_its_logits():
    config = gpt2.Config(
        vocabulary_size=500, num_layers=2, num_heads=2, hidden_dim=128, max_sequence_length=64
    )
    model = CausalLM().model(gpt2.backbone(config), config)
    ours = utilization.step_flops(model).of_batch(2 * 32, 2) / 3
    counted = counted_flops(model, 2, 32)
    assert ours < counted < ours * (1 + OTHER_FLOPS)


def test_a_frozen_matrix_has_no_gradient_of_its_own():
    model = classifier()
    before = utilization.step_flops(model)
    for layer in all_layers(model):
        if isinstance(layer, keras.layers.Dense) and layer.name == "up":
            layer.trainable = False
    after = utilization.step_flops(model)
    assert before.per_token - after.per_token == 2 * 2 * 128 * 512
    assert before.per_pair == after.per_pair


def test_two_texts_per_row_have_no_count():
    texts = {
        name: keras.Input((None,), dtype="int32", name=name) for name in ("source_ids", "token_ids")
    }
    table = keras.layers.Embedding(5, 4)
    both = table(texts["source_ids"]) + table(texts["token_ids"])
    assert utilization.step_flops(keras.Model(texts, both)) is None


def test_matrix_rate_is_of_this_machine():
    rate = utilization.matrix_rate("float32")
    assert 1e8 < rate < 1e15
    assert utilization.matrix_rate("float32") == rate, "measured once"


def test_memory():
    size = 300_000_000
    before, peak = resources.memory(), resources.peak_memory()
    held = np.ones(size, np.uint8)
    during = resources.memory()
    assert size * 0.9 < during - before < size * 1.5
    assert resources.peak_memory() >= max(peak, during) * 0.99  # the two are counted by pages
    del held
    assert resources.memory() < during - size * 0.5
    assert resources.peak_memory() >= during * 0.99


def counters(folder, *values, limit=1000_000_000):
    for number, value in enumerate(values):
        zone = folder / f"intel-rapl:{number}"
        zone.mkdir(parents=True, exist_ok=True)
        (zone / "energy_uj").write_text(f"{value}\n")
        (zone / "max_energy_range_uj").write_text(f"{limit}\n")
    part = folder / "intel-rapl:0:0"  # a part of a package, counted with it already
    part.mkdir(exist_ok=True)
    (part / "energy_uj").write_text("5\n")


def test_energy_counters_may_start_again(tmp_path):
    counters(tmp_path, 999_000_000, 100_000_000)
    read = energy.EnergyCounters(tmp_path)
    counters(tmp_path, 1_000_000, 103_000_000)
    read.read()
    assert read.joules == pytest.approx(2 + 3)
    read.read()
    assert read.joules == pytest.approx(5)


def test_energy_by_counters(tmp_path, monkeypatch):
    monkeypatch.setattr(energy, "_codecarbon", lambda: None)
    counters(tmp_path, 0)
    meter = energy.EnergyMeter(500.0, tmp_path).start()
    deadline = time.monotonic() + 10
    while meter._counters is None and time.monotonic() < deadline:
        time.sleep(0.01)
    counters(tmp_path, 36_000_000)
    told = meter.stop()
    assert told["estimate"] is True and "RAPL" in told["method"]
    assert told["kilowatt_hours"] == pytest.approx(1e-5)
    assert told["co2_grams"] == pytest.approx(5e-3)


def test_no_energy_is_told_and_nothing_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(energy, "_codecarbon", lambda: None)
    told = energy.EnergyMeter(500.0, tmp_path).start().stop()
    assert told["kilowatt_hours"] is None and "tfllm[energy]" in told["note"]

    def broken():
        raise RuntimeError("no sensors today")

    monkeypatch.setattr(energy, "_codecarbon", broken)
    told = energy.EnergyMeter(500.0, tmp_path).start().stop()
    assert told["kilowatt_hours"] is None and "no sensors today" in told["note"]


def test_energy_by_codecarbon(monkeypatch):
    pytest.importorskip("codecarbon")
    import socket

    def refused(*_):
        raise AssertionError("a connection was asked for")

    monkeypatch.setattr(socket.socket, "connect", refused)
    told = energy.EnergyMeter(500.0).start().stop()
    assert told["method"].startswith("codecarbon"), told
    assert told["co2_grams"] == pytest.approx(told["kilowatt_hours"] * 500)


EXAMPLES = [
    {"text": "the red a|b is", "label": "good", "_where": "x.tsv:2"},
    {"text": "the two of", "label": "bad", "_where": "x.tsv:3"},
]


def tokenizer():
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "|", "b", *recipes.GOOD, *recipes.BAD]
    return WordPiece.from_vocabulary([*words, *recipes.OTHER], lowercase=True)


@pytest.mark.parametrize("task", [Classification(labels=("bad", "good")), MaskedLM()])
def test_samples(task, tmp_path):
    known = tokenizer()
    config = bert.Config(
        vocabulary_size=known.vocabulary_size, num_layers=1, num_heads=2, hidden_dim=8
    )
    model = task.model(bert.backbone(config), config)
    validation = Validation(task, EXAMPLES, known, 4)
    rows = samples.samples(validation, model, 1)
    assert len(rows) == 1
    if task.kind == "classification":
        assert rows[0][:2] == ("the red a|b is", "good")
        assert '"label"' in rows[0][2] and "x.tsv" not in rows[0][0]
    else:
        text, expected, answer = rows[0]
        words = ["the", "red", "a", "|", "b", "is"]
        assert text.startswith("[CLS]") and len(text.split()) == len(words) + 2
        assert expected and set(expected.split(" · ")) <= set(words)
        assert len(expected.split(" · ")) == len(answer.split(" · "))
    table = samples.markdown(rows)
    assert table.count("\n") == 2
    if task.kind == "classification":
        assert "a\\|b" in table


def events(folder):
    """Tag -> text of every text summary below a folder."""
    found = {}
    for path in sorted(folder.rglob("*tfevents*")):
        for record in tf.data.TFRecordDataset(str(path)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            for value in event.summary.value:
                if value.tensor.string_val:
                    found[value.tag] = value.tensor.string_val[0].decode()
    return found


@pytest.mark.parametrize("count", [0, 1])
def test_a_setting_keeps_texts_out_of_the_log(count, tmp_path):
    known = tokenizer()
    config = bert.Config(
        vocabulary_size=known.vocabulary_size, num_layers=1, num_heads=2, hidden_dim=8
    )
    task = Classification(labels=("bad", "good"))
    model = task.model(bert.backbone(config), config)
    log = RunLog(tmp_path)
    samples.write_samples(log, 3, Validation(task, EXAMPLES, known, 4), model, count)
    log.close()
    assert ("the red" in str(events(tmp_path))) == bool(count)


def test_a_fault_in_showing_samples_ends_no_run(tmp_path, monkeypatch):
    monkeypatch.setattr(samples, "samples", lambda *_: 1 / 0)
    log = RunLog(tmp_path)
    samples.write_samples(log, 3, None, None, 4)
    log.close()
    assert "ZeroDivisionError" in str(events(tmp_path))


def test_profile_of_chosen_steps(tmp_path):
    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile(loss="mse", jit_compile=False)
    x = np.zeros((12, 2), np.float32)
    profile = profiling.ProfileSteps(3, 4, tmp_path, done=1)
    model.fit(x, x[:, :1], batch_size=4, verbose=0, callbacks=[profile])
    assert not profile._is_on
    assert list(tmp_path.rglob("*.xplane.pb"))
    beyond = profiling.ProfileSteps(9, 10, tmp_path / "none")
    model.fit(x, x[:, :1], batch_size=4, verbose=0, callbacks=[beyond])
    assert not (tmp_path / "none").exists()


def test_lines_tell_the_time_left(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.ProgressBar(100, done=40) as bar:
        for _ in range(20):
            bar.advance()
        now[0] += 60
        bar.describe({"loss": 1.0})
        now[0] += 7200
        bar.describe({"loss": 1.0})
        for _ in range(40):
            bar.advance()
        bar.describe({"loss": 1.0})
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].endswith("2:00 left")
    assert lines[1].endswith("4:02:00 left")
    assert "left" not in lines[2]
