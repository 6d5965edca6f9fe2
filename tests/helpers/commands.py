"""The `tfllm` command inside the test's process, and waiting for other processes."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable

import pytest

from tfllm.cli import main


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of `tfllm ARGUMENTS`."""
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    return stopped.value.code, printed.out, printed.err


def wait_for(
    condition: Callable[[], object],
    process: subprocess.Popen[str] | None = None,
    seconds: float = 240,
) -> None:
    """Wait for a condition; fail where the process ends or the time is over before it."""
    end = time.monotonic() + seconds
    while not condition():
        assert process is None or process.poll() is None, process.stderr.read()
        assert time.monotonic() < end, f"nothing happened in {seconds} seconds"
        time.sleep(0.05)
