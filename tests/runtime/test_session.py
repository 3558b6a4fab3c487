"""Sessions on the reference engine: text, limits, stops, statistics, perplexity."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgeloop.runtime.decode.sampling import SamplingOptions
from edgeloop.runtime.errors import ContextError, UsageError
from edgeloop.runtime.session import Session, Step

TEMPLATE = "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


@pytest.fixture
def session(text_bundle):
    with Session.open(text_bundle(), engine="reference") as session:
        yield session


def test_generate_is_the_argmax_of_logits(session):
    ids = session.tokenizer.encode("Once upon")
    steps = list(session.generate("Once upon", max_tokens=6))
    assert all(isinstance(s, Step) and s.depth == 3 and s.ms > 0 for s in steps)
    for step in steps:
        assert step.token == int(session.logits(ids)[-1].argmax())
        ids.append(step.token)
    text = "".join(s.text for s in steps)
    assert "Once upon" + text == session.tokenizer.decode(ids)
    assert [s.token for s in session.generate(np.array(ids[:-6]), max_tokens=6)] == [s.token for s in steps]


def test_sampling_is_reproducible(session):
    def tokens(seed):
        options = SamplingOptions(temperature=1.5, top_p=0.95, seed=seed)
        return [s.token for s in session.generate([5, 6, 7], 12, sampling=options)]

    assert tokens(1) == tokens(1) != tokens(2)


def test_logits_are_all_rows_and_fresh(session):
    first = session.logits([1, 2, 3])
    kept = first.copy()
    assert first.shape == (3, session.program.vocab_size)
    assert first.dtype == np.float32
    session.logits([3, 2, 1])
    np.testing.assert_array_equal(first, kept)


def test_ends(text_bundle):
    folder = text_bundle(context_length=16)
    with Session.open(folder, engine="reference") as session:
        free = list(session.generate([5, 6, 7], max_tokens=99))
        assert len(free) == 16 - 3 + 1  # the last token needs no room
        assert len(list(session.generate(list(range(1, 17)), max_tokens=99))) == 1
        whole = "".join(s.text for s in free)
        stop = whole[4:7]
        stopped = list(session.generate([5, 6, 7], max_tokens=99, stop=[stop]))
        assert "".join(s.text for s in stopped) == whole[: whole.index(stop)]
        assert len(stopped) < len(free)
    with Session.open(folder, engine="reference", context=8) as session:
        assert session.context == 8
        assert len(list(session.generate([5, 6, 7], max_tokens=99))) == 6


def finishes(session, *request, **options):
    steps = list(session.generate(*request, **options))
    assert [step.finish for step in steps[:-1]] == [None] * (len(steps) - 1)
    return steps[-1].finish


def test_why_it_ended(text_bundle):
    with Session.open(text_bundle(context_length=16), engine="reference") as session:
        assert finishes(session, [5, 6, 7], 4) == "length"
        assert finishes(session, [5, 6, 7], 14) == "length"  # there is room for 14, the last one needs none
        assert finishes(session, [5, 6, 7], 15) == "context"
        assert finishes(session, list(range(1, 17)), 2) == "context"
        text = "".join(step.text for step in session.generate([5, 6, 7], 8))
        assert finishes(session, [5, 6, 7], 99, stop=text[2:4]) == "stop"


def test_an_answer_takes_no_more_room_than_the_context(text_bundle):
    """However many tokens are asked for: memory is taken for what can come."""
    with Session.open(text_bundle(context_length=16), engine="reference") as session:
        for many in (10**12, 10**30, np.int64(2**62)):
            assert finishes(session, [5, 6, 7], many) == "context"


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"prompt": "a\ud83d"}, "surrogate"),
        ({"prompt": "\ud83d\udc4d"}, "surrogate"),
        ({"prompt": "a", "stop": ["\udcff"]}, "the stop string .* is half of a pair"),
        ({"prompt": b"abc"}, "the prompt is bytes, wanted text"),
        ({"prompt": memoryview(b"abc")}, "the prompt is bytes, wanted text"),
        ({"prompt": None}, "the context is empty; give a prompt"),
        ({"prompt": 7}, "of type int, wanted token ids"),
        ({"prompt": {1, 2}}, "of type set, wanted token ids"),
        ({"prompt": [True, 2]}, "token ids of type bool"),
        ({"prompt": np.array([True])}, "token ids of type bool"),
        ({"prompt": [1, None]}, "token ids of type object"),
        ({"prompt": [1, 2.0]}, "token ids of type float64"),
        ({"prompt": ["a"]}, "token ids of type"),
        ({"prompt": [[1], [2, 3]]}, "no token ids"),
        ({"prompt": [[1, 2]]}, r"shape \[1, 2\]"),
        ({"prompt": [2**63]}, "token id 9223372036854775808 is not in the vocabulary"),
        ({"prompt": [10**30]}, "token ids"),
        ({"prompt": "a", "max_tokens": 2.0}, "max_tokens is 2.0, wanted a whole number"),
        ({"prompt": "a", "max_tokens": True}, "max_tokens is True, wanted a whole number"),
        ({"prompt": "a", "max_tokens": None}, "max_tokens is None, wanted a whole number"),
        ({"prompt": "a", "max_tokens": "9"}, "max_tokens is '9', wanted a whole number"),
        ({"prompt": "a", "max_tokens": -(10**5000)}, "max_tokens is a number of more than 77 digits"),
        ({"prompt": "a", "stop": None}, "the stop strings are of type NoneType, wanted str or a list"),
        ({"prompt": "a", "stop": 7}, "the stop strings are of type int, wanted str or a list"),
        ({"prompt": "a", "sampling": {"temperature": 1}}, "sampling is of type dict, wanted SamplingOptions"),
    ],
)
def test_what_is_no_request_is_refused(session, request_, message):
    with pytest.raises(UsageError, match=message):
        session.generate(**request_)


def test_advice_can_be_followed(text_bundle):
    """A longer context is advised where there can be one."""
    folder = text_bundle(context_length=16)
    with Session.open(folder, engine="reference", context=8) as session:
        for call in (session.generate, session.logits):
            with pytest.raises(ContextError, match="with a longer context .--context, at most 16"):
                call([1] * 9)
    with Session.open(folder, engine="reference") as session:
        for call in (session.generate, session.logits):
            with pytest.raises(ContextError, match="16 is all that this model has"):
                call([1] * 17)


def test_an_end_of_text_token_ends(maker, tmp_path, byte_level):
    program = maker.program(vocab_size=byte_level.get_vocab_size())
    with Session.open(
        maker.bundle(tmp_path / "a", program, tokenizer=byte_level), engine="reference"
    ) as session:
        free = [s.token for s in session.generate([5, 6, 7], max_tokens=8)]
    ending = maker.program(vocab_size=program.vocab_size, eos_token_ids=(free[3],))
    with Session.open(
        maker.bundle(tmp_path / "b", ending, tokenizer=byte_level), engine="reference"
    ) as session:
        assert [s.token for s in session.generate([5, 6, 7], max_tokens=8)] == free[: free.index(free[3]) + 1]
        assert finishes(session, [5, 6, 7], max_tokens=8) == "eos"


def test_bad_requests_are_refused_at_once(session):
    for call, error, message in [
        (lambda: session.generate(""), UsageError, "prompt is empty"),
        (lambda: session.generate([]), UsageError, "at least one"),
        (lambda: session.generate([0.5]), UsageError, "wanted integers"),
        (lambda: session.generate([-1]), UsageError, "token id -1"),
        (lambda: session.generate([10**6]), UsageError, "token id 1000000 is not in the vocabulary"),
        (lambda: session.generate("a", max_tokens=0), UsageError, "max_tokens is 0"),
        (lambda: session.generate("a", stop=[""]), UsageError, "empty"),
        (lambda: session.generate("a", chat=True), UsageError, "no chat template"),
        (lambda: session.generate([1], chat=True), UsageError, "chat needs a text prompt"),
        (lambda: session.generate([1] * 65), ContextError, "the prompt has 65 tokens, the context holds 64"),
        (lambda: session.logits([1] * 65), ContextError, "65 new tokens do not fit a context of 64"),
        (lambda: session.perplexity([1]), UsageError, "at least 2 tokens"),
        (lambda: session.stats, UsageError, "nothing was generated"),
    ]:
        with pytest.raises(error, match=message):
            call()


def test_context_out_of_range(text_bundle):
    folder = text_bundle()
    for context in (0, 65, 10**30, 8.0, True, "8"):
        with pytest.raises(UsageError, match=r"context is .*, wanted .*1 to 64"):
            Session.open(folder, engine="reference", context=context)
    for threads in (0, 10**6, 10**30, 2.0, True):
        with pytest.raises(UsageError, match=r"threads is .*, wanted .*1 to 1024"):
            Session.open(folder, engine="reference", threads=threads)


def test_breaking_off_leaves_the_session_usable(session):
    wanted = [s.token for s in session.generate([5, 6, 7], max_tokens=5)]
    for _ in session.generate([9, 9, 9], max_tokens=50):
        break
    assert session.stats.decode_tokens == 1
    open_one = session.generate([8, 8], max_tokens=50)
    next(open_one)
    assert [s.token for s in session.generate([5, 6, 7], max_tokens=5)] == wanted
    with pytest.raises(UsageError, match="used for something else"):
        next(open_one)


def test_closed_is_closed(session):
    session.close()
    session.close()
    with pytest.raises(UsageError, match="closed"):
        session.logits([1])


def test_stats(session):
    steps = list(session.generate([5, 6, 7], max_tokens=4))
    stats = session.stats
    assert (stats.prefill_tokens, stats.decode_tokens, stats.depths) == (3, 4, (3,) * 4)
    assert stats.prefill_tokens_per_s > 0
    assert stats.decode_tokens_per_s > 0
    assert stats.time_to_first_token_ms <= steps[0].ms
    assert len(stats.ms_per_depth) == 3
    assert min(stats.ms_per_depth) > 0
    assert stats.host_ms_per_depth > 0


def test_chat(text_bundle):
    tokens = {"bos_token": "<|end|>"}
    with Session.open(
        text_bundle(chat_template=TEMPLATE, special_tokens=tokens), engine="reference"
    ) as session:
        ids = session.encode_chat([{"role": "user", "content": "a loop"}])
        assert session.tokenizer.decode(ids, special=True) == "<|end|>user: a loop\n"
        asked = [s.token for s in session.generate("a loop", 4, chat=True)]
        assert asked == [s.token for s in session.generate(ids, 4)]


TOOLS = [{"type": "function", "function": {"name": "height", "parameters": {}}}]
TOOL_TEMPLATE = (
    "{{ tools | map(attribute='function.name') | join(',') if tools is not none }}|"
    "{{ documents | map(attribute='title') | join(',') if documents is not none }}|{{ messages[-1].content }}"
)


def test_tools_documents_and_named_templates(text_bundle):
    bundle = text_bundle(
        chat_template={"default": TOOL_TEMPLATE, "shout": "{{ messages[0].content | upper }}"}
    )
    turns = [{"role": "user", "content": "a loop"}]
    with Session.open(bundle, engine="reference") as session:
        for options, text in (
            ({}, "||a loop"),
            ({"tools": TOOLS}, "height||a loop"),
            ({"tools": TOOLS, "documents": [{"title": "t"}]}, "height|t|a loop"),
            ({"template": "shout"}, "A LOOP"),
        ):
            ids = session.encode_chat(turns, **options)
            assert session.tokenizer.decode(ids) == text
            assert session.prompts.request("a loop", chat=True, **options).prompt.tolist() == ids
            asked = [s.token for s in session.generate("a loop", 3, chat=True, **options)]
            assert asked == [s.token for s in session.generate(ids, 3)]
        for options, message in (
            ({"tools": TOOLS}, "tools= is for the chat template, but chat is off"),
            ({"documents": []}, "documents= is for the chat template, but chat is off"),
            ({"template": "shout"}, "template= is for the chat template, but chat is off"),
            ({"chat": True, "template": "x"}, "no chat template 'x', wanted one of: default, shout"),
            ({"chat": True, "tools": {"name": "f"}}, "tools are of type dict, wanted a list of JSON objects"),
        ):
            with pytest.raises(UsageError, match=message):
                session.generate("a loop", **options)
        with pytest.raises(UsageError):
            session.generate("a \ud800 loop", chat=True)  # as without a template
    with pytest.raises(UsageError, match="the session is closed"):
        session.encode_chat(turns)


def test_the_bundles_special_tokens_are_what_a_template_sees(text_bundle):
    template = "{{ bos_token }}{{ eos_token }}{{ pad_token }}"
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    with Session.open(text_bundle(template, special_tokens=tokens), engine="reference") as session:
        assert session.tokenizer.decode(session.encode_chat([{"role": "user", "content": "x"}])) == (
            "<s></s><pad>"
        )


def test_a_bundle_without_a_tokenizer(maker, tmp_path):
    with Session.open(maker.bundle(tmp_path / "b", maker.program(), bits=4), engine="reference") as session:
        assert {s.text for s in session.generate([1, 2], max_tokens=3)} == {""}
        with pytest.raises(
            UsageError, match="takes no text: give token ids .*tokenizer.json in the checkpoint"
        ):
            session.generate("text")
        with pytest.raises(UsageError, match="no tokenizer, so the stop string 'x' never comes"):
            session.generate([1, 2], stop="x")


def test_perplexity_in_windows_and_per_depth(text_bundle):
    with Session.open(text_bundle(), engine="reference", context=10) as session:
        ids = np.random.default_rng(4).integers(0, session.program.vocab_size, 26)
        found = session.perplexity(ids)
        losses = []
        for start in (0, 10, 20):
            targets = torch.from_numpy(ids[start + 1 : start + 11])
            logits = torch.from_numpy(session.logits(ids[start : start + 10][: len(targets)]))
            losses.append(torch.nn.functional.cross_entropy(logits, targets, reduction="none"))
        assert found.tokens == 25
        assert found.perplexity == pytest.approx(float(torch.cat(losses).mean().exp()), rel=1e-4)
        assert found.perplexity_per_depth[-1] == found.perplexity
        assert len(set(found.perplexity_per_depth)) == 3
