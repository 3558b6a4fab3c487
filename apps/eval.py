"""``edgeloop eval``: perplexity on a text, at full depth and at every depth before it."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from ..runtime.errors import UsageError
from .against import opened_beside, tell_divergence
from .console import Console
from .intake import read_text
from .logprobs import Entries, logprobs_argument, tell_score
from .options import at_least, depth_arguments, open_session, session_arguments

if TYPE_CHECKING:
    from ..runtime.decode.evaluation import Evaluation
    from ..runtime.decode.logprobs import Score
    from ..runtime.decode.policy import Policy

EXAMPLES = """\
examples:
  edgeloop eval bundle --text tales.txt
  edgeloop eval bundle --text tales.txt --max-tokens 4096 --context 512
  edgeloop eval bundle --text tales.txt --exit confidence:0.9 --skipped-kv propagate
  edgeloop eval bundle --text tales.txt --exit probe --exit latent:0.3 --skipped-kv exact --skipped-kv skip
  edgeloop eval bundle --text tales.txt --against float-bundle    # what codes cost, after every depth
  edgeloop eval bundle --text tales.txt --json
  edgeloop eval bundle --text sentence.txt --logprobs 3    # each token's own, of a text that fits the context
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the bundle, the text and the exit rules to compare."""
    parser.description = (
        "How well the model predicts a text: exp of the mean loss of a token, in windows of the context. The\n"
        "depths before the last show what stopping there would cost. With an exit rule, a KV policy or a router each\n"
        "token is run as a generated one would be, with the K/V that it would find. Several rules or policies\n"
        "take turns with full depth, window by window, so that their speeds can be compared. With --against another\n"
        "bundle of the same model predicts the same windows, at full depth: the change of perplexity and the\n"
        "divergence of the next token's distributions after every depth, with intervals. Of a routed model both\n"
        "are run as their routers decide, and compared at the end."
    )
    parser.usage = "edgeloop eval BUNDLE --text FILE [options]"
    parser.epilog = EXAMPLES
    session_arguments(parser)
    depth_arguments(parser, several=True)
    parser.add_argument("--text", required=True, metavar="FILE", help="UTF-8 text; - reads stdin")
    parser.add_argument(
        "--max-tokens", type=at_least(2), metavar="N", help="only the first N tokens of the text"
    )
    parser.add_argument(
        "--against",
        metavar="BUNDLE",
        help="another export of the model, mostly of --quant none: what this one loses beside it",
    )
    logprobs_argument(parser)


def main(args: argparse.Namespace, console: Console) -> None:
    """Print perplexity at every depth or under every rule; UsageError for a text of fewer than 2 tokens."""
    from ..runtime.timing import Stopwatch, peak_rss_bytes

    text = read_text(args.text)
    asked = [(rule, skipped_kv) for rule in args.exit or [None] for skipped_kv in args.skipped_kv or [None]]
    args.exit, args.skipped_kv = asked[0]
    if args.against is not None and (args.logprobs is not None or asked != [(None, None)] or args.kv):
        raise UsageError(
            "--against compares at full depth, or as routers decide; leave --exit, --skipped-kv, --kv and --logprobs "
            "away"
        )
    with open_session(args) as session:
        ids = session.tokenizer.encode(text)[: args.max_tokens]
        if len(ids) < 2:
            raise UsageError(f"{args.text} has {len(ids)} tokens; perplexity needs at least 2")
        if args.logprobs is not None:
            if len(asked) > 1:
                raise UsageError(
                    "--logprobs is for one rule and policy; give --exit and --skipped-kv once at most"
                )
            score = session.score(ids, args.logprobs)
            logprobs = tell_score(score, session.tokenizer, console)
            report_score(score, logprobs, console)
            return
        if args.against is not None:
            with opened_beside(args, ids, text) as base:
                routed = ", as their routers decide" if session.program.routing else ""
                console.note(f"predicting {len(ids) - 1} tokens with both bundles{routed}")
                tell_divergence(session, base, ids, args, console)
            return
        console.note(f"predicting {len(ids) - 1} tokens, in windows of {session.context}")
        if len(asked) > 1:
            policies = [session.choose("never"), *(session.choose(*one) for one in asked)]
            compare(session.compare(ids, policies), policies, console)
            return
        if session.program.routing or args.exit or args.skipped_kv or args.kv:
            report(session.evaluate(ids), session.policy, session.program.depths, console)
            return
        watch = Stopwatch()
        found = session.perplexity(ids)
        speed, depths = 1000 * found.tokens / watch.ms, session.program.depths
    if console.json:
        console.result(
            {
                "perplexity": found.perplexity,
                "perplexity_per_depth": found.perplexity_per_depth,
                "tokens": found.tokens,
                "mean_depth": float(depths),
                "tokens_per_s": speed,
                "peak_rss_bytes": peak_rss_bytes(),
            }
        )
        return
    rows = [
        (f"{depth} of {depths}", f"{perplexity:.3f}")
        for depth, perplexity in enumerate(found.perplexity_per_depth, 1)
    ]
    console.table(("#depth", "#perplexity"), rows)
    console.note(f"[{found.tokens} tokens, {speed:.0f} tokens/s]")


def report_score(score: Score, logprobs: Entries, console: Console) -> None:
    """The log-probability of a text as a whole, beside those of its tokens, which a person has seen."""
    predicted = len(score.ids) - 1
    perplexity = math.exp(-score.total / predicted)
    if console.json:
        whole = {"total_logprob": score.total, "perplexity": perplexity, "tokens": predicted}
        console.result({**whole, "logprobs": logprobs})
    else:
        console.note(f"[{predicted} tokens: log-probability {score.total:.3f}, perplexity {perplexity:.3f}]")


def report(found: Evaluation, policy: Policy, depths: int, console: Console) -> None:
    """A text under an exit rule, beside full depth."""
    from ..runtime.timing import peak_rss_bytes

    if console.json:
        console.result(
            {
                **asdict(found),
                "exit": policy.exit,
                "skipped_kv": policy.skipped_kv,
                "kv": policy.kv,
                "peak_rss_bytes": peak_rss_bytes(),
            }
        )
        return
    change = found.perplexity / found.full_perplexity - 1
    console.facts(
        [
            ("exit", f"{policy.exit}; K/V: {policy.kv}, skipped K/V: {policy.skipped_kv}"),
            (
                "perplexity",
                f"{found.perplexity:.3f}; every depth for every token {found.full_perplexity:.3f}",
            ),
            ("change", f"{change:+.2%}"),
            ("agreement", f"{found.agreement:.2%} of the likeliest tokens"),
            (
                "mean depth",
                f"{found.mean_depth:.2f} of {depths}; {found.block_share:.0%} of the block's rows",
            ),
            ("speed", f"{found.tokens_per_s:.0f} tokens/s, token by token"),
        ]
    )
    console.note(f"[{found.tokens} tokens]")


def compare(found: Sequence[Evaluation], policies: Sequence[Policy], console: Console) -> None:
    """Several policies, the first of which is full depth."""
    if console.json:
        console.result(
            {
                "policies": [
                    {**asdict(one), "exit": policy.exit, "skipped_kv": policy.skipped_kv, "kv": policy.kv}
                    for one, policy in zip(found, policies, strict=True)
                ]
            }
        )
        return
    columns = "exit", "skipped K/V", "#depth", "#rows", "#perplexity", "#change", "#agreement"
    rows = [
        (
            policy.exit,
            "" if policy.exit == "never" else policy.skipped_kv,
            f"{one.mean_depth:.2f}",
            f"{one.block_share:.0%}",
            f"{one.perplexity:.2f}",
            f"{one.perplexity / found[0].perplexity - 1:+.2%}",
            f"{one.agreement:.1%}",
            f"{one.decision:.1%}" if one.decision else "–",
            f"{one.tokens_per_s:.0f}",
            f"{one.speed:.2f}×",
        )
        for one, policy in zip(found, policies, strict=True)
    ]
    console.table((*columns, "#decision", "#tokens/s", "#speed"), rows)
    console.note(
        f"[{found[0].tokens} tokens; decision: its time as a share of a depth's; speed against never, window by window]"
    )
