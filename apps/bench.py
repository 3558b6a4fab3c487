"""``edgeloop bench``: how fast a bundle reads and writes, how evenly, in how much memory, and where the time goes.

One table of modes; each measures by turns (``measure/turns.py``) and hands back an ``Outcome``, which is printed, saved
as a record, and drawn in the same way for all.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..runtime.errors import UsageError
from .bench_chat import chat_arguments
from .bench_device import check_device, device_arguments
from .bench_serving import users_arguments
from .console import Console
from .machine_load import ForeignLoad
from .measure.efforts import effort_arguments
from .options import at_least, number_list, positive, session_arguments

if TYPE_CHECKING:
    from .measure.outcome import Outcome
    from .measure.record import Record

EXAMPLES = """\
examples:
  edgeloop bench bundle
  edgeloop bench bundle -p 128,512 -n 64 --contexts 0,1024 --depths --threads 2
  edgeloop bench bundle --save runs/ --markdown
  edgeloop bench bundle --depths --exits --report bundle.html
  edgeloop bench --diff runs-before/ runs-after/
  edgeloop bench --compare "bundle --engine native" "bundle --engine onnx"
  edgeloop bench bundle --compare commit:HEAD~1 commit:HEAD
  edgeloop bench bundle --decode all --text some.txt
  edgeloop bench bundle --users 1,2,4,8 --exit depth:2
  edgeloop bench bundle --soak 10
  edgeloop bench bundle --chat 20
  edgeloop bench bundle --engine onnx --ops trace.json
  edgeloop bench bundle --engine executorch --profile folder
  edgeloop bench bundle --device ssh://pi@board --save runs/
"""


@dataclass(frozen=True)
class Mode:
    """A benchmark: the flag that asks for it, and the function that does it. ``lists``: it takes several lengths of
    prompts."""

    name: str
    asked: Callable[[argparse.Namespace], Any]
    module: str
    function: str
    lists: bool = False


MODES = (
    Mode("compare", lambda args: args.compare, ".measure.versus", "measure_versus"),
    Mode("users", lambda args: args.users, ".bench_users", "measure_users"),
    Mode("soak", lambda args: args.soak, ".bench_soak", "soak"),
    Mode("decode", lambda args: args.decode == "all", ".bench_ways", "bench_ways"),
    Mode("profile", lambda args: args.profile, ".bench_profile", "profile"),
    Mode("ops", lambda args: args.ops, ".measure.ops", "measure_ops"),
    Mode("chat", lambda args: args.chat, ".bench_chat", "measure_chat"),
    Mode("speed", lambda args: False, ".measure.speed", "measure_speed", lists=True),
)
"""The last one is what is measured where no flag asks for another."""

OWN = {
    "max_stall": (("users", "soak"), "--max-stall is about many users; give it with --users or --soak"),
    "kv_limit": (("users", "soak"), "--kv-limit is about many users; give it with --users or --soak"),
    "text": (("decode",), "--text is what --decode all continues; give both or neither"),
    "svg": (("chat",), "--svg is the drawing of --chat; give both or neither"),
    "depths": (("speed",), "--depths is of the speed of one bundle; leave the other benchmark out"),
    "exits": (("speed",), "--exits is of the speed of one bundle; leave the other benchmark out"),
}
"""Flags that one mode or two have for themselves, and what is said where another one is given them."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the bundle, what is measured (``MODES``), how much of it, and where the results go."""
    parser.description = (
        "Time reading a prompt (prefill) and writing tokens one by one (decode), start-up, memory, and where the\n"
        "time goes: medians of several rounds with their 95% intervals. docs/bench.md says how to read them."
    )
    parser.usage = "edgeloop bench BUNDLE [options]"
    parser.epilog = EXAMPLES
    session_arguments(parser, needed=False)
    group = parser.add_argument_group("what is read and written")
    group.add_argument(
        "-p", "--prompt-tokens", type=number_list("tokens"), default=[128], metavar="N,N",
        help="tokens to read; several lengths with commas (128)",
    )  # fmt: skip
    group.add_argument(
        "-n", "--tokens", type=at_least(1), default=128, metavar="N", help="tokens to write (128)"
    )
    group.add_argument(
        "--contexts", type=number_list("tokens", 0), default=[0], metavar="N,N",
        help="tokens that the context holds before the prompt (0)",
    )  # fmt: skip
    group.add_argument(
        "--depths", action="store_true", help="also decode with every token stopped after depth 1, 2 …"
    )
    group.add_argument(
        "--exits", action="store_true", help="also decode under each exit rule that was calibrated"
    )
    group = parser.add_argument_group("ways to decode")
    group.add_argument(
        "--decode",
        choices=("all", "sequential", "pipelined"),
        help="how (sequential); all: compare sequential and pipelined decoding, and what their calls cost",
    )
    group.add_argument(
        "--text", metavar="FILE", help="with --decode all: UTF-8 text whose paragraphs are continued"
    )
    group = parser.add_argument_group("operators")
    group.add_argument(
        "--ops",
        type=Path,
        metavar="FILE",
        help="operators by time, depth and layer, and a trace of them into FILE",
    )
    group.add_argument(
        "--profile",
        type=Path,
        metavar="FOLDER",
        help="with --engine executorch: where the time goes, operator by operator, as ETDumps",
    )
    users_arguments(parser)
    chat_arguments(parser)
    effort_arguments(parser)
    device_arguments(parser)
    group = parser.add_argument_group("results")
    group.add_argument(
        "--compare", nargs="+", metavar="SETUP",
        help="two or more bundles, each with flags of its own in quotes, in turns: ratios with intervals; commit:REV "
        "runs the bundle with that commit of edgeloop",
    )  # fmt: skip
    group.add_argument("--save", type=Path, metavar="FOLDER", help="write a record of the run into FOLDER")
    group.add_argument(
        "--diff", nargs=2, type=Path, metavar=("OLD", "NEW"),
        help="compare records, or folders of them; exit code 3 where something got slower or larger",
    )  # fmt: skip
    group.add_argument(
        "--tolerance", type=positive("percent"), default=3.0, metavar="PERCENT",
        help="with --diff: a change of a median that is none yet (3)",
    )  # fmt: skip
    group.add_argument("--report", type=Path, metavar="FILE", help="draw the run as one HTML page")
    group.add_argument(
        "--force", action="store_true", help="with --report, --ops, --profile: replace what is there"
    )
    group.add_argument("--markdown", action="store_true", help="print Markdown instead of tables")


