"""What an app in C calls: the tokens and texts of Python's sessions, from conversations to saved files."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from ctypes import sizeof
from pathlib import Path
from typing import Any

import mode_models
import native_app
import numpy as np
import pytest
from mode_models import write_bundle
from native_app import FORMAT, NO_THINK, USAGE, App, AppContext, CodeError, Sampling

from edgeloop.export import export_bundle
from edgeloop.export.calibration.write import write_exits, write_probes
from edgeloop.runtime import SamplingOptions, Session
from edgeloop.runtime.bundle.manifest import Exit
from edgeloop.runtime.engines.native import build
from edgeloop.runtime.errors import SessionError

DEMO = Path(__file__).parents[4] / "apps" / "demo"
PROMPT = "Once upon a time there was a king, who had three sons."
LONG = PROMPT * 12
"""More than one piece of a prompt."""
LATENT, PROBE = "latent:0.35", "probe:0.5"
MODELS = {"demo": (None, "depth:2", LATENT, PROBE), "routed": (None, "never", "depth:2", "router:0.6")}
HEADED = (
    ("an exit gate", "gate:0.5", "exact"),
    ("an exit gate", "gate:0.5", "propagate"),
    ("an exit gate", "gate:0.5", "latest"),
    ("an exit gate", "gate:0.6,0.4", "skip"),
    ("expert choice", "router:0.6", None),
    ("token choice", "router", None),
)
"""Models by their traits, their exit rules and skipped K/V."""
CASES = [(model, exit_) for model, exits in MODELS.items() for exit_ in exits]


@pytest.fixture(scope="module")
def bundles(lane_engine: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both demos for the lane engine; the one has probes, at random, and a rule that was calibrated."""
    folder = tmp_path_factory.mktemp("bundles")
    made = {}
    for name, checkpoint in {"demo": "checkpoint", "routed": "routed_checkpoint"}.items():
        made[name] = export_bundle(DEMO / checkpoint, folder / name, targets=("native",), quant="int4").bundle
    random = np.random.default_rng(5)
    write_probes(made["demo"], random.standard_normal((2, 256), np.float32) * 0.05, np.zeros(2, np.float32))
    rule = Exit(
        thresholds=(0.3, 0.4),
        skipped_kv="propagate",
        goal="none",
        tokens=1,
        perplexity=1.0,
        full_perplexity=1.0,
        agreement=1.0,
        mean_depth=2.0,
    )
    write_exits(made["demo"], {"latent": rule})
    return made


@pytest.fixture(scope="module")
def apps(bundles: dict[str, Path]) -> Iterator[dict[str, App]]:
    """The same as apps see them."""
    found = {name: App(path / "native" / "model.lanes") for name, path in bundles.items()}
    yield found
    for app in found.values():
        app.close()


@pytest.fixture
def contexts(apps: dict[str, App]) -> Iterator[Any]:
    """Make contexts of a model; all are freed at the end."""
    made: list[AppContext] = []

    def make(name: str = "demo", exit_: str | None = None, **options: Any) -> AppContext:
        made.append(apps[name].context(exit=exit_ and exit_.encode(), **options))
        return made[-1]

    yield make
    for context in made:
        context.free()


def session(path: Path, exit_: str | None = None, **options: Any) -> Session:
    return Session.open(path, engine="native", threads=1, exit=exit_, **options)


def steps(generated: Any) -> list[tuple[int, str, int]]:
    return [(step.token, step.text, step.depth) for step in generated]


def refused(code: int, line: str, function: Any, *arguments: Any, **options: Any) -> None:
    with pytest.raises(CodeError, match=line) as found:
        function(*arguments, **options)
    assert found.value.code == code
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("name", native_app.STRUCTS)
def test_a_struct_is_that_of_the_header_file(name: str) -> None:
    text = "".join(path.read_text(encoding="utf-8") for path in build.SOURCES.glob("edgeloop*.h"))
    body = re.search(rf"typedef struct {name} {{(.*?)}} {name};", text, re.S)
    assert body is not None
    bare = re.sub(r"//[^\n]*", "", body[1])
    fields = [piece.split()[-1].lstrip("*") for piece in re.split(r"[;,]", bare) if piece.strip()]
    assert fields == [field for field, *_ in native_app.STRUCTS[name]._fields_]
    assert sizeof(native_app.STRUCTS[name]) % 8 == 0


