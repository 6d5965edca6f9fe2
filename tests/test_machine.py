"""Versions and machine, as results and runs record them."""

import numpy as np
import pytest

from tfllm import machine
from tfllm.version import __version__

INTEL = "processor\t: 0\nmodel name\t: Some CPU @ 2 GHz: v2\nflags\t: fpu avx2\n\nprocessor\t: 1\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd\n"


def test_versions_are_those_of_installed_packages():
    versions = machine.versions()
    assert list(versions)[:2] == ["tfllm", "python"]
    assert (versions["tfllm"], versions["numpy"]) == (__version__, np.__version__)
    assert machine.version_of("no-such-package") is None
    assert "no-such-package" not in versions


@pytest.mark.parametrize(
    ("text", "name", "flags"),
    [(INTEL, "Some CPU @ 2 GHz: v2", {"fpu", "avx2"}), (ARM, None, {"fp", "asimd"})],
)
def test_the_processor_is_that_of_the_system(text, name, flags, tmp_path, monkeypatch):
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(machine, "CPU_INFO", tmp_path / "cpuinfo")
    assert machine.cpu_flags() == flags
    assert machine.processor() == name or name is None
    assert set(machine.machine()) == {"processor", "cores", "usable_cores", "system"}


def test_other_systems_have_a_name_and_no_flags(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "CPU_INFO", tmp_path / "missing")
    assert machine.cpu_flags() == frozenset()
    assert machine.processor()
