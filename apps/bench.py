"""``edgeloop bench``: how fast a bundle reads and writes, how evenly, and where the time goes.

Each run reads the same seeded random tokens and then writes greedily; end-of-text does not end a run, so
all runs do the same work. The first run is a warm-up and not counted. Start-up and peak memory are those of
``edgeloop run`` in processes of its own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from ..runtime.errors import UsageError
from .bench_chat import chat_arguments, measure_chat
from .bench_run import measure
from .bench_serving import users_arguments
from .bench_soak import soak
from .bench_users import measure_users
from .console import Console
from .options import at_least, pinned, session_arguments
from .quantities import bundle_bytes, byte_count

EXAMPLES = """\
examples:
  edgeloop bench bundle
  edgeloop bench bundle --prompt-tokens 512 --tokens 64 --runs 10 --threads 2
  edgeloop bench bundle --decode all --text some.txt
  edgeloop bench bundle --users 1,2,4,8 --exit depth:2
  edgeloop bench bundle --soak 10
  edgeloop bench bundle --chat 20
  edgeloop bench bundle --engine executorch --profile folder
  edgeloop bench bundle --json
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the bundle, what is measured (speed, users, decoding, chat, a profile) and how much of it."""
    parser.description = (
        "Time reading a prompt (prefill) and writing tokens one by one (decode): the median of several runs."
    )
    parser.usage = "edgeloop bench BUNDLE [options]"
    parser.epilog = EXAMPLES
    session_arguments(parser)
    parser.add_argument(
        "--prompt-tokens", type=at_least(1), default=128, metavar="N", help="tokens to read (128)"
    )
    parser.add_argument("--tokens", type=at_least(1), default=128, metavar="N", help="tokens to write (128)")
    parser.add_argument("--runs", type=at_least(1), default=5, metavar="N", help="counted runs (5)")
    group = parser.add_argument_group("ways to decode")
    group.add_argument(
        "--decode",
        choices=("all",),
        dest="ways",
        help="compare sequential and pipelined decoding, and what their calls cost",
    )
    group.add_argument(
        "--text", metavar="FILE", help="with --decode: UTF-8 text whose paragraphs are continued"
    )
    parser.add_argument(
        "--profile",
        type=Path,
        metavar="FOLDER",
        help="with --engine executorch: where the time goes, operator by operator, as ETDumps",
    )
    users_arguments(parser)
    chat_arguments(parser)


def main(args: argparse.Namespace, console: Console) -> None:
    """Measure what the flags name and print it; UsageError for flags of different benchmarks."""
    given = [
        name
        for name, value in (
            ("users", args.users),
            ("soak", args.soak),
            ("decode", args.ways),
            ("profile", args.profile),
            ("chat", args.chat),
        )
        if value
    ]
    if len(given) > 1:
        raise UsageError(f"--{given[0]} and --{given[1]} are different benchmarks; give one of them")
    for name, value in (("max-stall", args.max_stall), ("kv-limit", args.kv_limit)):
        if value is not None and not (args.users or args.soak):
            raise UsageError(f"--{name} is about many users; give it with --users or --soak")
    if args.users:
        measure_users(args, console)
        return
    if args.soak:
        soak(args, console)
        return
    if args.svg and not args.chat:
        raise UsageError("--svg is the drawing of --chat; give both or neither")
    if args.chat:
        measure_chat(args, console)
        return
    import numpy as np

    from ..runtime.bundle.folder import Bundle
    from ..runtime.decode.encoding import check_encoder
    from ..runtime.decode.sequential import SequentialDecoder
    from ..runtime.engines.backend import runs_tokens
    from ..runtime.engines.table import open_backend

    if args.text and not args.ways:
        raise UsageError("--text is what --decode all continues; give both or neither")
    bundle = Bundle.open(args.bundle).at_depth(args.depth)
    check_encoder(bundle.program, args.bundle, False)
    program, wanted = bundle.program, args.prompt_tokens + args.tokens
    capacity = args.context or program.context_length
    if not wanted <= capacity <= program.context_length:
        raise UsageError(
            f"{wanted} tokens in a context of {capacity}, and the model's is {program.context_length}: "
            "choose fewer --prompt-tokens and --tokens, or another --context"
        )
    if args.profile:
        from .bench_profile import profile

        profile(args, bundle, capacity, console)
        return
    backend = open_backend(args.engine, bundle, args.threads, kv_bits=args.kv_bits, cpus=pinned(args))
    if args.ways:
        from .bench_decode import bench_decoding
        from .bench_drafts import bench_drafts

        compare = bench_drafts if runs_tokens(backend) else bench_decoding
        compare(args, bundle, backend, console)
        return
    decoder = SequentialDecoder(backend, backend.new_cache(1, capacity))
    prompt = np.random.default_rng(0).integers(0, program.vocab_size, args.prompt_tokens, np.int64)
    runs = []
    with console.progress() as progress:
        for i in range(args.runs + 1):
            progress("warming up" if i == 0 else "measuring", i / (args.runs + 1))
            run = measure(decoder, prompt, args.tokens)
            runs += [run] if i else []

        progress("starting fresh processes", args.runs / (args.runs + 1))
        started = fresh_process(args.bundle, backend.name, args.depth)

    prefill = [1000 * args.prompt_tokens / run.prefill for run in runs]
    decode = [1000 * args.tokens / sum(run.tokens) for run in runs]
    every = sorted(ms for run in runs for ms in run.tokens)
    per_depth = [statistics.median(depth) for depth in zip(*(run.per_depth for run in runs), strict=True)]
    host = statistics.median(run.host_per_depth for run in runs)
    p99 = every[min(len(every) - 1, len(every) * 99 // 100)]
    if console.json:
        console.result(
            {
                "engine": backend.name,
                "prompt_tokens": args.prompt_tokens,
                "tokens": args.tokens,
                "prefill_tokens_per_s": statistics.median(prefill),
                "prefill_tokens_per_s_runs": prefill,
                "decode_tokens_per_s": statistics.median(decode),
                "decode_tokens_per_s_runs": decode,
                "token_ms_median": statistics.median(every),
                "token_ms_p99": p99,
                "ms_per_depth": per_depth,
                "host_ms_per_depth": host,
                "bundle_bytes": bundle_bytes(bundle.manifest),
                "start_to_first_token_ms": started and started[0],
                "run_peak_rss_bytes": started and started[1],
            }
        )
        return
    console.table(
        (f"tokens/s, {len(runs)} runs", "#median", "#slowest", "#fastest"),
        [
            _spread(f"prefill, {args.prompt_tokens} tokens", prefill),
            _spread(f"decode, {args.tokens} tokens", decode),
        ],
    )
    depths = " ".join(f"{ms:.2f}" for ms in per_depth)
    console.facts(
        [
            ("a token", f"{statistics.median(every):.2f} ms, 99 of 100 within {p99:.2f} ms"),
            ("each depth", f"{depths} ms in the block, and {1000 * host:.0f} µs in the host's loop"),
            ("bundle", byte_count(bundle_bytes(bundle.manifest))),
            *_fresh_facts(started),
        ]
    )


def fresh_process(
    bundle: Path, engine: str, depth: int | None = None, runs: int = 3
) -> tuple[float, int] | None:
    """(milliseconds from starting ``edgeloop run`` to its first token, its peak memory in bytes) of fresh processes.

    None where the bundle has no tokenizer to run with. The time is the median, and includes the end of the process.
    """
    command = [sys.executable, "-m", "edgeloop.apps.cli", "run", str(bundle), "-p", "Once upon a time"]
    command += ["--engine", engine, *(["--depth", str(depth)] if depth else []), "--json", "-n"]
    times, peak = [], 0
    for tokens in ["1"] * runs + ["64"]:
        start = time.perf_counter()
        done = subprocess.run([*command, tokens], capture_output=True, check=False)
        if done.returncode != 0:
            return None
        times += [1000 * (time.perf_counter() - start)] if tokens == "1" else []
        peak = max(peak, json.loads(done.stdout)["peak_rss_bytes"])
    return statistics.median(times), peak


def _fresh_facts(started: tuple[float, int] | None) -> list[tuple[str, str]]:
    if started is None:
        return []
    return [
        ("process start to first token", f"{started[0]:.0f} ms"),
        ("peak memory of run", byte_count(started[1])),
    ]


def _spread(name: str, rates: list[float]) -> tuple[str, str, str, str]:
    return name, f"{statistics.median(rates):.0f}", f"{min(rates):.0f}", f"{max(rates):.0f}"