@pytest.mark.parametrize(("model", "exit_"), CASES)
def test_an_answer_is_that_of_a_session(model: str, exit_: str | None, bundles: Any, contexts: Any) -> None:
    sampled = SamplingOptions(temperature=0.8, top_k=40, top_p=0.9, min_p=0.01, seed=11)
    with session(bundles[model], exit_) as python:
        for prompt, options in ((LONG, None), (PROMPT, sampled)):
            wanted = steps(python.generate(prompt, 40, options))
            context = contexts(model, exit_)
            context.write(prompt)
            own = None if options is None else Sampling(
                temperature=0.8, top_k=40, top_p=0.9, min_p=0.01, seed=11
            )  # fmt: skip
            assert context.answer(40, sampling=own) == wanted
            assert context.ids == python.ids
            assert context.why == "length"
            stats, exits = context.stats(3)
            assert exits == [sum(depth == d for *_, depth in wanted) for d in (1, 2, 3)]
            assert (stats.tokens, stats.generated) == (len(python.ids), 40)
            # and goes on, with a text behind it
            wanted = steps(python.generate(None, 8))
            assert context.answer(8) == wanted
            python.append(" Then")
            context.write(" Then")
            assert context.answer(8) == steps(python.generate(None, 8))
            assert context.ids == python.ids


@pytest.mark.parametrize(("model", "exit_", "skipped"), HEADED)
def test_a_head_in_the_file_decides_as_in_a_session(
    model: str, exit_: str, skipped: str | None, lane_engine: Path, tmp_path: Path
) -> None:
    """Exit gates and routers by name, of models without a tokenizer; some tokens leave early, others do not."""
    path = write_bundle(tmp_path / "bundle", mode_models.model(model), ("native",))
    app = App(path / "native" / "model.lanes", text=False)
    context = app.context(exit=exit_.encode(), skipped_kv=skipped and skipped.encode())
    try:
        depths = set()
        with session(path, exit_, skipped_kv=skipped) as python:
            for prompt in ([3, 14, 15, 9, 2], [6, 5, 35]):
                python.append(prompt)
                wanted = [(step.token, step.depth) for step in python.generate(None, 9)]
                context.append(prompt)
                assert [(token, depth) for token, _, depth in context.answer(9)] == wanted
                assert context.ids == python.ids
                depths |= {depth for _, depth in wanted}
        assert len(depths) > 1
    finally:
        context.free()
        app.close()


@pytest.mark.parametrize("skipped", ["propagate", "latest", "skip"])
def test_skipped_kv_is_that_of_a_session(skipped: str, bundles: Any, contexts: Any) -> None:
    with session(bundles["demo"], LATENT, skipped_kv=skipped) as python:
        wanted = steps(python.generate(PROMPT, 70))
    context = contexts("demo", LATENT, skipped_kv=skipped.encode())
    context.write(PROMPT)
    assert context.answer(70) == wanted


def test_a_calibrated_rule_is_called_by_its_name(bundles: Any, apps: Any, contexts: Any) -> None:
    about = apps["demo"].about()
    assert [about.exits[i] for i in range(about.exits_count)] == [b"latent"]
    assert about.name == b"checkpoint"
    assert about.ends_count
    with session(bundles["demo"], "latent") as python:
        assert python.policy.skipped_kv == "propagate"
        wanted = steps(python.generate(PROMPT, 30))
    context = contexts("demo", "latent")
    context.write(PROMPT)
    assert context.answer(30) == wanted


@pytest.mark.parametrize("stops", [[" the "], ["king", "sons. And"], ["son"]])
def test_stop_strings_are_those_of_a_session(stops: list[str], bundles: Any, contexts: Any) -> None:
    with session(bundles["demo"]) as python:
        wanted = steps(python.generate(PROMPT, 80, stop=stops))
        context = contexts()
        context.write(PROMPT)
        assert context.answer(80, stops=stops) == wanted
    assert context.why in ("stop", "length", "eos")


