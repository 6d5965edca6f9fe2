"""HTTP framing over plain sockets: every body stays a body, every refusal can be read."""

import contextlib
import json
import re
import shutil
import socket
import struct
import subprocess
import time

import httpx
import pytest

from tests.helpers.servers import entries_of, serving
from tests.helpers.waiting import PATIENCE_SECONDS, wait_for
from tests.serving.test_observe import samples
from tfllm.serving.schema import Batching, Limits

K = "/v1/models/kinds:predict"
ASK = b'{"instances": [1]}'
SAID = {"predictions": [0.5]}
# A body that looks like a request; as a body it is no JSON, as a request it would be answered 200.
SMUGGLED = b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"
H2C = (
    "Connection: Upgrade, HTTP2-Settings",
    "Upgrade: h2c",
    "HTTP2-Settings: AAEAAEAAAAIAAAABAAMA",
)
SOON = 0.05  # seconds that part a head from its body; nothing is asserted about them


def head(*lines, verb="POST", path=K, version="HTTP/1.1"):
    return "\r\n".join([f"{verb} {path} {version}", "Host: x", *lines, "", ""]).encode()


def length(body):
    return f"Content-Length: {len(body)}"


def chunked(*parts):
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


class Answers(list):
    """The (status, JSON or text) pairs of what a server wrote until it closed."""

    def __init__(self, data):
        super().__init__()
        self.data, self.headers = data, []
        while data:
            top, _, data = data.partition(b"\r\n\r\n")
            status = int(top.split()[1])
            size = re.search(rb"content-length: (\d+)", top)
            if size is None:
                assert 100 <= status < 200, top
                self.append((status, None))
                continue
            body, data = data[: int(size[1])], data[int(size[1]) :]
            self.headers.append(top.lower())
            self.append((status, json.loads(body)))

    @property
    def statuses(self):
        return [status for status, _ in self]


def received(connection):
    """Everything until the server closes."""
    data = b""
    while part := connection.recv(65_536):
        data += part
    return Answers(data)


@pytest.fixture(scope="module", params=["asyncio", "uvloop"])
def running(request, models_root):
    """A server on each of the event loops that `tfllm serve` uses."""
    module = pytest.importorskip(request.param)
    entries = entries_of(models_root)
    with serving(entries, new_event_loop=module.new_event_loop) as running:
        yield running


@pytest.fixture(scope="module")
def client(running):
    with httpx.Client(base_url=running.url, timeout=PATIENCE_SECONDS) as client:
        yield client


@pytest.fixture
def talk(running):
    """Sends parts with a pause between them, ends the client's side, and reads to the end."""

    def exchange(*parts, port=running.server.rest_port, end=True):
        with socket.create_connection(("127.0.0.1", port), PATIENCE_SECONDS) as connection:
            for index, part in enumerate(parts):
                if index:
                    time.sleep(SOON)
                connection.sendall(part)
            with contextlib.suppress(OSError):  # the server may have closed already
                if end:
                    connection.shutdown(socket.SHUT_WR)
            return received(connection)

    return exchange


# ---- upgrades


@pytest.mark.parametrize(
    "upgrade",
    [
        H2C,
        ("Connection: upgrade", "Upgrade: websocket"),
        ("Connection: Upgrade", "Upgrade: TLS/1.0"),
    ],
    ids=["h2c", "websocket", "tls"],
)
@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("late", [True, False])
def test_an_upgrade_is_ignored_and_the_body_kept(talk, upgrade, framing, late):
    def ask(body):
        if framing == "length":
            parts = head(*upgrade, length(body)), body
        else:
            parts = head(*upgrade, "Transfer-Encoding: chunked"), chunked(body[:5], body[5:])
        return parts if late else (b"".join(parts),)

    assert talk(*ask(ASK)) == [(200, SAID)]
    answers = talk(*ask(SMUGGLED))
    assert answers.statuses == [400]
    assert "JSON Parse error" in answers[0][1]["error"]


