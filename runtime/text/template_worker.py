"""The program of the process that renders chat templates: jinja2, json and this file, nothing else of edgeloop.

A template is a program by a stranger. jinja2's sandbox keeps it away from Python's internals, but lets it loop and
allocate at will; so it runs here, where the system limits what it takes and where its end ends nothing else.
``template_process.py`` starts this and speaks to it in frames: four bytes of length, and so many bytes. The first frame
is empty and says that the process is ready. Then comes one frame for each request, and one for its answer:

- a request is JSON, {"template": the source, "values": what it sees};
- an answer is a letter and UTF-8 text. T: the text; R: why the template refused; F: why it failed; L: the text is
  longer than it may be; M: the memory was not enough (the process ends after that).
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextlib import suppress
from datetime import datetime
from io import StringIO
from typing import Any, BinaryIO, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

resource: Any
try:
    import resource
except ImportError:  # Windows
    resource = None

MAX_MESSAGE = 1000
"""Characters of an error."""
COMPILED = 4
"""Templates that are kept compiled."""
UNTOUCHED, LEAST_ROOM = 8 << 20, 16 << 20
"""Bytes of the interpreter's files that may still come into memory; what a template gets however large that is."""
WARM_UP = """{% for m in messages %}{% if m.x is defined %}{{ m.x | tojson(indent=1) | wordwrap }}{% endif %}
{% endfor %}{{ strftime_now('%Y %B') | urlencode | pprint }}{{ lipsum(1) | striptags }}{{ [1] | random }}{{ none() }}"""


def main(seconds: float, memory: int, longest: int) -> None:
    """Answer requests until stdin ends. ``memory``: bytes of the process; ``longest``: characters of a text."""
    renderer = Renderer(longest)
    # What Python loads on first use is loaded now, while files can be opened and memory is not counted.
    renderer.answer({"template": WARM_UP, "values": {"messages": [{"x": 1}]}})
    renderer.compiled.clear()
    gc.collect()
    gc.freeze()
    bound_process(memory)
    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    write_frame(answers, b"")
    while (request := read_frame(requests)) is not None:
        bound_time(seconds)
        try:
            answer = renderer.answer(json.loads(request))
        except MemoryError:
            answer = b"M"
        bound_time(0)
        write_frame(answers, answer)
        if answer == b"M":
            return
        del request, answer
        gc.collect()


def read_frame(file: BinaryIO) -> bytes | None:
    """Return the next frame; None at the end of ``file``."""
    head = file.read(4)
    return file.read(int.from_bytes(head)) if len(head) == 4 else None


def write_frame(file: BinaryIO, data: bytes) -> None:
    """Write ``data`` as a frame, and flush."""
    file.write(len(data).to_bytes(4))
    file.write(data)
    file.flush()


class Renderer:
    """jinja2's environment and the last few templates, compiled."""

    def __init__(self, longest: int) -> None:
        self.longest = longest
        self.environment = make_environment()
        self.compiled: OrderedDict[str, Template] = OrderedDict()

    def answer(self, request: dict[str, Any]) -> bytes:
        """Return the answer to ``request``, a letter and text; MemoryError is left to the caller."""
        try:
            text = joined(self._template(request["template"]).generate(request["values"]), self.longest)
            return b"L" if text is None else b"T" + text.encode("utf-8", "surrogatepass")
        except RefusedError as error:
            return reply(b"R", error.message or "")
        except TemplateError as error:
            return reply(b"F", error.message or type(error).__name__)
        except MemoryError:
            raise
        except Exception as error:  # a template can raise whatever Python's operators do
            return reply(b"F", f"{type(error).__name__}: {error}")

    def _template(self, source: str) -> Template:
        template = self.compiled.pop(source, None) or self.environment.from_string(source)
        self.compiled[source] = template
        if len(self.compiled) > COMPILED:
            self.compiled.popitem(last=False)
        return template


def joined(parts: Iterable[str], longest: int) -> str | None:
    """Return the text of ``parts``, or None as soon as it has more than ``longest`` characters."""
    text, size = StringIO(), 0
    for part in parts:
        size += len(part)
        if size > longest:
            return None
        text.write(part)
    return text.getvalue()


def reply(letter: bytes, message: object) -> bytes:
    """Return an answer: its letter, and the start of ``message`` as UTF-8."""
    return letter + str(message)[:MAX_MESSAGE].encode("utf-8", "backslashreplace")


