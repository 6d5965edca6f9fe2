"""tfllm doctor: what is installed here, what this machine can do, and what does not fit."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from pathlib import Path
from typing import Annotated, Any

import typer

from tfllm import machine

EXAMPLES = """Examples:

tfllm doctor

tfllm doctor --json > machine.json
"""

PACKAGE = "tfllm"
DATA_VARIABLE = "TFLLM_DATA"
THREAD_VARIABLES = ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS")
LEAST_FREE_GIGABYTES = 1.0  # a run with states and one export of a small encoder

# Groups of packages for those who work on tfllm itself; users need none of them.
DEVELOPER_EXTRAS = ("test", "parity", "bench", "docs", "all")

# Features of the processor: the name shown, and Linux's flags, of which one is enough.
CPU_FEATURES = {
    "AVX2": ("avx2",),
    "AVX-512": ("avx512f",),
    "bfloat16": ("avx512_bf16", "amx_bf16"),
    "AMX": ("amx_tile",),
    "VNNI": ("avx512_vnni", "avx_vnni"),
}


def doctor(json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False) -> None:
    """Print versions, extras, processor, GPUs, threads, precision, disk and data on one screen.

    The exit status is 1 where something does not fit, and the last lines say what to do.
    """
    import json as json_package

    facts = examine()
    if json:
        print(json_package.dumps(facts, indent=2, ensure_ascii=False))
    else:
        print("\n".join(_lines(facts)))
    if facts["problems"]:
        raise typer.Exit(1)


def examine() -> dict[str, Any]:
    """Return what is installed here, what the machine can do, and `problems`: a list of texts."""
    packages, extras = _requirements()
    facts: dict[str, Any] = {
        "tfllm": machine.version_of(PACKAGE),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "packages": packages,
        "extras": extras,
        "cpu": _cpu(),
        "threads": _threads(),
        **_tensorflow(),
        "disk_free_gigabytes": round(shutil.disk_usage(".").free / 1e9, 1),
        "data": os.environ.get(DATA_VARIABLE),
    }
    return {**facts, "problems": _problems(facts)}


def _requirements() -> tuple[dict[str, dict[str, Any]], dict[str, list[str]]]:
    """The packages that tfllm needs, with the range tested, and what each extra misses."""
    from packaging.requirements import Requirement

    needed: dict[str, dict[str, Any]] = {}
    missing: dict[str, list[str]] = {}
    metadata = importlib.metadata.metadata(PACKAGE)
    extras = list(metadata.get_all("Provides-Extra") or ())
    for line in importlib.metadata.requires(PACKAGE) or ():
        requirement = Requirement(line)
        installed = machine.version_of(requirement.name)
        fits = installed is not None and requirement.specifier.contains(installed, prereleases=True)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            tested = str(requirement.specifier) or "any"
            needed[requirement.name] = {"installed": installed, "tested": tested, "fits": fits}
            continue
        for extra in extras:
            if extra in DEVELOPER_EXTRAS or not requirement.marker.evaluate({"extra": extra}):
                continue
            missing.setdefault(extra, [])
            if not fits:
                missing[extra].append(requirement.name if installed is None else line.split(";")[0])
    return needed, missing


def _cpu() -> dict[str, Any]:
    """The processor's name, cores, and features: None where the system does not tell them."""
    flags = machine.cpu_flags()
    return {
        "name": machine.processor(),
        "cores": os.cpu_count(),
        "features": {
            name: any(flag in flags for flag in wanted) if flags else None
            for name, wanted in CPU_FEATURES.items()
        },
    }


def _threads() -> dict[str, Any]:
    """How many processors this process may use, and the variables that limit threads."""
    limits = {name: os.environ[name] for name in THREAD_VARIABLES if name in os.environ}
    return {"usable": machine.usable_cores(), **limits}


def _tensorflow() -> dict[str, Any]:
    """The GPUs that TensorFlow sees, Keras' backend, and what `precision: auto` takes here."""
    try:
        import keras
        import tensorflow as tf

        from tfllm.training.acceleration import precision

        gpus = [
            tf.config.experimental.get_device_details(gpu).get("device_name", gpu.name)
            for gpu in tf.config.list_physical_devices("GPU")
        ]
        chosen, backend = precision.choose("auto"), keras.backend.backend()
    except Exception as error:  # a broken installation fails in many ways; all are reported alike
        return {"backend": None, "gpus": [], "precision_auto": None, "import_error": _line(error)}
    return {"backend": backend, "gpus": gpus, "precision_auto": chosen, "import_error": None}


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"


def _problems(facts: dict[str, Any]) -> list[str]:
    problems = []
    if facts["import_error"]:
        problems.append(
            f"TensorFlow cannot be imported ({facts['import_error']}). "
            "Install tfllm into a new virtual environment."
        )
    for name, package in facts["packages"].items():
        if not package["fits"]:
            status = f"is {package['installed']}" if package["installed"] else "is not installed"
            problems.append(
                f"{name} {status}, and tfllm was tested with {package['tested']}. "
                f"Install it: pip install '{name}{package['tested'].removesuffix('any')}'"
            )
    if facts["cpu"]["features"]["AVX2"] is False and platform.machine() in ("x86_64", "AMD64"):
        problems.append("The processor has no AVX2, which TensorFlow's packages are built for.")
    if facts["disk_free_gigabytes"] < LEAST_FREE_GIGABYTES:
        problems.append(f"{facts['disk_free_gigabytes']} GB of disk are free here. Make room.")
    if facts["data"] and not Path(facts["data"]).is_dir():
        problems.append(
            f"{DATA_VARIABLE} names '{facts['data']}', which is no directory. Correct it."
        )
    return problems


def _lines(facts: dict[str, Any]) -> list[str]:
    """The screen: a name and a value a line."""
    core = {name: facts["packages"].get(name, {}) for name in ("tensorflow", "keras")}
    versions = "  ".join(f"{name} {package.get('installed')}" for name, package in core.items())
    complete = [name for name, missing in facts["extras"].items() if not missing]
    features = facts["cpu"]["features"]
    usable, *limits = facts["threads"].items()
    rows = [
        ("tfllm", f"{facts['tfllm']}  python {facts['python']}  {versions}"),
        ("system", facts["system"]),
        ("processor", f"{facts['cpu']['name']}, {facts['cpu']['cores']} cores"),
        ("", ", ".join(f"{name} {_yes(has)}" for name, has in features.items())),
        ("threads", "  ".join([f"{usable[1]} usable", *(f"{name}={n}" for name, n in limits)])),
        ("GPUs", ", ".join(facts["gpus"]) or "none that TensorFlow sees"),
        ("backend", f"{facts['backend']}; precision: auto takes {facts['precision_auto']}"),
        ("disk", f"{facts['disk_free_gigabytes']} GB free in {Path.cwd()}"),
        ("data", facts["data"] or f"{DATA_VARIABLE} is not set (recipes on public data need it)"),
        ("extras", f"{', '.join(complete) or 'none'} installed"),
    ]
    rows += [
        ("", f"{name}: {', '.join(missing)} missing; pip install '{PACKAGE}[{name}]'")
        for name, missing in facts["extras"].items()
        if missing
    ]
    fits = f"No problem found: all {len(facts['packages'])} packages are in their tested ranges."
    verdict = [f"Problem: {text}" for text in facts["problems"]] or [fits]
    return [*(f"{name:<11}{value}" for name, value in rows), "", *verdict]


def _yes(has: bool | None) -> str:
    return {True: "yes", False: "no", None: "unknown"}[has]


COMMANDS = {"": doctor}
