"""Who may ask what: tokens, addresses, TLS, and a command line that refuses early."""

import re
import socket
import ssl
import subprocess

import grpc
import httpx
import pytest
from tensorflow_serving.apis import (
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from tests.helpers.servers import entries_of, serving
from tfllm.errors import SettingError
from tfllm.serving.rest import authorized
from tfllm.serving.server import url_host

TOKEN = "correct-horse-battery"
ASK = {"instances": [1]}
PATH = "/v1/models/kinds:predict"


@pytest.fixture(scope="module")
def guarded(models_root):
    with serving(entries_of(models_root), token=TOKEN, admin=False) as running:
        yield running


@pytest.mark.parametrize(
    ("header", "right"),
    [
        (None, False), ("", False), (TOKEN, False), ("Bearer", False), ("Bearer ", False),
        (f"Basic {TOKEN}", False), (f"Bearer {TOKEN}x", False), (f"Bearer {TOKEN[:-1]}", False),
        ("Bearer \u00e4", False), (f"Bearer {TOKEN}", True), (f"bearer  {TOKEN}", True),
    ],
)  # fmt: skip
def test_the_token_and_nothing_but_the_token(header, right):
    assert authorized(header, TOKEN) is right
    assert authorized(header, None)


def test_rest_needs_the_token(guarded):
    with httpx.Client(base_url=guarded.url) as client:
        for path in ("/v1/models/kinds", "/metrics"):
            response = client.get(path)
            assert response.status_code == 401
            assert response.headers["www-authenticate"] == "Bearer"
            assert "bearer token" in response.json()["error"]
        assert client.post(PATH, json=ASK).status_code == 401
        for path in ("/healthz", "/readyz"):
            assert client.get(path).status_code == 200
        client.headers["authorization"] = f"Bearer {TOKEN}"
        assert client.post(PATH, json=ASK).json() == {"predictions": [0.5]}
        assert client.get("/metrics").status_code == 200


def test_grpc_needs_the_token(guarded):
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "kinds"
    request.inputs["x"].dtype = 1
    request.inputs["x"].tensor_shape.dim.add().size = 1
    with grpc.insecure_channel(guarded.address) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        with pytest.raises(grpc.RpcError) as error:
            stub.Predict(request, 30)
        assert error.value.code() == grpc.StatusCode.UNAUTHENTICATED
        metadata = [("authorization", f"Bearer {TOKEN}")]
        assert stub.Predict(request, 30, metadata=metadata).outputs["y"].float_val == [0.0]
        admin = model_service_pb2_grpc.ModelServiceStub(channel)
        asked = model_management_pb2.ReloadConfigRequest()
        asked.config.model_config_list.SetInParent()
        with pytest.raises(grpc.RpcError) as error:
            admin.HandleReloadConfigRequest(asked, 30, metadata=metadata)
        assert error.value.code() == grpc.StatusCode.PERMISSION_DENIED


def test_no_other_origin_is_let_in(client):
    response = client.options(PATH, headers={"origin": "https://example.org"})
    assert response.status_code == 400
    assert not [name for name in response.headers if name.startswith("access-control")]


@pytest.mark.parametrize("path", ["/v1/models/../../etc/passwd", "/..%2f..%2fetc/passwd", "/etc"])
def test_no_file_is_reachable(running, path):
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", running.server.rest_port)
    connection.request("GET", path)  # as it stands: httpx would tidy it
    response = connection.getresponse()
    assert response.status in (400, 404)
    assert b"root:" not in response.read()
    connection.close()


def certificate(tmp_path):
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    try:
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
             "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
             "-keyout", str(key), "-out", str(cert)],
            check=True, capture_output=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("openssl makes no certificate here")
    return str(cert), str(key)


def test_clients_with_a_certificate(models_root, tmp_path):
    cert, key = certificate(tmp_path)
    entries = entries_of(models_root)
    with serving(entries, certificate=cert, key=key, client_ca=cert) as running:
        url = f"https://localhost:{running.server.rest_port}{PATH}"
        context = ssl.create_default_context(cafile=cert)
        with pytest.raises(httpx.HTTPError):
            httpx.post(url, json=ASK, verify=context)
        context.load_cert_chain(cert, key)
        assert httpx.post(url, json=ASK, verify=context).json() == {"predictions": [0.5]}


def test_a_bad_certificate_is_named(models_root, tmp_path):
    (tmp_path / "bad.pem").write_text("no certificate")
    path = str(tmp_path / "bad.pem")
    with pytest.raises(SettingError, match="bad.pem.*cannot be used"):
        with serving(entries_of(models_root), certificate=path, key=path):
            pass


