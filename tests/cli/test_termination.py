"""SIGTERM ends a command with 143 and nothing on stderr, whatever Python was doing when it came;
SIGHUP with 129, unless it is ignored."""

import subprocess
import sys

import pytest

# What happens in the command, and what it prints before it ends.
PLACES = {
    "in the open": ("stop()", ""),
    "dropped by C++": (
        "try:\n    stop()\nexcept SystemExit:\n    print('not heard', flush=True)\ntime.sleep(50)",
        "not heard\n",
    ),
    "made another exception by C++": (
        "try:\n    stop()\nexcept SystemExit:\n    raise RuntimeError('in a traced function')",
        "",
    ),
    "in a finalizer": (
        "class Last:\n    def __del__(self):\n        stop()\nLast()\n"
        "print('collected', flush=True)\ntime.sleep(50)",
        "collected\n",
    ),
    "while files are removed for longer than it waits": (
        "try:\n    stop()\nfinally:\n    time.sleep(3)\n    print('removed', flush=True)",
        "removed\n",
    ),
}
COMMAND = """
import os, signal, sys, time
from tfllm import cli
def stop(number=signal.SIGTERM):
    os.kill(os.getpid(), number)
def verb(arguments, prog_name, standalone_mode=True):
    exec(sys.argv[1], globals())
cli._application = lambda name: verb
cli.main(['inspect'])
"""


def ended(happens, before=()):
    return subprocess.run(
        [*before, sys.executable, "-c", COMMAND, happens],
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )


@pytest.mark.parametrize("place", PLACES)
def test_it_arrives(place):
    happens, printed = PLACES[place]
    process = ended(happens)
    assert (process.returncode, process.stdout, process.stderr) == (143, printed, "")


def test_a_fault_without_it_stays_a_fault():
    process = ended("raise RuntimeError('ours')")
    assert process.returncode == 1 and "RuntimeError: ours" in process.stderr


def test_a_terminal_that_goes_ends_a_command_too():
    happens = "try:\n    stop(signal.SIGHUP)\nfinally:\n    print('removed', flush=True)"
    process = ended(happens)
    assert (process.returncode, process.stdout, process.stderr) == (129, "removed\n", "")


def test_under_nohup_it_does_not():
    process = ended("stop(signal.SIGHUP)\nprint('goes on', flush=True)", before=["nohup"])
    assert process.returncode == 0 and process.stdout == "goes on\n"
