"""The tables in docs/predict.md and the lane engine's numbers: .venv/bin/python tests/prediction_table.py FOLDER

Measures this computer's profile, and models of random weights on it: ``FIT``, which the numbers of
apps/predicting/lane_engine.toml are fitted to, and ``HELD``, which nothing is fitted to. Their bundles stay in FOLDER,
so that a second run only times them. A run takes less than ten minutes. Nothing else should run meanwhile.
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from ops_table import parts
from published_speeds import span
from published_speeds import table as published_table

from edgeloop.apps.machine import processor
from edgeloop.apps.predicting.costs import FILE, Costs, Error, Fitted, lane_engine, text
from edgeloop.apps.predicting.device import Device, parsed
from edgeloop.apps.predicting.speed import Machine, Speed
from edgeloop.apps.predicting.subject import Subject, of_bundle
from edgeloop.apps.quantities import digits
from edgeloop.export.synth_shapes import SHAPES, Shape

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "predict.md"
EDGELOOP = Path(sys.executable).with_name("edgeloop")
WIDE = Shape("ouro", 16384, 2048, 5632, 16, 16, 4, 3, context=4096, tied=False)
"""A block of 92 MB in 4 bits: more than most caches hold."""
Model = tuple[Shape | Path, str, int]
"""A shape or a checkpoint, how it is stored, and the group size."""
FIT: dict[str, Model] = {
    "smollm-135m-r3": (SHAPES["smollm-135m-r3"], "int4", 32),
    "smollm-135m-r3-int8": (SHAPES["smollm-135m-r3"], "int8", 128),
    "wide": (WIDE, "int4", 128),
}
HELD: dict[str, Model] = {
    "mor-360m-r3": (SHAPES["mor-360m-r3"], "int4", 128),
    "rrt-tinyllama-2x11": (SHAPES["rrt-tinyllama-2x11"], "int4", 64),
    "demo": (ROOT / "apps" / "demo" / "checkpoint", "int4", 32),
}
CONTEXTS = (128, 512, 2048)
"""Tokens of a prompt, and tokens behind the ones that are written; less where a model has room for less."""
THREADS = (1, 2)
TOKENS = 24
"""Written for a time, of which the median counts."""
READS = 3


@dataclass(frozen=True)
class Timed:
    """A point: seconds of a prompt of so many tokens, or of a token behind them."""

    model: str
    threads: int
    phase: str
    tokens: int
    seconds: float


def prepare(name: str, model: Model, folder: Path) -> Path:
    """Return the bundle of ``model``, exported into ``folder`` if it is not there."""
    what, quant, group = model
    bundle, checkpoint = folder / name, folder / f"{name}-checkpoint"
    if bundle.is_dir():
        return bundle
    if isinstance(what, Shape):
        from edgeloop.export.synth import synthesize_shape

        synthesize_shape(what, checkpoint, force=True)
    source = what if isinstance(what, Path) else checkpoint
    words = ("export", str(source), "-o", str(bundle), "--target", "native", "--quant", quant)
    subprocess.run(
        [EDGELOOP, *words, "--group-size", str(group), "--json"], check=True, stdout=subprocess.DEVNULL
    )
    shutil.rmtree(checkpoint, ignore_errors=True)
    return bundle


def timed(bundle: Path, threads: int) -> list[Timed]:
    """The points of ``bundle``, in this process: a prompt's best time, and the median of tokens."""
    from edgeloop.runtime.bundle.folder import Bundle
    from edgeloop.runtime.decode.sampling import SamplingOptions
    from edgeloop.runtime.decode.sequential import SequentialDecoder
    from edgeloop.runtime.engines.native.engine import NativeBackend
    from edgeloop.runtime.timing import Stopwatch

    opened = Bundle.open(bundle, verify=False)
    room, found = opened.program.context_length, []
    backend = NativeBackend.open(opened, threads)
    decoder = SequentialDecoder(backend, backend.new_cache(1, min(room, CONTEXTS[-1] + TOKENS + 1)))
    random = np.random.default_rng(0)
    for tokens in dict.fromkeys(min(context, room - TOKENS - 1) for context in CONTEXTS):
        ids, prompts = random.integers(0, opened.program.vocab_size, tokens), []
        for _ in range(READS):
            decoder.reset()
            watch = Stopwatch()
            last = int(decoder.prompt(ids)[-1].argmax())
            prompts.append(watch.ms / 1000)
        by_engine, each = decoder.choose_by(SamplingOptions()), []
        for _ in range(TOKENS):
            watch = Stopwatch()
            last = decoder.next(last) if by_engine else int(decoder.step(last)[-1].argmax())
            each.append(watch.ms / 1000)
        found.append(Timed(bundle.name, threads, "prompt", tokens, min(prompts)))
        found.append(Timed(bundle.name, threads, "token", tokens, statistics.median(each)))
    backend.close()
    return found


def measured(models: dict[str, Model], folder: Path) -> list[Timed]:
    """All points of ``models``; each bundle and number of threads in a process of its own, with huge pages."""
    found = []
    for name, model in models.items():
        bundle = prepare(name, model, folder)
        for threads in THREADS:
            words = [sys.executable, __file__, "points", str(bundle), str(threads)]
            told = subprocess.run(words, check=True, capture_output=True, text=True).stdout
            found += [Timed(**each) for each in json.loads(told)]
    return found


