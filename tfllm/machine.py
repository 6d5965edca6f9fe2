"""What measured numbers depend on beside the model: versions of packages, and the machine."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

from tfllm.version import __version__

CPU_INFO = Path("/proc/cpuinfo")
PACKAGES = (
    "keras", "tensorflow", "tensorflow-text", "ai-edge-litert", "numpy", "tokenizers",
    "safetensors", "sacrebleu", "rouge-score",
)  # fmt: skip


def version_of(package: str) -> str | None:
    """Return the version of an installed package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def versions() -> dict[str, str]:
    """Return the versions of tfllm, Python, and the packages that a number depends on."""
    installed = {package: version_of(package) for package in PACKAGES}
    return {
        "tfllm": __version__,
        "python": platform.python_version(),
        **{package: version for package, version in installed.items() if version is not None},
    }


def machine() -> dict[str, Any]:
    """Return `processor`, `cores`, `usable_cores` (of this process) and `system`."""
    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "usable_cores": usable_cores(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def processor() -> str:
    """Return the processor's name."""
    return _cpu_info().get("model name") or platform.processor() or platform.machine()


def cpu_flags() -> frozenset[str]:
    """Return the processor's features by Linux's names; empty on other systems."""
    info = _cpu_info()
    return frozenset((info.get("flags") or info.get("Features") or "").split())


def usable_cores() -> int | None:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _cpu_info() -> dict[str, str]:
    """What Linux says of the first core; empty on other systems."""
    try:
        lines = CPU_INFO.read_text(errors="replace").splitlines()
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in reversed(lines) if ":" in line)
    return {name.strip(): value.strip() for name, value in pairs}
