"""The same losses and weights on one device, on two, and in two worker processes.

docs/distribution.md has the table.
"""

import json

import numpy as np
import pytest
import tensorflow as tf
from safetensors.numpy import load_file

from tests.helpers import recipes
from tests.training import strategy_runs
from tests.training.strategy_runs import CASES, MASKED
from tfllm import config
from tfllm.errors import SettingError, TrainingFailed
from tfllm.training.distribution import strategies
from tfllm.training.distribution.cluster import Cluster
from tfllm.training.recipe import Recipe
from tfllm.training.run import train

# Float32 sums of a batch's parts are added up in another order: 1e-7 of a loss or a gradient norm,
# some of which adds up over eight steps.
LOSS_NOISE = 2e-6
# Weights are of size 1, and steps of AdamW, at a rate of 0.01, scale with gradient / epsilon.
WEIGHT_NOISE = 2e-5
# bfloat16 has 8 bits; a product of other matrix shapes may round elsewhere. float16 has 11.
LOW_PRECISION_LOSS = {"bfloat16": 2e-2, "float16": 4e-3}
LOW_PRECISION_WEIGHTS = {"bfloat16": 2e-2, "float16": 4e-3}

SEVERAL = ("mirrored", "multi_worker")
QUICK = "steps of all kinds"
EQUAL = [case for case in CASES if case not in ("dropout", QUICK)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return recipes.write_data(tmp_path_factory.mktemp("data"), train=strategy_runs.ROWS)


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    """The directory of runs of some cases under a strategy, trained once."""
    done = {}

    def directory(strategy, cases):
        if (strategy, cases) not in done:
            output = done[strategy, cases] = tmp_path_factory.mktemp(strategy)
            if strategy == "one":
                for case in cases:
                    recipe = config.build(strategy_runs.recipe(folder, case, "one"), Recipe)
                    train(recipe, output / case, progress=False)
            else:
                strategy_runs.finish(strategy_runs.start(strategy, folder, output, cases))
        return done[strategy, cases]

    return directory


def lines(directory):
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def check_equal(one, several, case):
    noise = LOW_PRECISION_LOSS.get(case, LOSS_NOISE)
    before, after = lines(one), lines(several)
    assert [line["step"] for line in before] == [line["step"] for line in after]
    compared = 0
    for a, b in zip(before, after, strict=True):
        for key in set(a) & {"loss", "gradient_norm", "validation_loss", "validation_accuracy"}:
            assert b[key] == pytest.approx(a[key], rel=noise, abs=noise / 10), (key, a["step"])
            compared += 1
    assert compared >= 2 * len(before) > 0
    weights, others = (load_file(d / "checkpoint" / "model.safetensors") for d in (one, several))
    assert set(weights) == set(others)
    for name, weight in weights.items():
        limit = LOW_PRECISION_WEIGHTS.get(case, WEIGHT_NOISE)
        np.testing.assert_allclose(others[name], weight, atol=limit, rtol=0, err_msg=name)
    summaries = [json.loads((d / "summary.json").read_text()) for d in (one, several)]
    for key in ("steps", "examples", "tokens", "padding", "parameters"):
        assert summaries[0][key] == summaries[1][key]
    assert [summary["replicas"] for summary in summaries] == [1, 2]


@pytest.mark.parametrize("strategy", SEVERAL)
def test_steps_of_all_kinds_give_the_same_run(trained, strategy):
    one, several = trained("one", (QUICK,)), trained(strategy, (QUICK,))
    check_equal(one / QUICK, several / QUICK, QUICK)


@pytest.mark.slow
@pytest.mark.parametrize("case", EQUAL)
@pytest.mark.parametrize("strategy", SEVERAL)
def test_each_feature_gives_the_same_run(trained, strategy, case):
    names = tuple(EQUAL)
    check_equal(trained("one", names) / case, trained(strategy, names) / case, case)


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in EQUAL if case not in (
    "plain", "steps per execution", "validation and best", "compiled kernels",
    *LOW_PRECISION_LOSS)])  # fmt: skip
def test_a_feature_makes_a_difference(trained, case):
    """Or the tests above would compare plain runs."""
    names = tuple(EQUAL)
    plain = "masked loss" if MASKED.items() <= CASES[case].items() else "plain"
    if case in (plain, "accumulation", "masked loss"):
        return
    directory = trained("one", names)
    a, b = (load_file(directory / c / "checkpoint" / "model.safetensors") for c in (plain, case))
    assert max(np.abs(a[name] - b[name]).max() for name in a) > 10 * WEIGHT_NOISE


