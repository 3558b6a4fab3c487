"""The engine for many requests, on the reference backend: who gets what, who is refused, and that nothing is lost."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from edgeloop.runtime.decode.sampling import SamplingOptions
from edgeloop.runtime.errors import BusyError, ContextError, EngineError, UsageError
from edgeloop.runtime.serve.handle import Handle
from edgeloop.runtime.serve.serving import BatchServer
from edgeloop.runtime.session import Session

LONG = 40
WARM = SamplingOptions(temperature=1.2, seed=4)


@pytest.fixture
def bundle(text_bundle: Callable[..., Path]) -> Path:
    return text_bundle()


@pytest.fixture
def engine(bundle: Path) -> Iterator[BatchServer]:
    with BatchServer.open(bundle, engine="reference", sequences=2, waiting=3) as engine:
        yield engine


@pytest.fixture
def gate(engine: BatchServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Semaphore]:
    """The engine's ticks wait for it: ``gate.release(n)`` lets n of them go."""
    gate, tick = threading.Semaphore(0), engine.scheduler.tick

    def gated() -> None:
        gate.acquire()
        tick()

    monkeypatch.setattr(engine.scheduler, "tick", gated)
    yield gate
    gate.release(100_000)


def until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread is about to do."""
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


def test_conversations_from_many_threads(text_bundle: Callable[..., Path]) -> None:
    template = "{{ tools | length if tools is not none }}:{{ messages[0].content }}:{{ documents }}"
    bundle = text_bundle(template)
    tools = [{"type": "function", "function": {"name": "f"}}]
    with BatchServer.open(bundle, engine="reference", sequences=2, waiting=64) as engine:
        handles: dict[int, Handle] = {}

        def submit(number: int) -> None:
            handles[number] = engine.submit(
                "a" * number, 2, chat=True, tools=tools * number, documents=[{"n": number}]
            )

        threads = [threading.Thread(target=submit, args=(number,)) for number in range(1, 13)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with Session.open(bundle, engine="reference") as session:
            for number, handle in handles.items():
                text = session.tokenizer.decode(handle.request.prompt.tolist())
                assert text == f"{number}:{'a' * number}:[{{'n': {number}}}]"
                assert len(handle.result().tokens) == 2
        assert len(handles) == len(threads)
        with pytest.raises(UsageError, match="tools= is for the chat template"):
            engine.submit("a", tools=tools)


def alone(bundle: Path, *request: object, **options: str) -> list[int]:
    with Session.open(bundle, engine="reference", **options) as session:
        return [step.token for step in session.generate(*request)]


def all_free(engine: BatchServer) -> bool:
    return sorted(engine.pool.free) == list(range(engine.sequences)) and not engine.scheduler.tasks


def test_texts_stream_to_threads(bundle: Path, engine: BatchServer):
    prompts = ["Once upon a time", "there was a loop; it went round", "and", "round again"]
    found: dict[str, str] = {}

    def ask(prompt: str) -> None:
        found[prompt] = "".join(step.text for step in engine.submit(prompt, 20, WARM))

    threads = [threading.Thread(target=ask, args=(prompt,)) for prompt in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with Session.open(bundle, engine="reference") as session:
        assert found == {p: "".join(s.text for s in session.generate(p, 20, WARM)) for p in prompts}


def test_texts_stream_to_asyncio(bundle: Path, engine: BatchServer):
    async def ask(prompt: str) -> list[int]:
        return [step.token async for step in engine.submit(prompt, 15, WARM)]

    async def main() -> list[list[int]]:
        waited = engine.submit("round", 9)
        texts = await asyncio.gather(*(ask(p) for p in ("Once", "upon a", "time, there")))
        return [*texts, list((await waited.wait()).tokens)]

    found = asyncio.run(main())
    wanted = [alone(bundle, p, 15, WARM) for p in ("Once", "upon a", "time, there")]
    assert found == [*wanted, alone(bundle, "round", 9)]


async def _cancelled(waiting: Coroutine[object, object, object]) -> None:
    """Wait in a task of its own, and cancel it while it does."""
    task = asyncio.ensure_future(waiting)
    await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def _read(handle: Handle) -> None:
    async for _ in handle:
        pass


async def _read_within(handle: Handle) -> None:
    async with handle:
        async for _ in handle:
            break
        await asyncio.sleep(60)


@pytest.mark.parametrize("read", [Handle.wait, _read, _read_within])
def test_cancelling_a_task_that_waits_cancels_the_request(
    engine: BatchServer,
    gate: threading.Semaphore,
    read: Callable[[Handle], Coroutine[object, object, object]],
):
    handle, other = engine.submit("Once upon a time", LONG), engine.submit("round", 3)
    gate.release(6)  # some tokens
    asyncio.run(_cancelled(read(handle)))
    gate.release(10_000)
    completion = handle.result(30)
    assert completion.cancelled
    assert completion.finish is None
    assert len(completion.tokens) < LONG
    assert not other.result(30).cancelled
    until(lambda: all_free(engine))


def test_a_timeout_of_asyncio_cancels_the_request(engine: BatchServer, gate: threading.Semaphore):
    handle = engine.submit("Once upon a time", LONG)

    async def main() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(handle.wait(), 0.05)

    asyncio.run(main())
    gate.release(10_000)
    assert handle.result(30).cancelled


def test_a_reader_that_leaves_does_not_disturb_others(engine: BatchServer, gate: threading.Semaphore):
    handle = engine.submit("Once upon a time", 10)
    gate.release(8)

    async def leave() -> None:
        async for _ in handle:
            break
        await _shielded(handle)

    async def _shielded(handle: Handle) -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.shield(handle.wait()), 0.05)
        gate.release(10_000)
        await handle.wait()

    asyncio.run(leave())
    completion = handle.result(30)
    assert (completion.cancelled, completion.finish) == (False, "length")


def test_leaving_a_with_block_cancels(engine: BatchServer, gate: threading.Semaphore):
    gate.release(10_000)
    with engine.submit("Once upon a time", 4) as handle:
        assert len(list(handle)) == 4
    assert not handle.result().cancelled
    with pytest.raises(RuntimeError), engine.submit("Once upon a time", LONG) as handle:
        raise RuntimeError
    assert handle.result(30).cancelled


def test_several_readers_see_every_step(engine: BatchServer):
    handle = engine.submit("Once upon a time", 12)
    assert list(handle) == list(handle) == list(handle.result(30).steps)


def test_a_stop_string_ends_one_text_only(bundle: Path, engine: BatchServer):
    full = engine.submit("Once upon", 30, WARM).result(30)
    stop = full.text[5:8]
    both = engine.submit("Once upon", 30, WARM, stop=[stop]), engine.submit("Once upon", 30, WARM)
    assert both[0].result(30).text == full.text[: full.text.index(stop)]
    assert both[1].result(30).tokens == full.tokens


def test_a_stop_string_in_the_middle_of_a_call_takes_back_what_came_behind(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The text ends there, others go on, and the next turn of the conversation finds the tokens before it."""
    monkeypatch.setattr("edgeloop.runtime.engines.native.batch.burst", lambda made, ns: 6)
    with Session.open(bundle, engine="native", decode="sequential") as session:
        full = list(session.generate("Once upon", 30, WARM))
        others = [step.token for step in session.generate("The king", 30, WARM)]
        stop = "".join(step.text for step in full)[9:12]
        steps = list(session.generate("Once upon", 30, WARM, stop=[stop]))
        ids = [*session.tokenizer.encode("Once upon"), *(step.token for step in steps), 3]
        after = [step.token for step in session.generate(ids, 8, WARM)]
    assert 1 < len(steps) < len(full)
    with BatchServer.open(bundle, engine="native", sequences=3) as serving:
        handles = [serving.submit("Once upon", 30, WARM, stop=[stop]), serving.submit("The king", 30, WARM)]
        ended, went_on = (handle.result(60) for handle in handles)
        assert [step.token for step in ended.steps] == [step.token for step in steps]
        assert ended.text == "".join(step.text for step in steps)
        assert ended.finish == "stop"
        assert list(went_on.tokens) == others
        assert serving.scheduler.ticks < len(others)
        further = serving.submit(ids, 8, WARM).result(60)
        assert list(further.tokens) == after
        assert further.reused == len(ids) - 2


