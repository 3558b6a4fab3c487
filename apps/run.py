"""``edgeloop run``: continue a prompt, token by token."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..runtime.errors import UsageError
from ..runtime.text.reasoning import Piece, ReasoningStream
from .console import Console
from .intake import prompt_text
from .logprobs import logprobs_argument, tell_answer, tell_score
from .options import (
    at_least,
    decode_argument,
    depth_arguments,
    open_session,
    sampling_arguments,
    sampling_options,
    session_arguments,
    session_file_argument,
    template_arguments,
    template_options,
    trust_argument,
)
from .quantities import byte_count

if TYPE_CHECKING:
    from ..runtime.serve.requests import Finish, Step
    from ..runtime.session import Session
    from ..runtime.timing import GenerationStats

EXAMPLES = """\
examples:
  edgeloop run bundle -p "Once upon a time"
  edgeloop run bundle -p "Once upon a time" -n 400 --temperature 0.8 --top-p 0.95 --seed 7
  edgeloop run bundle -p "Once upon a time" --exit confidence:0.9 --colour
  edgeloop run bundle -p "Once upon a time" --decode pipelined
  edgeloop run bundle -p - --stop "The End" < beginning.txt
  edgeloop run bundle -p "What is the weather in Oslo?" --chat --tools functions.json
  edgeloop run bundle -p "Once upon a time" --session story.session
  edgeloop run bundle -p "Once upon a time" --json
  edgeloop run bundle -p "Once upon a time" -n 20 --logprobs 3 --prompt-logprobs 0
"""

ENDS: dict[Finish, str] = {
    "eos": "an end-of-text token",
    "stop": "a stop string",
    "length": "--max-tokens",
    "context": "a full context",
}
"""Finish reasons, for people."""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the bundle, the prompt, and the flags of a session and of sampling."""
    parser.description = "Continue a prompt. The text is streamed to stdout; what it cost follows on stderr."
    parser.usage = "edgeloop run BUNDLE -p TEXT [options]"
    parser.epilog = EXAMPLES
    session_arguments(parser)
    trust_argument(parser)
    parser.add_argument(
        "-p", "--prompt", required=True, metavar="TEXT", help="what to continue; - reads stdin"
    )
    parser.add_argument(
        "-n",
        "--max-tokens",
        type=at_least(1),
        default=256,
        metavar="N",
        help="at most N tokens (default: 256)",
    )
    parser.add_argument(
        "--colour",
        "--color",
        nargs="?",
        const="auto",
        default="never",
        choices=("auto", "always", "never"),
        help="colour each token by the depths that it ran; auto, the default of the flag, on a terminal only",
    )
    parser.add_argument("--chat", action="store_true", help="put the prompt into the bundle's chat template")
    session_file_argument(parser)
    template_arguments(parser)
    logprobs_argument(parser)
    parser.add_argument(
        "--prompt-logprobs",
        type=at_least(0),
        metavar="N",
        help="the same for each token of the prompt but the first",
    )
    decode_argument(parser)
    depth_arguments(parser)
    sampling_arguments(parser)


def main(args: argparse.Namespace, console: Console) -> None:
    """Stream the continuation of the prompt, then what it cost; UsageError for flags that do not go together."""
    sampling, prompt, template = sampling_options(args), prompt_text(args.prompt), template_options(args)
    flags = template | {"thinking": args.thinking}
    if given := [f"--{name}" for name, value in flags.items() if value is not None and not args.chat]:
        raise UsageError(f"{', '.join(given)} without --chat: only a chat template reads that; add --chat")
    colour = args.colour != "never"
    console.always_colour = args.colour == "always"
    with open_session(args) as session:
        request = session.prompts.request(prompt, args.max_tokens, sampling, args.stop, args.chat, **template)
        logprobs: dict[str, Any] = {}
        if args.prompt_logprobs is not None:
            score = session.score(request.prompt, args.prompt_logprobs)
            logprobs["prompt_logprobs"] = tell_score(score, session.tokenizer, console)
        if args.session is not None:
            go_on(session, args.session, prompt, template if args.chat else None)
        steps = session.generate(
            request.prompt if args.session is None else None,
            args.max_tokens,
            request.sampling,
            args.stop,
            logprobs=args.logprobs,
        )
        if not args.chat:
            console.echo(prompt)
        parted = None
        if args.chat:
            parted = ReasoningStream(session.chat_templates.opens_reasoning(**template))
        shown = args.thinking != "hide"
        told = tell(
            steps, console, depths=session.program.depths if colour else 0, parted=parted, thinking=shown
        )
        stats, policy, decode = session.stats, session.policy, session.decode
        if args.logprobs is not None:
            logprobs["logprobs"] = tell_answer(told, session.tokenizer, console)
        tell_full(told, session, console)
        if args.session is not None:
            if parted is not None:
                session.append([parted.message])
            session.save(args.session)
    if console.json:
        used = {"exit": policy.exit, "skipped_kv": policy.skipped_kv, "kv": policy.kv, "decode": decode}
        console.result({**generation(told, stats), **said(parted), **used, **logprobs})
    else:
        if colour:
            console.note(legend(stats.depths))
        console.note(cost(stats, told[-1].finish))


