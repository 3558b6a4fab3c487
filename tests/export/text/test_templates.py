"""Which chat templates a checkpoint folder has, held against what transformers reads there; what is said of them."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest

from edgeloop.export.text.templates import chat_templates, warn_of_templates
from edgeloop.runtime.errors import CheckpointError

ECHO = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


def config(template: Any) -> str:
    return json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": template})


def fill(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def transformers() -> Any:
    return pytest.importorskip("transformers")


@pytest.mark.parametrize(
    "files",
    [
        {},
        {"tokenizer_config.json": "{}"},
        {"tokenizer_config.json": config(None)},
        {"tokenizer_config.json": config("C")},
        {"tokenizer_config.json": config({"default": "C", "rag": "R"})},
        {"tokenizer_config.json": config([{"name": "default", "template": "C"}])},
        {
            "tokenizer_config.json": config(
                [
                    {"name": "tool_use", "template": "T"},
                    {"name": "default", "template": "C"},
                    {"name": "tool_use", "template": "the last one counts"},
                ]
            )
        },
        {"tokenizer_config.json": config([{"name": "rag", "template": "R"}])},
        {"chat_template.jinja": "F ä"},
        {"chat_template.jinja": "F\r\nG\n"},
        {"chat_template.jinja": "F", "tokenizer_config.json": config("C")},
        {
            "chat_template.jinja": "F",
            "tokenizer_config.json": config([{"name": "tool_use", "template": "T"}]),
        },
        {
            "chat_template.jinja": "F",
            "additional_chat_templates/tool_use.jinja": "T",
            "additional_chat_templates/rag.v2.jinja": "R",
            "additional_chat_templates/notes.txt": "no template",
        },
        {"chat_template.jinja": "F", "additional_chat_templates/default.jinja": "another default"},
        {"additional_chat_templates/rag.jinja": "R", "tokenizer_config.json": config("C")},
    ],
    ids=str,
)
def test_the_templates_are_those_of_transformers(
    files: dict[str, str], tmp_path: Path, transformers: Any
) -> None:
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordLevel({"a": 0}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    wanted = transformers.PreTrainedTokenizerFast.from_pretrained(fill(tmp_path, files)).chat_template
    if not isinstance(wanted, dict):
        wanted = {} if wanted is None else {"default": wanted}
    assert chat_templates(tmp_path) == wanted


@pytest.mark.parametrize("several", [False, True])
def test_what_transformers_saves_is_read(several: bool, tmp_path: Path, transformers: Any) -> None:
    from tokenizers import Tokenizer, models

    templates = {"default": ECHO, "tool_use": "T\n{{ tools }}\n", "räg": "R\r\n"} if several else ECHO
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"a": 0}, unk_token="a")), chat_template=templates
    )
    for jinja_files in (False, True):
        folder = tmp_path / str(jinja_files)
        tokenizer.save_pretrained(folder, save_jinja_files=jinja_files)
        wanted = transformers.PreTrainedTokenizerFast.from_pretrained(folder).chat_template
        assert chat_templates(folder) == (wanted if several else {"default": wanted})


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("tokenizer_config.json", b"{", "is not valid JSON"),
        ("tokenizer_config.json", b"[" * 100_000, "is not valid JSON"),
        ("tokenizer_config.json", b"[]", "holds a JSON list"),
        ("tokenizer_config.json", b'{"chat_template": 3}', "neither a text nor a list"),
        ("tokenizer_config.json", b'{"chat_template": [3]}', "neither a text nor a list"),
        ("tokenizer_config.json", b'{"chat_template": [{"name": ["a"]}]}', "neither a text nor a list"),
        ("tokenizer_config.json", b'{"chat_template": [{"template": "a"}]}', "neither a text nor a list"),
        (
            "tokenizer_config.json",
            b'{"chat_template": [{"name": "a"}]}',
            "chat_template 'a' that is not text",
        ),
        ("tokenizer_config.json", b'{"chat_template": {"a": 3}}', "chat_template 'a' that is not text"),
        ("tokenizer_config.json", rb'{"chat_template": "\ud800"}', "'default' that is not text"),
        ("tokenizer_config.json", config({str(i): "x" for i in range(33)}).encode(), "has 33 chat templates"),
        ("chat_template.jinja", b"\xff", "cannot be read as UTF-8"),
        ("additional_chat_templates/a.jinja", b"\xff", "cannot be read as UTF-8"),
    ],
)
def test_what_is_no_template(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / name).write_bytes(data)
    with pytest.raises(CheckpointError, match=message) as caught:
        chat_templates(tmp_path)
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)


ALTERNATE = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must\n alternate') }}{% endif %}{{ m.content }}{{ eos_token + '.' }}{% endfor %}"
)


@pytest.mark.parametrize(
    ("template", "told"),
    [
        (ECHO, None),
        ("{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}", None),
        ("{% for %}", "cannot render a user's turn: the chat template failed: "),
        ("{{ messages[0].content | shout }}", "cannot render a user's turn: .*No filter named 'shout'"),
        ("{{ messages[2].content.upper() }}", "cannot render a user's turn: .*has no element 2"),
        ("{% if messages[1] %}{{ 1 / 0 }}{% endif %}", "cannot render a conversation of .*ZeroDivisionError"),
        (ALTERNATE, "cannot render a system message: .* refuses these messages: roles must alternate"),
        ("{{ pad_token + 'x' }}", "cannot render a user's turn: .*'pad_token' is undefined"),
        ("{{ 'a' * 999999999 }}", "cannot render a user's turn: .* takes more than 64 MB of memory"),
        ("x" * 300_000, "cannot render a user's turn: .* has 300000 characters"),
    ],
)
def test_templates_that_cannot_be_rendered_are_told_once(
    template: str, told: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        warn_of_templates(tmp_path, {"default": template}, {"eos_token": "</s>"})
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == (told is not None)
    if told is not None:
        assert re.search(f"chat template 'default' {told}", messages[0])
        assert "\n" not in messages[0]


def test_tools_are_for_the_template_of_tools(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tools = "{% for tool in tools %}{{ tool.function.name }}{% endfor %}"
    warn_of_templates(tmp_path, {"tool_use": tools}, {})
    assert not caplog.records
    warn_of_templates(tmp_path, {"default": tools, "rag": "{{ x.y }}"}, {})
    assert [record.getMessage().partition(" cannot")[0] for record in caplog.records] == [
        f"{tmp_path}: chat template 'default'",
        f"{tmp_path}: chat template 'rag'",
    ]
