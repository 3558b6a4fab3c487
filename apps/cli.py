"""The command line: finds the verb, imports its module, and turns every failure into one line and a code.

A verb's module offers ``arguments(parser)`` and ``main(args, console)``. It is imported only when its verb
is called, and no engine or framework is imported at the top of one, so ``edgeloop --help`` is instant.

Exit codes: 0 done, 1 failed (EdgeloopError, file system), 2 the request itself is wrong, 70 a bug of ours,
130 interrupted, 141 whoever read our output went away.
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import importlib.util
import logging
import shutil
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn, Protocol, cast

from ..runtime.errors import EdgeloopError, EngineError, UsageError
from ..runtime.version import VERSION
from .console import Console
from .hugepages import restart_with_huge_pages
from .memory import memory_line
from .plain import LogFormatter, one_line


@dataclass(frozen=True)
class Verb:
    """Where a verb lives (relative to this package) and what it does, in one line."""

    module: str
    summary: str
    huge_pages: bool = False


VERBS: dict[str, Verb] = {
    "export": Verb(".export", "turn a checkpoint into a bundle"),
    "quantize": Verb(".quantize", "fit codes to a text, for export --codes"),
    "synth": Verb(".synth", "write a random-weight checkpoint of a named shape"),
    "show": Verb(".show", "what a checkpoint or bundle holds, in layers and bytes"),
    "audit": Verb(".audit", "is every byte of a bundle accounted for?"),
    "diff": Verb(".diff", "an update: what a new bundle has that an old one lacks"),
    "apply": Verb(".apply", "make of a bundle the one that an update is for; take it back"),
    "sign": Verb(".sign", "sign a bundle or an update; make keys"),
    "run": Verb(".run", "continue a prompt, token by token", huge_pages=True),
    "chat": Verb(".chat", "talk to a bundle", huge_pages=True),
    "encode": Verb(".encode", "vectors of texts, from an encoder", huge_pages=True),
    "eval": Verb(".eval", "perplexity on a text, at every depth", huge_pages=True),
    "drift": Verb(".drift", "how quantization's error grows from depth to depth", huge_pages=True),
    "sensitivity": Verb(".sensitivity", "what codes cost each matrix, and a recipe of bits where they count"),
    "calibrate": Verb(".calibrate", "fit exit rules to a text, for a quality goal", huge_pages=True),
    "bench": Verb(".bench", "speed, spread and memory", huge_pages=True),
    "board": Verb(".board_verb", "bundles on a board: push, run, chat, bench, pull, remove"),
    "predict": Verb(".predict", "how fast on a device, before it runs there or is trained"),
    "device": Verb(".device", "profiles of devices, and one of this computer", huge_pages=True),
    "compare": Verb(".compare", "staged against unrolled and onnxruntime-genai", huge_pages=True),
    "doctor": Verb(".doctor", "what is installed here, and how to get the rest"),
    "demo": Verb(".demo.verb", "export the shipped story model and let it tell a tale", huge_pages=True),
}

# Packages that are not installed by default, and the extra that brings each.
EXTRAS = {
    "rich": "cli",
    "cryptography": "sign",
    "jinja2": "chat",
    "onnxruntime": "onnx",
    "executorch": "executorch",
    "torchao": "executorch",
    "torch": "export",
    "onnx": "export",
    "onnx_ir": "export",
    "yaml": "export",
    "coremltools": "coreml",
    "google": "coreml",
    "matplotlib": "calibrate",
    "scipy": "calibrate",
    "sklearn": "calibrate",
    "ray": "ray",
}


class VerbModule(Protocol):
    """What a verb's module provides."""

    def arguments(self, parser: argparse.ArgumentParser) -> None:
        """Declare the verb's flags; set ``parser.description`` and ``parser.epilog`` (examples)."""

    def main(self, args: argparse.Namespace, console: Console) -> None:
        """Do it. Failures are raised."""


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Help with room for the flags, so that each is one line."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34, width=min(110, shutil.get_terminal_size().columns - 2))


