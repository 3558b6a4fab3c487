"""The tables in docs/modes.md of which ways to decode go together: .venv/bin/python tests/modes_table.py writes them.

They are made of the rows of ``runtime/decode/modes.py``, so they cannot say anything else than what a user is told.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

from mode_models import MODELS, model
from ops_table import parts

from edgeloop.runtime.decode.exits import parse_rule
from edgeloop.runtime.decode.modes import MANY, PIPELINED, REFUSED, SEQUENTIAL, Mode, Refusal, refusal
from edgeloop.runtime.decode.policy import Policy
from edgeloop.runtime.decode.routing import parse_routing
from edgeloop.runtime.engines.table import ENGINES
from edgeloop.runtime.model.program import Program

PAGE = Path(__file__).parents[1] / "docs" / "modes.md"
COMMAND = ".venv/bin/python tests/modes_table.py"
DRIVERS = {SEQUENTIAL: "1", PIPELINED: "d", MANY: "n"}
RULES = {"never": "never", "depth:1": "depth:N", "latent:0.5": "of states", "confidence:0.5": "of logits"}
ROUTED = {"router": "router", "never": "never", "depth:1": "depth:N", "chunk-topk": "chunk-topk"}
COLUMNS = {
    **{name: (name, "per-depth") for name in ("exact", "propagate", "latest", "skip")},
    "shared": ("shared", "shared"),
    "last": ("shared", "last"),
    "last-2": ("shared", "last-2"),
}
"""By the heading: policy for skipped K and V, KV layout; others mean nothing."""
WORDS = {"m.window": "W", "m.engine": "X", "m.policy.exit!r": "", "m.kv": "shared or last", "m.depths": "N"}


def tables() -> str:
    """The Markdown between the markers."""
    return "\n\n".join("\n".join(lines) for lines in (_works(), _refused(), _engines()))


def rules(program: Program) -> dict[str, str]:
    """Exit rules of every kind that a model takes, and what the page calls them."""
    found = ROUTED if program.routing else RULES
    if program.routing and program.routing.kind == "token":
        return {rule: kind for rule, kind in found.items() if rule != "chunk-topk"}
    return found


def modes(program: Program, rule: str, columns: Iterable[tuple[str, str]]) -> Iterator[Mode]:
    """Those of a model under an exit rule, for each (policy for skipped K and V, KV layout) of ``columns``."""
    parsed = parse_routing(rule, program) if program.routing else parse_rule(rule, program, {}, {})
    for (skipped_kv, kv), driver in product(columns, DRIVERS):
        yield Mode(program, Policy(rule, kv, skipped_kv, parsed), driver)


def first_row(mode: Mode) -> Refusal | None:
    """The row that refuses ``mode``."""
    return next((row for row in REFUSED if row.applies(mode)), None)


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _works() -> Iterator[str]:
    yield _row("a model with", "exit rule", *COLUMNS)
    yield _row(*("---",) * (2 + len(COLUMNS)))
    same: dict[tuple[tuple[str, tuple[str, ...]], ...], list[str]] = {}
    for name in MODELS:
        program = model(name)
        found: dict[tuple[str, ...], list[str]] = {}
        for rule, kind in rules(program).items():
            cells = dict.fromkeys(COLUMNS.values(), "")
            for mode in modes(program, rule, cells):
                cells[mode.skipped_kv, mode.kv] += "" if refusal(mode) else DRIVERS[mode.driver]
            found.setdefault(tuple(cell or "–" for cell in cells.values()), []).append(kind)
        key = tuple((", ".join(kinds), cells) for cells, kinds in found.items())
        same.setdefault(key, []).append(name)
    for key, names in same.items():
        for i, (kinds, cells) in enumerate(key):
            yield _row("; ".join(names) if i == 0 else "", kinds, *cells)


def _refused() -> Iterator[str]:
    yield _row("refused", "of which choice", "why", "what to do")
    yield _row(*("---",) * 4)
    for row in REFUSED:
        yield _row(row.when, _CHOSEN[row.choice], _plain(row.why), _plain(row.instead))


_CHOSEN = {
    "kv": "`--kv`",
    "skipped_kv": "`--skipped-kv`",
    "exit": "`--exit`",
    "decode": "`--decode`",
    "engine": "`--engine`",
}


def _plain(words: str) -> str:
    """A reason without the names of a case."""
    return re.sub(r" +", " ", re.sub(r"\{([^}]*)\}", lambda found: WORDS[found[1]], words))


def _engines() -> Iterator[str]:
    yield _row("engine", "refuses, beside what every engine does")
    yield _row("---", "---")
    for name, engine in ENGINES.items():
        found: dict[Refusal, None] = {}
        for program in map(model, MODELS):
            for rule in rules(program):
                for mode in modes(program, rule, COLUMNS.values()):
                    row = first_row(replace(mode, engine=name, can=engine.can))
                    if row is not None and refusal(mode) is None:
                        found[row] = None
        yield _row(f"`{name}`", "; ".join(row.when for row in found) or "nothing")


def main() -> None:
    """Write the tables into the page."""
    before, _, after = parts(PAGE.read_text(encoding="utf-8"), __file__)
    PAGE.write_text(before + tables() + after, encoding="utf-8")


if __name__ == "__main__":
    main()
