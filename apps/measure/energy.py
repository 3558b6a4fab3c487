"""Energy, where the system tells: of the processor's packages (Linux's powercap, RAPL), else of the battery.

RAPL counts microjoules of whole packages: what other programs use is in it. Most systems let root alone read them. A
battery that nothing charges says µA and µV (Linux's power supply class, which Android has too), or µW: the whole
device, screen and radios included. Its sign differs from driver to driver, so that ``status`` says which way it flows.
"""

from __future__ import annotations

import time
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")
SUPPLIES = Path("/sys/class/power_supply")
SECOND = 1.0
"""Of a battery: gauges renew their numbers a few times a second at most, so a shorter lap says nothing."""


class EnergyMeter:
    """Joules between two calls of ``lap``, of ``what``. ``why`` says why there are none; empty where there are."""

    def __init__(self, powercap: Path = POWERCAP, supplies: Path = SUPPLIES) -> None:
        self._packages = Packages(powercap)
        self._battery = Battery(supplies)
        self._of: Packages | Battery = self._packages if not self._packages.why else self._battery
        self.what = self._of.what
        both = f"{self._packages.why}, and {self._battery.why}"
        self.why = f"unavailable: {both}" if self._of.why else ""

    def lap(self) -> float | None:
        """Joules since the last call, or since it was made; None where the system does not tell."""
        return None if self.why else self._of.lap()


class Packages:
    """The counters of all packages."""

    what = "whole processor"

    def __init__(self, folder: Path) -> None:
        domains = sorted(folder.glob("*-rapl:?"))  # packages; their parts have another colon
        self._files: list[tuple[Path, int]] = []
        self.why = "" if domains else "this system has no RAPL counters"
        for domain in domains:
            most = _number(domain / "max_energy_range_uj")
            if most is None or _number(domain / "energy_uj") is None:
                self.why = "the RAPL counters cannot be read (they are root's)"
                break
            self._files.append((domain / "energy_uj", most))
        self._last = self._read()

    def lap(self) -> float | None:
        """As ``EnergyMeter.lap``."""
        before, self._last = self._last, self._read()
        pairs = list(zip(self._last, before, self._files, strict=True))
        if any(new is None or old is None for new, old, _ in pairs):
            return None
        return sum(((new or 0) - (old or 0)) % most for new, old, (_, most) in pairs) / 1e6

    def _read(self) -> list[int | None]:
        return [_number(path) for path, _ in self._files]


class Battery:
    """The device's own batteries, while none of them is charged: the mean power of a lap's ends, times its time."""

    what = "whole device"

    def __init__(self, folder: Path) -> None:
        self._folders = [path for path in sorted(folder.glob("*")) if _is_battery(path)]
        self._last = (time.monotonic(), self._watts())
        self.why = ""
        if not self._folders:
            self.why = "no battery that says its current and voltage"
        elif self._last[1] is None:
            self.why = "its battery does not discharge; take it off the charger"

    def lap(self) -> float | None:
        """As ``EnergyMeter.lap``; None where it was charged, or the lap was shorter than ``SECOND``."""
        (began, before), self._last = self._last, (time.monotonic(), self._watts())
        ended, after = self._last
        if before is None or after is None or ended - began < SECOND:
            return None
        return (before + after) / 2 * (ended - began)

    def _watts(self) -> float | None:
        found = 0.0
        for folder in self._folders:
            power = _power(folder)
            if _text(folder / "status") != "Discharging" or power is None:
                return None
            found += power
        return found if self._folders else None


def _is_battery(folder: Path) -> bool:
    """Whether it is one of this device, not of a mouse or a headset, and says its power."""
    return (
        _text(folder / "type") == "Battery"
        and _text(folder / "scope") != "Device"
        and _text(folder / "present") != "0"
        and _power(folder) is not None
    )


def _power(folder: Path) -> float | None:
    """Watts, whatever its sign."""
    if (microwatts := _number(folder / "power_now")) is not None:
        return abs(microwatts) / 1e6
    current, voltage = _number(folder / "current_now"), _number(folder / "voltage_now")
    return None if current is None or voltage is None else abs(current) / 1e6 * abs(voltage) / 1e6


def _number(path: Path) -> int | None:
    try:
        return int(_text(path))
    except ValueError:
        return None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""
