"""Chat templates as turns: the text of transformers on made conversations, and what turns refuse."""

from __future__ import annotations

import random

import pytest
from chat_templates import REFUSED, TEMPLATES, transformers_tokenizer

from edgeloop.export.text.compile_turns import WAYS, TurnsError, compile_turns, conversations
from edgeloop.runtime.errors import UsageError
from edgeloop.runtime.text.turns import Order, System, Turns

MADE = 200
FACTS = {
    "chatml": (Order.ANY, System.ANYWHERE),
    "llama 3": (Order.ANY, System.ANYWHERE),
    "llama 2": (Order.ALTERNATE, System.FIRST),
    "mistral": (Order.ALTERNATE, System.NOWHERE),
    "mistral 0.3": (Order.ALTERNATE, System.FIRST),
    "gemma": (Order.ALTERNATE, System.NOWHERE),
    "gemma 3": (Order.ALTERNATE, System.FIRST),
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_turns_write_what_transformers_writes(name: str) -> None:
    source, special = TEMPLATES[name]
    turns, oracle = compile_turns(source, special), transformers_tokenizer(special)
    refused = 0
    texts = set()
    for said, generate, table in conversations(turns, random.Random(7), MADE):
        try:
            found = turns.render(said, generate=generate, table=table)
        except UsageError:
            refused += 1
            continue
        wanted = oracle.apply_chat_template(
            said, chat_template=source, tokenize=False, add_generation_prompt=generate, **WAYS[table]
        )
        assert found == wanted, said
        texts.add(found)
    assert refused < MADE // 10
    assert len(texts) > MADE // 2
    assert (turns.order, turns.system) == FACTS.get(name, (turns.order, turns.system))


@pytest.mark.parametrize("name", REFUSED)
def test_what_turns_cannot_say_is_refused(name: str) -> None:
    with pytest.raises(TurnsError):
        compile_turns(REFUSED[name], {})


def test_an_order_that_the_template_refuses_is_named() -> None:
    turns = compile_turns(*TEMPLATES["gemma"])
    user = {"role": "user", "content": "x"}
    with pytest.raises(UsageError, match="alternates user and assistant"):
        turns.render([user, user])
    with pytest.raises(UsageError, match="no system message"):
        turns.render([{"role": "system", "content": "x"}, user])
    with pytest.raises(UsageError, match="role 'tool'"):
        turns.render([{"role": "tool", "content": "x"}])


def test_thinking_is_three_ways() -> None:
    turns: Turns = compile_turns(*TEMPLATES["qwen 3"])
    said = [{"role": "user", "content": "x"}]
    plain, think, not_think = (turns.render(said, table=table) for table in range(3))
    assert plain == think
    assert not_think == plain + "<think>\n\n</think>\n\n"
    told = [*said, {"role": "assistant", "content": "<think>\nw\n</think>\n\ny"}, *said]
    assert "w" not in turns.render(told)
    with pytest.raises(UsageError, match="what was thought"):
        turns.render(told[:2], generate=False)
