"""A conversation on a session, as ``edgeloop chat`` has it: lines become turns, and the oldest turns make room."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..runtime.errors import UsageError
from ..runtime.text.reasoning import ReasoningStream

if TYPE_CHECKING:
    from ..runtime.decode.sampling import SamplingOptions
    from ..runtime.serve.requests import Step
    from ..runtime.session import Session


class Conversation:
    """What was said so far, as far as the session's context holds it."""

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
                raise UsageError(
                    f"this bundle has no chat template, so --{name} cannot be used; leave it out"
                )
        self._sampling, self._stop, self._max_tokens = sampling, session.prompts.stops(stop), max_tokens
        self.logprobs = logprobs
        """How many likeliest tokens each step reports; None: no log-probabilities."""
        self._system = [{"role": "system", "content": system}] if system else []
        # Half of the context at most is kept free for an answer, or memory would be too short.
        self._room = session.context - min(max_tokens, session.context // 2)
        self.thinking = True
        """Whether what the model thinks before it answers is shown."""
        self._opened: bool | None = None
        self.line = ""
        """What was said last."""
        self.forgotten = 0
        """Old messages that made room for it."""
        self.file: Path | None = None
        """Where ``keep`` saves it; None: nowhere."""
        self._kept: tuple[list[int], list[dict[str, Any]]] | None = None

    @property
    def greedy(self) -> bool:
        """Whether every answer is the likeliest one."""
        return self._sampling.temperature == 0

    @property
    def told(self) -> str:
        """How long it is, for people."""
        return f"{len(self.session.messages)} messages, {len(self.session.ids)} tokens"

    def answer(self, line: str) -> Iterator[Step]:
        """Return the answer to ``line``, for which only what is new is run; ``forgotten`` messages made room for it."""
        self.line = line
        if not self.has_template:
            return self._generate(line)
        said = self.session.messages
        while said and said[-1].get("role") == "user":  # it was never answered
            del said[-1]
        new = [*(said or self._system), {"role": "user", "content": line}]
        self.forgotten = self.session.converse(new, room=self._room, **self._template)
        return self._generate(None)

    def regenerate(self) -> Iterator[Step]:
        """Return another answer to the last line. UsageError where there is none."""
        self.forgotten = 0
        sampling = replace(self._sampling, seed=(self.session.sampling.seed + 1) % 2**64)
        return self.session.regenerate(self._max_tokens, sampling, self._stop, logprobs=self.logprobs)

    def parted(self) -> ReasoningStream | None:
        """Return what keeps the reasoning of the next answer apart; None without a template, which asks for none."""
        if not self.has_template:
            return None
        if self._opened is None:
            self._opened = self.session.chat_templates.opens_reasoning(**self._template)
        return ReasoningStream(self._opened)

    def answered(self, parted: ReasoningStream | None) -> None:
        """Remember the answer, and beside it what was thought: most templates leave that out of earlier turns."""
        if parted is not None:
            self.session.append([parted.message])

    def keep(self) -> None:
        """Save it to ``file`` if it has changed: after every turn, so that it comes back however this process ends."""
        now = self.session.ids, self.session.messages
        if self.file is not None and now != self._kept:
            self.session.save(self.file)
            self._kept = now

    def load(self, file: Path) -> None:
        """Go on with the conversation that was saved to ``file``; the one before is forgotten.

        UsageError where it is no conversation, and where ``--system`` comes too late; nothing is forgotten then.
        """
        from ..runtime.context.saved import opened

        with opened(file) as saved:
            found = saved.messages
            if self.has_template and saved.tokens and not found:
                raise UsageError(
                    f"{file} holds a text that is no conversation; go on with it by `edgeloop run --session`, or give "
                    "another file"
                )
            if self._system and found and found[: len(self._system)] != self._system:
                raise UsageError(f"{file} is a conversation that has begun otherwise; leave --system out")
        self.session.restore(file)
        self.line = next((m.get("content", "") for m in reversed(found) if m.get("role") == "user"), "")

    def _generate(self, prompt: str | None) -> Iterator[Step]:
        return self.session.generate(
            prompt, self._max_tokens, sampling=self._sampling, stop=self._stop, logprobs=self.logprobs
        )