def make_environment() -> ImmutableSandboxedEnvironment:
    """Return jinja2's sandbox with all its extensions, and what transformers adds to it for chat templates."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = to_json
    environment.globals |= {
        "dict": DictMaker(),
        "namespace": TemplateNamespace,
        "raise_exception": refuse,
        "strftime_now": strftime_now,
    }
    return environment


class Generation(Extension):
    """``{% generation %}`` … ``{% endgeneration %}``: marks the assistant's text, which only training needs."""

    tags = {"generation"}

    def parse(self, parser: Parser) -> nodes.Node:
        """Return a node that renders the body of the block, in a scope of its own."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        # A called block has a scope of its own: what is set in it is not seen outside.
        return nodes.CallBlock(self.call_method("_inside"), [], [], body).set_lineno(line)

    def _inside(self, caller: Callable[[], str]) -> str:
        return caller()


class TemplateNamespace(Namespace):
    """jinja2's ``namespace``, without the names that begin with an underscore."""

    def __init__(*args: Any, **values: Any) -> None:  # ``self`` may be the name of a value
        own, *rest = args
        attributes = dict(*rest, **values)
        for name in attributes:
            check_name(name)
        Namespace.__init__(own, attributes)

    def __setitem__(self, name: str, value: Any) -> None:
        check_name(name)
        super().__setitem__(name, value)


def check_name(name: object) -> None:
    """Raise SecurityError for a name that begins with an underscore."""
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace has no name {name[:40]!r}; leave the underscore away")


class DictMaker:
    """``dict`` as a template sees it: it makes dicts, and has no attributes of the class."""

    def __call__(self, *args: Any, **values: Any) -> dict[Any, Any]:
        """Return a dict of ``values``, as ``dict`` makes one of the same arguments."""
        return dict(*args, **values)

    def fromkeys(self, keys: Iterable[Any], value: Any = None) -> dict[Any, Any]:
        """Return a dict of ``keys``, each with ``value``."""
        return dict.fromkeys(keys, value)


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Return ``value`` as JSON: the ``tojson`` filter. jinja2's own escapes <, > and & for HTML, which a prompt must
    not."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def strftime_now(format: str) -> str:  # noqa: A002 - a template may name it
    """Return the local time in ``format``, as transformers' templates call it."""
    return datetime.now().strftime(format)


class RefusedError(TemplateError):
    """The error that a template itself raises."""


def refuse(message: str) -> NoReturn:
    """Raise RefusedError: ``raise_exception`` of a template."""
    raise RefusedError(message)


def bound_process(memory: int) -> None:
    """Limit this process to about ``memory`` bytes, no more open files, no writing, no core file, no child
    processes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one who asked
    if resource is None:
        return  # the other process watches
    for end in (signal.SIGALRM, signal.SIGXCPU):  # whoever ignores them hands that on
        signal.signal(end, signal.SIG_DFL)
    limits = {"NOFILE": 3, "FSIZE": 0, "CORE": 0, "NPROC": 0}
    try:
        with open("/proc/self/statm", "rb", buffering=0) as file:
            pages = [int(n) * resource.getpagesize() for n in file.read().split()]
        size, resident, data = pages[0], pages[1], pages[5]
        room = max(memory - resident - UNTOUCHED, LEAST_ROOM)
        limits |= {"AS": size + room, "DATA": data + room}
    except (OSError, ValueError, IndexError):
        pass  # macOS holds no such limit: the other process watches
    for name, value in limits.items():
        kind = getattr(resource, f"RLIMIT_{name}", None)
        if kind is not None:
            with suppress(OSError, ValueError):  # a system may know a limit and not let it be lowered
                hard = resource.getrlimit(kind)[1]
                least = value if hard == resource.RLIM_INFINITY else min(value, hard)
                resource.setrlimit(kind, (least, least))


def bound_time(seconds: float) -> None:
    """End this process in twice ``seconds``, and after as much CPU time, even when its parent is gone; 0 stops the
    timer."""
    if resource is None:
        return
    signal.setitimer(signal.ITIMER_REAL, 2 * seconds)  # the one who asked comes first, and says why
    if seconds:
        worked, hard = sum(os.times()[:2]), resource.getrlimit(resource.RLIMIT_CPU)[1]
        with suppress(OSError, ValueError):  # where the hard limit is lower
            resource.setrlimit(resource.RLIMIT_CPU, (int(worked + 2 * seconds) + 1, hard))
