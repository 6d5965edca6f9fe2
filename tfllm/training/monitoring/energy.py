"""An estimate of the electricity that a run uses, and of the CO2 emissions of producing it.

Measured by the processor's own counters (RAPL), or by the package codecarbon where it is installed
(`pip install 'tfllm[energy]'`), which reads GPUs too and assumes typical powers where there is no
counter. Nothing uses the network. A run never fails because of it: the summary says what could not
be measured.
"""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path
from typing import Any

RAPL = Path("/sys/class/powercap")
JOULES_PER_KILOWATT_HOUR = 3.6e6
SECONDS_BETWEEN_READINGS = 15
STARTING_SECONDS = 10  # codecarbon looks at the machine for one or two

NOTHING = (
    "Not measured: this machine shows no readable energy counter (RAPL), and the package "
    "codecarbon is not installed. Install it with: pip install 'tfllm[energy]'"
)


class EnergyCounters:
    """RAPL's counters of whole processor packages, which start again at a limit."""

    def __init__(self, folder: Path = RAPL):
        self.joules = 0.0
        self._zones = [
            zone
            for zone in sorted(folder.glob("intel-rapl:*"))
            if zone.name.count(":") == 1 and _number(zone / "energy_uj") is not None
        ]
        self._last = [_number(zone / "energy_uj") for zone in self._zones]

    def __bool__(self) -> bool:
        return bool(self._zones)

    def read(self) -> None:
        """Add what was used since the last reading; call it more often than they start again."""
        for index, zone in enumerate(self._zones):
            now, last = _number(zone / "energy_uj"), self._last[index]
            if now is None or last is None:
                continue
            limit = _number(zone / "max_energy_range_uj") or 0
            self.joules += (now - last + (limit if now < last else 0)) / 1e6
            self._last[index] = now


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


class EnergyMeter:
    """Measures from `start` to `stop`, in a background thread."""

    def __init__(self, grams_per_kilowatt_hour: float, folder: Path = RAPL):
        self.intensity = grams_per_kilowatt_hour
        self._folder = folder
        self._tracker: Any = None
        self._counters: EnergyCounters | None = None
        self._problem = ""
        self._stopped = threading.Event()
        self._started = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="energy", daemon=True)

    def start(self) -> EnergyMeter:
        """Start measuring."""
        self._thread.start()
        return self

    def stop(self) -> dict[str, Any]:
        """Stop, and return kilowatt_hours, co2_grams (or None), method, seconds, note."""
        seconds = time.monotonic() - self._started
        self._stopped.set()
        self._thread.join(STARTING_SECONDS)
        try:
            used, method = self._used()
        except Exception as error:  # codecarbon's own faults, of any kind, must not end a run
            used, method, self._problem = None, None, f"Not measured: {error}"
        if used is None:
            note = self._problem or NOTHING
            return {
                "estimate": True, "kilowatt_hours": None, "co2_grams": None, "method": None,
                "note": note,
            }  # fmt: skip
        return {
            "estimate": True,
            "kilowatt_hours": used,
            "co2_grams": used * self.intensity,
            "grams_per_kilowatt_hour": self.intensity,
            "seconds": round(seconds, 1),
            "method": method,
            "note": "An estimate, of this process or processor alone, since the run's start or its "
            "last --resume: without cooling, network and manufacture of the machine.",
        }

    def _used(self) -> tuple[float | None, str | None]:
        if self._tracker is not None:
            self._tracker.stop()
            data = self._tracker.final_emissions_data
            return float(data.energy_consumed), _codecarbon_method(self._tracker, data)
        if self._counters:
            self._counters.read()
            joules = self._counters.joules
            return joules / JOULES_PER_KILOWATT_HOUR, "RAPL counters of the processor packages"
        return None, None

    def _run(self) -> None:
        try:
            self._tracker = _codecarbon()
        except Exception as error:  # as above: it looks at sensors of all kinds
            self._problem = f"Not measured: codecarbon says: {error}"
        if self._tracker is None:
            self._counters = EnergyCounters(self._folder)
            while self._counters and not self._stopped.wait(SECONDS_BETWEEN_READINGS):
                self._counters.read()


def _codecarbon() -> Any:
    """A started tracker of this process, offline; None where the package is not installed."""
    try:
        from codecarbon import OfflineEmissionsTracker
    except ImportError:
        return None
    logging.getLogger("codecarbon").setLevel(logging.CRITICAL)
    tracker = OfflineEmissionsTracker(
        country_iso_code="USA",  # required; CO2 is computed here, by train.carbon_intensity
        measure_power_secs=SECONDS_BETWEEN_READINGS,
        tracking_mode="process",
        save_to_file=False,
        allow_multiple_runs=True,
        log_level="critical",
    )
    tracker.start()
    return tracker


def _codecarbon_method(tracker: Any, data: Any) -> str:
    parts = []
    for device in getattr(tracker, "_hardware", []):
        mode = getattr(device, "_mode", None)
        parts.append(type(device).__name__ + (f" by {mode}" if mode else ""))
    return f"codecarbon {data.codecarbon_version}, this process: {', '.join(parts)}"
