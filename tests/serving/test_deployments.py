"""The files of serving/: they parse, fit each other, and name what really exists."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from tensorflow_serving.config import model_server_config_pb2

from tests.helpers.servers import serving
from tfllm.errors import SettingError
from tfllm.serving import rest, tfserving
from tfllm.serving.schema import Batching, ModelEntry

ROOT = Path(__file__).parents[2]
SERVING = ROOT / "serving"
PROTOS = {
    "models.config": model_server_config_pb2.ModelServerConfig(),
    "batching_parameters.txt": tfserving.new("BatchingParameters"),
    "monitoring.config": tfserving.new("MonitoringConfig"),
    "ssl_config.example.txt": tfserving.new("SSLConfig"),
}


def documents(name):
    return list(yaml.safe_load_all((SERVING / name).read_text()))


def kind(name):
    """The one Kubernetes object of a kind."""
    found = [
        document
        for path in sorted((SERVING / "kubernetes").glob("*.yaml"))
        for document in yaml.safe_load_all(path.read_text())
        if document["kind"] == name
    ]
    return found[0]


def container():
    return kind("Deployment")["spec"]["template"]["spec"]["containers"][0]


def commands():
    """Every argument list for tensorflow_model_server, by file."""
    compose = documents("compose.yaml")[0]["services"]["tfserving"]["command"]
    docker = re.search(r"CMD (\[.*?\])", (SERVING / "Dockerfile").read_text(), re.DOTALL)[1]
    inference = documents("kserve/inferenceservice.yaml")[0]["spec"]["predictor"]["model"]["args"]
    return {
        "compose": compose,
        "dockerfile": json.loads(docker.replace("\\\n", "")),
        "kubernetes": container()["args"],
        "kserve": inference,
    }


@pytest.mark.parametrize("name", PROTOS)
def test_text_protos(name):
    message = tfserving.read_text_proto(SERVING / name, PROTOS[name])
    assert message.ByteSize()


def test_the_protos_are_those_of_tf_serving():
    """Field names and numbers that the wheel's other protos do not tell."""
    message = tfserving.new("BatchingParameters")
    message.max_batch_size.value, message.pad_variable_length_inputs = 5, True
    message.allowed_batch_sizes.extend([1, 5])
    assert message.SerializeToString() == b"\x0a\x02\x08\x05\x32\x02\x01\x05\x38\x01"


def test_models_and_batching_are_read():
    (entry,) = tfserving.read_models(SERVING / "models.config")
    assert (entry.name, entry.base_path) == ("sentiment", "/models/sentiment")
    assert tfserving.read_batching(SERVING / "batching_parameters.txt") == Batching(
        max_enqueued_batches=8
    )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model_config_list {", "models.config"),
        ("model_config_list { config { nome: 'a' } }", "models.config:1"),
        ("", "it needs a model_config_list"),
        ("model_config_list { config { name: 'a' base_path: '/a' } }", "model_platform"),
        ("model_config_list { config { name: 'a' base_path: 'a' model_platform: 'tensorflow' } }",
         "absolute path"),
        ("model_config_list { config { name: 'a/b' base_path: '/a' model_platform: 'tensorflow'} }",
         "cannot be a model's name"),
    ],
)  # fmt: skip
def test_a_wrong_models_config_is_named(tmp_path, text, said):
    path = tmp_path / "models.config"
    path.write_text(text)
    with pytest.raises(SettingError, match=re.escape(said)):
        tfserving.read_models(path)


@pytest.mark.parametrize(
    "text",
    ["allowed_batch_sizes: 4 allowed_batch_sizes: 2", "allowed_batch_sizes: 4",
     "max_batch_size { value: 0 }", "num_batch_threads { value: 0 }"],
)  # fmt: skip
def test_a_wrong_batching_file_is_named(tmp_path, text):
    path = tmp_path / "batching.txt"
    path.write_text(text)
    with pytest.raises(SettingError, match="batching.txt"):
        tfserving.read_batching(path)


def test_policies_and_labels(tmp_path):
    path = tmp_path / "models.config"
    path.write_text(
        "model_config_list { config { name: 'a' base_path: '/a' model_platform: 'tensorflow' "
        "model_version_policy { specific { versions: 3 versions: 5 } } "
        "version_labels { key: 'stable' value: 3 } } "
        "config { name: 'b' base_path: '/b' model_platform: 'tensorflow' "
        "model_version_policy { all {} } } "
        "config { name: 'c' base_path: '/c' model_platform: 'tensorflow' "
        "model_version_policy { latest { num_versions: 2 } } } }"
    )
    a, b, c = tfserving.read_models(path)
    assert a.labels == {"stable": 3}
    assert [e.policy.select([1, 3, 5, 9]) for e in (a, b, c)] == [[3, 5], [1, 3, 5, 9], [5, 9]]


def test_every_yaml_parses_and_every_manifest_has_a_kind():
    for path in SERVING.rglob("*.yaml"):
        for document in yaml.safe_load_all(path.read_text()):
            assert document
            if path.parent.name in ("kubernetes", "kserve"):
                assert {"apiVersion", "kind"} <= set(document)


def test_kustomization_lists_every_manifest():
    listed = kind("Kustomization")["resources"]
    present = {path.name for path in (SERVING / "kubernetes").glob("*.yaml")}
    assert set(listed) == present - {"kustomization.yaml"}


