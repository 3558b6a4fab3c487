"""Chat templates from the command line: tools, documents, several templates; what each verb says of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edgeloop.runtime import Session

Command = Callable[..., tuple[int, str, str]]
CommandJson = Callable[..., Any]
TEMPLATES = {
    "default": "{{ 'T' ~ tools | length if tools is not none }}"
    "{{ 'D' ~ documents | length if documents is not none }}{% for m in messages %}:{{ m.content }}{% endfor %}",
    "tool_use": "tools {% for tool in tools %}{{ tool.function | tojson }}{% endfor %} {{ messages[-1].content }}",
}
TOOLS = [{"type": "function", "function": {"name": "height"}}]


@pytest.fixture
def several(bundle: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "several"
    shutil.copytree(bundle, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["text"]["chat_templates"] = TEMPLATES
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    path = tmp_path / "tools.json"
    path.write_text(json.dumps(TOOLS))
    return path


def test_run_with_tools_and_documents(
    several: Path, tools: Path, tmp_path: Path, command_json: CommandJson
) -> None:
    documents = tmp_path / "documents.json"
    documents.write_text('[{"title": "a"}, {"title": "b"}]')
    with Session.open(several) as session:
        for words, options in (
            ((), {}),
            (("--tools", tools), {"tools": TOOLS}),
            (("--documents", documents), {"documents": [{"title": "a"}, {"title": "b"}]}),
            (("--tools", tools, "--template", "default"), {"tools": TOOLS, "template": "default"}),
        ):
            ids = session.encode_chat([{"role": "user", "content": "Hi"}], **options)
            wanted = [step.token for step in session.generate(ids, 3)]
            found = command_json("run", several, "-p", "Hi", "-n", 3, "--chat", *words)
            assert (found["prompt_tokens"], found["tokens"]) == (len(ids), wanted)


def test_chat_with_tools(
    several: Path, tools: Path, command: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    said = tmp_path / "said"
    said.write_text("Hi\n")
    counts = []
    for words in ((), ("--tools", tools), ("--tools", tools, "--template", "default")):
        with said.open() as stdin:
            monkeypatch.setattr("sys.stdin", stdin)
            code, out, err = command("chat", several, "-n", 2, "--json", *words)
        assert code == 0, err
        counts.append(json.loads(out)["prompt_tokens"])
    with Session.open(several) as session:
        turns = [{"role": "user", "content": "Hi"}]
        assert counts == [
            len(session.encode_chat(turns)),
            len(session.encode_chat(turns, tools=TOOLS)),
            len(session.encode_chat(turns, tools=TOOLS, template="default")),
        ]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--tools", "{tools}"), "--tools without --chat: only a chat template reads that; add --chat"),
        (("--template", "default", "--documents", "{tools}"), "--documents, --template without --chat"),
        (("--chat", "--template", "x"), "there is no chat template 'x', wanted one of: default, tool_use"),
        (("--chat", "--tools", "{missing}"), "cannot read {missing}: No such file"),
        (
            ("--chat", "--tools", "{object}"),
            "--tools {object}: tools are of type dict, wanted a list of JSON objects",
        ),
        (("--chat", "--documents", "{texts}"), "documents: number 1 is of type str, wanted a JSON object"),
        (("--chat", "--tools", "{broken}"), "--tools {broken} is not JSON: "),
        (("--chat", "--tools", "{deep}"), "--tools {deep} is not JSON: "),
        (("--chat", "--tools", "{digits}"), "--tools {digits} is not JSON: "),
        (("--chat", "--tools", "{bytes}"), "is not UTF-8 text"),
    ],
)
def test_run_refuses_what_is_no_list_of_objects(
    several: Path, tools: Path, tmp_path: Path, command: Command, words: tuple[str, ...], message: str
) -> None:
    files = {
        "object": b'{"name": "f"}',
        "texts": b'["a"]',
        "broken": b"[{]",
        "deep": b"[" * 100_000,
        "digits": b"[" + b"1" * 5000 + b"]",
        "bytes": b"\xff",
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    paths = {name: tmp_path / name for name in (*files, "missing")} | {"tools": tools}
    code, out, err = command("run", several, "-p", "Hi", *(word.format(**paths) for word in words))
    assert (code, out) == (2, "")
    assert message.format(**paths) in err
    assert err.count("\n") == 1


def test_chat_without_a_template_has_no_place_for_tools(
    bundle_without_template: Path, tools: Path, command: Command
) -> None:
    code, _, err = command("chat", bundle_without_template, "--tools", tools)
    assert code == 2
    assert "this bundle has no chat template, so --tools cannot be used; leave it out" in err


def test_show_names_the_templates(
    several: Path, checkpoint: Path, bundle: Path, bundle_without_template: Path, command: Command
) -> None:
    for folder, told in (
        (several, "default, tool_use"),
        (checkpoint, "default"),
        (bundle, "default"),
        (bundle_without_template, "none"),
    ):
        code, out, _ = command("show", folder)
        assert code == 0
        (line,) = [line for line in out.splitlines() if "chat template" in line]
        assert line.split(None, 2)[2] == told
