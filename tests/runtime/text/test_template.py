"""What a chat template makes of a conversation: what transformers makes of it, from the same template and tokens."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeloop.runtime.errors import UsageError
from edgeloop.runtime.text.template import ChatTemplates

FOLDER = Path(__file__).parents[2] / "fixtures" / "chat_templates"
TEMPLATES = {path.stem: path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.jinja"))}
TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}

USER = {"role": "user", "content": " Is 1 < 2 & 'so'? 你好 \n"}
REPLY = {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nYes."}
MORE = {"role": "user", "content": "And\n\nnow? 🦊"}
SYSTEM = {"role": "system", "content": "Be brief. "}
CALL = {
    "role": "assistant",
    "tool_calls": [
        {
            "id": "abcdefghi",
            "type": "function",
            "function": {"name": "height", "arguments": {"of": "Mönch", "exact": True, "by": None, "x": 1.5}},
        }
    ],
}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "one turn": [USER],
    "system": [SYSTEM, USER],
    "three turns": [USER, REPLY, MORE],
    "all": [SYSTEM, USER, REPLY, MORE],
    "two users": [USER, MORE],
    "a call": [USER, CALL, {"role": "tool", "content": "4107"}, {"role": "tool", "content": "m"}],
    "a call as text": [
        USER,
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"function": {"name": "f", "arguments": '{"a": 1}'}}],
        },
    ],
    "two calls": [USER, {**CALL, "tool_calls": CALL["tool_calls"] * 2}],
    "an object of a tool": [USER, CALL, {"role": "tool", "content": {"content": 3, "unit": "m"}}],
    "reasoning": [USER, {"role": "assistant", "content": "Yes.", "reasoning": "Surely."}],
    "thinking": [USER, {"role": "assistant", "content": "Yes.", "thinking": "A", "reasoning_content": "B"}],
    "parts": [
        {"role": "user", "content": [{"type": "text", "text": "See"}, {"type": "text", "text": "here"}]}
    ],
    "no content": [{"role": "user", "content": None}],
    "another role": [USER, {"role": "narrator", "content": "x"}],
}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "height",
            "description": 'The "height" of <a> mountain',
            "parameters": {"type": "object", "properties": {"of": {"type": "string"}}},
            "return": {"type": "number"},
        },
    },
    {"type": "function", "function": {"name": "now", "parameters": {}}},
]
DOCUMENTS = [{"title": f"T{i}", "text": "a & b\nc", "hidden": i == 1} for i in range(5)]
EXTRAS: dict[str, dict[str, Any]] = {
    "alone": {},
    "tools": {"tools": TOOLS},
    "documents": {"documents": DOCUMENTS},
    "empty": {"tools": [], "documents": []},
}


@pytest.fixture(scope="module")
def oracle() -> Any:
    """transformers' tokenizer with the same special tokens."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models

    engine = Tokenizer(models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    return transformers.PreTrainedTokenizerFast(tokenizer_object=engine, **TOKENS)


@pytest.fixture(scope="module")
def rendered() -> Iterator[ChatTemplates]:
    """All the templates, in one process."""
    templates = ChatTemplates(TEMPLATES, TOKENS)
    yield templates
    templates.close()


def render(template: str, messages: Any = (USER,), **options: Any) -> str:
    templates = ChatTemplates({"default": template}, TOKENS)
    try:
        return templates.render(messages, **options)
    finally:
        templates.close()


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_text_is_that_of_transformers(name: str, oracle: Any, rendered: ChatTemplates) -> None:
    told, refused = set(), 0
    for what, messages in CONVERSATIONS.items():
        for with_, extras in EXTRAS.items():
            for generate in (True, False):

                def wanted(
                    messages: Any = messages, extras: Any = extras, generate: bool = generate
                ) -> str | None:
                    try:
                        return oracle.apply_chat_template(
                            messages,
                            chat_template=TEMPLATES[name],
                            tokenize=False,
                            add_generation_prompt=generate,
                            **extras,
                        )
                    except Exception:  # whatever Python or the template raises
                        return None

                before = wanted()
                try:
                    found = rendered.render(messages, template=name, generate=generate, **extras)
                except UsageError:
                    found = None
                # The date may change between the two.
                assert found == before or found == wanted(), (what, with_, generate)
                told.add(found)
                refused += found is None
    assert len(told) > 5  # different texts, and no refusals only
    assert refused < len(CONVERSATIONS) * len(EXTRAS) * 2 * 2 // 3


def test_the_environment_is_that_of_transformers() -> None:
    utils = pytest.importorskip("transformers.utils.chat_template_utils")
    from edgeloop.runtime.text.template_worker import make_environment

    own, other = make_environment(), utils._compile_jinja_template("").environment
    for part in ("filters", "tests", "globals"):
        found, wanted = getattr(own, part), getattr(other, part)
        assert found.keys() == wanted.keys()
        differ = {name for name in found if found[name] is not wanted[name]}
        assert (
            differ
            == {
                "filters": {"tojson"},
                "tests": set(),
                "globals": {"dict", "namespace", "raise_exception", "strftime_now"},
            }[part]
        )
    for name in (
        "block_start_string", "variable_start_string", "comment_start_string", "line_statement_prefix",
        "line_comment_prefix", "trim_blocks", "lstrip_blocks", "newline_sequence", "keep_trailing_newline",
        "optimized", "autoescape", "finalize", "undefined", "loader", "policies",
    ):  # fmt: skip
        assert getattr(own, name) == getattr(other, name), name
    assert {e.tags.__str__() for e in own.extensions.values()} == {
        e.tags.__str__() for e in other.extensions.values()
    }


def test_tokens_that_a_tokenizer_lacks_are_undefined() -> None:
    assert render("{{ mask_token is defined }} {{ pad_token }}") == "False <pad>"
    with pytest.raises(UsageError, match="'mask_token' is undefined"):
        render("{{ mask_token + 'x' }}")


def test_a_token_that_is_named_like_the_messages_does_not_hide_them() -> None:
    templates = ChatTemplates({"default": "{{ messages[0].content }}{{ x }}"}, {"messages": "no", "x": "!"})
    assert templates.render([USER]) == USER["content"] + "!"
    templates.close()


def test_the_template_that_is_taken() -> None:
    several = ChatTemplates({"default": "D{{ tools }}", "tool_use": "T{{ tools | length }}", "rag": "R"})
    assert several.render([USER]) == "DNone"
    assert several.render([USER], tools=TOOLS) == "T2"
    assert several.render([USER], tools=[]) == "T0"
    assert several.render([USER], tools=TOOLS, template="rag") == "R"
    assert several.render([USER], tools=[], template="default") == "D[]"
    with pytest.raises(UsageError, match="no chat template 'x', wanted one of: default, rag, tool_use"):
        several.render([USER], template="x")
    several.close()
    named = ChatTemplates({"rag": "R", "tool_use": "T"})
    assert named.render([USER], tools=TOOLS) == "T"
    with pytest.raises(UsageError, match="choose one by name: rag, tool_use"):
        named.render([USER])
    named.close()
    one = ChatTemplates({"default": "D"})
    assert one.render([USER], tools=TOOLS) == "D"
    one.close()


def test_the_callers_messages_stay_as_they_are() -> None:
    messages = [{"role": "assistant", "content": None, "reasoning": "r"}]
    assert render("{{ messages }}", messages) == (
        "[{'thinking': 'r', 'role': 'assistant', 'reasoning': 'r', 'reasoning_content': 'r'}]"
    )
    assert messages == [{"role": "assistant", "content": None, "reasoning": "r"}]


def test_halves_of_characters_go_through() -> None:
    """Refusing them is the tokenizer's, which sees the text of every door."""
    assert render("{{ messages[0].content }}", [{"role": "user", "content": "a\ud800"}]) == "a\ud800"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"messages": []}, "the conversation is empty"),
        ({"messages": "hello"}, "messages are of type str, wanted a list of JSON objects"),
        ({"messages": {"role": "user"}}, "messages are of type dict, wanted a list"),
        ({"messages": [USER, "hello"]}, "messages: number 2 is of type str, wanted a JSON object"),
        (
            {"messages": [{"role": "user", "content": b"x"}]},
            "messages hold a value of type bytes, wanted JSON values",
        ),
        ({"messages": [{3: 4}]}, "messages hold a key of type int"),
        ({"tools": {"name": "f"}}, "tools are of type dict, wanted a list"),
        ({"tools": [print]}, "tools: number 1 is of type builtin_function_or_method"),
        ({"documents": ["text"]}, "documents: number 1 is of type str, wanted a JSON object"),
        ({"messages": [{"n": 10**5000}]}, "the conversation cannot be written as JSON: "),
    ],
)
def test_values_that_are_no_json_objects(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        render("x", **{"messages": [USER], **options})


def test_values_that_are_nested_for_ever() -> None:
    nested: list[Any] = []
    nested.append(nested)
    with pytest.raises(UsageError, match="documents are nested too deeply"):
        render("x", documents=[{"x": nested}])


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('no\n system\trole') }}", "refuses these messages: no system role"),
        ("{{ raise_exception(3) }}", "refuses these messages: 3"),
        ("{{ raise_exception('\x1b[31m') }}", r"refuses these messages: .\[31m$"),
        ("{% for %}", "failed: "),
        ("{% generation %}", "failed: "),
        ("{{ messages.nothing.more }}", "failed: "),
        ("{{ messages[0].content + 1 }}", "failed: TypeError"),
        ("{{ 1 / 0 }}", "failed: ZeroDivisionError"),
        ("{{ ''.__class__.__mro__ }}", "failed: access to attribute '__class__'"),
        ("{{ dict.__class__ }}{{ dict.__call__.__globals__ }}", "failed: access to attribute"),
        ("{{ strftime_now.__globals__.os }}", "failed: access to attribute '__globals__'"),
        ("{{ namespace(_x=1) }}", "failed: a namespace has no name '_x'"),
        ("{% set n = namespace() %}{% set n._Namespace__attrs = 1 %}", "failed: a namespace has no name"),
        ("{{ namespace.__init__.__globals__ }}", "failed: access to attribute"),
        ("{% include 'x' %}", "failed: "),
        ("{% import 'x' as y %}", "failed: "),
        ("{{ messages.append(1) }}", "failed: "),
        ("{% set _ = messages[0].update({'a': 1}) %}", "failed: "),
        ("{{ range(999999) | length }}", "failed: OverflowError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "failed: RecursionError"),
        ("{{ " + "(" * 5000, "failed: "),
        ("{{ [" + "[" * 150 + "]" * 150 + "] }}", "failed: "),
        ("{% if a %}" * 400, "failed: "),
        ("{{ strftime_now('%Y' * 99999) | length }}{{ x.y.z }}", "failed: "),
        ("{{ messages | tojson(indent=messages) }}", "failed: TypeError"),
    ],
)
def test_wrong_templates(template: str, message: str) -> None:
    with pytest.raises(UsageError, match=f"^the chat template {message}") as caught:
        render(template)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