def test_what_is_full_refuses(engine: BatchServer, gate: threading.Semaphore):
    handles = [engine.submit("round", 3) for _ in range(5)]
    with pytest.raises(BusyError, match="run and [345] wait, which is all that this engine takes; try again"):
        engine.submit("round", 3)
    gate.release(10_000)
    assert len({handle.result(30).tokens for handle in handles}) == 1
    assert engine.submit("round", 3).result(30).tokens == handles[0].result().tokens


def test_requests_are_checked_at_once(engine: BatchServer):
    with pytest.raises(UsageError, match="the prompt is empty"):
        engine.submit("")
    with pytest.raises(ContextError, match="the prompt has 70 tokens, the context holds 64"):
        engine.submit([1] * 70)
    with pytest.raises(UsageError, match="max_tokens is 0"):
        engine.submit("round", 0)
    with pytest.raises(UsageError, match="a stop string is empty"):
        engine.submit("round", stop=[""])
    with pytest.raises(UsageError, match="lone surrogate U.D800"):
        engine.submit("\ud800")
    with pytest.raises(UsageError, match="max_tokens is 2.5, wanted a whole number"):
        engine.submit("round", 2.5)
    with pytest.raises(UsageError, match="client is a list, .*give a name or a number"):
        engine.submit("round", client=["one"])
    assert engine.submit("round", 10**12).result(30).finish == "context"


