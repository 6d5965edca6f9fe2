"""Versions that change under a live server: real SavedModels, whole and broken."""

import json
import logging
import os
import shutil
import threading
from pathlib import Path

import grpc
import httpx
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import (
    get_model_status_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    prediction_log_pb2,
)

from tests.helpers.servers import serving
from tests.helpers.waiting import PATIENCE_SECONDS, wait_for
from tests.serving import savedmodels
from tfllm.serving import tfserving
from tfllm.serving.schema import ModelEntry

ASK = {"instances": ["a b", "c"]}


def record(text="a", signature=""):
    """A warm-up request of the toy model."""
    log = prediction_log_pb2.PredictionLog()
    request = log.predict_log.request
    request.model_spec.name, request.model_spec.signature_name = "any", signature
    request.inputs["text"].CopyFrom(tf.make_tensor_proto([text]))
    return log


@pytest.fixture
def base(models_root, tmp_path):
    """A base path of its own, with version 1."""
    shutil.copytree(models_root / "toy" / "1", tmp_path / "m" / "1")
    return tmp_path / "m"


def copied(models_root, base, number, spoil=lambda path: None):
    """Version `number`, spoiled before it appears."""
    temporary = base / f"tmp.{number}"
    shutil.copytree(models_root / "toy" / "2", temporary)
    spoil(temporary)
    return temporary.rename(base / str(number))


def versions(running):
    response = httpx.post(f"{running.url}/v1/models/m:predict", json=ASK, timeout=PATIENCE_SECONDS)
    assert response.status_code == 200, response.text
    return {row["version"] for row in response.json()["predictions"]}


def status(running, number):
    answer = httpx.get(f"{running.url}/v1/models/m").json()["model_version_status"]
    return next((one for one in answer if one["version"] == str(number)), None)


def test_a_new_version_takes_over_without_losing_a_request(models_root, base):
    with serving([ModelEntry(name="m", base_path=str(base))]) as running:
        stop, seen, failures = threading.Event(), set(), []

        def ask():
            with httpx.Client(base_url=running.url, timeout=PATIENCE_SECONDS) as client:
                while not stop.is_set():
                    response = client.post("/v1/models/m:predict", json=ASK)
                    rows = response.json().get("predictions", [])
                    answered = {row["version"] for row in rows}
                    if response.status_code != 200 or len(answered) != 1:
                        failures.append(response.text)
                    seen.update(answered)

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            wait_for(lambda: seen == {1})
            copied(models_root, base, 2)
            wait_for(lambda: seen == {1, 2})
            wait_for(lambda: status(running, 1)["state"] == "END")
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert failures == []
        assert versions(running) == {2}


def cut(name, part):
    def spoil(path):
        data = (path / name).read_bytes()
        (path / name).write_bytes(data[: int(len(data) * part)])

    return spoil


DATA = "variables/variables.data-00000-of-00001"


def flip(path):
    data = bytearray((path / DATA).read_bytes())
    data[len(data) // 2] ^= 0xFF
    (path / DATA).write_bytes(data)


def unknown_operator(path):
    model = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
    for function in model.meta_graphs[0].graph_def.library.function:
        for node in function.node_def:
            if node.op == "StringLower":
                node.op = "NoSuchOperator"
    (path / "saved_model.pb").write_bytes(model.SerializeToString())


def other_tag(path):
    model = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
    model.meta_graphs[0].meta_info_def.tags[:] = ["train"]
    (path / "saved_model.pb").write_bytes(model.SerializeToString())


def warm_up(*records, junk=None):
    def spoil(path):
        folder = path / "assets.extra"
        folder.mkdir()
        with tf.io.TFRecordWriter(str(folder / "tf_serving_warmup_requests")) as writer:
            for one in records:
                writer.write(one.SerializeToString())
            if junk:
                writer.write(junk)

    return spoil


def edited(change):
    def spoil(path):
        model = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
        change(model.meta_graphs[0])
        (path / "saved_model.pb").write_bytes(model.SerializeToString())

    return spoil


def too_new(meta_graph):
    meta_graph.graph_def.versions.min_consumer = 99_999


def no_vocabulary(path):
    """Another model, which reads a file of words; and the file is not there."""

    class Words(tf.Module):
        def __init__(self, file):
            whole, number = tf.lookup.TextFileIndex.WHOLE_LINE, tf.lookup.TextFileIndex.LINE_NUMBER
            words = tf.lookup.TextFileInitializer(file, tf.string, whole, tf.int64, number)
            self.table = tf.lookup.StaticVocabularyTable(words, 1)

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string)])
        def ids(self, text):
            return {"ids": self.table.lookup(text)}

    file = path.parent / "vocabulary.txt"
    file.write_text("a\nb\n")
    module = Words(str(file))
    shutil.rmtree(path)
    tf.saved_model.save(module, str(path), signatures={"serving_default": module.ids})
    (path / "assets" / "vocabulary.txt").unlink()


