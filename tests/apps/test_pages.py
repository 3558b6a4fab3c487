"""The README and the pages do what they say: their commands and their Python are run, block by block.

The checkpoints and bundles that have the names that pages use are tiny (``stand_ins``), and long commands do less
(``tests/page_commands.py``). What a page says that its commands write has to be written, whatever the numbers are.
"""

from __future__ import annotations

import io
import re
import runpy
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import page_commands
import pages
import pytest
import tiny
from packaging.requirements import Requirement
from page_commands import CHARACTERS, NOT_RUN, NOT_WRITTEN
from pages import PAGES, README, ROOT, name_of, shape
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from edgeloop.apps.cli import VERBS
from edgeloop.export.synth import Shape
from edgeloop.export.synth_shapes import SHAPES
from edgeloop.runtime.engines.native.library import unavailable_reason

Command = Callable[..., tuple[int, str, str]]
TALE = "Once upon a time there was a king. "
SHAPE = Shape("mor", tiny.VOCAB, 128, 256, 4, 2, layers=5, repeats=3, context=64)
RUN = [page for page in PAGES if pages.blocks(page, pages.PYTHON, *pages.COMMANDS)]


@pytest.fixture(scope="session")
def encoder(parity_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny ALBERT that knows a few words."""
    folder = tmp_path_factory.mktemp("pages") / "encoder"
    shutil.copytree(parity_folder / "albert_tiny", folder)
    words = [
        "<pad>",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        *["the", "king", "said", "nothing", "nobody", "spoke", "who"],
    ]
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )  # fmt: skip
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="session")
def looped_layer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.looped_layer(tmp_path_factory.mktemp("pages") / "looped_layer")


@pytest.fixture(scope="session")
def stand_ins(
    checkpoint: Path, bundle: Path, encoder: Path, tiny_once: Callable[[str], Path]
) -> dict[str, Path]:
    """What has the names that pages use."""
    return {
        "my-checkpoint": checkpoint,
        "apps/demo/checkpoint": checkpoint,
        "apps/demo/routed_checkpoint": tiny_once("edgeloop-routed"),
        "albert-base-v2": encoder,
        "mobilellm": tiny_once("mobilellm"),
        "tests/fixtures/parity/huginn_tiny": ROOT / "tests/fixtures/parity/huginn_tiny",
        **dict.fromkeys(("bundle", "other", "demo-int4", "build/demo"), bundle),
    }


class Reader:
    """Somebody who reads a page and does what it says, in a folder of their own."""

    def __init__(self, folder: Path, stand_ins: dict[str, Path], command: Command) -> None:
        self.folder, self.command = folder, command
        self.given = set(stand_ins)
        self.names: dict[str, object] = {}
        """Of the page's Python: a block goes on with what one above it has opened."""
        self.written = ""
        self.skipped = False
        """A command was not run, since there is no compiler here."""

    def run(self, line: str) -> None:
        """Run a command."""
        words = page_commands.smaller(line)
        if unavailable_reason() and re.search("native|--kv-bits|make demo", line):
            self.skipped = True
        elif words[0] == "edgeloop":
            self.edgeloop(line, words[1:])
        elif words[:2] == ["python", "-m"]:
            self.python(words[2:])
        else:
            pytest.fail(f"tests/page_commands.py does not know how to run: {line}")

    def edgeloop(self, line: str, words: list[str]) -> None:
        out = words[words.index("-o") + 1] if "-o" in words else "build/demo" if words[0] == "demo" else ""
        if out in self.given:  # the page makes its own
            self.given.remove(out)
            shutil.rmtree(self.folder / out)
        code, told, err = self.command(*words)
        assert code == 0, f"{line}\n{err}"
        self.written += f"{told}\n{err}\n"

    def python(self, words: list[str]) -> None:
        module, *arguments = words
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.argv", [module, *arguments])
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        if module == "edgeloop.apps.demo.texts":
            for path in map(Path, arguments):
                path.write_text(path.read_text(encoding="utf-8")[:CHARACTERS], encoding="utf-8")


@pytest.fixture
def reader(
    stand_ins: dict[str, Path], tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> Reader:
    """In a folder with ``stand_ins``, some texts, and shapes that are tiny."""
    for name, folder in stand_ins.items():
        shutil.copytree(folder, tmp_path / name)
    (tmp_path / "sentence.txt").write_text(TALE)
    (tmp_path / "some.txt").write_text(TALE * 20)
    (tmp_path / "lines.txt").write_text("The king said nothing\nNobody spoke\n")
    for name in SHAPES:
        monkeypatch.setitem(SHAPES, name, SHAPE)
    monkeypatch.chdir(tmp_path)
    return Reader(tmp_path, stand_ins, command)


@pytest.mark.parametrize("page", RUN, ids=name_of)
def test_a_page_does_what_it_says(
    page: Path,
    reader: Reader,
    looped_layer: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if any("--target executorch" in line for line in pages.page_commands(page)):
        shutil.rmtree(reader.folder / "my-checkpoint")  # a minute less than with the other one
        shutil.copytree(looped_layer, reader.folder / "my-checkpoint")
    for block in pages.all_blocks(page):
        if block.language == pages.PYTHON:
            exec(compile(block.text, str(page), "exec"), reader.names)
            assert capsys.readouterr().out
        elif block.language in pages.COMMANDS:
            for line in pages.commands(block.text):
                monkeypatch.setattr("sys.stdin", io.StringIO("Who are you?\n"))
                if line not in NOT_RUN:
                    reader.run(line)
    written = shape(reader.written)
    for line in "\n".join(pages.blocks(page, pages.OUTPUT)).splitlines():
        if not (reader.skipped or line == "[…]" or line.startswith(tuple(NOT_WRITTEN))):
            assert shape(line) in written, f"{name_of(page)} has a line that is not written"


def test_the_readme_has_the_first_verbs() -> None:
    first = pages.all_blocks(README)[0]
    assert list(pages.commands(first.text)) == ["make demo", "make test"]
    verbs = {line.split()[1] for line in pages.page_commands(README) if line.startswith("edgeloop ")}
    assert {"show", "export", "run", "eval", "bench"} <= verbs


def test_the_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 200


def test_every_block_is_run_or_known_to_another_test() -> None:
    known = {*pages.COMMANDS, pages.PYTHON, pages.OUTPUT}
    found = {(name_of(page), block.language) for page in PAGES for block in pages.all_blocks(page)}
    assert {pair for pair in found if pair[1] not in known} == set(page_commands.ELSEWHERE)


def test_what_is_not_run_stands_on_a_page() -> None:
    commands = {line for page in PAGES for line in pages.page_commands(page)}
    assert {*NOT_RUN, *page_commands.INSTEAD} - commands == set()
    lines = [
        line for page in PAGES for text in pages.blocks(page, pages.OUTPUT) for line in text.splitlines()
    ]
    assert [begins for begins in NOT_WRITTEN if not any(line.startswith(begins) for line in lines)] == []


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
def test_make_has_the_targets() -> None:
    for line in sorted({c for page in PAGES for c in pages.page_commands(page) if c.startswith("make ")}):
        words = ["make", "-n", f"PYTHON={sys.executable}", *page_commands.smaller(line)[1:]]
        if line not in page_commands.INSTEAD:
            done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{line}\n{done.stderr}"


def test_pip_has_the_extras() -> None:
    known = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    for wanted in map(Requirement, re.findall(r"edgeloop\[[\w,]+\]", text)):
        assert wanted.extras <= set(known["optional-dependencies"]), wanted


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_in_sentences_have_verbs_and_flags(page: Path, command: Command) -> None:
    flags: dict[str, set[str]] = {}
    for line in pages.inline_commands(page):
        verb, *words = line.split()[1:]
        assert verb in VERBS, line
        if verb not in flags:
            flags[verb] = set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", command(verb, "--help")[1]))
        assert {word for word in words if re.match("--?[a-z]", word)} <= flags[verb], line


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for link in pages.LINK.findall(page.read_text(encoding="utf-8")):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name}: {link}"
        if anchor:
            assert anchor in pages.anchors(target), f"{page.name}: {link}"