def test_sizes_are_checked(bundle: Path):
    with pytest.raises(UsageError, match="sequences is 0, wanted at least 1"):
        BatchServer.open(bundle, engine="reference", sequences=0)
    with pytest.raises(UsageError, match="waiting is -1, wanted at least 0"):
        BatchServer.open(bundle, engine="reference", waiting=-1)
    with pytest.raises(UsageError, match="sequences is 2.0, wanted a whole number"):
        BatchServer.open(bundle, engine="reference", sequences=2.0)
    with pytest.raises(UsageError, match="context is 65"):
        BatchServer.open(bundle, engine="reference", context=65)


def test_cancelling_before_it_started(engine: BatchServer, gate: threading.Semaphore):
    running = [engine.submit("round", 3) for _ in range(2)]
    until(lambda: len(engine.scheduler.tasks) == 2)
    waiting, last = engine.submit("Once", 3), engine.submit("round", 3)
    waiting.cancel()
    gate.release(10_000)
    assert waiting.result(30).cancelled
    assert waiting.result().tokens == ()
    assert len({handle.result(30).tokens for handle in (*running, last)}) == 1


def test_cancelling_what_waits_frees_its_place(engine: BatchServer, gate: threading.Semaphore):
    handles = [engine.submit("Once upon a time", LONG) for _ in range(5)]
    handles[-1].cancel()
    gate.release(2)
    until(lambda: handles[-1].done)
    another = engine.submit("round", 3)
    with pytest.raises(BusyError):
        engine.submit("round", 3)
    gate.release(10_000)
    assert [handle.result(30).cancelled for handle in (*handles, another)] == [False] * 4 + [True, False]