def go_on(session: Session, file: Path, prompt: str, template: dict[str, Any] | None) -> None:
    """Put ``prompt`` behind the context in ``file``, if that is there: as a message where there is a ``template``."""
    if file.exists():
        session.restore(file)
    if template is None:
        session.append(prompt)
    else:
        session.append([{"role": "user", "content": prompt}], **template)


def tell(
    steps: Iterable[Step],
    console: Console,
    seen: list[Step] | None = None,
    depths: int = 0,
    parted: ReasoningStream | None = None,
    thinking: bool = True,
) -> list[Step]:
    """Show the text of ``steps`` as they come. They are also put into ``seen``, even if there is no end to them.

    With ``depths``, those of the model, each token has the colour of its own. ``parted`` keeps reasoning apart, which
    is shown with ``thinking``.
    """
    seen = [] if seen is None else seen
    hidden = False

    def show(pieces: Iterable[Piece], shade: float | None) -> None:
        nonlocal hidden
        for piece in pieces:
            if not piece.reasoning:
                console.end_aside()
                console.stream(piece.text, shade)
            elif thinking:
                console.aside(piece.text)
            elif not hidden:
                hidden = True
                console.note("(thinking)")

    try:
        for step in steps:
            seen.append(step)
            shade = step.depth / depths if depths else None
            if parted is None:
                console.stream(step.text, shade)
            else:
                show(parted.push(step.text, step.finish is not None), shade)
    except KeyboardInterrupt:
        if parted is not None:  # what was kept back, because it might have become a tag, is text
            show(parted.push("", last=True), None)
        raise
    finally:
        console.end_aside()
        console.end_stream()
    return seen


def said(parted: ReasoningStream | None) -> dict[str, Any]:
    """For machines, what was said and what was thought before it, where there is reasoning."""
    if parted is None or parted.reasoning is None:
        return {}
    return {"text": parted.answer, "reasoning": parted.reasoning}


def tell_full(
    steps: list[Step], session: Session, console: Console, less: str = "shorten the prompt"
) -> None:
    """Say so when the text ended because the context is full, and what can be done about it."""
    from ..runtime.checks import longer

    if steps and steps[-1].finish == "context":
        rest = longer(session.context, session.program.context_length)
        console.note(f"[the context of {session.context} tokens is full: {less}{rest}]")


def generation(steps: list[Step], stats: GenerationStats) -> dict[str, Any]:
    """A generated text, why it ended and what it cost, for machines. ``tokens`` and ``depths`` go side by side."""
    return {
        "text": "".join(step.text for step in steps),
        "finish_reason": steps[-1].finish if steps else None,
        "tokens": [step.token for step in steps],
        "depths": [step.depth for step in steps],
        "mean_depth": stats.mean_depth,
        "block_share": stats.block_share,
        "passes_per_token": stats.passes_per_token,
        "acceptance": stats.acceptance,
        "kv_bytes_per_token": stats.kv_bytes_per_token,
        "kv_bytes": stats.kv_bytes,
        "prompt_tokens": stats.prompt_tokens,
        "prefill_tokens": stats.prefill_tokens,
        "prefill_tokens_per_s": stats.prefill_tokens_per_s,
        "decode_tokens_per_s": stats.decode_tokens_per_s,
        "time_to_first_token_ms": stats.time_to_first_token_ms,
        "ms_per_depth": stats.ms_per_depth,
        "host_ms_per_depth": stats.host_ms_per_depth,
        "peak_rss_bytes": stats.peak_rss_bytes,
    }


def legend(depths: tuple[int, ...]) -> str:
    """How many tokens ran each number of depths."""
    parts = (f"{depths.count(d)} ran {d}" for d in sorted(set(depths)))
    return f"[depths: {', '.join(parts)}]"


def cost(stats: GenerationStats, finish: Finish | None) -> str:
    """Why a generation ended, and what it cost, in one line."""
    end = f" (ended by {ENDS[finish]})" if finish else ""
    before = stats.prompt_tokens - stats.prefill_tokens
    prompt = (
        f"{stats.prefill_tokens} of {stats.prompt_tokens} prompt"
        if before
        else f"{stats.prompt_tokens} prompt"
    )
    parts = [
        f"{stats.decode_tokens} tokens{end}",
        f"{stats.decode_tokens_per_s:.0f} tokens/s",
        f"first after {stats.time_to_first_token_ms:.0f} ms ({prompt} tokens)",
    ]
    if len(set(stats.depths)) > 1:
        parts.append(f"{stats.mean_depth:.2f} depths a token")
    if stats.acceptance is not None:
        parts.append(f"{stats.passes_per_token:.2f} passes a token ({stats.acceptance:.0%} of drafts right)")
    if stats.peak_rss_bytes is not None:
        parts.append(f"{byte_count(stats.peak_rss_bytes)} peak memory")
    return f"[{', '.join(parts)}]"
