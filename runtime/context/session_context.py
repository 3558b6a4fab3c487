"""A bundle on an engine and a context, which grows, goes back, forks and is saved: a session that generates nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from copy import copy
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from ..bundle.folder import Bundle
from ..bundle.heads import read_heads
from ..checks import longer, whole_number
from ..decode.encoding import check_encoder
from ..decode.kv_layout import KV_LAYOUTS
from ..decode.policy import Policy
from ..decode.policy_choice import choose_policy
from ..decode.sampling import SamplingOptions
from ..decode.sequential import SequentialDecoder
from ..engines.backend import I64, Backend
from ..errors import ContextError, UsageError
from ..model.program import Program
from ..text.prompts import Prompts
from ..text.template import ChatTemplates, Objects, checked
from ..text.tokenizer import Tokenizer
from .context import Context
from .saved import opened, write
from .turns import Messages, fit


class _Shared:
    """What a session and its forks have in common, let go of by the last one that is closed."""

    def __init__(self, backend: Backend, prompts: Prompts) -> None:
        self._backend, self._prompts, self.users = backend, prompts, 1

    def close(self) -> None:
        """Count one user less; the last one closes engine and templates."""
        self.users -= 1
        if not self.users:
            self._backend.close()
            self._prompts.close()


class ContextSession:
    """One sequence on one engine, and its context: the tokens that were given and generated so far."""

    def __init__(
        self,
        bundle: Bundle,
        backend: Backend,
        context: int | None = None,
        *,
        exit: str | None = None,  # noqa: A002 - the word of the command line
        skipped_kv: str | None = None,
        kv: str | None = None,
    ) -> None:
        """``context``: tokens to make room for, at most and by default the model's own; the rest as in ``Session``."""
        limit = backend.program.context_length
        if context is not None:
            context = whole_number(context, "context", 1, limit)
        self.bundle = bundle
        self.backend: Backend | None = backend
        self.context = context or limit
        """Tokens that prompt and answer may have together."""
        self.heads = read_heads(bundle)
        """What the host itself computes of a state: exit gate, routers, probes."""
        self.policy: Policy = choose_policy(
            bundle.program, self.heads, bundle.manifest.exits, exit, skipped_kv, kv
        )
        """When a token stops, and what that means for its K/V."""
        self.prompts = Prompts(bundle, self.context)
        """Makes checked requests of prompts and options."""
        self._shared = _Shared(backend, self.prompts)
        self._context = Context(self._new_decoder, self.policy, self.context)
        self._generation = 0
        """Counts what has used the context: a generation that was left open knows by it that it is over."""

    @property
    def program(self) -> Program:
        """The model's architecture."""
        return self.bundle.program

    @property
    def tokenizer(self) -> Tokenizer:
        """The bundle's tokenizer; UsageError when it has none."""
        return self.prompts.need_tokenizer()

    @property
    def tokenizer_or_none(self) -> Tokenizer | None:
        """The bundle's tokenizer, where it has one."""
        return self.prompts.tokenizer

    @property
    def chat_templates(self) -> ChatTemplates:
        """The bundle's chat templates."""
        return self.prompts.chat_templates

    @property
    def ids(self) -> list[int]:
        """Tokens of the context: what was given, and what was generated, to the last chosen one."""
        return list(self._context.ids)

    @property
    def messages(self) -> list[dict[str, Any]]:
        """The conversation that the context is, where it was given as messages."""
        return list(self._context.messages)

    @property
    def sampling(self) -> SamplingOptions:
        """The options of the last answer."""
        return self._context.sampling

    def encode_chat(
        self,
        messages: Objects,
        *,
        tools: Objects | None = None,
        documents: Objects | None = None,
        template: str | None = None,
    ) -> list[int]:
        """Return the token ids of a conversation ({"role": …, "content": …}), ready for the assistant's answer.

        ``tools`` (JSON schemas of functions), ``documents`` and ``template``, the name of one, are as transformers'
        ``apply_chat_template`` takes them. UsageError when there is no such template, or when it refuses them.
        """
        return self.prompts.encode_chat(messages, tools=tools, documents=documents, template=template)

    def append(self, more: str | Sequence[int] | I64 | Objects, **template: Any) -> None:
        """Put text, token ids or messages behind the context; ``generate`` without a prompt goes on from there.

        Text is encoded by itself: where it begins, a token begins. Messages go behind those of ``messages``, and the
        context is the whole conversation then (``converse``, which also says what ``template`` takes). Nothing is run
        yet. UsageError for messages behind a context that is no conversation, and as in ``generate``; ContextError for
        more tokens than a context may have.
        """
        if _is_messages(more):
            said = self._context.messages
            if self._context.ids and not said:
                raise UsageError(
                    "messages behind a context that is no conversation; reset the session, or append text or ids"
                )
            self.converse([*said, *more], **template)
            return
        if template:
            raise UsageError(f"{', '.join(template)} go with messages only; leave them out")
        new: Any = more
        if isinstance(more, str):
            # What a tokenizer puts in front of a text, often BOS, is there already.
            new = self.tokenizer.encode(more, special=not self._context.ids) if more else []
        nothing = isinstance(new, Sized) and not len(new)
        ids = [] if nothing else self.prompts.ids(new).tolist()
        self._fits(len(self._context.ids) + len(ids))
        self._use_context().extend(ids)

    def converse(
        self,
        messages: Objects,
        *,
        tools: Objects | None = None,
        documents: Objects | None = None,
        template: str | None = None,
        room: int | None = None,
    ) -> int:
        """Make the context the conversation ``messages``, as ``encode_chat`` writes it → messages that were forgotten.

        Of what the context has now, the beginning that both have in common is not run again: mostly all that was said
        before, unless the template writes earlier turns anew. An assistant's message at the end is the answer that the
        context has already: it is remembered, and written with the next turn.

        With ``room``, a conversation of more tokens loses its oldest turns, down to half of the room, so that this
        happens seldom: what is left is run again, at its new positions. A system message at the beginning stays.
        Errors as in ``encode_chat``; ContextError for more tokens than a context may have.
        """
        messages = checked("messages", messages)
        context = self._context
        if messages[-1:] and messages[-1].get("role") == "assistant" and messages[:-1] == context.messages:
            context.messages = messages
            return 0

        def encode(part: Messages) -> list[int]:
            return self.encode_chat(part, tools=tools, documents=documents, template=template)

        left, ids = fit(messages, encode, room)
        self._fits(len(ids))
        context = self._use_context()
        context.replace(ids)
        context.messages, context.turns, context.said = left, len(left), len(ids)
        return len(messages) - len(left)

    def truncate(self, tokens: int) -> None:
        """Go back: forget all but the first ``tokens`` tokens of the context. UsageError when there are fewer.

        Free where their K/V are still there. Behind a sliding window that has moved on, and where the model keeps a
        row of its newest token, what is left is run again when the context goes on.
        """
        self._use_context().truncate(whole_number(tokens, "tokens", 0))

    def shift(self, first: int, newest: int) -> None:
        """Make room: keep the ``first`` tokens of the context and the ``newest``, and forget those between.

        The newest ones are run again when the context goes on: their K/V were made by layers that saw what is
        forgotten, at other positions, and turning K to the new ones would make another text of them.
        """
        self._use_context().shift(whole_number(first, "first", 0), whole_number(newest, "newest", 0))

    def reset(self) -> None:
        """Forget the context, and the sampling options of its last answer."""
        context = self._use_context()
        context.truncate(0)
        context.sampling = SamplingOptions()

    def fork(self) -> Self:
        """Return another session that goes on from this context, on the same engine; neither knows what the other does.

        The rows of K/V that are in use are copied, or with the lane engine shared until one of both writes. Engine,
        tokenizer and templates are closed with the last session of them. Several forks may generate in turn, a token
        each if need be, but not in several threads. An answer that is under way here ends, as with everything that
        changes the context; ``generate()`` goes on with it.
        """
        context = self._use_context()
        other = copy(self)
        other._context = context.fork(other._new_decoder)
        other._generation = 0
        self._shared.users += 1
        return other

    def save(self, path: str | Path) -> None:
        """Write the context to ``path``: tokens, messages, K/V, what waits, sampling options. All or nothing.

        ``Session.load`` and ``restore`` go on from it. SessionError when it cannot be written.
        """
        context = self._use_context()
        contents, decoder = context.contents(), context.room(0)
        write(Path(path), self.bundle, self.policy, contents, decoder.cache)

    def restore(self, path: str | Path) -> None:
        """Go on from the context that was saved to ``path``; the one before is forgotten.

        SessionError, one line, for a damaged file and for one of another bundle or policy; ContextError for one that
        is longer than this session's context. After an error the context is empty.
        """
        context = self._use_context()
        with opened(Path(path)) as saved:
            saved.check(self.bundle, self.policy, self.context)
            context.truncate(0)
            decoder = context.room(saved.tokens)
            context.restore(saved.read(self.program, decoder.cache))

    def close(self) -> None:
        """Let go of the engine. Closing twice is fine; using a closed session is a UsageError."""
        self._generation += 1
        if self.backend is not None:
            if self._context.decoder is not None:
                self._context.decoder.settle()  # what the engine alone knows goes with it
            self.backend = None
            self._context = Context(self._new_decoder, self.policy, self.context)
            self._shared.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _use_context(self) -> Context:
        """Return the context; a generation that was left open is over."""
        if self.backend is None:
            raise UsageError("the session is closed; open it again")
        check_encoder(self.program, self.bundle.folder, False)
        self._generation += 1
        return self._context

    def _fits(self, tokens: int) -> None:
        if tokens > self.context:
            raise ContextError(
                f"{tokens} tokens do not fit a context of {self.context}; shorten the text, or shift the context"
                + longer(self.context, self.program.context_length)
            )

    def _new_decoder(self, tokens: int) -> SequentialDecoder:
        """Return a decoder with an empty cache for ``tokens`` tokens."""
        assert self.backend is not None
        cache = self.backend.new_cache(1, tokens, KV_LAYOUTS[self.policy.kv].slots)
        return SequentialDecoder(self.backend, cache, self.policy, self.heads)


def _is_messages(more: object) -> bool:
    return isinstance(more, Sequence) and bool(more) and isinstance(more[0], Mapping)
