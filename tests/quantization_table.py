"""The tables and plots in docs/quantization.md: .venv/bin/python tests/quantization_table.py FOLDER [ROW]

Every row is an export of the demo, or of its routed twin, beside the same model in floats, on the whole validation
text. What a row gave stays in FOLDER, so that a run that was interrupted goes on; rows that are named are measured
anew, and no others. Codes are fitted to paragraphs of the training text, none of which is in the validation text, and
trained on those and further ones.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import quantization_plots
from ops_table import parts

from edgeloop.apps.demo.texts import split_texts

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "quantization.md"
EDGELOOP = Path(sys.executable).with_name("edgeloop")
MODELS = {"demo": ROOT / "apps/demo/checkpoint", "routed": ROOT / "apps/demo/routed_checkpoint"}
FLOATS = "none"
CALIBRATION = 64_000
"""Characters of the text that codes are fitted to: some more than the 16384 tokens that are read of it."""
MEASURED = "--threads", "2", "--engine", "native"
EXIT = "confidence:0.5"
"""Which tokens of a model without a router stop before the last depth, where exits are measured."""


@dataclass(frozen=True)
class Row:
    """What is exported, and run: words of ``export``, where FITTED is the text to fit to, and of ``eval``.

    ``bits``: with a recipe that ``sensitivity`` writes within so many bits a weight. ``steps`` of training behind
    the fit.
    """

    export: tuple[str, ...]
    eval: tuple[str, ...] = ()
    models: tuple[str, ...] = ("demo",)
    bits: str | None = None
    steps: int = 0


STEPS = 600
"""Of training, where a row has some: 1.2 million tokens, half an hour on two cores and a minute on a GPU."""
FITTED = ("--calibrate", "calibration.txt")
BOTH = ("demo", "routed")


def trained(quant: str, size: int) -> Row:
    """A preset in groups of ``size`` that is fitted and trained."""
    return Row(("--quant", quant, "--group-size", str(size)), steps=STEPS)


def in_groups(quant: str, size: int, *words: str, models: tuple[str, ...] = ("demo",)) -> Row:
    """A preset in groups of ``size``."""
    return Row(("--quant", quant, "--group-size", str(size), *words), models=models)


ROWS: dict[str, Row] = {
    FLOATS: Row(("--quant", FLOATS), models=BOTH),
    "int8, groups of 32": in_groups("int8", 32, models=BOTH),
    "int8, groups of 128": in_groups("int8", 128),
    "int8-channel": Row(("--quant", "int8-channel"), models=BOTH),
    "int4, groups of 32": in_groups("int4", 32, models=BOTH),
    "int4, groups of 32, fitted": in_groups("int4", 32, *FITTED, models=BOTH),
    "int4-mixed, groups of 32": in_groups("int4-mixed", 32),
    "int4-mixed, groups of 32, fitted": in_groups("int4-mixed", 32, *FITTED, models=BOTH),
    "phone, groups of 32, fitted": in_groups("phone", 32, *FITTED, models=BOTH),
    "int4, groups of 128": in_groups("int4", 128, models=BOTH),
    "int4, groups of 128, fitted": in_groups("int4", 128, *FITTED, models=BOTH),
    "measured, 4.6 bits, fitted": Row(FITTED, bits="4.6"),
    "measured, 5.2 bits, fitted": Row(FITTED, bits="5.2"),
    "int4-mixed, groups of 128": in_groups("int4-mixed", 128),
    "int4-mixed, groups of 128, fitted": in_groups("int4-mixed", 128, *FITTED, models=BOTH),
    "phone, groups of 128, fitted": in_groups("phone", 128, *FITTED, models=BOTH),
    "int4, groups of 32, trained": trained("int4", 32),
    "int4, groups of 128, trained": trained("int4", 128),
    "int4-mixed, groups of 32, trained": trained("int4-mixed", 32),
    "int4-mixed, groups of 128, trained": trained("int4-mixed", 128),
    "phone, groups of 32, trained": trained("phone", 32),
    "phone, groups of 128, trained": trained("phone", 128),
    **{
        f"{FLOATS}, K/V in {bits} bits": Row(("--quant", FLOATS), ("--kv-bits", bits), BOTH)
        for bits in ("16", "8", "4")
    },
}
"""By the name in the table; words of the commands that make it."""


def edgeloop(*words: object, folder: Path) -> dict[str, Any]:
    """What a command that runs in ``folder`` prints as JSON."""
    command = [str(EDGELOOP), *map(str, words), "--json"]
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def write_texts(folder: Path) -> None:
    """The validation text, and paragraphs from all over the training text, first those that codes are fitted to."""
    training, validation = split_texts()
    paragraphs, held = training.split("\n\n"), set(validation.split("\n\n"))
    step = len(training) / CALIBRATION
    chosen = [paragraphs[int(i * step)] for i in range(int(len(paragraphs) / step))]
    chosen += [paragraph for first in range(7) for paragraph in paragraphs[first::7]]
    chosen = [paragraph for paragraph in dict.fromkeys(chosen) if paragraph not in held]
    (folder / "calibration.txt").write_text("\n\n".join(chosen), encoding="ascii")
    (folder / "validation.txt").write_text(validation, encoding="ascii")


def result(folder: Path, model: str, name: str) -> Path:
    """Where the row ``name`` of ``model`` is kept."""
    return folder / model / f"{name}.json"


def measured(folder: Path, model: str, name: str) -> dict[str, Any]:
    """Export the row ``name`` of ``model`` and run it beside its floats; only those stay in ``folder``."""
    row, floats = ROWS[name], folder / model / FLOATS
    bundle, checkpoint = folder / model / name, MODELS[model]
    export = ["-o", bundle, "--target", "native", "--force", *row.export]
    if row.bits is not None:
        recipe = folder / model / f"{row.bits}.toml"
        words = "sensitivity", checkpoint, "--text", "calibration.txt", "--bits", row.bits
        edgeloop(*words, "-o", recipe, "--force", folder=folder)
        export += ["--recipe", recipe]
    if row.steps:  # by a command that goes on where it was ended
        codes = bundle.with_name(f"{name} codes")
        fitting = "quantize", checkpoint, "--text", "calibration.txt", *row.export, "--refine", row.steps
        edgeloop(*fitting, "-o", codes, "--force", folder=folder)
        export = [*export[:5], "--codes", codes]
    report = edgeloop("export", checkpoint, *export, folder=folder)
    reading = "eval", bundle, "--text", "validation.txt", *MEASURED, *row.eval
    found = edgeloop(*reading, "--against", floats, folder=folder)
    if model == "demo":
        early = edgeloop(*reading, "--exit", EXIT, folder=folder)
        found |= {"exit_perplexity": early["perplexity"], "exit_depth": early["mean_depth"]}
    if name != FLOATS:
        shutil.rmtree(bundle)
    if row.steps:
        shutil.rmtree(codes)
    return {"bytes": report["bytes"], "bits_per_weight": report["bits_per_weight"], **found}


def kept(folder: Path, model: str) -> dict[str, dict[str, Any]]:
    """What is known of the rows of ``model``, in the order of ``ROWS``."""
    paths = {name: result(folder, model, name) for name, row in ROWS.items() if model in row.models}
    return {name: json.loads(path.read_text("utf-8")) for name, path in paths.items() if path.is_file()}


def change(found: Mapping[str, Any], what: str, depth: int, factor: float = 100.0) -> str:
    """A mean and half of its interval: ``+0.73 ± 0.12``."""
    mean, interval = found[f"{what}_per_depth"][depth], found[f"{what}_interval_per_depth"][depth]
    half = f" ± {factor * (interval[1] - interval[0]) / 2:.2f}" if interval else ""
    return f"{round(factor * mean, 2) + 0.0:+.2f}{half}"  # no "-0.00"


def cells(name: str, found: Mapping[str, Any], floats: Mapping[str, Any]) -> Iterator[str]:
    """The cells of a row beside that of ``floats``. A routed model is read out at the end alone, without exits."""
    depths = range(len(found["perplexity_per_depth"]))
    yield f"`{name}`" if name in (FLOATS, "int8-channel") else name
    yield f"{found['bytes'] / 1e6:.2f}"
    yield f"{found['bits_per_weight']:.2f}"
    if name == FLOATS:
        yield from (f"perplexity {perplexity:.2f}" for perplexity in found["perplexity_per_depth"])
        yield "–"
        if len(depths) > 1:
            yield ", ".join(f"{100 * found['accepted_per_depth'][depth]:.2f}%" for depth in depths[:-1])
            yield f"perplexity {found['exit_perplexity']:.2f}, depth {found['exit_depth']:.3f}"
    else:
        yield from (change(found, "change", depth) for depth in depths)
        yield ", ".join(f"{1000 * found['divergence_per_depth'][depth]:.2f}" for depth in depths)
        if len(depths) > 1:
            yield ", ".join(change(found, "drafts", depth) for depth in depths[:-1])
            lost = 100 * (found["exit_perplexity"] / floats["exit_perplexity"] - 1)
            yield f"{round(lost, 2) + 0.0:+.2f}, depth {found['exit_depth']:.3f}"


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """A table of the ``rows`` of a model, of which the first is of floats."""
    depths = [f"depth {depth}, %" for depth in range(1, 1 + len(rows[FLOATS]["perplexity_per_depth"]))]
    places, early = ["as routed, %"], []
    if len(depths) > 1:
        places, early = depths, ["drafts kept, points", f"`{EXIT}`, %"]
    columns = ["codes", "MB", "bits a weight", *places, "KL, 10⁻³ nats", *early]
    lines = [columns, ["---"] * len(columns), *(list(cells(name, rows[name], rows[FLOATS])) for name in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write(folder: Path) -> None:
    """Put what is known into the page, and draw it. The table of a model of which nothing is known stays."""
    models = {model: rows for model in MODELS if FLOATS in (rows := kept(folder, model))}
    before, old, after = parts(PAGE.read_text(encoding="utf-8"), __file__)
    there = re.findall(r"(?m)^(\*\*(\w+)\*\*\n\n(?:\|.*\n)+)", old + "\n")
    tables = {model: text.removesuffix("\n") for text, model in there}
    tables |= {model: f"**{model}**\n\n{table(rows)}" for model, rows in models.items()}
    PAGE.write_text(
        before + "\n\n".join(tables[model] for model in MODELS if model in tables) + after, encoding="utf-8"
    )
    for name, svg in quantization_plots.drawn(models["demo"], FLOATS).items() if "demo" in models else ():
        (PAGE.parent / f"quantization-{name}.svg").write_text(svg, encoding="utf-8")


def written(page: str) -> dict[str, list[str]]:
    """The names of the rows in the tables of ``page``, by model."""
    found = re.findall(r"(?m)^\*\*(\w+)\*\*\n\n((?:\|.*\n)+)", parts(page, __file__)[1] + "\n")
    return {model: re.findall(r"(?m)^\| `?([^|`]+?)`? \|", rows)[2:] for model, rows in found}


def main(folder: Path, names: list[str]) -> None:
    """Measure the rows ``names`` anew, or all that are not there yet; write the page after each."""
    if unknown := set(names) - set(ROWS):
        raise SystemExit(f"there are no rows {unknown}; choose from {', '.join(map(repr, ROWS))}")
    folder = folder.absolute()
    for model in MODELS:
        (folder / model).mkdir(parents=True, exist_ok=True)
    write_texts(folder)
    for name, row in ROWS.items():
        for model in row.models:
            path = result(folder, model, name)
            if name not in names if names else path.is_file():
                continue
            path.write_text(json.dumps(measured(folder, model, name), indent=1), encoding="utf-8")
            write(folder)
    write(folder)


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit("wanted: tests/quantization_table.py FOLDER [ROW]")
    main(Path(sys.argv[1]), sys.argv[2:])