def main(args: argparse.Namespace, console: Console) -> None:
    """Measure what the flags name, print it and save it; UsageError for flags of different benchmarks."""
    if args.diff:
        from .measure.diff import report_diff

        check_diff(args, console)
        report_diff((args.diff[0], args.diff[1]), args.tolerance / 100, console)
        return
    mode = chosen(args)
    if args.markdown and console.json:
        raise UsageError("--markdown and --json are two forms of the result; give one of them")
    if args.save is not None:
        from .measure.store import check_folder

        check_folder(args.save)
    if args.report is not None:
        from ..export.page import check_page

        check_page(args.report, args.force)
    if check_device(args, mode.name):
        from .bench_device import measure_there

        record = measure_there(args, mode.name, console)
        present(args, record, console, data={"engine": record.engine}, notes=record.notes)
        return
    if not mode.lists:
        args = argparse.Namespace(**{**vars(args), "prompt_tokens": one_length(args.prompt_tokens)})
    measure = getattr(importlib.import_module(mode.module, __package__), mode.function)
    load = ForeignLoad()
    outcome: Outcome = measure(args, console)
    from .measure.outcome import recorded

    depth = getattr(args, "depth", None)
    record = recorded(mode.name, outcome.bundle or args.bundle, outcome, load.share(), depth)
    present(args, record, console, data=outcome.data, show=outcome.show, notes=outcome.notes)
    if outcome.fault is not None:
        raise outcome.fault


def check_diff(args: argparse.Namespace, console: Console) -> None:
    """UsageError where ``--diff`` is given what measures, or what is made of one record."""
    if args.markdown:
        raise UsageError("--diff prints a table, or JSON; leave --markdown out")
    if args.bundle is not None:
        raise UsageError(
            f"--diff compares records that are there, and measures nothing; leave {args.bundle} out"
        )
    given = [mode.name for mode in MODES if mode.asked(args)]
    given += [name for name in ("device", "save", "report") if getattr(args, name) is not None]
    if given:
        raise UsageError(
            f"--diff compares records that are there, and measures nothing; leave --{given[0]} out"
        )


def chosen(args: argparse.Namespace) -> Mode:
    """The mode that the flags ask for; UsageError where they ask for two, or for what another one has."""
    asked = [mode for mode in MODES if mode.asked(args)]
    if len(asked) > 1:
        raise UsageError(
            f"--{asked[0].name} and --{asked[1].name} are different benchmarks; give one of them"
        )
    mode = asked[0] if asked else MODES[-1]
    for name, (modes, message) in OWN.items():
        if getattr(args, name) not in (None, False) and mode.name not in modes:
            raise UsageError(message)
    if args.bundle is None and mode.name != "compare":
        raise UsageError("a bundle is needed: `edgeloop bench BUNDLE`; `edgeloop export` makes one")
    return mode


def one_length(lengths: list[int]) -> int:
    """The only one; UsageError where there are several."""
    if len(lengths) > 1:
        raise UsageError(
            f"this benchmark takes one length of prompts, not {len(lengths)}; give one --prompt-tokens"
        )
    return lengths[0]


def present(
    args: argparse.Namespace,
    record: Record,
    console: Console,
    *,
    data: Mapping[str, object],
    show: Callable[[Console], None] | None = None,
    notes: Sequence[str] = (),
) -> None:
    """Save the record, and print it in the form that was asked for: ``data`` beside it as JSON, ``show`` for people."""
    from .measure import tables
    from .measure.store import save
    from .measure.turns import FOREIGN

    path = save(args.save, record) if args.save is not None else None
    if args.report is not None:
        from .measure.report import write_report

        write_report(args.report, record)
    if console.json:
        saved = {} if path is None else {"saved": str(path)}
        console.result({**data, "record": record, **saved})
        return
    if args.markdown:
        console.write(tables.markdown(record))
    elif show is not None:
        show(console)
    else:
        tables.show(console, record)
    if record.disturbed:
        console.note(
            f"other programs disturbed {record.disturbed} of {record.turns} turns: left out where any was not"
        )
    elif not record.turns and (record.foreign or 0.0) > FOREIGN:
        console.note(
            f"other programs took {record.foreign:.0%} of the cores meanwhile: times are too long by that"
        )
    for note in notes:
        console.note(note)
    if path is not None:
        console.note(f"saved as {path}")
    if args.report is not None:
        console.note(f"drawn as {args.report}")