def test_a_conversation_is_that_of_a_session(bundles: Any, apps: Any, contexts: Any) -> None:
    context = contexts()
    said: list[dict[str, str]] = []
    with session(bundles["demo"]) as python:
        for line in ("Who lived in the wood?", "  And then?  ", "Was she happy?"):
            said.append({"role": "user", "content": line})
            python.converse(said)
            context.say("user", line)
            assert context.ids == python.ids
            text = [(m["role"], m["content"]) for m in said]
            assert apps["demo"].render(text) == python.chat_templates.render(said)
            wanted = steps(python.generate(None, 24))
            assert context.answer(24) == wanted
            said.append({"role": "assistant", "content": "".join(text for _, text, _ in wanted)})
            python.append(said[-1:])
            assert context.messages == [(m["role"], m["content"]) for m in said]
        # the last answer again, as another seed has it
        options = SamplingOptions(temperature=1.0, seed=3)
        wanted = steps(python.regenerate(12, options))
        context.again()
        assert context.answer(12, sampling=Sampling(temperature=1.0, top_p=1.0, seed=3)) == wanted
        # an answer that the app writes otherwise
        context.chat([*context.messages[:-1], ("assistant", "No.")])
        assert context.messages[-1] == ("assistant", "No.")
        assert context.ids == python.ids


def test_old_turns_make_room(contexts: Any) -> None:
    context = contexts(capacity=96, answer_room=24)
    forgotten = 0
    for number in range(12):
        context.say("user", f"Tell me of number {number}.")
        context.answer(12)
        forgotten += context.told.forgotten
        assert len(context.ids) <= 96
    assert forgotten
    assert context.messages[-2] == ("user", "Tell me of number 11.")
    full = contexts(capacity=48)
    refused(USAGE, "do not fit a context of 48", full.say, "user", "a " * 100)


def test_a_full_context_ends_an_answer(bundles: Any, contexts: Any) -> None:
    context = contexts(capacity=32)
    context.write(PROMPT)
    with session(bundles["demo"], context=32) as python:
        assert context.answer() == steps(python.generate(PROMPT, 1000))
    assert context.why == "context"


def test_contexts_go_back_and_fork(bundles: Any, contexts: Any) -> None:
    context = contexts("demo", LATENT)
    context.write(LONG)
    first = context.answer(20)
    prompt = len(context.ids) - 20
    other = context.fork()
    try:
        assert other.ids == context.ids
        assert other.stats(3)[0].shared_bytes > 0
        with session(bundles["demo"], LATENT) as python:
            list(python.generate(LONG, 20))
            wanted = steps(python.generate(None, 20))
        assert other.answer(20) == wanted
        assert context.answer(20) == wanted
    finally:
        other.free()
    context.seek(prompt)
    assert context.answer(20) == first
    refused(USAGE, "cannot go back to 1000 tokens", context.seek, 1000)
    context.seek(0)
    refused(USAGE, "the context is empty", context.answer)
    refused(USAGE, "no answer at the end", context.again)


@pytest.mark.parametrize(("model", "exit_"), [("demo", LATENT), ("demo", None), ("routed", None)])
@pytest.mark.parametrize("bits", [32, 16, 8, 4])
def test_saved_files_are_those_of_sessions(
    model: str, exit_: str | None, bits: int, bundles: Any, contexts: Any, tmp_path: Path
) -> None:
    kv = {32: 0, 16: 1, 8: 2, 4: 3}[bits]
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    with session(bundles[model], exit_, kv_bits=bits) as python:
        python.converse([{"role": "user", "content": 'A "quoted" line\n\tand é'}])
        generated = steps(python.generate(None, 15))
        python.append([{"role": "assistant", "content": "".join(text for _, text, _ in generated)}])
        python.save(theirs)
        context = contexts(model, exit_, kv=kv)
        context.load(theirs)
        assert context.ids == python.ids
        assert context.messages == [(m["role"], m["content"]) for m in python.messages]
        context.save(ours)
        wanted = steps(python.generate(None, 15))
        assert context.answer(15) == wanted
        python.restore(ours)
        assert python.messages == [
            {"role": "user", "content": 'A "quoted" line\n\tand é'},
            {"role": "assistant", "content": "".join(text for _, text, _ in generated)},
        ]
        assert steps(python.generate(None, 15)) == wanted
    assert [path.name for path in tmp_path.iterdir()] == ["ours", "theirs"] or len(
        list(tmp_path.iterdir())
    ) == 2


