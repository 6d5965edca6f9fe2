"""Signals that ask a run to save its state: Ctrl-C, SIGTERM, and a terminal that goes."""

import fcntl
import json
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from tests.helpers import recipes
from tests.helpers.waiting import wait_for
from tests.training.test_command import write_recipe
from tfllm.training import stopping

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_heard_once(number):
    before = signal.getsignal(number)
    with stopping.catch_stop_signals() as stop:
        assert stop.signal is None and signal.getsignal(number) != before
        os.kill(os.getpid(), number)
        assert stop.signal == number
        assert signal.getsignal(number) == before  # a second one ends the process
    assert signal.getsignal(number) == before


def test_an_ignored_hangup_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stopping.catch_stop_signals() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.signal is None
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


LOST = """
import os, sys, time
from tfllm.training import stopping
with stopping.catch_stop_signals() as stop:
    print("ready", flush=True)
    while stop.signal is None:
        time.sleep(0.05)
print("after the end of the terminal", flush=True)
sys.stderr.write("and on stderr")
sys.stderr.flush()
open(sys.argv[1], "w").write(str(int(stop.signal)))
"""


def on_terminal(command):
    """The command with a terminal of its own as its controlling one, and our end of it."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, cwd=ROOT, start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"},
    )  # fmt: skip
    os.close(theirs)
    return process, ours


def test_a_lost_terminal_is_no_error(tmp_path):
    process, ours = on_terminal([sys.executable, "-c", LOST, str(tmp_path / "signal")])
    assert os.read(ours, 5) == b"ready"
    os.close(ours)
    assert process.wait(60) == 0
    assert (tmp_path / "signal").read_text() == str(int(signal.SIGHUP))


@pytest.mark.slow
def test_a_run_whose_terminal_goes_has_saved_its_state(tmp_path):
    recipes.write_data(tmp_path / "data")
    recipe = write_recipe(tmp_path / "data", train={"epochs": 500})
    output = tmp_path / "run"
    command = [sys.executable, "-m", "tfllm", "train", str(recipe), "--output", str(output)]
    process, ours = on_terminal(command)
    end = time.monotonic() + 240
    os.set_blocking(ours, False)
    while not (output / "metrics.jsonl").exists():
        try:
            os.read(ours, 65536)  # else the bar fills it
        except BlockingIOError:
            time.sleep(0.1)
        assert process.poll() is None and time.monotonic() < end
    os.close(ours)
    assert process.wait(120) == 0
    progress = max((output / "state").glob("step-*/progress.json"))
    assert json.loads(progress.read_text())["step"] > 0


@pytest.mark.slow
def test_a_run_under_nohup_goes_on(tmp_path):
    recipes.write_data(tmp_path / "data")
    recipe = write_recipe(tmp_path / "data", train={"epochs": 500, "log_every": 1})
    output = tmp_path / "run"
    process = subprocess.Popen(
        ["nohup", sys.executable, "-m", "tfllm", "train", str(recipe), "--output", str(output)],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    metrics = output / "metrics.jsonl"
    wait_for(metrics.exists, process)
    process.send_signal(signal.SIGHUP)
    before = len(metrics.read_text().splitlines())
    wait_for(lambda: len(metrics.read_text().splitlines()) > before + 3, process)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode == 0
