"""What a session's context takes and refuses, each in a line that changes nothing."""

from __future__ import annotations

import pytest

from edgeloop.runtime.decode.sampling import SamplingOptions
from edgeloop.runtime.errors import ContextError, UsageError
from edgeloop.runtime.session import Session

TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant: "


@pytest.fixture
def session(text_bundle):
    with Session.open(text_bundle(TEMPLATE), engine="reference") as session:
        yield session


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.append(None), "found a value of type NoneType, wanted token ids"),
        (lambda s: s.append(5), "found a value of type int, wanted token ids"),
        (lambda s: s.append([1.5]), "token ids of type float64, wanted integers"),
        (lambda s: s.append([10**6]), "token id 1000000 is not in the vocabulary"),
        (lambda s: s.append([[5, 6]]), r"token ids of shape \[1, 2\]"),
        (lambda s: s.append([{"role": "user", "content": "a"}]), "behind a context that is no conversation"),
        (lambda s: s.append("a", tools=[]), "tools go with messages only"),
        (lambda s: s.append([5] * s.context), "tokens do not fit a context"),
        (lambda s: s.converse([]), "the conversation is empty"),
        (lambda s: s.truncate(4), "cannot go back to 4 tokens, the context has 3"),
        (lambda s: s.truncate(-1), "tokens is -1, wanted at least 0"),
        (lambda s: s.truncate(1.0), "tokens is 1.0, wanted a whole number"),
        (lambda s: s.shift(-1, 3), "first is -1, wanted at least 0"),
        (lambda s: s.regenerate(), "there is no answer at the end of the context"),
    ],
)
def test_refusals(session, change, message):
    session.append([5, 6, 7])
    with pytest.raises((UsageError, ContextError), match=message) as found:
        change(session)
    assert "\n" not in str(found.value)
    assert session.ids == [5, 6, 7]


def test_nothing_may_be_appended(session):
    session.append("")
    session.append([])
    assert session.ids == []


def test_reset_forgets_sampling_options(session):
    session.append([5, 6, 7])
    list(session.generate(max_tokens=2, sampling=SamplingOptions(temperature=1.0, seed=3)))
    assert session.sampling.seed == 3
    session.reset()
    assert (session.ids, session.messages, session.sampling) == ([], [], SamplingOptions())
