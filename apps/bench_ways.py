"""``edgeloop bench --decode all``: by the engine that drafts itself, or by the host."""

from __future__ import annotations

import argparse

from ..runtime.bundle.folder import Bundle
from ..runtime.decode.encoding import check_encoder
from ..runtime.engines.backend import runs_tokens
from ..runtime.engines.table import open_backend
from ..runtime.errors import UsageError
from .bench_decode import bench_decoding
from .bench_drafts import bench_drafts
from .console import Console
from .measure.outcome import Outcome
from .options import pinned


def bench_ways(args: argparse.Namespace, console: Console) -> Outcome:
    """Compare sequential and pipelined decoding; UsageError for a model that has no second way."""
    bundle = Bundle.open(args.bundle).at_depth(args.depth)
    check_encoder(bundle.program, args.bundle, False)
    wanted, most = args.prompt_tokens + args.tokens, bundle.program.context_length
    if wanted > most:
        raise UsageError(f"{wanted} tokens in a context of {most}: choose fewer --prompt-tokens and --tokens")
    backend = open_backend(args.engine, bundle, args.threads, kv_bits=args.kv_bits, cpus=pinned(args))
    compare = bench_drafts if runs_tokens(backend) else bench_decoding
    return compare(args, bundle, backend, console)