def test_cancelling_while_it_runs_frees_its_place(engine: BatchServer, gate: threading.Semaphore):
    first, second = (engine.submit("Once upon a time", LONG) for _ in range(2))
    steps = iter(first)
    gate.release(5)
    next(steps)
    next_one = engine.submit("round", 3)
    first.cancel()
    gate.release(10_000)
    assert first.result(30).cancelled
    assert 1 <= len(first.result().tokens) < LONG
    assert [next(steps, None) for _ in range(LONG)][-1] is None  # its stream ends too
    assert not next_one.result(30).cancelled
    assert not second.result(30).cancelled
    assert all_free(engine)


def test_cancelling_what_has_ended_does_nothing(engine: BatchServer):
    handle = engine.submit("round", 3)
    completion = handle.result(30)
    handle.cancel()
    handle.cancel()
    assert handle.result() == completion
    assert not completion.cancelled
    assert engine.submit("round", 3).result(30).tokens == completion.tokens


def test_closing_ends_everything(engine: BatchServer, gate: threading.Semaphore):
    handles = [engine.submit("Once upon a time", LONG) for _ in range(4)]
    gate.release(8)
    closing = threading.Thread(target=engine.close)
    closing.start()
    gate.release(1)
    closing.join(30)
    assert [handle.result(30).cancelled for handle in handles] == [True] * 4
    engine.close()
    with pytest.raises(UsageError, match="the engine is closed; open it again"):
        engine.submit("round")


def test_a_failing_engine_reaches_everybody(
    engine: BatchServer, gate: threading.Semaphore, monkeypatch: pytest.MonkeyPatch
):
    handles = [engine.submit("Once upon a time", LONG) for _ in range(4)]

    def broken(*call: object) -> None:
        raise BaseException("the block burst")  # a panic of a library is not an Exception

    gate.release(6)
    monkeypatch.setattr(engine.scheduler.backend, "block", broken)
    gate.release(10_000)
    for handle in handles:
        with pytest.raises(EngineError, match="the block burst"):
            handle.result(30)
    with pytest.raises(EngineError, match="the block burst"):
        list(handles[0])
    with pytest.raises(EngineError, match=r"the engine has failed \(.*the block burst\); open it again"):
        engine.submit("round")


def test_an_error_of_the_engine_ends_what_it_is_about(
    bundle: Path, engine: BatchServer, gate: threading.Semaphore, monkeypatch: pytest.MonkeyPatch
):
    """A call of several that fails is run again, each alone: the others get what they get without it."""
    block, sizes = engine.scheduler.backend.block, []

    def bad(state, lanes, cache):
        if state.shape[0] and (lanes.tokens[:3] > 0).any() and lanes.cached[:3].max() >= 6:  # sequence 0
            sizes.append(len(state))
            raise EngineError("no memory")
        return block(state, lanes, cache)

    monkeypatch.setattr(engine.scheduler.backend, "block", bad)
    wrong, right, later = engine.submit([5, 6, 7], 20), engine.submit([5, 6], 20), engine.submit([7, 8], 2)
    gate.release(10_000)
    with pytest.raises(EngineError, match="no memory"):
        wrong.result(30)
    assert len(wrong._steps) == 4
    assert list(right.result(30).tokens) == alone(bundle, [5, 6], 20)
    assert list(later.result(30).tokens) == alone(bundle, [7, 8], 2)
    assert sizes == [2, 1]
    until(lambda: all_free(engine))


def test_what_is_wrong_with_one_request_ends_that_one_only(
    engine: BatchServer, monkeypatch: pytest.MonkeyPatch
):
    epilogue = engine.scheduler.backend.epilogue

    def spoiled(state, rows, lanes, cache):  # the third token of one sequence
        logits = epilogue(state, rows, lanes, cache).copy()
        at = np.flatnonzero(lanes.tokens)
        logits[(at == 0) & (lanes.cached[at] == 5)] = np.nan
        return logits

    monkeypatch.setattr(engine.scheduler.backend, "epilogue", spoiled)
    wrong, right = engine.submit([5, 6, 7], 9), engine.submit([5, 6], 9)
    with pytest.raises(EngineError, match="hold NaN"):
        wrong.result(30)
    assert len(right.result(30).tokens) > 3
    until(lambda: all_free(engine))


