"""A bundle as a model of EleutherAI's lm-evaluation-harness: ``python -m edgeloop.apps.lm_eval --model edgeloop …``.

The command takes what ``lm_eval`` takes. In Python, ``EdgeloopLM`` goes to ``lm_eval.simple_evaluate(model=…)``.
Scores are of the logits that the bundle gives on the engine, at the depth and under the exit rule that were asked for:
what a person who runs the bundle gets.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from inspect import signature
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from ..runtime.decode.encoding import check_encoder
from ..runtime.decode.logprobs import score
from ..runtime.decode.sampling import SamplingOptions
from ..runtime.errors import EdgeloopError, UsageError
from ..runtime.session import Session
from .cli import describe
from .console import Console

Scored = tuple[float, bool]
"""A continuation's log-probability in nats, and whether each of its tokens is the likeliest of its place."""
Row = tuple[Any, list[int], list[int]]
"""The texts of a request (for the harness's own cache), the tokens of its context, and those of its continuation."""
SAMPLING = {field.name for field in fields(SamplingOptions)}
HARNESS = ("batch_size", "max_batch_size", "device")
"""Words that the harness gives every model."""
MOST_TOKENS = 256
"""Tokens of an answer where a task says nothing; half of the context where that is less."""


@register_model("edgeloop")
class EdgeloopLM(TemplateLM):  # type: ignore[misc]  # lm-eval has no types
    """A bundle on an engine, one request after another."""

    def __init__(
        self,
        bundle: str = "",
        *,
        engine: str | None = None,
        threads: int | None = None,
        context: int | None = None,
        depth: int | None = None,
        exit: str | None = None,  # noqa: A002 - the word of the command line
        skipped_kv: str | None = None,
        kv: str | None = None,
        kv_bits: int = 32,
        max_gen_toks: int | None = None,
        prefix_token_id: int | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        device: str | None = None,
        **unknown: object,
    ) -> None:
        """Open the folder ``bundle``; the words up to ``kv_bits`` are those of ``Session.open``, with its errors.

        ``max_gen_toks``: tokens of an answer, of tasks that do not say. ``prefix_token_id``: what an empty context is,
        by default the model's BOS, or else its first EOS. ``batch_size``, ``max_batch_size`` and ``device`` (cuda:0
        where nothing is asked) are what the harness always gives; UsageError for a batch of several, and for
        ``unknown`` words.
        """
        super().__init__()
        if unknown or not bundle:
            known = [word for word in signature(EdgeloopLM).parameters if word not in (*HARNESS, "unknown")]
            wrong = f"has {', '.join(sorted(unknown))}" if unknown else "has no bundle=DIR"
            raise UsageError(f"--model_args {wrong}; wanted of {', '.join(known)}")
        if str(batch_size) not in ("1", "auto"):
            raise UsageError(f"batch_size is {batch_size}; edgeloop runs requests one by one: leave it out")
        self.session = Session.open(
            bundle,
            engine=engine,
            threads=threads,
            context=context,
            depth=depth,
            exit=exit,
            skipped_kv=skipped_kv,
            kv=kv,
            kv_bits=kv_bits,
        )
        check_encoder(self.session.program, Path(bundle), False)
        self._words = self.session.tokenizer  # asked for now: UsageError where there is none
        self._most = max_gen_toks or min(MOST_TOKENS, max(self.session.context // 2, 1))
        self._prefix = prefix_token_id
        self._template: str | None = None

    @property
    def max_length(self) -> int:
        """Tokens that context and continuation may have together."""
        return self.session.context

    @property
    def eot_token_id(self) -> int:
        """The first of the tokens that end a text; UsageError where the model has none."""
        ends = self.session.program.eos_token_ids
        if not ends:
            raise UsageError("the model has no end-of-text token; give prefix_token_id=N in --model_args")
        return ends[0]

    @property
    def prefix_token_id(self) -> int:
        """The token that stands for an empty context."""
        for token in (self._prefix, self.session.program.bos_token_id):
            if token is not None:
                return token
        return self.eot_token_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: object) -> list[int]:
        """Return the ids of ``string``, with BOS where the tokenizer puts one and the text has none of its own."""
        if add_special_tokens is None:
            bos = self.session.bundle.manifest.text.special_tokens.get("bos_token", "")
            add_special_tokens = not (bos and string.startswith(bos))
        return self._words.encode(string, special=add_special_tokens)

    def _loglikelihood_tokens(
        self, requests: Sequence[Row], disable_tqdm: bool = False, **_: object
    ) -> list[Scored]:
        """Score each continuation behind its context, which is a prompt: a prefix LM's tokens of it see each other."""
        return self._scores(requests, self.session.program.prefix_lm, disable_tqdm)

    def _scores(self, requests: Sequence[Row], prompts: bool, disable_tqdm: bool) -> list[Scored]:
        """Score each continuation behind its context. Requests of the same input, as choices of one token, share a run.

        ``prompts``: the tokens of a context see each other. Of more tokens than the model's context holds, the first
        are left out, as the harness's own models do.
        """
        inputs: dict[tuple[tuple[int, ...], int], list[int]] = {}
        for number, (_, context, continuation) in enumerate(requests):
            if not continuation:
                raise UsageError("a continuation of a request has no tokens; the task has an empty choice")
            read = tuple((context + continuation)[:-1][-self.max_length :])
            prompt = max(len(read) - len(continuation) + 1, 0) if prompts else 0
            inputs.setdefault((read, prompt), []).append(number)
        found: dict[int, Scored] = {}
        progress = tqdm(inputs.items(), desc="Running loglikelihood requests", disable=disable_tqdm)
        for (ids, prompt), numbers in progress:
            logits = self.session.logits(ids, prompt)
            for number in numbers:
                texts, _, continuation = requests[number]
                if len(continuation) > len(ids):
                    raise UsageError(
                        f"a continuation has {len(continuation)} tokens, the context holds {self.max_length}"
                    )
                rows = logits[-len(continuation) :]
                tokens = score([ids[-len(continuation)], *continuation], rows, 1).tokens[1:]
                chosen = [token for token in tokens if token is not None]
                greedy = all(token.top[0].token == token.token for token in chosen)
                found[number] = sum(token.logprob for token in chosen), greedy
                if texts is not None:
                    self.cache_hook.add_partial("loglikelihood", texts, found[number])
        return [found[number] for number in range(len(requests))]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Return the log-probability of each whole text: each token once, in windows of the context.

        The windows are the harness's: the last one, too, reads as many tokens as the context holds. A prefix LM reads
        them causally: a text whose every token is to be predicted has no prompt.
        """
        rows: list[Row] = []
        owners: list[int] = []
        for owner, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0])
            for window in get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length, 1):
                rows.append((None, *make_disjoint_window(window)))
                owners.append(owner)
        totals = [0.0] * len(requests)
        for owner, (total, _) in zip(owners, self._scores(rows, False, disable_tqdm), strict=True):
            totals[owner] += total
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return an answer to each prompt, without the stop string that ended it.

        Of a prompt that leaves no room for the answer, the first tokens are left out.
        """
        answers = []
        for request in tqdm(requests, desc="Running generate_until requests", disable=disable_tqdm):
            text, given = request.args
            most, stops, sampling = self._options(given)
            ids = self.tok_encode(text)[-(self.max_length - most) :]
            answer = "".join(step.text for step in self.session.generate(ids, most, sampling, stops))
            self.cache_hook.add_partial("generate_until", request.args, answer)
            answers.append(answer)
        return answers

    def _options(self, given: Mapping[str, Any]) -> tuple[int, list[str], SamplingOptions]:
        """Return most tokens, stop strings and sampling of a task's generation_kwargs; UsageError for unknown ones."""
        options = dict(normalize_gen_kwargs(dict(given), self._most))
        most, sampled = options.pop("max_gen_toks"), options.pop("do_sample", False)
        if most >= self.max_length:
            raise UsageError(
                f"the task wants answers of {most} tokens, prompt and answer have {self.max_length} together; "
                "give a smaller max_gen_toks with --gen_kwargs, or another context"
            )
        stops = [stop for stop in options.pop("until") if stop]
        if unknown := sorted(options.keys() - SAMPLING):
            raise UsageError(
                f"generation_kwargs {', '.join(unknown)} are not known; wanted {', '.join(sorted(SAMPLING))}"
            )
        return most, stops, SamplingOptions(**options) if sampled else SamplingOptions()

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Return the source of the bundle's chat template, or of the one that is named; UsageError without one."""
        if not chat_template:
            return None
        name = self.session.chat_templates.choose(chat_template if isinstance(chat_template, str) else None)
        self._template = name
        return self.session.chat_templates.templates[name]

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Return the text of a conversation, as the bundle's chat template writes it."""
        return self.session.chat_templates.render(
            chat_history, template=self._template, generate=add_generation_prompt
        )

    @property
    def tokenizer_name(self) -> str:
        """The tokenizer's hash: a name that no other tokenizer has, for the harness's cache of requests."""
        manifest = self.session.bundle.manifest
        assert manifest.text.tokenizer is not None
        return manifest.files[manifest.text.tokenizer].sha256

    def get_model_info(self) -> dict[str, Any]:
        """Return what ran, for the harness's results."""
        session, manifest = self.session, self.session.bundle.manifest
        assert session.backend is not None
        return {
            "model_num_parameters": manifest.parameters,
            "edgeloop": manifest.edgeloop,
            "family": session.program.family,
            "quantization": manifest.quantization.scheme,
            "engine": session.backend.name,
            "depths": session.program.depths,
            "exit": session.policy.exit,
            "kv": session.policy.kv,
            "skipped_kv": session.policy.skipped_kv,
        }


def main(words: Iterable[str] | None = None) -> int:
    """Run ``lm_eval``'s own command line, in which --model edgeloop is known; return the exit code."""
    from lm_eval.__main__ import cli_evaluate

    if words is not None:
        sys.argv[1:] = words
    try:
        cli_evaluate()
    except EdgeloopError as error:
        message, code = describe(error)
        Console().error(message)
        return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
