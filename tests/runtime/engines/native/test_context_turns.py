"""Conversations that the C interface renders: those of transformers in every format of chat, and refusals of Python."""

from __future__ import annotations

import random
from pathlib import Path

import context_files
import pytest
from chat_templates import TEMPLATES, transformers_tokenizer
from native_app import ANSWER, NO_THINK, THINK, USAGE, App, CodeError

from edgeloop.export.text.compile_turns import WAYS, compile_turns, conversations
from edgeloop.runtime.errors import UsageError
from edgeloop.runtime.text.turns import Turns

MADE = 200
FLAGS = (0, THINK, NO_THINK)
"""What ``WAYS`` are to the C interface."""


def opened(folder: Path, turns: Turns) -> App:
    return App(context_files.write_model(folder, "plain", context_files.tokenizer(folder), turns))


def pairs(said: list[dict[str, str]]) -> list[tuple[str, str]]:
    return [(message["role"], message["content"]) for message in said]


def python(turns: Turns, said: list[dict[str, str]], generate: bool, table: int) -> str | None:
    """What Python's turns write; None where they refuse."""
    try:
        return turns.render(said, generate=generate, table=table)
    except UsageError:
        return None


def native(app: App, said: list[dict[str, str]], generate: bool, table: int) -> str | None:
    """What an app gets; None where it is refused."""
    try:
        return app.render(pairs(said), (ANSWER if generate else 0) | FLAGS[table])
    except CodeError as error:
        if error.code != USAGE or "\n" in str(error):
            raise
        return None


@pytest.mark.usefixtures("lane_engine")
@pytest.mark.parametrize("name", TEMPLATES)
def test_an_app_renders_what_transformers_renders(name: str, tmp_path: Path) -> None:
    """Two hundred conversations a format, with every way to ask for an answer; Python refuses what is refused."""
    source, special = TEMPLATES[name]
    turns, oracle = compile_turns(source, special), transformers_tokenizer(special)
    app = opened(tmp_path, turns)
    texts, refused, thinking = set(), 0, app.about().thinking
    assert thinking == (len(turns.tables) == len(WAYS))
    for said, generate, table in conversations(turns, random.Random(11), MADE):
        found = native(app, said, generate, table)
        assert (found is None) == (python(turns, said, generate, table) is None), said
        if found is None:
            refused += 1
            continue
        texts.add(found)
        wanted = oracle.apply_chat_template(
            said, chat_template=source, tokenize=False, add_generation_prompt=generate, **WAYS[table]
        )
        assert found == wanted, said
    app.close()
    assert refused < MADE // 10
    assert len(texts) > MADE // 2


@pytest.mark.usefixtures("lane_engine")
@pytest.mark.parametrize("name", ["gemma", "llama 2", "qwen 3", "chatml"])
def test_an_app_is_refused_what_python_refuses(name: str, tmp_path: Path) -> None:
    """Any order of roles, contents without words and thoughts among them."""
    turns, lot = compile_turns(*TEMPLATES[name]), random.Random(12)
    app = opened(tmp_path, turns)
    contents = ("x", "", " \n", "<think>a</think>b", "<tool_response>c</tool_response>")
    outcomes = set()
    for _ in range(MADE):
        roles = [
            lot.choice(("system", "user", "assistant", "tool")[: lot.choice((3, 3, 3, 4))]) for _ in range(4)
        ]
        said = [{"role": role, "content": lot.choice(contents)} for role in roles[: lot.randrange(5)]]
        generate, table = lot.random() < 0.5, lot.randrange(len(turns.tables))
        found = native(app, said, generate, table)
        assert found == python(turns, said, generate, table), said
        outcomes.add(found is None)
    app.close()
    assert outcomes == {True, False}
