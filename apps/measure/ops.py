"""``edgeloop bench --ops FILE``: operators by time, folded by depth and layer, and as a trace.

The host drives the depth loop, stage by stage, so that an operator's depth is known. Profiling has its own cost, most
of all where operators are small: the sums are above what a token takes without.
"""

from __future__ import annotations

import argparse
import importlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from ...export.page import check_file
from ...runtime.bundle.folder import Bundle
from ...runtime.decode.encoding import check_encoder
from ...runtime.engines.backend import Backend
from ...runtime.engines.table import check_engine, usual_engine
from ...runtime.errors import UsageError
from ..console import Console
from ..options import pinned
from .calls import LoggedBackend
from .folded import Folded
from .outcome import Outcome
from .runner import Opened, Runner
from .setups import setup_of
from .trace_file import write_trace

MOST_TOKENS = 32
"""Written at most: every operator of every call is an event."""
WARM_TOKENS = 2


@dataclass(frozen=True)
class Profiler:
    """How an engine is opened for a profile, and how its operators are read, in ``module``; and, where it has to be,
    how counting begins."""

    module: str
    open: str
    read: str
    begin: str = ""


PROFILERS = {
    "onnx": Profiler(".ops_onnx", "open_onnx", "onnx_operators"),
    "native": Profiler(".ops_native", "open_native", "native_operators", "begin_native"),
    "executorch": Profiler(".ops_executorch", "open_executorch", "executorch_operators"),
}


def measure_ops(args: argparse.Namespace, console: Console) -> Outcome:
    """Profile a prompt and a few tokens; UsageError for an engine without a profile."""
    check_file(args.ops, args.force, "trace", ".json")
    setup, tokens = setup_of(args), min(args.tokens, MOST_TOKENS)
    bundle = Bundle.open(args.bundle).at_depth(args.depth)
    check_encoder(bundle.program, args.bundle, False)
    engine = args.engine or usual_engine(bundle)
    profiler = PROFILERS.get(engine)
    if profiler is None:
        raise UsageError(
            f"engine {engine} has no profile of its operators; give one of {', '.join(PROFILERS)}"
        )
    options = check_engine(engine, bundle, args.threads, args.kv_bits, pinned(args))
    if args.prompt_tokens + tokens > bundle.program.context_length:
        raise UsageError(
            f"{args.prompt_tokens + tokens} tokens in a context of {bundle.program.context_length}: choose fewer "
            "--prompt-tokens and --tokens"
        )
    module = importlib.import_module(profiler.module, __package__)
    with tempfile.TemporaryDirectory(prefix="edgeloop-ops-") as scratch, console.progress() as progress:
        folder = Path(scratch)
        progress("opening", 0.0)
        backend = getattr(module, profiler.open)(bundle, options, folder)
        logged = LoggedBackend(backend)
        runner = Runner(Opened(bundle, backend), setup, args.prompt_tokens + tokens, cast(Backend, logged))
        prompt = runner.text(args.prompt_tokens)
        progress("warming up", 0.2)
        runner.run(prompt, min(WARM_TOKENS, tokens))
        logged.calls.clear()
        if profiler.begin:
            getattr(module, profiler.begin)(backend)
        progress("measuring", 0.4)
        runner.run(prompt, tokens)
        calls = logged.calls
        progress("reading the profiles", 0.8)
        operators = getattr(module, profiler.read)(backend, calls, folder)
    facts = {"bundle": bundle.folder.name, "engine": engine, "tokens": str(tokens)}
    write_trace(args.ops, calls, operators, facts)
    found = Folded.of(calls, operators)
    return Outcome(
        engine,
        {"trace": str(args.ops), "tokens": tokens, **found.data()},
        found.measures(),
        show=found.show,
        settings={
            "ops": "yes",
            "prompt-tokens": str(args.prompt_tokens),
            "tokens": str(tokens),
            **setup.settings,
        },
        notes=[f"every call and operator is in {args.ops}: open it with ui.perfetto.dev or about:tracing"],
    )