@pytest.mark.parametrize("name", sorted(["compose", "dockerfile", "kubernetes", "kserve"]))
def test_flags_exist(name):
    for argument in commands()[name]:
        flag = re.fullmatch(r"--([a-z_]+)=(.+)", argument)
        assert flag and flag[1] in tfserving.FLAGS, argument


def test_the_image_is_pinned_to_one_version():
    texts = [path.read_text() for path in SERVING.rglob("*") if path.is_file()]
    images = {image for text in texts for image in re.findall(r"tensorflow/serving:\S+", text)}
    assert images == {"tensorflow/serving:2.20.0"}


def test_mounted_files_are_the_flags_files():
    compose = documents("compose.yaml")[0]["services"]["tfserving"]
    mounted = dict(volume.rsplit(":", 2)[:2] for volume in compose["volumes"])
    for argument in compose["command"]:
        name, value = argument.removeprefix("--").split("=", 1)
        if name.endswith("_file"):
            source = {target: source for source, target in mounted.items()}[value]
            assert (SERVING / source).exists()
    config = kind("ConfigMap")["data"]
    for name, text in config.items():
        assert text == (SERVING / name).read_text(), name
    used = {a.rsplit("/", 1)[1] for a in container()["args"] if "=/config/" in a}
    assert used == set(config)


def test_ports_fit():
    ports = {port["name"]: port["containerPort"] for port in container()["ports"]}
    assert f"--port={ports['grpc']}" in container()["args"]
    assert f"--rest_api_port={ports['rest']}" in container()["args"]
    allowed = {port["port"] for port in kind("NetworkPolicy")["spec"]["ingress"][0]["ports"]}
    assert allowed == set(ports.values())
    for document in documents("kubernetes/service.yaml"):
        for port in document["spec"]["ports"]:
            assert ports[port["targetPort"]] == port["port"]


def test_selectors_fit():
    labels = kind("Deployment")["spec"]["template"]["metadata"]["labels"].items()
    for selector in (
        kind("Deployment")["spec"]["selector"]["matchLabels"],
        kind("PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        kind("NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
        *(document["spec"]["selector"] for document in documents("kubernetes/service.yaml")),
    ):
        assert selector.items() <= labels
    target = kind("HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]["name"]
    assert target == kind("Deployment")["metadata"]["name"]


def test_probes_ask_for_what_needs_a_loaded_version():
    (entry,) = tfserving.read_models(SERVING / "models.config")
    for probe in ("startupProbe", "readinessProbe"):
        call = rest.read_path("GET", container()[probe]["httpGet"]["path"])
        assert (call.target.model, call.method) == (entry.name, "metadata")
    check = documents("compose.yaml")[0]["services"]["tfserving"]["healthcheck"]["test"][-1]
    assert f"/v1/models/{entry.name}/metadata" in check
    assert "--enable_grpc_healthcheck_service=true" in container()["args"]
    template = kind("Deployment")["spec"]["template"]["spec"]
    assert template["shareProcessNamespace"] is True
    pause = int(container()["lifecycle"]["preStop"]["exec"]["command"][1])
    assert template["terminationGracePeriodSeconds"] > pause


@pytest.fixture(scope="module")
def sentiment(models_root):
    """The model's name in every example, served by a small one."""
    entry = ModelEntry(name="sentiment", base_path=str(models_root / "toy"))
    with serving([entry]) as running:
        yield running


def test_dashboards_and_alerts_ask_for_series_that_exist(sentiment):
    import httpx

    httpx.post(f"{sentiment.url}/v1/models/sentiment:predict", json={"instances": ["a"]})
    page = httpx.get(f"{sentiment.url}/metrics").text
    # As they stand: the client's own parser adds an ending to counters that have none.
    known = set(re.findall(r"^([^#{\s]+)", page, re.M)) | {"up"}
    dashboard = json.loads((SERVING / "grafana/dashboard.json").read_text())
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    groups = documents("alerts.yml")[0]["groups"]
    asked += [rule["expr"] for group in groups for rule in group["rules"]]
    assert len(asked) >= 12
    for expression in asked:
        names = re.findall(r'__name__="([^"]+)"', expression)
        names += re.findall(r"\b(?:tfllm_\w+|up)\b", expression)
        assert names and set(names) <= known, expression
    paths = {c["metrics_path"] for c in documents("prometheus.yml")[0]["scrape_configs"]}
    for path in paths:
        assert httpx.get(f"{sentiment.url}{path}").status_code == 200


BLOCKS = re.findall(r"```python\n(.*?)```", (SERVING / "README.md").read_text(), re.DOTALL)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_python_clients_of_the_readme(sentiment, models_root, tmp_path, number, capsys):
    config = tmp_path / "models.config"
    text = (SERVING / "models.config").read_text()
    config.write_text(text.replace("/models/sentiment", str(models_root / "toy")))
    code = (
        BLOCKS[number]
        .replace("http://127.0.0.1:8501", sentiment.url)
        .replace("127.0.0.1:8500", sentiment.address)
        .replace("serving/models.config", str(config))
    )
    exec(compile(code, f"README block {number}", "exec"), {})
    assert re.search(r"bad|fine|good|0", capsys.readouterr().out)


def test_curl(sentiment):
    if not shutil.which("curl"):
        pytest.skip("curl is not installed")
    done = subprocess.run(
        ["sh", str(SERVING / "clients" / "curl.sh")], capture_output=True, text=True, timeout=60,
        env={"REST": sentiment.url, "PATH": "/usr/local/bin:/usr/bin:/bin", "no_proxy": "*"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("predictions") == 2
    assert "results" in done.stdout