class Parser(argparse.ArgumentParser):
    """An ArgumentParser whose complaints are UsageErrors."""

    def error(self, message: str) -> NoReturn:
        """Raise UsageError."""
        raise UsageError(f"{message} (see `{self.prog} --help`)")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command ``argv``, by default that of this process, and return its exit code."""
    # Only a process that was started as a command may be replaced by a new one; a caller's may not.
    own_process = argv is None
    words = list(sys.argv[1:] if argv is None else argv)
    console = Console(json=_wants(words, "--json"))
    try:
        _dispatch(words, console, own_process)
        console.flush()
        return 0
    except SystemExit as stop:  # argparse leaves this way after --help
        return stop.code if isinstance(stop.code, int) else 0
    except BrokenPipeError:
        console.abandon_stdout()
        return 141
    except BaseException as error:
        if isinstance(error, OSError):
            console.abandon_stdout()  # it may be stdout itself that is full
        message, code = describe(error)
        if _wants(words, "--debug"):
            console.line(traceback.format_exc().rstrip())
        console.error(message)
        return code


def describe(error: BaseException) -> tuple[str, int]:
    """The one line that stands for ``error``, and the exit code."""
    if (line := memory_line(error)) is not None:
        return line, 1
    match error:
        case EdgeloopError():
            return one_line(str(error)), error.exit_code
        case KeyboardInterrupt():
            return "interrupted", 130
        case ModuleNotFoundError(name=str(name)) if (package := name.partition(".")[0]) in EXTRAS:
            extra = EXTRAS[package]
            return f"this needs {package}, which is not installed: pip install 'edgeloop[{extra}]'", 1
        case OSError():
            place = f"{error.filename}: " if error.filename is not None else ""
            return one_line(f"{place}{error.strerror or error}"), 1
    text = one_line(f"{type(error).__name__}: {error}", 300)
    return f"this is a bug of edgeloop: {text} (--debug prints the traceback)", 70


def _dispatch(words: list[str], console: Console, own_process: bool) -> None:
    if words[:1] == ["help"]:
        words = [*words[1:2], "--help"]
    if not words or words[0] in ("-h", "--help"):
        console.write(overview())
        return
    if words[0] in ("-V", "--version"):
        console.write(f"edgeloop {VERSION}\n")
        return
    name, *rest = words
    verb = VERBS.get(name)
    if verb is None:
        near = difflib.get_close_matches(name, VERBS, n=1)
        hint = f"did you mean `edgeloop {near[0]}`?" if near else f"choose one of {', '.join(VERBS)}"
        raise UsageError(f"there is no verb {name!r}: {hint}")
    if verb.huge_pages and own_process and not {"-h", "--help"} & set(rest):
        restart_with_huge_pages()
    module = cast(VerbModule, importlib.import_module(verb.module, __package__))
    parser = Parser(
        prog=f"edgeloop {name}",
        description=verb.summary,
        formatter_class=Formatter,
        allow_abbrev=False,
    )
    module.arguments(parser)
    parser.add_argument("--json", action="store_true", help="print JSON, for machines, and nothing else")
    parser.add_argument("--debug", action="store_true", help="log what happens; print tracebacks")
    args = parser.parse_args(rest)
    _log_to_stderr(args.debug)
    if (
        not console.json and importlib.util.find_spec("rich") is None
    ):  # now, not when an hour's table is drawn
        raise EngineError(
            "the command line needs rich, which is not installed: pip install 'edgeloop[cli]', or add --json"
        )
    module.main(args, console)


def _log_to_stderr(debug: bool) -> None:
    """Records on one line each; libraries' warnings, which are about their own insides, only with ``debug``."""
    handler = logging.StreamHandler()
    handler.setFormatter(LogFormatter())
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    logging.captureWarnings(True)
    logging.getLogger("py.warnings").setLevel(logging.WARNING if debug else logging.ERROR)
    if debug:
        logging.getLogger("edgeloop").setLevel(logging.DEBUG)


def _wants(words: list[str], flag: str) -> bool:
    # Needed before, and also when, the words do not parse.
    return flag in words


def overview() -> str:
    """The text of ``edgeloop --help``."""
    width = max(map(len, VERBS))
    verbs = "\n".join(f"  {name:<{width}}  {verb.summary}" for name, verb in VERBS.items())
    return f"""\
usage: edgeloop VERB [options]

Recursive transformers on phones and edge boards: export, run, measure.

{verbs}

  edgeloop VERB --help     options and examples of a verb
  edgeloop --version       the version of edgeloop

Every verb takes --json (for machines) and --debug (tracebacks). A first look, without a model of your own:

  edgeloop demo
"""


if __name__ == "__main__":
    sys.exit(main())
