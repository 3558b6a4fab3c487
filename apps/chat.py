"""``edgeloop chat``: a conversation, one line a turn."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from ..runtime.errors import SessionError, UsageError
from .console import Console
from .conversation import Conversation
from .intake import word
from .logprobs import logprobs_argument, tell_answer
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
from .run import generation, said, tell, tell_full

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..runtime.serve.requests import Step

EXAMPLES = """\
examples:
  edgeloop chat bundle
  edgeloop chat bundle --system "You answer in one sentence." --temperature 0.7
  edgeloop chat bundle --session talk.session
  printf 'Who are you?\\nWhere do you live?\\n' | edgeloop chat bundle --json
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of a session, of sampling and of the conversation."""
    parser.description = (
        "Talk to a bundle, one line a turn; Ctrl-C ends an answer, Ctrl-D the conversation. With --json, one\n"
        "JSON object a turn. Lines that begin with a command: " + ", ".join(COMMANDS) + ". One that begins\n"
        "with a space is said as it is."
    )
    parser.usage = "edgeloop chat BUNDLE [options]"
    parser.epilog = EXAMPLES
    session_arguments(parser)
    trust_argument(parser)
    parser.add_argument("--system", type=word, metavar="TEXT", help="a system message to begin with")
    parser.add_argument(
        "-n", "--max-tokens", type=at_least(1), default=512, metavar="N", help="at most N tokens an answer"
    )
    session_file_argument(parser)
    template_arguments(parser)
    logprobs_argument(parser)
    decode_argument(parser)
    depth_arguments(parser)
    sampling_arguments(parser)


def main(args: argparse.Namespace, console: Console) -> None:
    """Answer lines until the input ends, and save the session if a file is named."""
    sampling, template = sampling_options(args), template_options(args)
    with open_session(args) as session:
        conversation = Conversation(
            session, sampling, args.stop, args.max_tokens, args.system, template, args.logprobs
        )
        conversation.thinking = args.thinking != "hide"
        if not conversation.has_template:
            console.note(
                "This bundle has no chat template: each line is continued by itself, without memory."
            )
        if args.session is not None and args.session.exists():
            conversation.load(args.session)
            console.note(f"(back in {args.session}: {conversation.told})")
        conversation.file = args.session
        try:
            talk(conversation, console)
        finally:
            conversation.keep()


def talk(conversation: Conversation, console: Console) -> None:
    """Answer line after line, to the end of the input."""
    while True:
        try:
            line = console.ask("> ")
            if line is None:
                return
            word, _, rest = line.partition(" ")
            if COMMAND.fullmatch(word.strip()):
                command(word.strip())(conversation, rest.strip(), console)
                conversation.keep()
            elif line.strip():
                turn(conversation, conversation.answer(line), console)
        except (UsageError, SessionError) as error:
            if not console.asks_a_person:
                raise
            console.error(str(error))  # who can say it differently


def command(word: str) -> Command:
    """Return the command of that name; UsageError, which names them all, where there is none."""
    if word not in COMMANDS:
        raise UsageError(
            f"there is no command {word}, only {', '.join(COMMANDS)}; to say the line as it is, begin it with a space"
        )
    return COMMANDS[word]


def help_(conversation: Conversation, rest: str, console: Console) -> None:
    """``/help``: what each command does."""
    for each in COMMANDS.values():
        console.note((each.__doc__ or "").replace("``", "").rstrip("."))
    console.note("A line that begins with a space is said as it is")


def regenerate(conversation: Conversation, rest: str, console: Console) -> None:
    """``/regenerate``: another answer to the last line."""
    answer = conversation.regenerate()
    if conversation.greedy:
        console.note("(the likeliest answer is the same again: --temperature makes others)")
    turn(conversation, answer, console)


def reset(conversation: Conversation, rest: str, console: Console) -> None:
    """``/reset``: forget what was said."""
    conversation.session.reset()
    console.note("(all is forgotten)")


def save(conversation: Conversation, rest: str, console: Console) -> None:
    """``/save FILE``: keep the conversation in a file."""
    conversation.session.save(_file(rest, "/save"))
    console.note(f"(saved: {conversation.told})")


def load(conversation: Conversation, rest: str, console: Console) -> None:
    """``/load FILE``: go on with the conversation of a file."""
    conversation.load(_file(rest, "/load"))
    console.note(f"(back in {rest}: {conversation.told})")


Command = Callable[["Conversation", str, "Console"], None]
COMMAND = re.compile(r"/[a-z]*")
"""A word that is meant as a command: no path, which has another slash."""
COMMANDS: dict[str, Command] = {
    "/help": help_,
    "/regenerate": regenerate,
    "/reset": reset,
    "/save": save,
    "/load": load,
}


def _file(rest: str, command: str) -> Path:
    if not rest:
        raise UsageError(f"{command} without a file; say which one: {command} FILE")
    return Path(rest)


def turn(conversation: Conversation, answer: Iterator[Step], console: Console) -> None:
    """Show ``answer``, and remember it."""
    steps: list[Step] = []
    parted = conversation.parted()
    if conversation.forgotten:
        console.note(
            f"(the context is full: {conversation.forgotten} earlier messages are forgotten, the rest is read again)"
        )
    try:
        tell(answer, console, steps, parted=parted, thinking=conversation.thinking)
    except KeyboardInterrupt:
        if not (steps and console.asks_a_person):
            raise
    conversation.answered(parted)
    conversation.keep()
    tell_full(steps, conversation.session, console, "ask for less")
    if steps and steps[-1].finish == "length":
        console.note(f"[the answer has {len(steps)} tokens, as many as --max-tokens allows]")
    logprobs = {}
    if conversation.logprobs is not None:
        logprobs["logprobs"] = tell_answer(steps, conversation.session.tokenizer, console)
    if console.json:
        found = generation(steps, conversation.session.stats)
        gone = {"forgotten_messages": conversation.forgotten}
        console.result({"prompt": conversation.line, **found, **said(parted), **gone, **logprobs})
