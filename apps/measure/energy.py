"""Energy of the processor's packages, where the system tells: Linux's powercap (RAPL), in microjoules.

The counters are of whole packages: what other programs use is in it. Most systems let root alone read them.
"""

from __future__ import annotations

from pathlib import Path

POWERCAP = Path("/sys/class/powercap")


class EnergyMeter:
    """Counters of all packages. ``why`` says why there are none; empty where there are."""

    def __init__(self, folder: Path | None = None) -> None:
        domains = sorted((folder or POWERCAP).glob("*-rapl:?"))  # packages; their parts have another colon
        self._files: list[tuple[Path, int]] = []
        self.why = "" if domains else "unavailable: this system has no RAPL counters"
        for domain in domains:
            try:
                most = int((domain / "max_energy_range_uj").read_text(encoding="ascii"))
                int((domain / "energy_uj").read_text(encoding="ascii"))
            except (OSError, ValueError):
                self.why = "unavailable: the RAPL counters cannot be read (they are root's)"
                self._files = []
                break
            self._files.append((domain / "energy_uj", most))
        self._last = self._read()

    def lap(self) -> float | None:
        """Joules since the last call, or since it was made; None where the system does not tell."""
        before, self._last = self._last, self._read()
        if not self._files or not before or not self._last:
            return None
        pairs = zip(self._last, before, self._files, strict=True)
        return sum((new - old) % most for new, old, (_, most) in pairs) / 1e6

    def _read(self) -> list[int]:
        try:
            return [int(path.read_text(encoding="ascii")) for path, _ in self._files]
        except (OSError, ValueError):
            return []
