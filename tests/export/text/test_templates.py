"""Which chat templates a checkpoint folder has, held against what transformers reads there; what is said of them."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Engine

from edgeloop.export.text.templates import chat_templates, warn_of_templates
from edgeloop.export.text.vocabulary import read_vocabulary
from edgeloop.runtime.errors import CheckpointError, UsageError
from edgeloop.runtime.text.template import ChatTemplates
from edgeloop.runtime.text.tokenizer import Tokenizer

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
    Engine(models.WordLevel({"a": 0}, unk_token="a")).save(str(tmp_path / "tokenizer.json"))
    wanted = transformers.PreTrainedTokenizerFast.from_pretrained(fill(tmp_path, files)).chat_template
    if not isinstance(wanted, dict):
        wanted = {} if wanted is None else {"default": wanted}
    assert chat_templates(tmp_path) == wanted


@pytest.mark.parametrize("several", [False, True])
def test_what_transformers_saves_is_read(several: bool, tmp_path: Path, transformers: Any) -> None:
    templates = {"default": ECHO, "tool_use": "T\n{{ tools }}\n", "räg": "R\r\n"} if several else ECHO
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Engine(models.WordLevel({"a": 0}, unk_token="a")), chat_template=templates
    )
    for jinja_files in (False, True):
        folder = tmp_path / str(jinja_files)
        tokenizer.save_pretrained(folder, save_jinja_files=jinja_files)
        wanted = transformers.PreTrainedTokenizerFast.from_pretrained(folder).chat_template
        assert chat_templates(folder) == (wanted if several else {"default": wanted})


@pytest.mark.parametrize(
    "settings",
    [
        {"bos_token": "<|s|>", "eos_token": "<|e|>", "pad_token": "<|p|>", "unk_token": "<|u|>"},
        {"eos_token": {"__type": "AddedToken", "content": "<|e|>", "special": True}},
        {"bos_token": "<|s|>", "eos_token": "<|e|>", "add_bos_token": True},
        {"eos_token": "<|e|>", "additional_special_tokens": ["<|p|>"], "image_token": "<|p|>"},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["chatml", "gemma", "qwen", "not_none", "special_tokens"])
def test_a_folder_gives_the_ids_of_transformers(
    settings: dict[str, Any], name: str, tmp_path: Path, transformers: Any
) -> None:
    """From the files alone: the template, its special tokens and the tokenizer together."""
    folder, bundle = tmp_path / "checkpoint", tmp_path / "bundle"
    folder.mkdir()
    bundle.mkdir()
    engine = byte_tokenizer(["<|s|>", "<|e|>", "<|p|>", "<|u|>", "<|im_start|>", "<|im_end|>"])
    engine.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **settings})
    )
    source = Path(__file__).parents[2] / "fixtures" / "chat_templates" / f"{name}.jinja"
    (folder / "chat_template.jinja").write_text(source.read_text(encoding="utf-8"), encoding="utf-8")

    oracle = transformers.AutoTokenizer.from_pretrained(folder)
    vocabulary = read_vocabulary(folder, {"model_type": "llama"}, engine.get_vocab_size())
    assert vocabulary is not None
    tokenizer = Tokenizer.open(vocabulary.write(bundle), vocabulary.split_special_tokens)
    templates = ChatTemplates(chat_templates(folder), vocabulary.special_tokens)
    turns = [
        {"role": "user", "content": " Höher? <|e|>"},
        {"role": "assistant", "content": "Ja.\n"},
        {"role": "user", "content": "<|s|>🦊"},
    ]
    for messages in (turns[:1], turns):
        try:
            wanted = oracle.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        except Exception:  # a token that the folder does not name
            with pytest.raises(UsageError):
                templates.render(messages)
            continue
        assert tokenizer.encode(templates.render(messages), special=False) == wanted
    templates.close()


def byte_tokenizer(special: list[str]) -> Engine:
    vocab = {token: i for i, token in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    engine = Engine(models.BPE(vocab=vocab, merges=[]))
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    engine.decoder = decoders.ByteLevel()
    engine.add_special_tokens([AddedToken(token, special=True) for token in special])
    return engine


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