class PanicException(BaseException):
    """As pyo3 makes one of a panic in Rust."""


@pytest.mark.parametrize("panic", [PanicException, GeneratorExit])
def test_a_panic_ends_its_request_only(
    engine: BatchServer, monkeypatch: pytest.MonkeyPatch, panic: type[BaseException]
):
    tokenizer = engine._session.tokenizer
    answer_text = tokenizer.answer_text

    def fragile(prompt: list[int], stops: tuple[str, ...]) -> object:
        text = answer_text(prompt, stops)
        push, told = text.push, []

        def burst(token: int) -> str:
            told.append(token)
            if len(told) == 3 and prompt[0] == 5:
                raise panic("the text burst")
            return push(token)

        monkeypatch.setattr(text, "push", burst)
        return text

    monkeypatch.setattr(tokenizer, "answer_text", fragile)
    wrong, right = engine.submit([5, 6, 7], 9), engine.submit([6, 6], 9)
    with pytest.raises(EngineError, match=f"the request failed: {panic.__name__}: the text burst"):
        wrong.result(30)
    assert len(right.result(30).tokens) == 9
    until(lambda: all_free(engine))
    assert len(engine.submit([6, 6], 9).result(30).tokens) == 9


def workers() -> int:
    return sum(thread.name == "edgeloop-engine" for thread in threading.enumerate())


def test_an_engine_that_is_dropped_lets_go(bundle: Path):
    """Of its thread and its memory, and not before what was submitted has been served."""
    before = workers()
    engine = BatchServer.open(bundle, engine="reference", sequences=1, waiting=3)
    cache, handles = weakref.ref(engine.scheduler.cache), [engine.submit("round", 20) for _ in range(3)]
    assert workers() == before + 1
    del engine
    gc.collect()
    assert [len(handle.result(30).tokens) for handle in handles] == [20] * 3
    until(lambda: workers() == before)
    gc.collect()
    assert cache() is None
    handles[0].cancel()


