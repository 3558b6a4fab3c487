"""A session: a bundle on an engine, which generates, scores and evaluates one sequence at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from .bundle.folder import Bundle
from .bundle.heads import read_heads
from .context.context import Context
from .context.saved import opened
from .decode.draft_control import DraftController, WholeTokenController
from .decode.encoding import check_encoder
from .decode.modes import PIPELINED, SEQUENTIAL, Mode, check_mode
from .decode.pipeline import Pipeline
from .decode.sampling import Choose, Sampler, SamplingOptions
from .decode.sequential import SequentialDecoder
from .decode.whole_tokens import drafts_by_itself
from .engines.backend import I64, Backend
from .engines.table import open_backend
from .engines.tokens import NO_TOKEN, Drafting
from .errors import UsageError
from .reading_session import ReadingSession
from .serve.requests import Answer, Request, Step
from .text.template import Objects
from .timing import GenerationClock, GenerationStats

WHERE_IT_PAYS = Drafting()

__all__ = ["Session", "Step"]


class Session(ReadingSession):
    """One sequence at a time on one engine: generates, scores and evaluates; its context stays between generations."""

    def __init__(
        self,
        bundle: Bundle,
        backend: Backend,
        context: int | None = None,
        *,
        exit: str | None = None,  # noqa: A002 - the word of the command line
        skipped_kv: str | None = None,
        kv: str | None = None,
        decode: str | None = None,
    ) -> None:
        """``context``: tokens to make room for, at most and by default the model's own; the rest as in ``open``."""
        super().__init__(bundle, backend, context, exit=exit, skipped_kv=skipped_kv, kv=kv)
        if decode is None:
            by_itself = drafts_by_itself(backend, bundle.program, self.policy, read_heads(bundle))
            decode = PIPELINED if by_itself else SEQUENTIAL
        check_mode(Mode(bundle.program, self.policy, decode, backend.name, backend.can))
        self.decode = decode
        """``sequential`` or ``pipelined``: the same tokens, but for rounding."""
        self._controller: DraftController | None = None
        self._pipeline: Pipeline | None = None
        self._clock: GenerationClock | None = None

    @staticmethod
    def open(
        path: str | Path,
        *,
        engine: str | None = None,
        threads: int | None = None,
        context: int | None = None,
        depth: int | None = None,
        verify: bool = True,
        exit: str | None = None,  # noqa: A002 - the word of the command line
        skipped_kv: str | None = None,
        kv: str | None = None,
        decode: str | None = None,
        kv_bits: int = 32,
        cpus: Sequence[int] = (),
        trust: str | Path | None = None,
    ) -> Session:
        """Open the bundle at ``path`` → a session with an empty context.

        - ``engine``: ``native``, ``onnx``, ``executorch``, ``coreml`` (on a Mac), ``coreml-reference`` or ``reference``
          (numpy); None: native where bundle and computer have it, else onnx.
        - ``threads``: the most that the engine uses; None: its choice.
        - ``context``: tokens that prompt and answer may have together, at most and by default the model's own.
        - ``depth``: how often the loop runs, 1 or more, of a model that can be run at any number of depths; None: as
          often as the bundle was exported for.
        - ``verify``: check the SHA-256 of the files; without, a damaged file may be other weights, or end the process.
        - ``exit``: where tokens stop: ``never``, ``depth:N``, ``RULE:X`` with a threshold or R − 1 of them between
          commas, or ``RULE`` as it was calibrated, of confidence, margin, entropy, kl, latent, gate and probe
          (``exits.py``); of a routed model ``router``, ``router:X`` or ``chunk-topk`` (``routing.py``). None: what the
          model was trained for, full depth or its router.
        - ``skipped_kv``: what stands for K/V of depths that a token skipped: ``exact``, ``propagate``, ``latest``
          or ``skip``. None: what a calibrated rule was measured with, else the first that the model can have.
        - ``kv``: ``per-depth``, ``shared`` or ``last``: which depths have K/V of their own (``kv_layout.py``).
        - ``decode``: ``sequential``, or ``pipelined`` with drafts, which gives the same tokens but for rounding; None:
          pipelined where the engine drafts by itself, which it does where that pays.
        - ``kv_bits``: of a number of K/V: 32, or on engine native 16, 8 or 4.
        - ``cpus``: numbers of processors that threads of engine native are pinned to, in turn; the first is for the
          thread that calls, which stays where it is.
        - ``trust``: the PEM file of an Ed25519 public key that must have signed the bundle; BundleError otherwise.

        UsageError for what cannot be meant or does not go together, BundleError for a folder that is no bundle or is
        damaged, EngineError for an engine that is not installed or does not load; one line each.
        """
        bundle = Bundle.open(path, verify=verify, trust=trust).at_depth(depth)
        backend = open_backend(engine, bundle, threads, kv_bits=kv_bits, cpus=cpus)
        return Session(bundle, backend, context, exit=exit, skipped_kv=skipped_kv, kv=kv, decode=decode)

    @staticmethod
    def load(
        path: str | Path,
        file: str | Path,
        *,
        engine: str | None = None,
        threads: int | None = None,
        context: int | None = None,
        verify: bool = True,
        decode: str | None = None,
        kv_bits: int = 32,
        cpus: Sequence[int] = (),
    ) -> Session:
        """Open the bundle at ``path`` and go on from the context that ``save`` wrote to ``file``.

        Depth, exit rule and KV policies are those of the saved session; the rest is as in ``open``, and so are the
        errors. SessionError, one line, for a damaged file and for one of another bundle.
        """
        with opened(Path(file)) as saved:
            owner = saved.owner
        bundle = Bundle.open(path, verify=verify)
        saved.check_bundle(bundle)
        if owner.depths != bundle.program.depths:
            bundle = bundle.at_depth(owner.depths)
        backend = open_backend(engine, bundle, threads, kv_bits=kv_bits, cpus=cpus)
        session = Session(
            bundle, backend, context, exit=owner.exit, skipped_kv=owner.skipped_kv, kv=owner.kv, decode=decode
        )
        try:
            session.restore(file)
        except BaseException:
            session.close()
            raise
        return session

    @property
    def stats(self) -> GenerationStats:
        """The cost of the last generation, so far if it was left early; UsageError before there was one."""
        if self._clock is None:
            raise UsageError("nothing was generated in this session yet")
        return self._clock.stats()

    def generate(
        self,
        prompt: str | Sequence[int] | I64 | None = None,
        max_tokens: int = 256,
        sampling: SamplingOptions | None = None,
        stop: Sequence[str] = (),
        chat: bool = False,
        *,
        tools: Objects | None = None,
        documents: Objects | None = None,
        template: str | None = None,
        logprobs: int | None = None,
        reuse: bool = False,
    ) -> Iterator[Step]:
        """Yield the steps of an answer as they come. The iterator may be left at any time.

        - ``prompt``: a text, or token ids [S]. The context is forgotten first. None: the context goes on: what was
          appended to it is answered, or the last answer goes on as if it had not ended, by default with its sampling.
        - ``max_tokens``: most tokens of the answer, 1 or more. It ends before with an end-of-text token, a stop string
          (which is cut off) or a full context; the last step's ``finish`` says which.
        - ``sampling``: None is greedy.
        - ``stop``: texts that end the answer, as transformers' ``stop_strings`` (``text/stops.py``).
        - ``chat``: put the text into the bundle's chat template, as a user's turn; ``tools``, ``documents`` and
          ``template`` are for it (``encode_chat``).
        - ``logprobs``: each step has the log-probability of its token, and of that many likeliest ones (0: of none).
        - ``reuse``: what the context has in common with the beginning of the prompt is not run again.

        The texts of the steps together are what follows the prompt in the text of prompt and answer: the space
        before the first word is there.

        The request is checked at once, before the first step: UsageError for an empty prompt, a text without a
        tokenizer, a bad option or a stop string that can never come; ContextError for a prompt longer than the context.
        EngineError later, where a call fails.
        """
        check_encoder(self.program, self.bundle.folder, False)
        if prompt is None:
            if not self._context.ids:
                raise UsageError("the context is empty; give a prompt, or append one")
            prompt, reuse = self._context.ids, True
            sampling = sampling or self._context.sampling
        request = self.prompts.request(
            prompt,
            max_tokens,
            sampling,
            stop,
            chat,
            tools=tools,
            documents=documents,
            template=template,
            logprobs=logprobs,
        )
        return self._generate(request, reuse)

    def regenerate(
        self,
        max_tokens: int = 256,
        sampling: SamplingOptions | None = None,
        stop: Sequence[str] = (),
        *,
        logprobs: int | None = None,
    ) -> Iterator[Step]:
        """Yield the steps of another answer in place of the last one. Of the prompt only the last token is run again.

        ``sampling``: by default that of the last answer with the next seed; a greedy answer would be the same
        one. The rest as in ``generate``. UsageError when there is no answer, or something was appended to it.
        """
        context = self._context
        if context.answer is None:
            raise UsageError("there is no answer at the end of the context; generate one first")
        if sampling is None:
            sampling = replace(context.sampling, seed=(context.sampling.seed + 1) % 2**64)
        prompt = context.ids[: context.answer]
        request = self.prompts.request(prompt, max_tokens, sampling, stop, logprobs=logprobs)
        return self._generate(request, True)

    def _generate(self, request: Request, reuse: bool) -> Iterator[Step]:
        context = self._use_context()
        generation = self._generation
        if not reuse:
            context.truncate(0)
        context.replace(request.prompt.tolist())
        decoder = context.room(len(request.prompt) + request.room(self.context))
        context.sampling = request.sampling
        choose: Choose = Sampler(request.sampling, context.begin_answer()).choose
        drafts = self.decode == PIPELINED and decoder.draft(WHERE_IT_PAYS)
        pipeline = None if drafts or self.decode == SEQUENTIAL else self._prepare_pipeline(decoder, choose)
        if pipeline is not None:
            choose = pipeline.controller.timed(choose)
        answer = Answer(request, choose, self.program, self.prompts.tokenizer, self.context)
        clock = self._clock = GenerationClock(
            lambda: decoder.clock,
            lambda: (
                decoder.cache.used_bytes(1, [1] * decoder.cache.slots),
                decoder.cache.used_bytes(decoder.cached, decoder.sequence.rows_before(decoder.cached)),
            ),
        )
        logits, ran = context.prefill()
        depth = decoder.depth
        clock.prefilled(ran, len(request.prompt))
        token, text = answer.choose(logits[-1])
        runner: SequentialDecoder | Pipeline = decoder
        if pipeline is not None:
            pipeline.begin(request.prompt)
            runner = pipeline
        # The first token was chosen here already.
        room = 0 if answer.wants_logits else request.room(self.context) - 1
        by_engine = pipeline is None and decoder.choose_by(request.sampling, self.program.eos_token_ids, room)
        if drafts:
            decoder.text(request.prompt)
        while True:
            context.generated(token)
            clock.chose(depth)
            yield Step(text, token, depth, clock.pause(), answer.finish, answer.logprobs)
            if answer.finish:
                return
            if generation != self._generation:
                raise UsageError("the session was closed or used for something else during this generation")
            clock.resume()
            chosen = decoder.next(token) if by_engine else NO_TOKEN
            if chosen != NO_TOKEN:
                token = chosen
                text = answer.take(token, decoder.logits[0] if answer.wants_logits else None)
            else:
                logits = decoder.logits if by_engine else runner.step(token)
                token, text = answer.choose(logits[-1])
            depth = runner.depth

    def fork(self) -> Session:
        """Return a session that goes on from the same context, as ``ContextSession.fork`` describes it."""
        other = super().fork()
        other._clock = other._pipeline = other._controller = None
        return other

    def close(self) -> None:
        """Release the engine. Closing twice is fine; using a closed session is a UsageError."""
        self._pipeline = None
        super().close()

    def _new_decoder(self, tokens: int) -> SequentialDecoder:
        self._pipeline = None  # it is another decoder's, whose cache is to go
        return super()._new_decoder(tokens)

    def _use_context(self) -> Context:
        """Return the context; drafts of a generation that was left are forgotten."""
        context = super()._use_context()
        if self._pipeline is not None:
            self._pipeline.cancel()
        return context

    def _prepare_pipeline(self, decoder: SequentialDecoder, draft: Choose) -> Pipeline:
        """Return the host's pipeline, which is kept, since engines prepare its calls once."""
        if self._controller is None:
            kind = WholeTokenController if self.policy.rule.exits_early else DraftController
            self._controller = kind(self.program.depths)
        if self._pipeline is None or self._pipeline.decoder is not decoder:
            self._pipeline = Pipeline(decoder, draft, self._controller)
        self._pipeline.draft = draft
        return self._pipeline