def test_a_saved_file_is_not_trusted(bundles: Any, contexts: Any, tmp_path: Path) -> None:
    file = tmp_path / "saved"
    context = contexts("demo", LATENT)
    context.write(PROMPT)
    context.answer(9)
    context.save(file)
    whole = file.read_bytes()
    random = np.random.default_rng(0)
    for number in range(60):
        data = bytearray(whole)
        for at in random.integers(0, len(data) if number % 2 else 1200, 3):
            data[at] ^= 1 << random.integers(0, 8)
        file.write_bytes(data[: random.integers(0, len(data))] if number % 5 == 0 else data)
        with pytest.raises(CodeError) as found:
            context.load(file)
        assert found.value.code in (FORMAT, USAGE)
        assert context.ids == []
        assert context.stats(3)[0].cached == 0
    file.write_bytes(whole)
    refused(FORMAT, "saved with exit latent", contexts("demo", "never").load, file)
    refused(FORMAT, "another model", contexts("routed").load, file)
    refused(FORMAT, "is not as this context has it", contexts("demo", LATENT, kv=2).load, file)
    refused(native_app.FILE, "No such file", context.load, tmp_path / "none")
    refused(native_app.FILE, "cannot be written", context.save, tmp_path / "none" / "x")
    context.load(file)
    assert context.stats(3)[0].cached
    with session(bundles["demo"], "never") as python, pytest.raises(SessionError):
        python.restore(file)


def test_an_answer_is_stopped_by_its_callback_and_by_another_thread(contexts: Any) -> None:
    context = contexts()
    context.write(PROMPT)
    found = context.answer(50, on_piece=lambda token, text, depth: int(len(context.ids) >= 0))
    assert len(found) == 1
    assert context.why == "stopped"
    begun = threading.Event()
    stopper = threading.Thread(target=lambda: (begun.wait(), context.stop()))
    stopper.start()

    def on_piece(token: int, text: str, depth: int) -> int:
        begun.set()
        stopper.join()
        return 0

    assert len(context.answer(50, on_piece=on_piece)) == 1
    assert context.why == "stopped"
    assert len(context.answer(3)) == 3
    assert context.why == "length"


def test_bad_arguments_are_named(apps: Any, contexts: Any) -> None:
    app, context = apps["demo"], contexts()
    refused(USAGE, "depth:1 to depth:3", app.context, exit=b"depth:4")
    refused(USAGE, "no gate", app.context, exit=b"gate:0.5")
    refused(USAGE, "has no router", app.context, exit=b"router")
    refused(USAGE, "2 thresholds|3 thresholds", app.context, exit=b"latent:1,2,3")
    refused(USAGE, "a threshold is a number", app.context, exit=b"latent:x")
    refused(USAGE, "without logits", app.context, exit=b"entropy:1")
    refused(USAGE, "known: exact", app.context, skipped_kv=b"some")
    refused(USAGE, "a capacity of", app.context, capacity=10**6)
    refused(USAGE, "no el_kv", app.context, kv=9)
    refused(USAGE, "not asked to think", app.render, [("user", "x")], NO_THINK)
    refused(USAGE, "role tool", context.say, "tool", "x")
    refused(USAGE, "no UTF-8 from byte 1", context.write, b"a\xff")
    refused(USAGE, "token id 4096|token id", context.append, [10**6])
    context.append([5, 7])
    refused(USAGE, "is no conversation", context.say, "user", "x")
    refused(USAGE, "temperature of -1", context.answer, 3, sampling=Sampling(temperature=-1.0, top_p=1.0))
    refused(USAGE, "has 0 bytes", context.answer, 3, stops=[""])
    assert len(context.answer(3)) == 3
    broken = native_app.ContextOptions()
    broken.struct_bytes = 4
    with pytest.raises(CodeError, match="compiled with another edgeloop.h"):
        native_app.call(
            "el_context_new",
            app.model,
            None,
            native_app.byref(broken),
            native_app.byref(native_app.c_void_p()),
        )