def test_an_open_engine_does_not_hold_up_the_interpreter(bundle: Path):
    script = (
        "import sys; from edgeloop.runtime import BatchServer\n"
        "engine = BatchServer.open(sys.argv[1], engine='reference', sequences=1)\n"
        "handles = [engine.submit('Once', 50) for _ in range(40)]\n"
        "next(iter(handles[0])); print('left')"
    )
    words = [sys.executable, "-c", script, str(bundle)]
    found = subprocess.run(words, capture_output=True, text=True, timeout=120)
    assert (found.returncode, found.stdout, found.stderr) == (0, "left\n", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes do not fork here")
def test_a_fork_does_not_wait_for_ever(engine: BatchServer, gate: threading.Semaphore):
    """The worker stays with the parent: in the child everything ends at once, and says why."""
    handle, ended = engine.submit("Once upon a time", LONG), []
    child = os.fork()
    if not child:  # what it finds is its exit code: nothing of pytest must run here
        code = 1
        with suppress(BaseException):
            signal.alarm(60)
            for call in (lambda: engine.submit("round"), handle.result, lambda: list(handle)):
                try:
                    call()
                except EngineError as error:
                    ended.append("was forked from the one that opened the engine" in str(error))
            handle.cancel()
            engine.close()
            code = 0 if ended == [True] * 3 else 1
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    gate.release(10_000)
    assert len(handle.result(30).tokens) == LONG
    assert not engine.submit("round", 3).result(30).cancelled


def test_waiting_has_a_limit(engine: BatchServer, gate: threading.Semaphore):
    with pytest.raises(TimeoutError, match=r"the request has not ended within 0\.01 s"):
        engine.submit("round", 3).result(0.01)


def test_nobody_starves(bundle: Path, monkeypatch: pytest.MonkeyPatch):
    """A long prompt comes through while short requests keep coming, and they while it does."""
    with BatchServer.open(bundle, engine="reference", sequences=2, waiting=8) as engine:
        ended: list[Handle] = []
        submitted, tick = threading.Event(), engine.scheduler.tick

        def recorded() -> None:
            submitted.wait(30)
            tick()
            ended.extend(handle for handle in handles if handle.done and handle not in ended)

        monkeypatch.setattr(engine.scheduler, "tick", recorded)
        long = engine.submit([3] * 60, 3)
        handles = [long, *(engine.submit([4] * 20, 1) for _ in range(8))]
        submitted.set()
        for handle in handles:
            assert not handle.result(30).cancelled
        until(lambda: len(ended) == len(handles))
        assert long not in ended[:2]
        assert ended.index(long) < len(ended) - 1


@pytest.mark.parametrize("engine", ["reference", "native"])
@pytest.mark.parametrize(
    "options",
    [{}, {"exit": "latent:0.5"}, {"exit": "latent:0.5", "skipped_kv": "skip"}, {"exit": "confidence:0.02"}],
    ids=lambda options: "-".join(options.values()),
)
def test_random_arrivals_and_cancellations(
    bundle: Path, options: dict[str, str], engine: str, monkeypatch: pytest.MonkeyPatch
):
    """Some prompts begin alike, some texts end at a stop string, some clients leave: others get what they get alone."""
    dice = random.Random(11)
    bounds = {"max_stall": 3.0} if engine == "native" else {}
    with BatchServer.open(
        bundle, engine=engine, sequences=3, waiting=4, reuse=True, **options, **bounds
    ) as server:
        # The first ticks wait, so that requests are refused, and cancelled in time, on any computer.
        begin, tick = threading.Event(), server.scheduler.tick
        monkeypatch.setattr(server.scheduler, "tick", lambda: begin.wait(30) and tick())
        kept: list[tuple[tuple[object, ...], Handle]] = []
        refused = 0
        for number in range(60):
            if number == 15:
                kept[-1][1].cancel()
                begin.set()
            prompt = [dice.randrange(1, 90) for _ in range(dice.choice((1, 3, 9, 17, 40)))]
            if dice.random() < 0.4:
                prompt = [*range(1, 20), *prompt][:50]
            request = (
                prompt,
                dice.randrange(1, 20),
                SamplingOptions(
                    temperature=dice.choice((0, 1)),
                    seed=dice.randrange(99),
                    repetition_penalty=dice.choice((1, 1, 1.3)),
                ),
                dice.choice(((), (), ("e",))),
            )
            try:
                handle = server.submit(*request, client=dice.randrange(3))
            except BusyError:
                refused += 1
                time.sleep(0.01)
                continue
            kept.append((request, handle))
            if dice.random() < 0.3:
                dice.choice(kept)[1].cancel()
            if dice.random() < 0.3:
                time.sleep(dice.random() * 0.01)
        results = [handle.result(60) for _, handle in kept]
        until(lambda: all_free(server))
        assert not any(server.scheduler._pending.values())
    assert refused
    assert any(result.cancelled for result in results)
    assert any(result.reused for result in results) or options.get("skipped_kv") == "skip"
    with Session.open(bundle, engine=engine, **options) as session:
        for (request, _), result in zip(kept, results, strict=True):
            steps = list(session.generate(*request))
            wanted = [(step.token, step.depth, step.text) for step in steps]
            found = [(step.token, step.depth, step.text) for step in result.steps]
            assert found == (wanted[: len(found)] if result.cancelled else wanted)


def test_the_engine_lets_go_of_what_has_ended(engine: BatchServer):
    gc.collect()
    for _ in range(5):
        engine.submit("round", 3).result(30)
    until(lambda: all_free(engine))
    gc.collect()
    assert sum(type(thing) is Handle for thing in gc.get_objects()) <= 1  # the worker may still name the last
