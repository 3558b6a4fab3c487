"""Makes checked requests of what callers give: prompts or conversations as token ids, options, stop strings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ..bundle.folder import Bundle
from ..checks import longer, token_ids, whole_number
from ..decode.encoding import EncoderText
from ..decode.sampling import SamplingOptions
from ..engines.backend import I64
from ..errors import ContextError, UsageError
from ..serve.requests import Request
from .logit_bias import bias_of_ids
from .stops import check_stops
from .template import ChatTemplates, Objects
from .tokenizer import Tokenizer

Row = Sequence[int] | I64
Texts = str | Row | Sequence[str | tuple[str, str] | Row]
"""One text or several: each a text, a pair of texts, or token ids."""
Types = Row | Sequence[Row]


class Prompts:
    """The text side of a bundle: its tokenizer and chat templates, and the checks of every request."""

    def __init__(self, bundle: Bundle, context: int) -> None:
        """``context``: tokens that prompt and answer may have together. BundleError for a damaged tokenizer."""
        self._bundle, self._context = bundle, context
        text = bundle.manifest.text
        self.tokenizer: Tokenizer | None = None
        """None where the bundle has none: its prompts are token ids."""
        if text.tokenizer is not None:
            self.tokenizer = Tokenizer.open(bundle.path(text.tokenizer), text.split_special_tokens)
        self.chat_templates = ChatTemplates(text.chat_templates, text.special_tokens)
        """The bundle's chat templates; the process that renders them is started by the first conversation."""

    def need_tokenizer(self) -> Tokenizer:
        """Return the tokenizer; UsageError where there is none."""
        if self.tokenizer is None:
            raise UsageError(
                f"{self._bundle.folder} has no tokenizer and takes no text: give token ids (from Python, or to the "
                "native runner), or export it again with a tokenizer.json in the checkpoint's folder"
            )
        return self.tokenizer

    def encode_chat(
        self,
        messages: Objects,
        *,
        tools: Objects | None = None,
        documents: Objects | None = None,
        template: str | None = None,
    ) -> list[int]:
        """Return the token ids of a conversation, as ``Session.encode_chat`` describes it."""
        if not self.chat_templates.templates:
            raise UsageError(f"{self._bundle.folder} has no chat template; leave chat off")
        text = self.chat_templates.render(messages, tools=tools, documents=documents, template=template)
        return self.need_tokenizer().encode(text, special=False)  # the template has written them

    def request(
        self,
        prompt: str | Sequence[int] | I64,
        max_tokens: int = 256,
        sampling: SamplingOptions | None = None,
        stop: Sequence[str] = (),
        chat: bool = False,
        *,
        tools: Objects | None = None,
        documents: Objects | None = None,
        template: str | None = None,
        logprobs: int | None = None,
    ) -> Request:
        """Return the request of ``Session.generate``'s arguments, with the errors that it describes."""
        max_tokens = whole_number(max_tokens, "max_tokens", 1)
        if isinstance(prompt, bytes | bytearray | memoryview):
            raise UsageError("the prompt is bytes, wanted text (str) or token ids; decode it")
        for name, value in (("tools", tools), ("documents", documents), ("template", template)):
            if value is not None and not chat:
                raise UsageError(
                    f"{name}= is for the chat template, but chat is off; turn it on, or leave {name} out"
                )
        if isinstance(prompt, str):
            if not prompt:
                raise UsageError("the prompt is empty; give at least one character")
            if chat:
                turns = [{"role": "user", "content": prompt}]
                prompt = self.encode_chat(turns, tools=tools, documents=documents, template=template)
            else:
                prompt = self.need_tokenizer().encode(prompt)
        elif chat:
            raise UsageError("chat needs a text prompt; use encode_chat for a conversation")
        ids = self.ids(prompt)
        if len(ids) > self._context:
            raise ContextError(
                f"the prompt has {len(ids)} tokens, the context holds {self._context}; shorten it"
                + longer(self._context, self._bundle.program.context_length)
            )
        if sampling is not None and not isinstance(sampling, SamplingOptions):
            raise UsageError(f"sampling is of type {type(sampling).__name__}, wanted SamplingOptions")
        if logprobs is not None:
            logprobs = self.top(logprobs, "logprobs")
        return Request(ids, max_tokens, self._sampling(sampling), self.stops(stop), logprobs)

    def top(self, count: int, name: str) -> int:
        """Return ``count``; UsageError, which calls it ``name``, when the vocabulary has not so many tokens."""
        return whole_number(count, name, 0, self._bundle.program.vocab_size)

    def _sampling(self, sampling: SamplingOptions | None) -> SamplingOptions:
        """Return the options, or the defaults, with token ids where ``logit_bias`` has texts."""
        sampling = sampling or SamplingOptions()
        if not sampling.logit_bias:
            return sampling
        bias = bias_of_ids(sampling.logit_bias, self._bundle.program.vocab_size, self.tokenizer)
        return replace(sampling, logit_bias=bias)

    def texts(self, texts: Texts, types: Types | None = None) -> list[EncoderText]:
        """Return ids and types of each text that ``Session.encode`` is given, with the errors that it describes."""
        given = _rows(texts)
        if types is not None:
            kinds = _rows(types)
            if len(kinds) != len(given) or any(_is_text(text) for text in given):
                raise UsageError(
                    "types= are for texts of token ids, a row for each of them; a text has those of its tokenizer"
                )
        if not given:
            raise UsageError("no text to encode; give one at least")
        found = [self._text(text, kinds[i] if types is not None else None) for i, text in enumerate(given)]
        if (longest := max(len(text.ids) for text in found)) > self._context:
            raise ContextError(f"a text has {longest} tokens, the model reads {self._context}; shorten it")
        return found

    def _text(self, text: Any, types: Any) -> EncoderText:
        kinds = self._bundle.program.token_types
        if _is_text(text):
            parts = (text,) if isinstance(text, str) else text
            if not 1 <= len(parts) <= 2:
                raise UsageError(f"a tuple of {len(parts)} texts, wanted one text or a pair")
            text, types = self.need_tokenizer().encode_typed(*parts)
            types = types if kinds else None
        ids = self.ids(text)
        if types is None:
            return EncoderText(ids, np.zeros_like(ids))
        row = token_ids(types, max(kinds, 1), "types")
        if len(row) != len(ids):
            raise UsageError(f"{len(row)} types of {len(ids)} tokens, wanted one for each")
        return EncoderText(ids, row)

    def stops(self, stop: Sequence[str]) -> tuple[str, ...]:
        """Return the checked stop strings; UsageError for one that this bundle's tokens can never write."""
        return check_stops(stop, self.tokenizer.pieces if self.tokenizer else None)

    def ids(self, ids: Sequence[int] | I64) -> I64:
        """Return ``ids`` [S], S ≥ 1, as an array; UsageError when they are no token ids of the model."""
        return token_ids(ids, self._bundle.program.vocab_size)

    def close(self) -> None:
        """End the process of the chat templates. Closing twice is fine."""
        self.chat_templates.close()


def _rows(given: Any) -> list[Any]:
    """Return one text or several as a list of texts."""
    if isinstance(given, str) or not isinstance(given, Sequence | np.ndarray):
        return [given]
    return [given] if len(given) and isinstance(given[0], int | np.integer) else list(given)


def _is_text(text: Any) -> bool:
    """Return whether it is a text or a pair of texts, rather than token ids."""
    return isinstance(text, str) or (isinstance(text, tuple) and all(isinstance(part, str) for part in text))
