"""Conversations that outgrow their room, and templates that write earlier turns anew."""

from __future__ import annotations

import pytest

from edgeloop.runtime.context.turns import fit
from edgeloop.runtime.errors import ContextError, UsageError
from edgeloop.runtime.session import Session

REWRITES = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{% if loop.last %} (now){% endif %}\n"
    "{% endfor %}assistant: "
)


def turns(count, size=3):
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": "x" * size, "i": i} for i in range(2 * count - 1)]


def encode(messages):
    return [1] * sum(len(m["content"]) for m in messages)


def test_the_oldest_turns_go_down_to_half_of_the_room():
    messages = turns(10)
    assert fit(messages, encode, None) == (messages, encode(messages))
    assert fit(messages, encode, 57)[0] == messages
    for room in range(3, 57):
        left, ids = fit(messages, encode, room)
        assert ids == encode(left)
        assert left[0]["role"] == "user"
        assert left == messages[len(messages) - len(left) :]
        assert len(ids) <= room // 2 or len(left) == 1
        more = messages[len(messages) - len(left) - 2 :]
        assert len(encode(more)) > room // 2  # no more than needed


def test_the_system_message_stays_and_the_newest_turn_too():
    system = [{"role": "system", "content": "s" * 5}]
    left, _ = fit(system + turns(10), encode, 30)
    assert left[:1] == system
    assert left[1]["role"] == "user"
    assert fit(system + turns(10), encode, 1)[0] == system + turns(10)[-1:]
    only = system + turns(1)
    assert fit(only, encode, 1)[0] == only
    tools = [*turns(2)[:2], {"role": "tool", "content": "t" * 50}, *turns(3)[4:]]
    assert fit(tools, encode, 30)[0] == turns(3)[4:]  # a call goes with its result


def test_a_template_that_writes_earlier_turns_anew(text_bundle):
    """The comparison ends where it does, and the logits are those of the conversation as it is now."""
    with Session.open(text_bundle(REWRITES), engine="reference") as session:
        session.append([{"role": "user", "content": "a"}])
        answer = "".join(step.text for step in session.generate(max_tokens=2))
        session.append([{"role": "assistant", "content": answer}, {"role": "user", "content": "b"}])
        ids = session.encode_chat(session.messages)
        assert session.ids == ids
        steps = [step.token for step in session.generate(max_tokens=3)]
        stats = session.stats
        assert (
            0 < stats.prompt_tokens - stats.prefill_tokens < len(session.tokenizer.encode("user: a (now)\n"))
        )
        assert steps == [step.token for step in session.generate(ids, 3)]


def test_what_messages_cannot_follow(text_bundle):
    with Session.open(text_bundle(REWRITES, context_length=48), engine="reference") as session:
        session.append("Once")
        with pytest.raises(UsageError, match="messages behind a context that is no conversation"):
            session.append([{"role": "user", "content": "a"}])
        with pytest.raises(UsageError, match="template go with messages only"):
            session.append("more", template="x")
        session.reset()
        session.append([{"role": "user", "content": "a"}])
        before = session.ids
        with pytest.raises(
            ContextError, match="tokens do not fit a context of 48; shorten the text, or shift"
        ):
            session.append([{"role": "assistant", "content": "b"}, {"role": "user", "content": "c" * 90}])
        assert session.ids == before  # nothing happened
        with pytest.raises(ContextError, match="do not fit a context of 48"):
            session.append([1] * 48)
        with pytest.raises(UsageError, match="cannot go back to 99 tokens"):
            session.truncate(99)


def test_a_shift_keeps_the_first_and_the_newest(text_bundle):
    with Session.open(text_bundle(context_length=32), engine="reference") as session:
        session.append(range(1, 31))
        tokens = [step.token for step in session.generate(max_tokens=9)]
        assert len(tokens) == 3  # the context is full
        session.shift(4, 10)
        assert session.ids == [1, 2, 3, 4, *[*range(1, 31), *tokens][-10:]]
        found = [step.token for step in session.generate(max_tokens=4)]
        assert session.stats.prefill_tokens == 10
        assert found == [step.token for step in session.generate(session.ids[:14], 4)]
        session.shift(20, 20)  # nothing to do
        assert len(session.ids) == 18


def test_forks_close_with_the_last(text_bundle):
    session = Session.open(text_bundle(), engine="reference")
    session.append([5, 6, 7])
    other = session.fork()
    third = other.fork()
    session.close()
    session.close()
    with pytest.raises(UsageError, match="the session is closed"):
        session.append([1])
    steps = zip(other.generate(max_tokens=4), third.generate(max_tokens=4), strict=True)
    assert all(a.token == b.token for a, b in steps)  # in turn, a token each
    other.close()
    assert list(third.generate(max_tokens=1))
    third.close()


def test_no_answer_to_make_again(text_bundle):
    with Session.open(text_bundle(), engine="reference") as session:
        for change in (lambda: None, lambda: session.append([9]), session.reset):
            list(session.generate([5, 6], 2))
            list(session.regenerate(2))
            change()
            if session.ids[-1:] in ([], [9]):
                with pytest.raises(UsageError, match="no answer at the end of the context"):
                    session.regenerate()
