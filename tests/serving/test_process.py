"""The command as a process: it starts, says where, drains on SIGTERM, and leaves with 0."""

import os
import re
import signal
import subprocess
import sys
import threading

import httpx
import pytest

from tests.serving.conftest import PATIENCE_SECONDS, until

K = "/v1/models/kinds:predict"
SLOW = {"signature_name": "slow", "instances": ["SECRET"]}


class Process:
    """`tfllm serve` on free ports; ended by its own process id."""

    def __init__(self, *arguments):
        command = [sys.executable, "-m", "tfllm", "serve", "--rest-port", "0", "--grpc-port", "0"]
        self.process = subprocess.Popen(
            [*command, *map(str, arguments)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": "-1"},
        )  # fmt: skip
        self.line = self.process.stdout.readline()
        self.url = re.search(r"rest=(\S+)", self.line)[1]

    def __enter__(self):
        until(lambda: self.readiness() == 200)
        return self

    def __exit__(self, *exception):
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def readiness(self):
        """The status of /readyz; None where nobody listens any more."""
        try:
            return httpx.get(f"{self.url}/readyz").status_code
        except httpx.TransportError:
            return None

    def terminate(self):
        self.process.send_signal(signal.SIGTERM)

    def end(self):
        """Exit status and what was logged."""
        _, log = self.process.communicate(timeout=PATIENCE_SECONDS)
        return self.process.returncode, log


def test_drain(models_root):
    """In flight at SIGTERM: answered. New ones meanwhile: answered. Then status 0."""
    arguments = ("--config", models_root / "models.config", "--lame-duck", "0.5", "--access-log")
    with Process(*arguments) as server:
        assert re.fullmatch(
            r"rest=http://127\.0\.0\.1:\d+ grpc=\S+ models=toy,kinds\n", server.line
        )
        httpx.post(f"{server.url}{K}", json=SLOW, timeout=PATIENCE_SECONDS)
        answers = []

        def ask():
            with httpx.Client(base_url=server.url, timeout=PATIENCE_SECONDS) as client:
                for _ in range(2):
                    try:
                        answers.append(client.post(K, json=SLOW).status_code)
                    except httpx.TransportError:
                        return  # closed for new connections: nothing was lost

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        until(lambda: len(answers) >= 1)
        server.terminate()
        until(lambda: server.readiness() in (503, None))
        for thread in threads:
            thread.join()
        status, log = server.end()
    assert status == 0
    assert len(answers) >= 8 and set(answers) == {200}
    assert "SECRET" not in log
    assert '"message": "stopped"' in log


@pytest.mark.slow
def test_a_second_signal_ends_it_now(models_root):
    with Process(models_root / "kinds", "--lame-duck", "600") as server:
        server.terminate()
        until(lambda: server.readiness() == 503)
        server.terminate()
        status, _ = server.end()
    assert status == 128 + signal.SIGTERM


@pytest.mark.slow
def test_ctrl_c(models_root):
    with Process(models_root / "kinds", "--lame-duck", "0") as server:
        server.process.send_signal(signal.SIGINT)
        status, _ = server.end()
    assert status == 0
