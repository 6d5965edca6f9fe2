"""Workers wait for one another with a limit and a way out."""

import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
import yaml

from tests.helpers import recipes
from tests.training.strategy_runs import ROOT, environment
from tfllm.cli.launch import _free_ports
from tfllm.errors import SettingError
from tfllm.training.distribution import rendezvous
from tfllm.training.distribution.cluster import Cluster

SECONDS = 60  # for what should take a moment, on a machine with other work


def cluster(index, count=2):
    return Cluster(tuple(f"127.0.0.1:{port}" for port in _free_ports(count)), index)


def test_workers_meet():
    all_three = cluster(0, 3)
    done = []

    def meet(index):
        rendezvous.wait_for_workers(Cluster(all_three.addresses, index), SECONDS)
        done.append(index)

    others = [threading.Thread(target=meet, args=(index,)) for index in (1, 2)]
    others[0].start()
    time.sleep(0.3)
    assert not done  # one of two others is not there yet
    others[1].start()
    meet(0)
    for each in others:
        each.join(SECONDS)
    assert sorted(done) == [0, 1, 2]


def test_who_does_not_come_is_named_after_the_limit():
    alone = cluster(0, 3)
    with socket.create_server(("127.0.0.1", int(alone.addresses[1].rpartition(":")[2]))):
        call = threading.Timer(0.1, lambda: rendezvous._call(Cluster(alone.addresses, 1), 0))
        call.start()
        with pytest.raises(SettingError) as raised:
            rendezvous.wait_for_workers(alone, 0.5)
    message = str(raised.value)
    assert "TF_CONFIG: after 0.5 seconds" in message and "train.worker_timeout" in message
    assert f"worker 2 ({alone.addresses[2]})" in message and alone.addresses[1] not in message


def test_a_worker_with_other_addresses_is_told():
    two = cluster(0)
    other = Cluster((two.addresses[0], "127.0.0.1:1"), 1)
    call = threading.Timer(0.2, lambda: rendezvous._call(other, 0))
    call.start()
    with pytest.raises(SettingError, match="was given other addresses than this one"):
        rendezvous.wait_for_workers(two, SECONDS)


def test_calls_of_others_are_not_taken_for_workers():
    two = cluster(0)

    def call():
        with socket.create_connection(("127.0.0.1", int(two.addresses[0].rpartition(":")[2]))) as c:
            c.sendall(b"GET / HTTP/1.1\r\n\r\n")

    timer = threading.Timer(0.2, call)
    timer.start()
    with pytest.raises(SettingError, match="no answer from worker 1"):
        rendezvous.wait_for_workers(two, 1.0)


@pytest.mark.parametrize("host", ["127.0.0.1", ""])
def test_a_port_in_use_is_named(host):
    two = cluster(1)
    port = int(two.addresses[1].rpartition(":")[2])
    with socket.create_server((host, port)):
        with pytest.raises(SettingError, match=rf"TF_CONFIG: port {port} of .* is in use"):
            rendezvous.wait_for_workers(two, 0.1)


def test_a_wait_for_others_hears_signals():
    class Heard(Exception):
        pass

    def handle(number, frame):
        raise Heard

    never = threading.Event()
    before = signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(Heard):
            rendezvous.run_interruptibly(lambda: never.wait(SECONDS))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        never.set()
    assert rendezvous.run_interruptibly(lambda: 3) == 3
    with pytest.raises(ZeroDivisionError):
        rendezvous.run_interruptibly(lambda: 1 // 0)


# Waits in C with Python's lock held, as TensorFlow does while workers connect.
LOCKED = """
import ctypes, sys
from tfllm.training.distribution import rendezvous
from tfllm.training.distribution.cluster import Cluster
with rendezvous.default_signals(Cluster(("a:1", "b:2"), 0), float(sys.argv[1])):
    print("waits", flush=True)
    if len(sys.argv) > 2:
        ctypes.PyDLL(None).sleep(100)
print("met", flush=True)
"""


def locked(*arguments):
    return subprocess.Popen(
        [sys.executable, "-c", LOCKED, *arguments], cwd=ROOT, env=environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_wait_that_hears_nothing_is_ended(number):
    process = locked("100", "sleep")
    assert process.stdout.readline() == "waits\n"
    process.send_signal(number)
    assert process.wait(SECONDS) == -number


def test_a_wait_that_hears_nothing_has_a_limit():
    process = locked("0.5", "sleep")
    _, error = process.communicate(timeout=SECONDS)
    assert process.returncode == -signal.SIGTERM
    assert "worker 0 (a:1) has met the others, but they have not connected within 0.5 sec" in error
    process = locked("100")
    out, error = process.communicate(timeout=SECONDS)
    assert (process.returncode, out, error) == (0, "waits\nmet\n", "")


@pytest.fixture
def waiting(tmp_path):
    """`tfllm train` as the worker 0 of two, of which the other one does not come."""
    folder = recipes.write_data(tmp_path / "data")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(recipes.settings(folder)))

    def start(*more, own_port=None):
        two = cluster(0)
        if own_port is not None:
            two = Cluster((f"127.0.0.1:{own_port}", two.addresses[1]), 0)
        process = subprocess.Popen(
            [sys.executable, "-m", "tfllm", "train", str(recipe), "--output", tmp_path / "run",
             *more],
            cwd=ROOT, env=environment(TF_CONFIG=two.tf_config()), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        return process, two

    return start


@pytest.mark.slow
def test_a_worker_whose_others_do_not_come_ends(waiting, tmp_path):
    process, two = waiting("--set", "train.worker_timeout=1")
    _, error = process.communicate(timeout=5 * SECONDS)
    assert process.returncode == 2, error
    assert f"no answer from worker 1 ({two.addresses[1]})" in error and "Traceback" not in error
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_waiting_worker_can_be_stopped(waiting, tmp_path, number, status):
    process, _ = waiting()
    for line in process.stderr:
        if "waiting for the others" in line:
            break
    process.send_signal(number)
    _, error = process.communicate(timeout=SECONDS)
    assert process.returncode == status and "Traceback" not in error, error
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_worker_whose_port_is_in_use_ends(waiting):
    with socket.create_server(("", 0)) as other:
        port = other.getsockname()[1]
        process, two = waiting(own_port=port)
        _, error = process.communicate(timeout=5 * SECONDS)
    assert process.returncode == 2, error
    assert f"TF_CONFIG: port {port}" in error and two.addresses[0] in error
    assert "in use" in error and "Traceback" not in error
