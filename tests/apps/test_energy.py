"""Joules of a turn: counters of packages that wrap, and batteries whose gauges have any sign, in a made /sys."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeloop.apps.measure import energy
from edgeloop.apps.measure.energy import EnergyMeter


def supply(folder: Path, name: str, **files: object) -> Path:
    """A power supply with such files."""
    (folder / name).mkdir(parents=True, exist_ok=True)
    for file, value in files.items():
        (folder / name / file).write_text(f"{value}\n")
    return folder / name


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which the test sets."""
    now = [100.0]
    monkeypatch.setattr(energy.time, "monotonic", lambda: now[0])
    return now


PHONE = {"type": "Battery", "status": "Discharging", "current_now": -1_500_000, "voltage_now": 4_000_000}
"""6 W, as the kernel documents it: µA, µV, negative while it discharges."""


def test_packages_are_added_up_and_wrap(tmp_path: Path) -> None:
    for name in ("intel-rapl:0", "intel-rapl:1", "intel-rapl:0:0"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "max_energy_range_uj").write_text("1000000\n")
        (tmp_path / name / "energy_uj").write_text("900000\n")
    none = tmp_path / "none"
    meter = EnergyMeter(tmp_path, none)
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("100000\n")
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("950000\n")
    assert (meter.lap(), meter.why, meter.what) == (pytest.approx(0.25), "", "whole processor")
    assert meter.lap() == 0
    (tmp_path / "intel-rapl:1" / "energy_uj").unlink()
    assert meter.lap() is None
    assert EnergyMeter(tmp_path, none).why.startswith("unavailable: the RAPL counters cannot be read")
    empty = EnergyMeter(none, none)
    wanted = "unavailable: this system has no RAPL counters, and no battery that says its current and voltage"
    assert (empty.lap(), empty.why) == (None, wanted)


def test_a_battery_is_power_times_time(tmp_path: Path, clock: list[float]) -> None:
    """6 W at the beginning of 3 seconds and 8 W at their end."""
    phone = supply(tmp_path, "battery", **PHONE)
    supply(tmp_path, "usb", type="USB", current_now=900_000, voltage_now=5_000_000)
    supply(tmp_path, "mouse", **PHONE, scope="Device")
    meter = EnergyMeter(tmp_path / "none", tmp_path)
    clock[0] += 3
    (phone / "current_now").write_text("-2000000\n")
    assert (meter.lap(), meter.why, meter.what) == (pytest.approx(21.0), "", "whole device")
    clock[0] += 0.5
    assert meter.lap() is None  # sooner than the gauge says anything new
    clock[0] += 2
    (phone / "status").write_text("Charging\n")
    assert meter.lap() is None
    clock[0] += 2
    assert meter.lap() is None  # it was charged when this lap began


@pytest.mark.parametrize("files", [{"current_now": 1_500_000}, {"power_now": 6_000_000, "current_now": "?"}])
def test_signs_and_units_of_drivers(files: dict[str, object], tmp_path: Path, clock: list[float]) -> None:
    """Older drivers are positive either way; a laptop may say µW alone."""
    supply(tmp_path, "BAT0", **(PHONE | files))
    meter = EnergyMeter(tmp_path / "none", tmp_path)
    clock[0] += 2
    assert meter.lap() == pytest.approx(12.0)


def test_two_batteries_are_one_device(tmp_path: Path, clock: list[float]) -> None:
    for name in ("BAT0", "BAT1"):
        supply(tmp_path, name, **PHONE)
    meter = EnergyMeter(tmp_path / "none", tmp_path)
    clock[0] += 1
    assert meter.lap() == pytest.approx(12.0)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"status": "Charging"}, "its battery does not discharge; take it off the charger"),
        ({"status": "Full"}, "does not discharge"),
        ({"voltage_now": "none"}, "no battery that says its current and voltage"),
        ({"present": 0}, "no battery that says"),
        ({"type": "Mains"}, "no battery that says"),
    ],
)
def test_what_says_nothing_is_unavailable(files: dict[str, object], said: str, tmp_path: Path) -> None:
    supply(tmp_path, "battery", **(PHONE | files))
    meter = EnergyMeter(tmp_path / "none", tmp_path)
    assert meter.lap() is None
    assert meter.why.startswith("unavailable: this system has no RAPL counters, and ")
    assert said in meter.why
