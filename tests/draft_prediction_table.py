"""The table of drafts in docs/predict.md: .venv/bin/python tests/draft_prediction_table.py FOLDER [prepare]

Decoding with drafts whose acceptance is forced (`edgeloop bench --decode all`), of the models that nothing was fitted
to, beside what `edgeloop predict --acceptance` says. ``prepare`` only exports the bundles into FOLDER, in minutes;
the measurement then takes three or four. Nothing else should run meanwhile.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from prediction_table import EDGELOOP, HELD, PAGE, THREADS, prepare, put

from edgeloop.apps.machine import processor
from edgeloop.apps.predicting.costs import lane_engine
from edgeloop.apps.predicting.device import Device, parsed
from edgeloop.apps.predicting.speed import Machine, Speed
from edgeloop.apps.predicting.subject import Subject, of_bundle
from edgeloop.apps.quantities import digits

PROMPT, TOKENS, ROUNDS = 128, 64, 3
DRAFTED = 0.9
"""Of the tokens: where the engine stopped drafting, it was not decoding with drafts that was measured."""
Row = Mapping[str, Any]


def measured(bundle: Path, threads: int) -> list[Row]:
    """What ``--decode all`` says of forced acceptances with which (nearly) every token was drafted."""
    sizes = ("-p", PROMPT, "-n", TOKENS, "--runs", ROUNDS, "--threads", threads, "--engine", "native")
    words = [EDGELOOP, "bench", bundle, "--decode", "all", *sizes, "--json"]
    done = subprocess.run(list(map(str, words)), check=True, capture_output=True, text=True)
    return drafted(json.loads(done.stdout)["decoding"])


def drafted(rows: Sequence[Row]) -> list[Row]:
    """Of the runs of ``--decode all``, those with drafts all along."""
    return [row for row in rows if row["forced_acceptance"] is not None and row["drafted"] >= DRAFTED]


def predicted(subject: Subject, device: Device, threads: int, acceptance: float) -> float:
    """Seconds of a token."""
    speed = Speed(subject.program, subject.stored, Machine(device, threads, lane_engine().fitted))
    return speed.drafted(PROMPT + TOKENS / 2, acceptance).total


def lines(found: Sequence[tuple[Subject, int, Row]], device: Device) -> list[str]:
    """What the page says of rows of subjects with so many threads."""
    table = [
        "| model | threads | drafts that were right | passes a token | measured, tokens/s | predicted | error |",
        "|---|---|---|---|---|---|---|",
    ]
    off = []
    for subject, threads, row in found:
        # Of drafts behind the right text. Fewer are kept: those behind a wrong one are fed before it is refuted.
        right = row["forced_acceptance"]
        seconds = predicted(subject, device, threads, right)
        error = 1 / seconds / row["tokens_per_s"] - 1
        off.append(max(1 + error, 1 / (1 + error)) - 1)
        passes = right + subject.program.depths * (1 - right)
        table.append(
            f"| {subject.name} | {threads} | {right:.0%} | {row['passes_per_token']:.2f}, predicted {passes:.2f} | "
            f"{digits(row['tokens_per_s'], 4)} | {digits(1 / seconds, 4)} | {error:+.0%} |"
        )
    if not off:
        return ["No run drafted all along."]
    where = f"{date.today().isoformat()}, {processor()}, {device.cores} cores"
    told = f"{where}. Median error {np.median(off):.0%}, worst {max(off):.0%}, on {len(off)} points."
    return [told, "", *table]


def main(folder: Path) -> None:
    """Measure this computer's profile and the models, and write the table."""
    profile = folder / "drafts.toml"
    subprocess.run([EDGELOOP, "device", "measure", "-o", str(profile), "--force", "--json"], check=True)
    device = parsed(profile.read_text(encoding="utf-8"), str(profile))
    found = []
    for name, model in HELD.items():
        bundle = prepare(name, model, folder)
        subject = of_bundle(bundle)
        found += [(subject, threads, row) for threads in THREADS for row in measured(bundle, threads)]
    put(PAGE, __file__, lines(found, device))


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3) or sys.argv[2:] not in ([], ["prepare"]):
        raise SystemExit("wanted: tests/draft_prediction_table.py FOLDER [prepare]")
    place = Path(sys.argv[1])
    place.mkdir(parents=True, exist_ok=True)
    if sys.argv[2:]:
        for named, made in HELD.items():
            prepare(named, made, place)
    else:
        main(place)
