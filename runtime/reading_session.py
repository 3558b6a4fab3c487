"""A session that reads texts: their logits, scores and perplexity, at full depth and under policies."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from .checks import whole_number
from .context.session_context import ContextSession
from .decode.divergence import Divergence, diverge
from .decode.encoding import Encoded, check_encoder, encode
from .decode.evaluation import Evaluation, evaluate
from .decode.logprobs import Score, score
from .decode.modes import SEQUENTIAL, Mode, check_mode
from .decode.policy import Policy, full_depth
from .decode.policy_choice import choose_policy
from .decode.sequential import SequentialDecoder
from .decode.windows import Perplexity, VisitDepths, perplexity, visit_depths
from .engines.backend import F32, I64
from .errors import UsageError
from .text.prompts import Texts, Types


class ReadingSession(ContextSession):
    """Reads texts, each from an empty context; the session's own context is run again when it goes on."""

    def logits(self, ids: Sequence[int] | I64, prompt: int = 0) -> F32:
        """Return the logits [S, V] float32 of ids [S], a fresh array: row i is what follows token i.

        At full depth, or under the session's exit rule if it has one; from an empty context. ``prompt``: of a model
        whose prompts see themselves (a prefix LM), how many of the first tokens are one; row i of theirs has seen token
        i + 1. Other models read a prompt as any text. UsageError for ids that are not in the vocabulary, ContextError
        for more than the context holds.
        """
        checked, prompt = self.prompts.ids(ids), whole_number(prompt, "prompt", 0, len(ids))
        decoder = self._start(len(checked))
        if not self.policy.rule.token_by_token:
            return decoder.prompt(checked, "all", max(prompt, 1)).copy()
        rows = [decoder.prompt(checked[:prompt], "all", prompt).copy()] if prompt else []
        return np.concatenate([*rows, *(logits.copy() for logits, _ in decoder.every(checked[prompt:]))])

    def encode(
        self, texts: Texts, types: Types | None = None, *, depth: int | None = None, logits: bool = False
    ) -> Encoded:
        """Encode texts with an encoder, and return their last states: each token's depends on all tokens of its text.

        ``texts``: one or several, each a text, a pair of texts as a tuple, or token ids; ``types``: those of
        ids, by default 0. ``depth``: stop after so many. ``logits``: those of the head too. UsageError for a
        decoder, ContextError for a text that is too long.
        """
        check_encoder(self.program, self.bundle.folder, True)
        if self.backend is None:
            raise UsageError("the session is closed; open it again")
        return encode(self.backend, self.prompts.texts(texts, types), depth, logits)

    def score(self, text: str | Sequence[int] | I64, top: int = 0, prompt: int = 0) -> Score:
        """Return the log-probability of each token of a text or ids [S] after those before it, with the ``top``
        likeliest.

        Logits are those of ``logits``, from an empty context; all of them, [S, V], are in memory meanwhile. ``prompt``:
        the first tokens so many are the prompt of the others, and have no score.
        UsageError as in ``generate``; ContextError for more tokens than the context holds (``perplexity`` takes
        those, in windows).
        """
        ids = self.prompts.request(text).prompt
        return score(ids, self.logits(ids, prompt), self.prompts.top(top, "top"), prompt)

    def evaluate(self, ids: Sequence[int] | I64) -> Evaluation:
        """Return how well ids [S], S ≥ 2, are predicted, in disjoint windows of the context.

        Each token is run as a generated one would be. Full depth beside it is every depth for every token; for
        a routed model that is not what it was trained for.
        """
        return self.compare(ids, [self.policy])[0]

    def compare(
        self,
        ids: Sequence[int] | I64,
        policies: Sequence[Policy],
        progress: Callable[[float], None] = lambda share: None,
    ) -> list[Evaluation]:
        """Return ``evaluate`` under each of ``policies`` (``choose``), in turn window by window: speeds can be
        compared. ``progress`` hears the share that is done, again and again."""
        stream = self.prompts.ids(ids)
        if len(stream) < 2:
            raise UsageError("evaluation needs at least 2 tokens: there is nothing to predict")
        decoder = self._start(min(len(stream), self.context))
        return evaluate(stream, self.context, decoder, policies, self.choose("never"), progress)

    def choose(self, exit: str | None, skipped_kv: str | None = None) -> Policy:  # noqa: A002
        """Return another policy over the same KV slots; UsageError when the model or the engine cannot have it."""
        exits = self.bundle.manifest.exits
        policy = choose_policy(self.program, self.heads, exits, exit, skipped_kv, self.policy.kv)
        if self.backend is not None:
            check_mode(Mode(self.program, policy, SEQUENTIAL, self.backend.name, self.backend.can))
        return policy

    def visit_depths(self, ids: Sequence[int] | I64, visit: VisitDepths) -> None:
        """Run ids [S] at full depth, in windows of the context; ``visit`` sees every depth of every chunk."""
        stream = self.prompts.ids(ids)
        visit_depths(self._full_depth(min(len(stream), self.context)), stream, self.context, visit)

    def perplexity(self, ids: Sequence[int] | I64) -> Perplexity:
        """Return the perplexity of ids [S], S ≥ 2, in disjoint windows of the context, over all and after each depth.

        Every token but the first is predicted once, from the tokens before it in its window.
        """
        stream = self.prompts.ids(ids)
        if len(stream) < 2:
            raise UsageError("perplexity needs at least 2 tokens: there is nothing to predict")
        return perplexity(self._full_depth(len(stream)), stream, self.context)

    def diverge(self, base: ReadingSession, ids: Sequence[int] | I64) -> Divergence:
        """Return how far this model is from ``base``, another export of it, on ids [S], S ≥ 2, after every depth.

        Both at full depth, or where a router decides under the policy of each, read out at the end alone; in disjoint
        windows of the shorter context. UsageError where they have other vocabularies or depths.
        """
        stream = self.prompts.ids(ids)
        if len(stream) < 2:
            raise UsageError("a comparison needs at least 2 tokens: there is nothing to predict")
        for what in ("vocab_size", "depths"):
            mine, other = getattr(self.program, what), getattr(base.program, what)
            if mine != other:
                raise UsageError(
                    f"the two models differ: {what} is {mine} and {other}; give two of one model"
                )
        context = min(self.context, base.context)
        room = min(len(stream), context)
        if self.program.routing is None:
            return diverge(self._full_depth(room), base._full_depth(room), stream, context)
        mine, theirs = self._start(room), base._start(room)
        for session, decoder in ((self, mine), (base, theirs)):
            decoder.restart(session.policy)
        return diverge(mine, theirs, stream, context)

    def _start(self, tokens: int) -> SequentialDecoder:
        """Return an empty sequence with room for ``tokens`` tokens or the whole context; an open generation ends.

        The context keeps its tokens, which are run again when it goes on.
        """
        return self._use_context().lend(tokens)

    def _full_depth(self, tokens: int) -> SequentialDecoder:
        """Return what ``_start`` does, with every token at every depth, whatever the session's policy."""
        decoder = self._start(tokens)
        decoder.restart(full_depth(self.program, decoder.cache.slots))
        return decoder
