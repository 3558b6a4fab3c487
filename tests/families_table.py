"""The table in docs/models.md of how far engines are from the authors' logits: .venv/bin/python tests/families_table.py

Each fixture is exported in floats, so that what is left is the order of adding, and for Core ML float16. With names of
fixtures as arguments, only their rows are measured anew.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # as in the tests

import numpy as np
from family_runs import F32, I64, authors, full
from ops_table import parts

from edgeloop.export.bounds import difference
from edgeloop.export.checkpoint import Checkpoint
from edgeloop.export.families import read_checkpoint
from edgeloop.export.pipeline import export_bundle
from edgeloop.export.quiet import quiet
from edgeloop.export.reference import reference_engine
from edgeloop.export.stored import write_weights
from edgeloop.quant.recipe import Recipe
from edgeloop.runtime import Session
from edgeloop.runtime.errors import ExportError, UsageError

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
FIXTURES = Path(__file__).parent / "fixtures" / "parity"
ENGINES = {"native": "native", "onnx": "onnx", "executorch": "executorch", "coreml": "coreml-reference"}
"""By target, the engine that runs it here; Core ML's is the interpreter of its package, rounded to float16."""
COLUMNS = ("family", "fixture", "reference", *ENGINES)


@dataclass(frozen=True)
class Row:
    """A fixture: the logits of its authors' to be compared with, and the exit rule that they were made under."""

    family: str
    logits: str = "logits_use_cache_False"
    exit: str | None = None


ROWS = {
    "rec_middle_cycle": Row("mor"),
    "rec_cycle_kvshare": Row("mor", "logits_use_cache_True"),
    "relax_lora_middle_cycle": Row("mor"),
    "mor_expert_middle_cycle_eager": Row("mor", exit="chunk-topk"),
    "mor_token_middle_cycle": Row("mor"),
    "mobilellm_ls_eager": Row("mobilellm"),
    "ouro_tiny": Row("ouro", "logits_default_T4"),
    "nanbeige_loops2": Row("nanbeige"),
    "nanbeige_losswts_qknorm_bias": Row("nanbeige"),
    "huginn_tiny": Row("huginn", "logits_full_r5"),
    "retrofit_llama32": Row("retrofit"),
    "retrofit_tinyllama": Row("retrofit"),
    "retrofit_olmo2_skip_adapter": Row("retrofit"),
    "parcae_diag": Row("parcae"),
    "iquestloopcoder_w5": Row("loopcoder"),
    "iquestloopcoder_w64": Row("loopcoder"),
    "iquestpltcoder_hgate": Row("loopcoder"),
    "hrm_text_h1l4_noprefix": Row("hrm_text"),
    "fold_pythia": Row("gpt_neox"),
    "fold_qwen2": Row("qwen"),
    "fold_gemma1": Row("gemma"),
    "fold_gemma2": Row("gemma"),
    "fold_gemma3": Row("gemma"),
    "fold_olmo2": Row("olmo2"),
    "albert_tiny": Row("albert", "logits_full"),
}


def cells(name: str, engines: Mapping[str, str] = ENGINES) -> Iterator[str]:
    """The errors of the fixture ``name`` on the reference engine and on each of ``engines``, relative to the largest
    logit; "no" where a target or an engine refuses it."""
    theirs, row = authors(FIXTURES / name), ROWS[name]
    ids, wanted = theirs["input_ids"], theirs[row.logits]
    with tempfile.TemporaryDirectory() as folder:
        bundles: dict[str, Path] = {}
        for target in engines:
            try:
                report = export_bundle(FIXTURES / name, Path(folder) / target, targets=[target], quant="none")
                bundles[target] = report.bundle
            except ExportError:
                continue
        if "onnx" in bundles:
            found = run(bundles["onnx"], "reference", row.exit, ids)
        else:
            recipe, path = Recipe.named("none", 32), Path(folder) / "weights.safetensors"
            reading = read_checkpoint(Checkpoint.open(FIXTURES / name))
            write_weights(reading, recipe, path)
            found = full(reference_engine(reading.program, path, recipe), ids)
        yield f"{difference(found, wanted):.0e}"
        for target, engine in engines.items():
            if target not in bundles:
                yield "no"
                continue
            try:
                yield f"{difference(run(bundles[target], engine, row.exit, ids), wanted):.0e}"
            except UsageError:
                yield "no"


def run(bundle: Path, engine: str, rule: str | None, ids: I64) -> F32:
    """The logits [S, V] of a bundle, of ids [S]."""
    with Session.open(bundle, engine=engine, exit=rule) as session:
        if session.program.encoder:
            logits = session.encode(ids.tolist(), logits=True).logits
            assert logits is not None
            return np.asarray(logits[0])
        return session.logits(ids)


def written(table: str) -> dict[str, str]:
    """The rows of ``table``, by their fixture."""
    return {found[1]: found[0] for found in re.finditer(r"(?m)^\| `\w+` \| `(\w+)` \|.*$", table)}


def main(names: list[str]) -> None:
    """Measure the fixtures ``names``, or all, and put their rows into the page, each as it is there."""
    logging.disable(logging.WARNING)
    for name in names or ROWS:
        with quiet():
            found = list(cells(name))
        row = f"| `{ROWS[name].family}` | `{name}` | {' | '.join(found)} |"
        before, table, after = parts(PAGE.read_text(encoding="utf-8"), __file__)
        rows = written(table) | {name: row}
        head = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
        table = "\n".join([*head, *(rows[each] for each in ROWS if each in rows)])
        PAGE.write_text(before + table + after, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
