"""Saved sessions: what comes back, whose they are, and that no file brings more than a line."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil

import numpy as np
import pytest

from edgeloop.runtime.context.saved_header import identity
from edgeloop.runtime.decode.sampling import SamplingOptions
from edgeloop.runtime.errors import ContextError, EdgeloopError, SessionError, UsageError
from edgeloop.runtime.session import Session

TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: "


@pytest.fixture
def bundle(text_bundle):
    return text_bundle(TEMPLATE)


def tokens(steps):
    return [step.token for step in steps]


def open_(bundle, **options):
    return Session.open(bundle, engine="reference", **options)


def begun(session):
    """A conversation with an answer that was sampled."""
    session.append([{"role": "user", "content": "Once upon"}])
    options = SamplingOptions(temperature=0.8, seed=7, logit_bias={5: -np.inf, 9: 0.5})
    return tokens(session.generate(max_tokens=5, sampling=options))


def test_a_conversation_comes_back(bundle, tmp_path):
    file = tmp_path / "a.session"
    with open_(bundle) as session:
        begun(session)
        session.save(file)
        ids, messages = session.ids, session.messages
        wanted = tokens(session.generate(max_tokens=6))
    with Session.load(bundle, file, engine="reference") as session:
        assert (session.ids, session.messages) == (ids, messages)
        assert tokens(session.generate(max_tokens=6)) == wanted  # with the same options
        assert session.stats.prefill_tokens == 1
    with Session.load(bundle, file, engine="reference") as session:
        again = tokens(session.regenerate(max_tokens=5))
        assert session.stats.prefill_tokens == 1
        assert again != ids[-5:]  # another seed
        assert session.messages == messages
        said = "".join(step.text for step in session.regenerate(4))
        session.append([{"role": "assistant", "content": said}])
        session.save(file)
    with Session.load(bundle, file, engine="reference") as session:
        assert session.messages == [*messages, {"role": "assistant", "content": said}]
        before = len(session.ids)
        session.append([{"role": "user", "content": "And then?"}])
        assert session.ids == session.encode_chat(session.messages)
        list(session.generate(max_tokens=1))
        assert session.stats.prefill_tokens < session.stats.prompt_tokens - before + 8


def test_an_empty_session_and_one_that_ran_nothing(bundle, tmp_path):
    file = tmp_path / "a.session"
    with open_(bundle) as session:
        session.save(file)
        session.append("Once upon a time")
        ids = session.ids
        session.restore(file)
        assert session.ids == []
        session.append(ids)
        session.save(file)
        wanted = tokens(session.generate(max_tokens=4))
        session.restore(file)
        assert tokens(session.generate(max_tokens=4)) == wanted


def test_whose_it_is(bundle, maker, byte_level, tmp_path):
    file = tmp_path / "a.session"
    with open_(bundle, exit="depth:2") as session:
        begun(session)
        session.save(file)
        identical = identity(session.bundle)
    with Session.load(bundle, file, engine="reference") as session:
        assert (session.policy.exit, session.policy.skipped_kv) == ("depth:2", "exact")
    for options, message in (
        ({}, "saved with --exit depth:2, this session has never; open the bundle with --exit depth:2$"),
        ({"exit": "depth:2", "skipped_kv": "skip"}, "saved with --skipped-kv exact, this session has skip"),
    ):
        with open_(bundle, **options) as session:
            session.append("Once")
            with pytest.raises(SessionError, match=message):
                session.restore(file)
            assert session.ids  # what it had, it has
    program = maker.program(vocab_size=byte_level.get_vocab_size(), rope_theta=5000.0)
    other = maker.bundle(tmp_path / "other", program, tokenizer=byte_level)
    message = r"saved of another bundle \(text_bundle, .*this one is other, \w+\); open it with that one$"
    with pytest.raises(SessionError, match=message):
        Session.load(other, file, engine="reference")
    copied = shutil.copytree(bundle, tmp_path / "copied")
    with Session.load(copied, file, engine="reference") as session:
        assert identity(session.bundle) == identical  # wherever it lies
    with pytest.raises(ContextError, match=r"holds \d+ tokens, the context 8; open the bundle with a longer"):
        Session.load(bundle, file, engine="reference", context=8)


def kept(slot, size):
    return {"stage": "block", "slot": slot, "tokens": 3, "sizes": [size]}


def test_a_full_context_comes_back(bundle, tmp_path):
    """Whose last token was chosen, and has no place in the cache."""
    file = tmp_path / "a.session"
    with open_(bundle, context=12) as session:
        assert list(session.generate([5, 6, 7], 64))[-1].finish == "context"
        assert len(session.ids) == 13
        session.save(file)
        ids, again = session.ids, tokens(session.regenerate(64))
    with Session.load(bundle, file, engine="reference", context=12) as session:
        assert session.ids == ids
        assert tokens(session.regenerate(64)) == again
        session.truncate(12)
        assert tokens(session.generate(max_tokens=64))
    with pytest.raises(ContextError, match="holds 13 tokens, the context 11"):
        Session.load(bundle, file, engine="reference", context=11)


def rewritten(data, change):
    """The file ``data`` with another header, and the right hash."""
    length = int.from_bytes(data[:8], "little")
    header, arrays = json.loads(data[8 : 8 + length]), data[8 + length : -32]
    said = json.loads(header["__metadata__"]["edgeloop.session"])
    change(said)
    header["__metadata__"]["edgeloop.session"] = json.dumps(said)
    packed = json.dumps(header).encode()
    new = len(packed).to_bytes(8, "little") + packed + arrays
    return new + hashlib.sha256(new).digest()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda said: said.update(format=2), "a saved session of format 2, this edgeloop reads 1"),
        (lambda said: said.pop("format"), "a saved session of format none"),
        (lambda said: said.update(x=1), "its header cannot be read"),
        (lambda said: said["owner"].update(depths=5), "3 depths of 5"),
        (lambda said: said.update(cached=said["cached"] - 1), "depths hold|lacks tokens"),
        (lambda said: said.update(tokens=10**9), "holds 1000000000 tokens, the context"),
        (lambda said: said.update(tokens=said["tokens"] + 1), "ids is not as"),
        (lambda said: said.update(tokens=-1), "-1 tokens were run|of -1 tokens"),
        (lambda said: said["filled"].__setitem__(1, 10**6), "depths hold"),
        (lambda said: said["filled"].__setitem__(1, -1), "depths hold"),
        (lambda said: said["filled"].__setitem__(1, 0), "lacks tokens from 0 on|wait"),
        (lambda said: said["waiting"].__setitem__(1, [[3, 2]]), "tokens from 3 on wait behind"),
        (lambda said: said.update(held=True), "held.0 is not as|wait for depths that they skip"),
        (lambda said: said.update(last=[kept(99, 4)]), "rows of slots that are none"),
        (lambda said: said.update(last=[kept(0, 1 << 40)]), "rows of .1099511627776,. that are kept"),
        (lambda said: said.update(answer=10**6), "an answer from token 1000000"),
        (lambda said: said.update(said=10**6), "messages are 1000000"),
        (lambda said: said["sampling"]["numbers"].update(temperature=-1), "temperature is -1.0, wanted"),
        (lambda said: said["sampling"]["numbers"].update(warmth=1), "sampling options warmth"),
        (lambda said: said["sampling"]["numbers"].update(top_k="x"), "its header cannot be read"),
        (lambda said: said["messages"].append(7), "its header cannot be read"),
    ],
)
def test_headers_that_no_session_has(bundle, tmp_path, change, message):
    file = tmp_path / "a.session"
    with open_(bundle) as session:
        begun(session)
        session.save(file)
        data = file.read_bytes()
        file.write_bytes(rewritten(data, lambda said: None))
        session.restore(file)
        file.write_bytes(rewritten(data, change))
        with pytest.raises((SessionError, ContextError), match=message) as found:
            session.restore(file)
        assert "\n" not in str(found.value)
    with pytest.raises((SessionError, ContextError, UsageError)):
        Session.load(bundle, file, engine="reference")


def test_files_by_lot(bundle, tmp_path):
    """A header in which numbers, lists and words were changed, with the right hash: a line, or a text."""
    file, random = tmp_path / "a.session", np.random.default_rng(11)
    numbers = (-1, 0, 1, 2, 3, 7, 40, 1 << 31, 1 << 63, 10**30, 0.5, None, "x", [], {}, True, [[0, 1]], "NaN")

    def places(value, path=()):
        inside = (
            value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        )
        yield from (path, *(place for key, item in inside for place in places(item, (*path, key))))

    with open_(bundle, exit="depth:1") as session:
        begun(session)
        session.save(file)
        data = file.read_bytes()
        refused: list[str] = []
        for _ in range(400):

            def change(said):
                for _ in range(int(random.integers(1, 3))):
                    path = list(places(said))[1:]
                    *outer, last = path[int(random.integers(len(path)))]
                    inside = said
                    for key in outer:
                        inside = inside[key]
                    inside[last] = copy.deepcopy(numbers[int(random.integers(len(numbers)))])

            file.write_bytes(rewritten(data, change))
            try:
                session.restore(file)
                list(session.generate(max_tokens=3))
            except EdgeloopError as error:
                refused.append(str(error))
        assert 200 < len(refused) < 400
        assert not [message for message in refused if "\n" in message]
        file.write_bytes(data)
        session.restore(file)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("policy", [{}, {"exit": "latent:0.9", "skipped_kv": "skip"}, {"exit": "depth:1"}])
def test_arrays_by_lot(bundle, tmp_path, policy):
    """Bytes of arrays that were changed, with the right hash: other K and V, or tokens and rows that are refused."""
    file, random = tmp_path / "a.session", np.random.default_rng(5)
    with open_(bundle, **policy) as session:
        begun(session)
        session.save(file)
        data = file.read_bytes()
        arrays, refused = 8 + int.from_bytes(data[:8], "little"), []
        for round_ in range(120):
            # In the tokens and what is behind them, or anywhere.
            end = arrays + 300 if round_ % 2 else len(data) - 32
            changed = bytearray(data[:-32])
            for at in random.integers(arrays, end, 3).tolist():
                changed[at] = int(random.integers(256))
            file.write_bytes(bytes(changed) + hashlib.sha256(changed).digest())
            try:
                session.restore(file)
                list(session.generate(max_tokens=2))
            except EdgeloopError as error:
                refused.append(str(error))
        assert len(refused) < 120
        assert any("not in the vocabulary" in message for message in refused)
        assert not [message for message in refused if "\n" in message]


def test_a_damaged_file_leaves_an_empty_context(bundle, tmp_path):
    file = tmp_path / "a.session"
    with open_(bundle) as session:
        begun(session)
        session.save(file)
        data = bytearray(file.read_bytes())
        data[-2000] ^= 1
        file.write_bytes(bytes(data))
        with pytest.raises(SessionError, match="its SHA-256 is another one than it says"):
            session.restore(file)
        assert session.ids == []
        with pytest.raises(UsageError, match="the context is empty"):
            session.generate()
        assert tokens(session.generate([5, 6], 3))
