"""``edgeloop bench --profile``: which operators the time of each ExecuTorch method goes to, by its own ETDump."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..runtime.errors import EngineError, UsageError
from .console import Console
from .measure.interval import estimate
from .measure.outcome import Outcome
from .measure.record import Measure
from .options import pinned

TOKENS = 32
"""Written at most: every operator of every call is an entry of the dump."""
KINDS = {
    "matrices": ("Fully Connected", "Q"),
    "float matrices": ("Fully Connected", ""),
    "attention": ("Batch Matrix Multiply|Softmax|Scaled Dot-Product Attention", ""),
}
"""Kinds of XNNPACK's operators: parts of their type, and with which letter one of their data types begins.

An operator is called ``Type (layout, data types) kernel``. The data types depend on the processor: QD8, QDU8 or QP8
activations with QB4W, QC8W … weights. The first kind that fits is it; everything else is "other".
"""


def kind_of(operator: str) -> str:
    """The kind of an operator, by the name that XNNPACK gives it."""
    name, _, rest = operator.partition(" (")
    types = [word.strip() for word in rest.partition(")")[0].split(",")[1:]]
    for kind, (parts, letter) in KINDS.items():
        if not any(part in name for part in parts.split("|")):
            continue
        if not letter or any(t.removeprefix("P").startswith(letter) for t in types):  # PQS8 is QS8, packed
            return kind
    return "other"


def profile(args: argparse.Namespace, console: Console) -> Outcome:
    """A prompt and a few tokens, traced; METHOD.etdp in the folder ``args.profile``, and a table of what is in them."""
    if args.engine != "executorch":
        raise UsageError(
            f"--profile is of ExecuTorch's methods, not of engine {args.engine or 'native'}; add --engine executorch"
        )
    from ..runtime.bundle.folder import Bundle
    from ..runtime.decode.encoding import check_encoder
    from ..runtime.engines.executorch.engine import ExecutorchBackend
    from ..runtime.engines.table import check_engine
    from .measure.runner import Opened, Runner
    from .measure.setups import setup_of

    folder: Path = args.profile
    setup, tokens = setup_of(args), min(args.tokens, TOKENS)
    bundle = Bundle.open(args.bundle).at_depth(args.depth)
    check_encoder(bundle.program, args.bundle, False)
    check_engine(args.engine, bundle, args.threads, args.kv_bits, pinned(args))
    make_folder(folder, args.force)
    backend = ExecutorchBackend.open(bundle, args.threads, profiled=True)
    runner = Runner(Opened(bundle, backend), setup, args.prompt_tokens + tokens)
    prompt = runner.text(args.prompt_tokens)
    with console.progress() as progress:
        progress("warming up", 0.0)
        runner.run(prompt, min(2, tokens))
        backend.bridge.write_profiles(folder)  # and forget them
        progress("measuring", 0.3)
        runner.run(prompt, tokens)
        backend.bridge.write_profiles(folder)
        progress("reading the dumps", 0.6)
        found = [(path.stem, *read(path)) for path in sorted(folder.glob("*.etdp"))]
    keys = ("calls", "ms", "kinds", "operators")
    return Outcome(
        backend.name,
        {name: dict(zip(keys, values, strict=True)) for name, *values in found},
        [
            Measure(f"{name}, {kind}", "ms a call", "ms", "less", estimate([ms]))
            for name, _, _, kinds, _ in found
            for kind, ms in kinds.items()
        ],
        show=lambda console: _show(console, args, tokens, found),
        settings={"prompt-tokens": str(args.prompt_tokens), "tokens": str(tokens), **setup.settings},
    )


def make_folder(folder: Path, force: bool) -> None:
    """Make ``folder`` for dumps; UsageError where it cannot be made, or has some of another run, which would be in the
    tables, and they are not to go."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder} cannot be made: {error.strerror}; choose another folder") from error
    old = sorted(folder.glob("*.etdp"))
    if old and not force:
        raise UsageError(
            f"{folder} has dumps of another run ({old[0].name} …); add --force to replace them, or name another folder"
        )
    for path in old:
        path.unlink()


Found = tuple[str, int, float, dict[str, float], dict[str, int]]


def _show(console: Console, args: argparse.Namespace, tokens: int, found: list[Found]) -> None:
    columns = [*KINDS, "other", "between"]
    console.table(
        ("ms a call", "#calls", "#all", *(f"#{name}" for name in columns)),
        [
            (name, f"{calls}", f"{ms:.3f}", *(f"{kinds[column]:.3f}" for column in columns))
            for name, calls, ms, kinds, _ in found
        ],
    )
    console.write(
        f"{args.prompt_tokens} tokens read, {tokens} written; XNNPACK tells whole microseconds, and what is shorter is "
        f"between. Every operator is in {args.profile}/*.etdp\n"
    )


def blocks_of(path: Path) -> list[Any]:
    """The blocks of events of a method's ETDump; EngineError where ExecuTorch's reader is not installed."""
    from ..export.quiet import quiet

    try:
        with quiet():
            from executorch.devtools import Inspector

            return list(Inspector(etdump_path=str(path)).event_blocks)
    except ImportError as error:
        raise EngineError(
            f"reading ETDumps needs {error.name}: pip install 'edgeloop[executorch]'"
        ) from error


def read(path: Path) -> tuple[int, float, dict[str, float], dict[str, int]]:
    """(calls, milliseconds of one, those of each kind of operator and "between" them, how many operators there are of
    each kind) of a method's ETDump."""
    calls, total, kinds = 0, 0.0, dict.fromkeys((*KINDS, "other"), 0.0)
    operators = dict.fromkeys(kinds, 0)
    for block in blocks_of(path):
        for event in block.events:
            times = event.perf_data.raw if event.perf_data else []
            if event.name == "Method::execute":
                calls, total = calls + len(times), total + sum(times)
            elif event.is_delegated_op:
                kind = kind_of(event.name)
                kinds[kind] += sum(times)
                operators[kind] += 1
    each = {kind: ms / max(calls, 1) for kind, ms in kinds.items()}
    each["between"] = (total - sum(kinds.values())) / max(calls, 1)
    return calls, total / max(calls, 1), each, operators