# How a version is spoiled, and what names the cause.
BROKEN = {
    "truncated graph": (cut("saved_model.pb", 0.5), "Cannot parse file"),
    "empty graph": (cut("saved_model.pb", 0), "'serve' could not be found"),
    "no graph": (lambda path: (path / "saved_model.pb").unlink(), "Could not find SavedModel"),
    "no index": (
        lambda path: (path / "variables/variables.index").unlink(),
        "variables/variables.index; No such file",
    ),
    "no variables": (
        lambda path: shutil.rmtree(path / "variables"),
        "variables/variables.index; No such file",
    ),
    "no data": (
        lambda path: (path / DATA).unlink(),
        "variables.data-00000-of-00001; No such file or directory",
    ),
    "truncated variables": (cut(DATA, 0.5), "Read less bytes than requested"),
    "a flipped byte": (flip, "Checksum does not match"),
    "unknown operator": (unknown_operator, "Op type not registered 'NoSuchOperator'"),
    "a newer graph": (edited(too_new), "min consumer version 99999 above current version"),
    "no vocabulary": (no_vocabulary, "vocabulary.txt; No such file or directory"),
    "no serve tag": (other_tag, "'serve' could not be found"),
    "warm-up of an unknown signature": (
        warm_up(record(signature="nope")),
        'warmup record 1: Serving signature key "nope" not found',
    ),
    "warm-up that fails": (
        warm_up(record(), record(signature="tokens")),
        "warmup record 2: input size does not match signature",
    ),
    "junk in the warm-up": (warm_up(junk=b"\xff\xff\xff"), "Failed to parse warmup record 1"),
    "too many warm-up records": (
        warm_up(*[prediction_log_pb2.PredictionLog()] * 1001),
        "exceeds the maximum (1000)",
    ),
}


def test_broken_versions_leave_the_old_one(models_root, base, caplog):
    """The cause is named in the log, in the REST status and in gRPC's."""
    logging.getLogger("tfllm.serving").propagate = True
    with (
        serving([ModelEntry(name="m", base_path=str(base))]) as running,
        grpc.insecure_channel(running.address) as channel,
        caplog.at_level(logging.ERROR),
    ):
        stub = model_service_pb2_grpc.ModelServiceStub(channel)
        request = get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = "m"
        for number, (kind, (spoil, named)) in enumerate(BROKEN.items(), start=2):
            copied(models_root, base, number, spoil)
            wait_for(lambda n=number: (status(running, n) or {}).get("state") == "END")
            failed = status(running, number)["status"]
            assert failed["error_code"] != "OK", kind
            assert named in failed["error_message"], kind
            assert "\n" not in failed["error_message"], kind
            request.model_spec.version.value = number
            answer = stub.GetModelStatus(request, PATIENCE_SECONDS).model_version_status[0]
            assert named in answer.status.error_message, kind
            lines = [
                r.getMessage() for r in caplog.records if f"version {number}:" in r.msg % r.args
            ]
            assert len(lines) == 1 and named in lines[0], kind
            assert versions(running) == {1}, kind
            assert httpx.get(f"{running.url}/readyz").status_code == 200
        whole = len(BROKEN) + 2
        copied(models_root, base, whole, warm_up(record(), record("b")))
        wait_for(lambda: versions(running) == {2})  # the content of toy/2