def test_upgrades_in_a_row_on_one_connection(talk):
    """Each body is its own request's, with everything in one packet and byte by byte."""
    one = head(*H2C, length(ASK)) + ASK
    other = head(*H2C, "Transfer-Encoding: chunked") + chunked(ASK)
    look = head(*H2C, verb="GET", path="/healthz")
    data = one + other + look + one + head("Connection: close", length(ASK)) + ASK
    expected = [200, 200, 200, 200, 200]
    assert talk(data).statuses == expected
    with_alive = talk(data)
    assert with_alive[2][1] == {"status": "alive"}
    assert [one for one in with_alive if one[1] == SAID] == [(200, SAID)] * 4


def test_a_head_in_single_bytes(running):
    data = head(*H2C, length(ASK)) + ASK
    with socket.create_connection(("127.0.0.1", running.server.rest_port), 30) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for place in range(len(data)):
            connection.sendall(data[place : place + 1])
        connection.sendall(head(length(ASK)) + ASK)
        connection.shutdown(socket.SHUT_WR)
        assert received(connection) == [(200, SAID)] * 2


@pytest.mark.parametrize("options", [["--http2"], ["--http2", "-H", "Transfer-Encoding: chunked"]])
def test_curl_that_prefers_http2(running, options):
    curl = shutil.which("curl")
    if (
        not curl
        or "HTTP2" not in subprocess.run([curl, "-V"], capture_output=True, text=True).stdout
    ):
        pytest.skip("there is no curl with HTTP/2 here")
    done = subprocess.run(
        [curl, "-sS", "--max-time", "30", *options, "-d", ASK.decode(), f"{running.url}{K}",
         "-w", "%{http_code}"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.endswith("200") and "0.5" in done.stdout


JAVA = """
import java.net.URI;
import java.net.http.*;

public class Ask {
    public static void main(String[] arguments) throws Exception {
        var client = HttpClient.newHttpClient();  // it prefers HTTP/2, and so offers h2c
        for (int index = 0; index < 3; index++) {
            var request = HttpRequest.newBuilder(URI.create(arguments[0]))
                .POST(HttpRequest.BodyPublishers.ofString("{\\"instances\\": [" + index + "]}"))
                .build();
            var response = client.send(request, HttpResponse.BodyHandlers.ofString());
            System.out.println(response.statusCode() + " " + response.body());
        }
    }
}
"""


@pytest.mark.slow
def test_javas_http_client(running, tmp_path):
    if not shutil.which("javac") or not shutil.which("java"):
        pytest.skip("there is no Java compiler here")
    (tmp_path / "Ask.java").write_text(JAVA)
    subprocess.run(["javac", "Ask.java"], cwd=tmp_path, check=True, timeout=120)
    done = subprocess.run(
        ["java", "-cp", str(tmp_path), "Ask", f"{running.url}{K}"],
        check=True, timeout=120, capture_output=True, text=True,
    )  # fmt: skip
    answers = [line.split(" ", 1) for line in done.stdout.splitlines()]
    assert [(status, json.loads(body)) for status, body in answers] == [
        ("200", {"predictions": [value]}) for value in (0.0, 0.5, 1.0)
    ]


# ---- what has two meanings has none

CL = length(SMUGGLED)
AMBIGUOUS = {
    "length and chunks": ([CL, "Transfer-Encoding: chunked"], 400),
    "chunks and length": (["Transfer-Encoding: chunked", CL], 400),
    "two lengths": ([CL, "Content-Length: 3"], 400),
    "the same length twice": ([CL, CL], 400),
    "a list of lengths": (["Content-Length: 3, 3"], 400),
    "plus": ([CL.replace(": ", ": +")], 400),
    "minus": (["Content-Length: -1"], 400),
    "hexadecimal": (["Content-Length: 0x3"], 400),
    "no number": (["Content-Length: "], 400),
    "huge": (["Content-Length: 99999999999999999999999"], 400),
    "space before the colon": ([CL.replace(":", " :")], 400),
    "tab before the colon": ([CL.replace(":", "\t:")], 400),
    "folded": (["X: a\r\n b", CL], 400),
    "folded chunked": (["Transfer-Encoding:\r\n chunked"], 400),
    "bare line feed": (["X: a\nContent-Length: 3"], 400),
    "bare carriage return": (["X: a\rContent-Length: 3"], 400),
    "NUL": (["X: a\0b"], 400),
    "a name with a space": (["Content Length: 3"], 400),
    "no colon": (["Content-Length"], 400),
    "gzip, chunked": (["Transfer-Encoding: gzip, chunked"], 501),
    "chunked, gzip": (["Transfer-Encoding: chunked, gzip"], 400),
    "identity": (["Transfer-Encoding: identity"], 400),
    "xchunked": (["Transfer-Encoding: xchunked"], 400),
    "chunked twice": (["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"], 400),
}  # fmt: skip


@pytest.mark.parametrize("upgrade", [(), H2C], ids=["", "h2c"])
@pytest.mark.parametrize(("lines", "status"), AMBIGUOUS.values(), ids=AMBIGUOUS.keys())
def test_ambiguous_framing_is_refused_once(talk, lines, status, upgrade):
    answers = talk(head(*upgrade, *lines), SMUGGLED)
    assert answers.statuses == [status]
    assert list(answers[0][1]) == ["error"]
    assert b"connection: close" in answers.headers[0]


CHUNKS = {
    "no hexadecimal": b"g\r\nabc\r\n0\r\n\r\n",
    "minus": b"-3\r\nabc\r\n0\r\n\r\n",
    "plus": b"+3\r\nabc\r\n0\r\n\r\n",
    "prefix": b"0x3\r\nabc\r\n0\r\n\r\n",
    "space": b"3 \r\nabc\r\n0\r\n\r\n",
    "empty": b"\r\nabc\r\n0\r\n\r\n",
    "overflow": b"fffffffffffffffff\r\nabc",
    "line feeds": b"3\nabc\n0\n\n",
    "too short": b"2\r\nabc\r\n0\r\n\r\n",
    "too long": b"4\r\nabc\r\n0\r\n\r\n",
    "line feed in an extension": b"3;a\nb\r\nabc\r\n0\r\n\r\n",
}


@pytest.mark.parametrize("data", CHUNKS.values(), ids=CHUNKS.keys())
def test_bad_chunks_are_refused_once(talk, data):
    answers = talk(head("Transfer-Encoding: chunked"), data + SMUGGLED)
    assert answers.statuses == [400]
    assert "Malformed HTTP request" in answers[0][1]["error"]


def test_chunks_with_extensions_and_trailers(talk):
    body = b"5;a=b\r\n" + ASK[:5] + b"\r\n%x\r\n" % len(ASK[5:]) + ASK[5:] + b"\r\n0\r\n"
    trailers = b"Content-Encoding: br\r\nX-Request-Id: smuggled\r\n\r\n"
    answers = talk(head("Transfer-Encoding: chunked"), body + trailers)
    assert answers == [(200, SAID)]
    assert b"smuggled" not in answers.data


def test_trailers_without_end(talk):
    trailers = b"".join(b"X-%d: %s\r\n" % (index, b"x" * 50) for index in range(1000))
    answers = talk(head("Transfer-Encoding: chunked"), b"0\r\n" + trailers)
    assert answers.statuses == [431]


OTHER_PROTOCOLS = {
    "HTTP/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0", 505),
    "HTTP/2.0": (head(verb="GET", path="/healthz", version="HTTP/2.0"), 505),
    "HTTP/1.2": (head(verb="GET", path="/healthz", version="HTTP/1.2"), 505),
    "HTTP/3.0": (head(verb="GET", path="/healthz", version="HTTP/3.0"), 505),
    "HTTP/0.9": (head(verb="GET", path="/healthz", version="HTTP/0.9"), 505),
    "chunks in HTTP/1.0": (
        head("Transfer-Encoding: chunked", version="HTTP/1.0") + chunked(ASK), 400,
    ),
    "CONNECT": (head(length(SMUGGLED), verb="CONNECT", path="a:1") + SMUGGLED, 501),
    "CONNECT with a path": (head(length(SMUGGLED), verb="CONNECT") + SMUGGLED, 501),
    "TLS": (bytes.fromhex("16030100f8010000f4030300") * 20, 400),
    "no method": (b"NONSENSE / HTTP/1.1\r\n\r\n", 400),
    "a target without a path": (head(verb="GET", path="x"), 400),
    "line feeds only": (b"GET /healthz HTTP/1.1\nHost: x\n\n", 400),
}  # fmt: skip


@pytest.mark.parametrize(("data", "status"), OTHER_PROTOCOLS.values(), ids=OTHER_PROTOCOLS.keys())
def test_other_protocols_are_refused_once(talk, data, status):
    answers = talk(data)
    assert answers.statuses == [status]
    assert list(answers[0][1]) == ["error"]


def test_http_2_is_told_where_it_is(talk):
    answers = talk(OTHER_PROTOCOLS["HTTP/2 preface"][0])
    assert "HTTP/1.1" in answers[0][1]["error"] and "--grpc-port" in answers[0][1]["error"]


# ---- several requests on one connection


def test_pipelined_requests_are_answered_in_order(talk):
    asks = [b'{"instances": [%d]}' % value for value in range(1, 6)]
    answers = talk(b"".join(head(length(ask)) + ask for ask in asks))
    assert answers == [(200, {"predictions": [value / 2]}) for value in range(1, 6)]


def test_a_broken_request_waits_for_those_before_it(talk):
    good = head(length(ASK)) + ASK
    for broken in (b"NONSENSE\r\n\r\n", head("Transfer-Encoding: chunked") + b"g\r\n"):
        answers = talk(good + good + broken + good)
        assert answers.statuses == [200, 200, 400]


def test_nothing_is_answered_after_connection_close(talk):
    last = head("Connection: close", length(ASK)) + ASK
    assert talk(last + head(verb="GET", path="/healthz")) == [(200, SAID)]
    assert talk(last, head(verb="GET", path="/healthz")) == [(200, SAID)]


def test_http_1_0(talk):
    """Answered and closed, also where the client asks to keep the connection."""
    ask = head("Connection: keep-alive", length(ASK), version="HTTP/1.0") + ASK
    assert talk(ask, end=False) == [(200, SAID)]
    assert talk(head(verb="GET", path="/healthz", version="HTTP/1.0"), end=False).statuses == [200]


def test_a_target_in_absolute_form(talk):
    assert talk(head(length(ASK), path=f"http://x{K}") + ASK) == [(200, SAID)]


# ---- a client that ends its own side


@pytest.mark.parametrize("signature", [None, "slow"])
def test_a_client_that_ends_its_side_is_answered(talk, signature):
    slow = {"signature_name": "slow", "instances": ["x"]}
    body = json.dumps(slow).encode() if signature else ASK
    answers = talk(head(length(body)) + body)
    assert answers.statuses == [200]
    assert list(answers[0][1]) == ["predictions"]


def test_a_request_that_ends_too_early(talk):
    for data in (head("Content-Length: 100") + ASK, b"GET /healthz HTTP/1.1\r\nHost:"):
        answers = talk(data)
        assert answers.statuses == [400]
        assert "ends too early" in answers[0][1]["error"]


@pytest.mark.parametrize("reset", [False, True])
def test_work_for_clients_that_are_gone_is_not_run(models_root, reset):
    """One thread is busy; what else the closed connections asked for is never run."""
    batching = Batching(num_batch_threads=1, max_batch_size=1, allowed_batch_sizes=(1,))
    with serving(entries_of(models_root), batching=batching) as running:
        body = json.dumps({"signature_name": "slow", "instances": ["x"] * 40}).encode()
        gone = [socket.create_connection(("127.0.0.1", running.server.rest_port)) for _ in range(4)]
        for connection in gone:
            connection.sendall(head(length(body)) + body)
        with httpx.Client(base_url=running.url, timeout=PATIENCE_SECONDS) as client:
            wait_for(lambda: samples(client)["tfllm_requests_in_flight",] == 4)
            for connection in gone:
                if reset:
                    connection.setsockopt(
                        socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                    )
                connection.close()
            wait_for(lambda: samples(client)["tfllm_requests_in_flight",] == 0)
            assert client.post(K, content=ASK).json() == SAID
            page = samples(client)
        assert page["tfllm_requests_total", "CANCELLED", "REST", "kinds", "predict"] == 4
        assert page["tfllm_rows_total", "kinds"] < 4 * 40


# ---- refusals that can be read

MIB = 1 << 20


@pytest.mark.parametrize("mebibytes", [2, 20, 64])
@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_413_reaches_a_client_that_sends_first_and_reads_then(running, mebibytes, framing):
    piece = b"x" * 65_536
    with socket.create_connection(("127.0.0.1", running.server.rest_port), 30) as connection:
        if framing == "length":
            connection.sendall(head(f"Content-Length: {mebibytes * MIB}"))
        else:
            connection.sendall(head("Transfer-Encoding: chunked"))
            piece = b"10000\r\n" + piece + b"\r\n"
        for _ in range(mebibytes * 16):
            connection.sendall(piece)
        if framing == "chunked":
            connection.sendall(b"0\r\n\r\n")
        answers = received(connection)
    assert answers.statuses == [413]
    assert f"longer than {MIB} bytes" in answers[0][1]["error"]
    assert b"connection: close" in answers.headers[0]


def test_413_comes_before_the_body(running):
    """At once, and without "100 Continue" for those who ask whether to send it."""
    for lines in ((), ("Expect: 100-continue",)):
        with socket.create_connection(("127.0.0.1", running.server.rest_port), 30) as connection:
            connection.sendall(head(*lines, f"Content-Length: {MIB + 1}"))
            assert received(connection).statuses == [413]


def test_a_body_that_is_asked_for_is_continued(talk):
    answers = talk(head("Expect: 100-continue", length(ASK)), ASK)
    assert answers == [(100, None), (200, SAID)]


@pytest.mark.parametrize(
    ("lines", "path", "status"),
    [
        ((), "/v1/models/kinds:nothing", 400),
        ((), "/nowhere", 404),
        ((), "/healthz", 405),
        (("Content-Encoding: br",), K, 415),
    ],
)
def test_a_refusal_without_the_body_ends_the_connection(talk, lines, path, status):
    """What follows could be the body or, where the client waited for 100, the next request."""
    lines = ("Expect: 100-continue", length(SMUGGLED), *lines)
    answers = talk(head(*lines, path=path), SMUGGLED)
    assert answers.statuses == [status]
    assert b"connection: close" in answers.headers[0]


def test_431_reaches_the_client(running):
    with socket.create_connection(("127.0.0.1", running.server.rest_port), 30) as connection:
        connection.sendall(head("X: " + "x" * 4 * MIB, length(ASK)) + ASK)
        answers = received(connection)
    assert answers.statuses == [431]
    assert "longer than 16384 bytes" in answers[0][1]["error"]


def test_every_refusal_is_json(client):
    cases = [
        ("GET", "/", 404), ("GET", "/v2/models", 404), ("POST", "/metrics", 405),
        ("DELETE", "/healthz", 405), ("PATCH", K, 400), ("OPTIONS", "*", 404),
        ("POST", "/v1/models", 400), ("POST", K, 400),
    ]  # fmt: skip
    for verb, path, status in cases:
        response = client.request(verb, path)
        assert response.status_code == status, (verb, path)
        assert response.headers["content-type"] == "application/json"
        assert list(response.json()) == ["error"]
        assert response.status_code != 405 or response.headers["allow"]
    assert client.head("/healthz").status_code == 200


def test_a_connection_that_lingers_is_closed(models_root):
    """A client that reads its refusal and does nothing more cannot hold the connection."""
    with serving(entries_of(models_root), limits=Limits(header_seconds=1.0)) as running:
        with socket.create_connection(("127.0.0.1", running.server.rest_port), 30) as connection:
            connection.sendall(head("Content-Length: 999999999"))
            assert connection.recv(4096).startswith(b"HTTP/1.1 413")
            while connection.recv(4096):
                pass

            def closed():
                try:
                    connection.sendall(b"x" * 1024)
                except OSError:
                    return True
                return False

            wait_for(closed)


# ---- what connections.py relies on