@pytest.mark.slow
def test_steps_between_which_python_does_nothing_are_the_same_steps(trained):
    directory = trained("one", tuple(EQUAL))
    one, two = directory / "plain", directory / "steps per execution"
    assert [line.get("loss") for line in lines(one)] == [line.get("loss") for line in lines(two)]
    assert [path.name for path in sorted((two / "state").iterdir())] == [
        "step-00000004", "step-00000008",
    ]  # fmt: skip


@pytest.mark.slow
def test_the_checkpoint_has_the_averages(trained):
    directory = trained("one", tuple(EQUAL)) / "averages"
    weights = load_file(directory / "checkpoint" / "model.safetensors")
    state = load_file(directory / "state" / "step-00000008" / "variables.safetensors")
    averages = [array for name, array in state.items() if " average" in name]
    assert len(averages) == len(weights)
    for weight in weights.values():
        assert any(np.array_equal(weight, average) for average in averages)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", SEVERAL)
def test_a_run_with_dropout_is_reproducible(folder, tmp_path, strategy):
    both = []
    for name in ("first", "second"):
        strategy_runs.finish(strategy_runs.start(strategy, folder, tmp_path / name, ["dropout"]))
        both.append(load_file(tmp_path / name / "dropout" / "checkpoint" / "model.safetensors"))
    assert all(np.array_equal(both[0][name], both[1][name]) for name in both[0])


REFUSED = {
    "typo": ("miror", "Did you mean 'mirrored'"),
    "parameter servers": ("parameter_server", "not available"),
    "one device": ("mirrored", "this machine shows one"),
    "no workers": ("multi_worker", "tfllm launch --workers 2"),
    "keras.distribution, data": ("data_parallel", "on the backend 'tensorflow' changes nothing"),
    "keras.distribution, model": ("model_parallel", "KERAS_BACKEND=jax"),
    "tpu": ("tpu", "no TPU runtime"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_strategies_that_cannot_be_are_refused(folder, tmp_path, monkeypatch, case):
    name, message = REFUSED[case]
    for variable in ("TF_CONFIG", "TPU_NAME"):
        monkeypatch.delenv(variable, raising=False)
    recipe = recipes.recipe(folder, train={"strategy": name})
    with pytest.raises(SettingError) as raised:
        train(recipe, tmp_path / "run", progress=False)
    assert message in str(raised.value)
    assert not (tmp_path / "run").exists()


LOST = {
    "connection": tf.errors.UnavailableError(None, None, "x\naborted by: reset by peer\ny"),
    "collective": tf.errors.InternalError(None, None, "Collective ops is aborted by: gone"),
}


@pytest.mark.parametrize("case", LOST)
def test_a_lost_worker_is_told_with_the_way_to_go_on(tmp_path, case):
    devices = strategies.Devices(None, Cluster(("a:1", "b:2"), 1))
    message = "Worker 1 of 2 stops: another worker has gone .*(reset by peer|gone).*resume=True"
    with pytest.raises(TrainingFailed, match=message):
        with strategies.report_lost_workers(devices, tmp_path):
            raise LOST[case]


def test_other_faults_of_a_worker_stay_what_they_are(tmp_path):
    devices = strategies.Devices(None, Cluster(("a:1", "b:2"), 1))
    with pytest.raises(tf.errors.ResourceExhaustedError):
        with strategies.report_lost_workers(devices, tmp_path):
            raise tf.errors.ResourceExhaustedError(None, None, "out of memory")


def test_one_device_in_a_cluster_is_refused(monkeypatch):
    cluster = {"cluster": {"worker": ["a:1", "b:2"]}, "task": {"type": "worker", "index": 0}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(cluster))
    with pytest.raises(SettingError, match="train.strategy=multi_worker"):
        strategies.choose("one")


def test_losses_over_whole_batches_are_refused_on_several_devices():
    from tfllm.training.run import _batches

    class Pairs:
        group = 2

    settings = Recipe.model_fields["train"].default
    with pytest.raises(SettingError, match="train.strategy=one"):
        _batches(settings, Pairs(), 2)
