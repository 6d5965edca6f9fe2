"""What the operator sees is true, bounded, and silent about texts."""

import json
import logging

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.helpers.servers import entries_of, serving
from tests.helpers.waiting import wait_for
from tfllm.serving import observe

K = "/v1/models/kinds"


@pytest.fixture(scope="module")
def fresh(models_root):
    """A server whose counts nobody else moves; with an access log."""
    import httpx

    with (
        serving(entries_of(models_root), access_log=True) as running,
        httpx.Client(base_url=running.url, timeout=60) as client,
    ):
        yield running, client


def samples(client, path="/metrics"):
    """Values by name and labels; the parser adds `_total` to a counter's name, as OpenMetrics."""
    found = {}
    for family in text_string_to_metric_families(client.get(path).text):
        for sample in family.samples:
            found[sample.name, *sorted(sample.labels.values())] = sample.value
    return found


def test_counts_are_exact(fresh):
    _, client = fresh
    for _ in range(7):
        client.post(f"{K}:predict", json={"instances": [1, 2, 3]})
    for _ in range(3):
        client.post(f"{K}:predict", json={"instances": []})
    for index in range(50):
        client.post(f"/v1/models/no{index}:predict", json={"instances": [1]})
    page = samples(client)
    assert page["tfllm_requests_total", "OK", "REST", "kinds", "predict"] == 7
    assert page["tfllm_requests_total", "INVALID_ARGUMENT", "REST", "kinds", "predict"] == 3
    assert page["tfllm_requests_total", "NOT_FOUND", "REST", "predict", "unknown"] == 50
    assert page["tfllm_rows_total", "kinds"] == 21
    assert page[":tensorflow:serving:request_count_total", "OK", "kinds"] == 7
    assert page[":tensorflow:serving:request_latency_count", "REST", "kinds", "predict"] == 7
    assert page["tfllm_requests_in_flight",] == 0
    assert page["tfllm_model_version_state", "1", "kinds"] == 30
    assert not [key for key in page if any(str(part).startswith("no1") for part in key)]
    same = samples(client, "/monitoring/prometheus/metrics")
    assert same[":tensorflow:serving:request_count_total", "OK", "kinds"] == 7


def test_tf_serving_s_own_names_and_types(models_root, tmp_path):
    """As its exporter writes them: counters under their own name, without `_total` added."""
    import httpx

    from tests.serving import savedmodels
    from tests.serving.test_reload import record
    from tfllm.serving.schema import ModelEntry

    savedmodels.save_toy(tmp_path / "warm" / "1", 1, [record(), record("b")])
    warm = ModelEntry(name="warm", base_path=str(tmp_path / "warm"))
    with serving([warm]) as running, httpx.Client(base_url=running.url, timeout=60) as client:
        for count in (1, 3):
            body = {"signature_name": "classify", "examples": [{"text": "a"}] * count}
            assert client.post("/v1/models/warm:classify", json=body).status_code == 200
        assert client.post("/v1/models/warm:regress", json={"examples": []}).status_code == 400
        text = client.get("/monitoring/prometheus/metrics").text
        page = samples(client)
    for name in ("serving:request_count", "core:graph_runs", "core:graph_run_time_usecs"):
        assert f"# TYPE :tensorflow:{name} counter\n" in text
    assert ':tensorflow:serving:request_count{model_name="warm",status="OK"} 2\n' in text
    assert page[":tensorflow:serving:request_count_total", "INVALID_ARGUMENT", "warm"] == 1
    assert page[":tensorflow:serving:request_example_count_total", "warm"] == 4
    assert page[":tensorflow:serving:request_example_counts_count", "warm"] == 2
    assert page[":tensorflow:serving:request_example_counts_sum", "warm"] == 4
    assert page[":tensorflow:core:graph_runs_total",] == 2
    assert page[":tensorflow:core:graph_run_time_usecs_total",] > 0
    assert page[":tensorflow:core:graph_run_time_usecs_histogram_count",] == 2
    path = str(tmp_path / "warm" / "1")
    assert page[":tensorflow:serving:model_warmup_latency_count", path, "OK"] == 1


def test_health_and_readiness(fresh):
    _, client = fresh
    assert client.get("/healthz").json() == {"status": "alive"}
    assert client.get("/readyz").json() == {
        "ready": True, "available": {"toy": [1, 2], "kinds": [1]},
    }  # fmt: skip


def test_request_ids(fresh):
    _, client = fresh
    answer = client.get(K, headers={"x-request-id": "mine-1"})
    assert answer.headers["x-request-id"] == "mine-1"
    other = client.get(K, headers={"x-request-id": "no spaces"}).headers["x-request-id"]
    assert len(other) == 16
    assert client.get("/v1/foo").headers["x-request-id"]


def test_the_log_has_no_text(fresh, caplog):
    _, client = fresh
    loggers = [logging.getLogger(name) for name in ("tfllm.serving", "tfllm.serving.access")]
    for logger in loggers:
        logger.disabled, logger.propagate = False, True
    trace = "0af7651916cd43dd8448eb211c80319c"
    with caplog.at_level(logging.DEBUG):
        client.post(
            f"{K}:predict",
            json={"signature_name": "raw", "instances": ["SECRET"]},
            headers={"traceparent": f"00-{trace}-b7ad6b7169203331-01"},
        )
        client.post(f"{K}:predict", json={"instances": ["SECRET"]})
        client.post("/v1/models/SECRET:predict", json={"instances": ["SECRET"]})
        wait_for(lambda: sum(r.name == "tfllm.serving.access" for r in caplog.records) >= 3)
    ours = [r for r in caplog.records if r.name.startswith("tfllm")]
    lines = [observe.JsonLines().format(record) for record in ours]
    assert not [line for line in lines if "SECRET" in line]
    fields = json.loads(lines[0])
    assert fields["trace_id"] == trace
    assert (fields["model"], fields["method"], fields["status"]) == ("kinds", "predict", 200)
    assert json.loads(lines[2])["model"] == "unknown"


def test_a_server_without_models_is_alive_and_not_ready(tmp_path):
    import grpc
    import httpx
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    from tfllm.serving.schema import ModelEntry

    with serving([ModelEntry(name="m", base_path=str(tmp_path))], ready=False) as running:
        assert httpx.get(f"{running.url}/healthz").status_code == 200
        answer = httpx.get(f"{running.url}/readyz")
        assert (answer.status_code, answer.json()) == (
            503,
            {"ready": False, "available": {"m": []}},
        )
        with grpc.insecure_channel(running.address) as channel:
            check = health_pb2_grpc.HealthStub(channel).Check
            assert check(health_pb2.HealthCheckRequest(), timeout=30).status == 2