def test_a_version_that_trickles_in(models_root, base):
    """Copied file by file into place: never half-loaded, and served when whole."""
    with serving([ModelEntry(name="m", base_path=str(base))]) as running:
        source = models_root / "toy" / "2"
        for path in sorted(source.rglob("*")):
            target = base / "2" / path.relative_to(source)
            if path.is_dir():
                target.mkdir(parents=True)
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            data = path.read_bytes()
            for part in range(2):
                with target.open("ab") as file:
                    file.write(data[len(data) // 2 * part : None if part else len(data) // 2])
                assert versions(running) <= {1, 2}
        wait_for(lambda: versions(running) == {2})


def reload_request(*models):
    request = model_management_pb2.ReloadConfigRequest()
    request.config.model_config_list.SetInParent()
    for name, path, numbers, labels in models:
        model = request.config.model_config_list.config.add(
            name=name, base_path=str(path), model_platform="tensorflow"
        )
        model.model_version_policy.specific.versions.extend(numbers)
        model.version_labels.update(labels)
    return request


def test_reload_by_call(models_root, base):
    copied(models_root, base, 2)
    with (
        serving([ModelEntry(name="m", base_path=str(base))]) as running,
        grpc.insecure_channel(running.address) as channel,
    ):
        stub = model_service_pb2_grpc.ModelServiceStub(channel)

        def reload(*models):
            return stub.HandleReloadConfigRequest(reload_request(*models), PATIENCE_SECONDS)

        def refused(code, *models):
            with pytest.raises(grpc.RpcError) as error:
                reload(*models)
            assert error.value.code() == grpc.StatusCode[code], error.value.details()
            return error.value.details()

        assert versions(running) == {2}
        assert reload(("m", base, [1, 2], {"stable": 1})).status.error_code == 0
        asked = httpx.post(f"{running.url}/v1/models/m/labels/stable:predict", json=ASK)
        assert asked.json()["predictions"][0]["version"] == 1
        details = refused("FAILED_PRECONDITION", ("m", base, [1, 2], {"stable": 7}))
        assert "label to version 7 of model m" in details
        asked = httpx.post(f"{running.url}/v1/models/m/labels/stable:predict", json=ASK)
        assert asked.json()["predictions"][0]["version"] == 1  # as before
        assert reload(("m", base, [1], {})).status.error_code == 0
        wait_for(lambda: versions(running) == {1})
        assert "absolute path" in refused("INVALID_ARGUMENT", ("m", "relative", [1], {}))
        assert "multiple times" in refused("INVALID_ARGUMENT", *[("m", base, [1], {})] * 2)
        assert versions(running) == {1}
        assert reload(("n", base, [2], {})).status.error_code == 0
        status_request = get_model_status_pb2.GetModelStatusRequest()
        status_request.model_spec.name = "m"
        with pytest.raises(grpc.RpcError) as error:
            stub.GetModelStatus(status_request, PATIENCE_SECONDS)
        assert error.value.code() == grpc.StatusCode.NOT_FOUND


def test_reload_by_file(models_root, base, tmp_path):
    copied(models_root, base, 2)
    config = tmp_path / "models.config"

    def write(name, number):
        text = (
            f'model_config_list {{ config {{ name: "{name}" base_path: "{base}" '
            f'model_platform: "tensorflow" '
            f"model_version_policy {{ specific {{ versions: {number} }} }} }} }}"
        )
        (tmp_path / "new.config").write_text(text)
        (tmp_path / "new.config").rename(config)

    write("m", 1)
    with serving(tfserving.read_models(config), config_file=config) as running:
        assert versions(running) == {1}
        (tmp_path / "models.config").write_text("model_config_list {")
        assert versions(running) == {1}
        write("m", 2)
        wait_for(lambda: versions(running) == {2})
        write("other", 2)
        wait_for(lambda: httpx.get(f"{running.url}/v1/models/m").status_code == 404)
        wait_for(lambda: httpx.get(f"{running.url}/v1/models/other").status_code == 200)


RELOADS = 50
MODEL_MEGABYTES = 64
# Loading and unloading move the heap about; a version kept in memory would be 64 MB each time, and
# its graph alone 2 MB (100 MB in all).
MEMORY_MEGABYTES = 64


@pytest.mark.slow
def test_memory_stays_where_it_is(tmp_path):
    """Fifty versions, one after the other, each asked."""

    class Large(tf.Module):
        def __init__(self):
            super().__init__()
            self.large = tf.Variable(tf.zeros([MODEL_MEGABYTES << 18]))

        @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
        def add(self, x):
            return {"y": x + self.large[0]}

    def memory():
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") >> 20

    base = tmp_path / "m"
    base.mkdir()
    module = Large()
    savedmodels.save(module, base / "1", {"serving_default": module.add})
    del module
    with serving([ModelEntry(name="m", base_path=str(base))]) as running:
        first = 0
        for number in range(2, RELOADS + 2):
            shutil.copytree(base / str(number - 1), base / "tmp", copy_function=os.link)
            (base / "tmp").rename(base / str(number))
            wait_for(lambda n=number: (status(running, n) or {}).get("state") == "AVAILABLE")
            wait_for(lambda n=number: status(running, n - 1)["state"] == "END")
            shutil.rmtree(base / str(number - 1))
            answer = httpx.post(f"{running.url}/v1/models/m:predict", json={"instances": [1]})
            assert answer.json() == {"predictions": [1.0]}
            if number == 6:
                first = memory()
        print(f"memory: {first} MB after 5 reloads, {memory()} MB after {RELOADS}")
        assert memory() - first < MEMORY_MEGABYTES


def test_a_taken_port_is_named(models_root, running):
    from tfllm.errors import SettingError

    toy = ModelEntry(name="toy", base_path=str(models_root / "toy"))
    for option, taken in (
        ("rest_port", running.server.rest_port),
        ("grpc_port", running.server.grpc_port),
    ):
        with pytest.raises(SettingError, match=f"{taken}.*Choose another {option[:4]}"):
            with serving([toy], **{option: taken}):
                pass


def test_warm_up_of_every_kind(tmp_path):
    classify, regress, several = (prediction_log_pb2.PredictionLog() for _ in range(3))
    for request, name in (
        (classify.classify_log.request, "classify"),
        (regress.regress_log.request, "regress"),
    ):
        request.model_spec.signature_name = name
        example = request.input.example_list.examples.add()
        example.features.feature["text"].bytes_list.value.append(b"x")
        task = several.multi_inference_log.request.tasks.add()
        task.model_spec.name, task.model_spec.signature_name = "m", name
        task.method_name = f"tensorflow/serving/{name}"
    several.multi_inference_log.request.input.CopyFrom(classify.classify_log.request.input)
    savedmodels.save_toy(tmp_path / "m" / "1", 1, [record(), classify, regress, several])
    from tfllm.serving.servable import Servable
    from tfllm.serving.warmup import replay

    servable = Servable("m", 1, tmp_path / "m" / "1")
    assert replay(servable) == 4
    servable.close()
    assert json.dumps(servable.version) == "1"