def test_tls(models_root, tmp_path):
    cert, key = certificate(tmp_path)
    with serving(entries_of(models_root), certificate=cert, key=key) as running:
        url = f"https://localhost:{running.server.rest_port}"
        context = ssl.create_default_context(cafile=cert)
        response = httpx.post(f"{url}{PATH}", json=ASK, verify=context)
        assert response.json() == {"predictions": [0.5]}
        with pytest.raises(httpx.HTTPError):
            httpx.get(url.replace("https", "http"))
        credentials = grpc.ssl_channel_credentials(open(cert, "rb").read())
        address = f"localhost:{running.server.grpc_port}"
        with grpc.secure_channel(address, credentials) as channel:
            grpc.channel_ready_future(channel).result(30)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Name a model folder"),
        (["nowhere"], "There is no folder"),
        (["{toy}/1"], "is one version of a model; give the folder above it"),
        (["{empty}"], "holds no version folder"),
        (["a/b={toy}"], "cannot be a model's name"),
        (["{toy}", "--host", "0.0.0.0"], "can be reached from outside"),
        (["{toy}", "--certificate", "x.pem"], "TLS needs --certificate and --key together"),
        (["{toy}", "--token-file", "nowhere"], "Cannot read --token-file"),
        (["{toy}", "--timeout", "0"], "--timeout 0.0: input should be greater than 0."),
        (["{toy}", "--timeout", "nan"], "--timeout nan: "),
        (["{toy}", "--timeout", "inf"], "--timeout inf: "),
        (["{toy}", "--timeout", "x"], "--timeout: "),
        (["{toy}", "--drain", "-1"], "--drain -1.0: input should be greater than or equal to 0."),
        (["{toy}", "--drain", "nan"], "--drain nan: "),
        (["{toy}", "--lame-duck", "-0.1"], "--lame-duck -0.1: "),
        (["{toy}", "--poll-seconds", "0"], "--poll-seconds 0.0: "),
        (["{toy}", "--rest-port", "80000"], "--rest-port 80000: input should be less than"),
        (["{toy}", "--rest-port", "-1"], "--rest-port -1: "),
        (["{toy}", "--grpc-port", "99999"], "--grpc-port 99999: "),
        (["{toy}", "--rest-port", "8700", "--grpc-port", "8700"], "both listen on port 8700"),
        (["{toy}", "--body-bytes", "0"], "--body-bytes 0: "),
        (["{toy}", "--message-bytes", "4294967296"], "--message-bytes 4294967296: "),
        (["{toy}", "--rows", "-3"], "--rows -3: "),
        (["{toy}", "--text-characters", "0"], "--text-characters 0: "),
        (["{toy}", "--queue-rows", "0"], "--queue-rows 0: "),
        (["{toy}", "--threads", "0"], "--threads 0: "),
        (["{toy}", "--batching-parameters-file", "{batching}"], "num_batch_threads 0: input"),
        (["{toy}", "--no-such-option"], "No such option: --no-such-option"),
    ],
)
def test_the_command_refuses_at_once(models_root, tmp_path, capsys, arguments, said):
    from tfllm.cli import main

    batching = tmp_path / "batching.txt"
    batching.write_text("num_batch_threads { value: 0 }")
    paths = {"toy": models_root / "toy", "empty": tmp_path, "batching": batching}
    filled = [text.format(**paths) for text in arguments]
    with pytest.raises(SystemExit) as stop:
        main(["serve", *filled])
    printed = capsys.readouterr()
    assert stop.value.code == 2
    assert said in printed.err
    assert printed.err.startswith("tfllm: ") and printed.err.count("\n") == 1
    assert printed.out == ""


def test_addresses_that_cannot_be_had(models_root):
    """One line each that names the option; nothing is left open."""
    entries = entries_of(models_root)

    def said(**options):
        with pytest.raises(SettingError) as error, serving(entries, **options):
            pass
        return error.value.cli_message

    with serving(entries) as running:
        taken = running.server.rest_port, running.server.grpc_port
        for port in taken:
            assert re.search(rf":{port}: .*in use.*another --rest-port", said(rest_port=port))
            assert re.search(rf":{port}: .*another --grpc-port", said(grpc_port=port))
    assert "another --host" in said(host="no.such.host.invalid")
    assert "another --host" in said(host="192.0.2.1")


def test_ipv6(models_root):
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("there is no IPv6 here")
    with serving(entries_of(models_root), host="::1") as running:
        assert url_host("::1") == "[::1]" and url_host("127.0.0.1") == "127.0.0.1"
        url = f"http://[::1]:{running.server.rest_port}{PATH}"
        assert httpx.post(url, json=ASK).json() == {"predictions": [0.5]}
        with grpc.insecure_channel(f"[::1]:{running.server.grpc_port}") as channel:
            grpc.channel_ready_future(channel).result(30)


def test_a_batching_file_gives_the_length_of_the_queue(models_root, tmp_path, monkeypatch):
    from tfllm.cli import serve

    file = tmp_path / "batching.txt"
    file.write_text("max_batch_size { value: 8 } max_enqueued_batches { value: 5 }\n"
                    "allowed_batch_sizes: [1, 8]")  # fmt: skip
    found = []
    monkeypatch.setattr(serve, "_run", lambda entries, options, config: found.append(options))
    toy = [str(models_root / "toy")]
    serve.serve(toy, batching=file)
    serve.serve(toy, batching=file, queue_rows=7, threads=3)
    serve.serve(toy, message_bytes=99, text_characters=98)
    assert [options.limits.queue_rows for options in found] == [40, 7, 256]
    assert found[1].batching.num_batch_threads == 3
    assert (found[2].limits.message_bytes, found[2].limits.text_characters) == (99, 98)