class Points:
    """Points of some models on a device, and how far predictions are from them."""

    def __init__(self, points: Sequence[Timed], folder: Path, device: Device) -> None:
        self.points, self.device = points, device
        self.subjects: dict[str, Subject] = {
            name: of_bundle(folder / name) for name in {p.model for p in points}
        }

    def predicted(self, point: Timed, fitted: Fitted) -> float:
        """The seconds that are predicted."""
        subject = self.subjects[point.model]
        speed = Speed(subject.program, subject.stored, Machine(self.device, point.threads, fitted))
        seconds = (
            speed.prompt(point.tokens) if point.phase == "prompt" else speed.token(point.tokens + TOKENS / 2)
        )
        return seconds.total

    def errors(self, fitted: Fitted) -> np.ndarray:
        """ln(predicted / measured) of each point."""
        return np.log([self.predicted(point, fitted) / point.seconds for point in self.points])


def fit(points: Points, start: Fitted, turns: int = 12) -> Fitted:
    """The numbers that bring the median error down: steps of Gauss-Newton on their logarithms.

    Large errors count less (Huber's weights), and a number that the points say nothing about stays near ``start``.
    """
    names = [name for name in msgspec.structs.asdict(start) if name not in ("float_row",)]
    origin = np.log([getattr(start, name) for name in names])
    low, high = np.full(len(names), -2.5), np.full(len(names), 2.5)
    high[names.index("read")] = -origin[names.index("read")]  # no more than the profile's
    high[names.index("overlap")] = -origin[names.index("overlap")]

    def made(x: np.ndarray) -> Fitted:
        return msgspec.structs.replace(start, **dict(zip(names, np.exp(origin + x).tolist(), strict=True)))

    def loss(x: np.ndarray) -> float:
        return float(np.abs(points.errors(made(x))).mean() + 0.01 * np.abs(x).mean())

    x, held = np.zeros(len(names)), 0.05
    for _ in range(turns):
        now = points.errors(made(x))
        steps = np.stack([(points.errors(made(x + 0.02 * e)) - now) / 0.02 for e in np.eye(len(names))], 1)
        weights = 1 / np.maximum(np.abs(now), 0.05) ** 0.5
        left = np.concatenate([steps * weights[:, None], held * np.eye(len(names))])
        right = np.concatenate([-now * weights, -held * x])
        step = np.linalg.lstsq(left, right, rcond=None)[0]
        best = min((np.clip(x + share * step, low, high) for share in (1.0, 0.5, 0.2, 0.05)), key=loss)
        if loss(best) >= loss(x):
            break
        x = best
    return made(x)


def summary(points: Points, fitted: Fitted) -> Error:
    """How far predictions of ``points`` are from what was measured."""
    off = np.exp(np.abs(points.errors(fitted))) - 1
    return Error(
        points=len(off), median=float(np.median(off)), worst=float(off.max()), machine=processor(),
        date=date.today().isoformat(),
    )  # fmt: skip


def lines(points: Points, fitted: Fitted) -> list[str]:
    """The rows of the page's table."""
    rows = [
        "| model | threads | phase | measured, tokens/s | predicted | error |",
        "|---|---|---|---|---|---|",
    ]
    for point in points.points:
        count = point.tokens if point.phase == "prompt" else 1
        found = points.predicted(point, fitted)
        phase = f"prompt of {point.tokens}" if point.phase == "prompt" else f"token behind {point.tokens}"
        rows.append(
            f"| {point.model} | {point.threads} | {phase} | "
            f"{digits(count / point.seconds, 4)} | {digits(count / found, 4)} | "
            f"{point.seconds / found - 1:+.0%} |"
        )
    return rows


def put(page: Path, maker: str, table: Sequence[str]) -> None:
    """Replace what the page has from ``maker``."""
    before, _, after = parts(page.read_text(encoding="utf-8"), maker)
    page.write_text(before + "\n".join(table) + after, encoding="utf-8")


def main(folder: Path) -> None:
    """Measure, fit, and write the numbers and both tables."""
    folder.mkdir(parents=True, exist_ok=True)
    profile = folder / "this.toml"
    subprocess.run([EDGELOOP, "device", "measure", "-o", str(profile), "--force", "--json"], check=True)
    device = parsed(profile.read_text(encoding="utf-8"), str(profile))
    fitting = Points(measured(FIT, folder), folder, device)
    fitted = fit(fitting, lane_engine().fitted)
    held = Points(measured(HELD, folder), folder, device)
    error, own = summary(held, fitted), summary(fitting, fitted)
    saved: dict[str, Any] = {"profile": device, "fit": fitting.points, "held": held.points}
    (folder / "points.json").write_bytes(msgspec.json.encode(saved))
    FILE.write_text(text(Costs(fitted=fitted, error=error, published=span(fitted))), encoding="utf-8")
    told = (
        f"{error.date}, {error.machine}, {device.cores} cores. Median error {error.median:.0%}, worst "
        f"{error.worst:.0%}, on {error.points} points; {own.median:.0%} and {own.worst:.0%} on the "
        f"{own.points} points of the fit."
    )
    put(PAGE, __file__, [told, "", *lines(held, fitted)])
    put(PAGE, "published_speeds.py", list(published_table(fitted)))


if __name__ == "__main__":
    if sys.argv[1:2] == ["points"]:
        from edgeloop.apps.hugepages import restart_with_huge_pages

        restart_with_huge_pages()
        found = timed(Path(sys.argv[2]), int(sys.argv[3]))
        sys.stdout.write(json.dumps([vars(point) for point in found]))
    elif len(sys.argv) == 2:
        main(Path(sys.argv[1]))
    else:
        raise SystemExit("wanted: tests/prediction_table.py FOLDER")
