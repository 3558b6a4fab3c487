"""``edgeloop chat``: a conversation, one line a turn."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from ..runtime.errors import UsageError
from .console import Console
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
    template_arguments,
    template_options,
)
from .run import generation, tell, tell_full

if TYPE_CHECKING:
    from ..runtime.decode.sampling import SamplingOptions
    from ..runtime.serve.requests import Step
    from ..runtime.session import Session

EXAMPLES = """\
examples:
  edgeloop chat bundle
  edgeloop chat bundle --system "You answer in one sentence." --temperature 0.7
  printf 'Who are you?\\nWhere do you live?\\n' | edgeloop chat bundle --json
"""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Talk to a bundle, one line a turn; Ctrl-C ends an answer, Ctrl-D the conversation. With --json, one\n"
        "JSON object a turn."
    )
    parser.usage = "edgeloop chat BUNDLE [options]"
    parser.epilog = EXAMPLES
    session_arguments(parser)
    parser.add_argument("--system", type=word, metavar="TEXT", help="a system message to begin with")
    parser.add_argument(
        "-n", "--max-tokens", type=at_least(1), default=512, metavar="N", help="at most N tokens an answer"
    )
    template_arguments(parser)
    logprobs_argument(parser)
    decode_argument(parser)
    depth_arguments(parser)
    sampling_arguments(parser)


def main(args: argparse.Namespace, console: Console) -> None:
    sampling, template = sampling_options(args), template_options(args)
    with open_session(args) as session:
        conversation = Conversation(
            session, sampling, args.stop, args.max_tokens, args.system, template, args.logprobs
        )
        if not conversation.has_template:
            console.note(
                "This bundle has no chat template: each line is continued by itself, without memory."
            )
        while True:
            try:
                line = console.ask("> ")
                if line is None:
                    return
                if line.strip():
                    turn(conversation, line, console)
            except UsageError as error:
                if not console.asks_a_person:
                    raise
                console.error(str(error))  # who can say it differently


def turn(conversation: Conversation, line: str, console: Console) -> None:
    """Answer ``line``."""
    steps: list[Step] = []
    answer = conversation.answer(line)
    if conversation.forgotten:
        console.note(f"(the context is full: {conversation.forgotten} earlier messages are forgotten)")
    try:
        tell(answer, console, steps)
    except KeyboardInterrupt:
        if not (steps and console.asks_a_person):
            raise
    conversation.answered(line, "".join(step.text for step in steps))
    tell_full(steps, conversation.session, console, "ask for less")
    if steps and steps[-1].finish == "length":
        console.note(f"[the answer has {len(steps)} tokens, as many as --max-tokens allows]")
    logprobs = {}
    if conversation.logprobs is not None:
        logprobs["logprobs"] = tell_answer(steps, conversation.session.tokenizer, console)
    if console.json:
        console.result({"prompt": line, **generation(steps, conversation.session.stats), **logprobs})


class Conversation:
    """What was said so far, as far as the context holds it."""

    def __init__(
        self,
        session: Session,
        sampling: SamplingOptions,
        stop: list[str],
        max_tokens: int,
        system: str | None,
        template: Mapping[str, Any] | None = None,
        logprobs: int | None = None,
    ) -> None:
        """``template``: more for ``encode_chat``; ``logprobs``: as ``generate`` takes it.

        UsageError for a system message or tools that have no place, and for a stop string that can never come.
        """
        self.session = session
        self._template = {name: value for name, value in (template or {}).items() if value is not None}
        self.has_template = bool(session.chat_templates.templates)
        if not self.has_template:
            for name in ("system", *self._template) if system else self._template:
                raise UsageError(f"this bundle has no chat template, so --{name} has no place: leave it out")
        self._sampling, self._stop, self._max_tokens = sampling, session.prompts.stops(stop), max_tokens
        self.logprobs = logprobs
        """How many likeliest tokens each step reports; None: no log-probabilities."""
        self._system = [{"role": "system", "content": system}] if system else []
        self._messages: list[dict[str, str]] = []
        self.forgotten = 0

    def answer(self, line: str) -> Iterator[Step]:
        """The answer to ``line``; ``forgotten`` old messages had to go to make room for it."""
        prompt = self._prompt(line) if self.has_template else line
        return self.session.generate(
            prompt, self._max_tokens, sampling=self._sampling, stop=self._stop, logprobs=self.logprobs
        )

    def answered(self, line: str, text: str) -> None:
        """Remember a turn."""
        self._messages += [{"role": "user", "content": line}, {"role": "assistant", "content": text}]

    def _prompt(self, line: str) -> list[int]:
        # Half of the context at most is kept free for an answer, or memory would be too short.
        room = self.session.context - min(self._max_tokens, self.session.context // 2)
        self.forgotten = 0
        while True:
            ids = self.session.encode_chat(
                [*self._system, *self._messages, {"role": "user", "content": line}], **self._template
            )
            if len(ids) <= room or not self._messages:
                return ids
            # Templates want user and assistant in turn, so they leave in pairs.
            del self._messages[:2]
            self.forgotten += 2
