"""Everything that is printed: streamed text, tables, progress, JSON, errors.

Results go to stdout, all else to stderr. With ``json`` stdout carries JSON only and progress is off.
rich is imported when something is drawn: a machine that reads JSON does not wait for it.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, TextIO

from ..runtime.errors import UsageError
from .intake import decoded, said, without_newline
from .plain import json_text, one_line, plain

if TYPE_CHECKING:
    from rich.console import Console as RichConsole
    from rich.table import Table

Progress = Callable[[str, float], None]

# What a model writes is data: it must not move the cursor or retitle the window.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_SHADES = (117, 80, 114, 185, 215, 203)  # of the 256 colours; readable on dark and light
_PIPE_WIDTH = 200  # columns when no terminal says how many there are


class Console:
    """The command's voice. One a command."""

    def __init__(self, *, json: bool = False) -> None:
        self.json = json
        self.always_colour = False
        """Whether streamed tokens are coloured in a pipe too."""
        self._open_line = self._open_aside = False
        self._lines = 0  # that were read of a pipe
        for stream in (sys.stdout, sys.stderr):
            # A terminal that cannot show a character shows a question mark instead of a traceback.
            reconfigure = getattr(stream, "reconfigure", None)
            if reconfigure is not None:
                reconfigure(errors="replace", **({"encoding": "utf-8"} if json else {}))

    def write(self, text: str) -> None:
        """``text`` to stdout. What steers a terminal is written out: text has names from files in it."""
        sys.stdout.write(plain(text))

    def result(self, data: Mapping[str, object]) -> None:
        """``data`` as one line of JSON on stdout; structs become objects, not-a-number becomes null."""
        import msgspec

        self.write(json_text(msgspec.json.encode(data).decode()) + "\n")
        self.flush()

    def echo(self, prompt: str) -> None:
        """What the streamed text continues, in grey; a pipe gets the continuation only."""
        if not self.json and sys.stdout.isatty():
            sys.stdout.write(f"\x1b[2m{_CONTROLS.sub('', prompt)}\x1b[0m")

    def stream(self, text: str, shade: float | None = None) -> None:
        """A piece of generated text, at once and without control characters; silent with ``json``.

        ``shade`` above 0 to 1 colours it on a terminal, from a light blue to red; a pipe gets plain text unless
        ``always_colour`` is set.
        """
        if self.json or not text:
            return
        piece = _CONTROLS.sub("", text)
        if shade is not None and (self.always_colour or sys.stdout.isatty()):
            colour = _SHADES[min(int(shade * len(_SHADES)), len(_SHADES) - 1)]
            piece = f"\x1b[38;5;{colour}m{piece}\x1b[0m"
        sys.stdout.write(piece)
        self._open_line = not text.endswith("\n")
        self.flush()

    def aside(self, text: str) -> None:
        """A piece of what a model thinks before it answers, at once, on stderr; in grey on a terminal; silent with
        ``json``."""
        if self.json or not text:
            return
        piece = _CONTROLS.sub("", text)
        sys.stderr.write(f"\x1b[2m{piece}\x1b[0m" if sys.stderr.isatty() else piece)
        sys.stderr.flush()
        self._open_aside = not text.endswith("\n")

    def end_aside(self) -> None:
        """Finish the line that ``aside`` left open."""
        if self._open_aside:
            sys.stderr.write("\n")
            sys.stderr.flush()
            self._open_aside = False

    def end_stream(self) -> None:
        """Finish the line that ``stream`` left open."""
        if self._open_line:
            self.write("\n")
            self._open_line = False

    def facts(self, rows: Sequence[tuple[str, str]]) -> None:
        """Names and values, in two columns on stdout."""
        from rich.table import Table

        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="dim", no_wrap=True)
        grid.add_column()
        for name, value in rows:
            grid.add_row(_cell(name), _cell(value))
        self._draw(grid)

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """A table on stdout. Columns whose name begins with '#' hold numbers and align right."""
        from rich.table import Table

        table = Table(box=None, padding=(0, 3, 0, 0), header_style="dim")
        for column in columns:
            table.add_column(
                _cell(column.removeprefix("#")), justify="right" if column.startswith("#") else "left"
            )
        for row in rows:
            table.add_row(*map(_cell, row))
        self._draw(table)

    def _draw(self, table: Table) -> None:
        rich = _rich(sys.stdout)
        with rich.capture() as captured:
            rich.print(table)
        # rich fills every cell to its column's width, the last ones too.
        sys.stdout.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))

    def note(self, text: str) -> None:
        """A remark for the person, on stderr; silent with ``json``."""
        if not self.json:
            self.line(text)

    def line(self, text: str) -> None:
        """A line on stderr, always. The text that is being streamed gets its newline first."""
        with suppress(OSError):
            self.end_aside()
            self.end_stream()
            sys.stdout.flush()
        sys.stderr.write(plain(text) + "\n")
        sys.stderr.flush()

    def error(self, message: str) -> None:
        """The one line that says what went wrong."""
        self.line(f"edgeloop: {one_line(message)}")

    def ask(self, prompt: str) -> str | None:
        """The next line the person types, None at the end of the input. A pipe is not prompted.

        UsageError for a line that is no text.
        """
        if not self.asks_a_person:
            return self._read()
        self.flush()
        with suppress(ImportError):
            import readline  # noqa: F401 - editing and history for input()
        try:
            return said(input(prompt), "the line")
        except UnicodeDecodeError as error:
            raise UsageError(
                f"the line is no {error.encoding} text, which this terminal's is said to be; type it again"
            ) from error
        except EOFError:
            self.write("\n")
            return None

    @property
    def asks_a_person(self) -> bool:
        """Whether stdin is a terminal, where a person can answer."""
        return sys.stdin is not None and sys.stdin.isatty()

    def _read(self) -> str | None:
        """The next line of a pipe or file, as UTF-8 whatever the locale is: that is what other programs write."""
        if sys.stdin is None:  # closed by whoever started this
            return None
        source = getattr(sys.stdin, "buffer", None)
        line = source.readline() if source is not None else sys.stdin.readline().encode()
        self._lines += 1
        return without_newline(decoded(line, f"line {self._lines} of stdin")) if line else None

    @contextmanager
    def progress(self) -> Iterator[Progress]:
        """A function (step, fraction done of the whole) that draws a bar on a terminal, else names each step."""
        if self.json:
            yield lambda step, fraction: None
            return
        if not sys.stderr.isatty():
            yield self._steps()
            return
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bar

        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"))
        with Bar(*columns, TimeElapsedColumn(), console=_rich(sys.stderr), transient=True) as bar:
            task = bar.add_task("", total=1.0)
            yield lambda step, fraction: bar.update(task, description=_cell(step), completed=fraction)

    def _steps(self) -> Progress:
        last = ""

        def report(step: str, fraction: float) -> None:
            nonlocal last
            if step != last and fraction < 1:
                self.line(f"{fraction:4.0%} {step}")
                last = step

        return report

    def flush(self) -> None:
        """Out with what was written: a full disk or a closed pipe shows here."""
        sys.stdout.flush()

    def abandon_stdout(self) -> None:
        """Flush stdout if it can be; else throw away what it holds, or the interpreter tries again as it leaves."""
        try:
            sys.stdout.flush()
        except OSError:
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _cell(text: str) -> str:
    """A cell is one line: a name with a new line in it would look like two rows."""
    return plain(text).replace("\n", "\\n").replace("\t", " ")


def _rich(stream: TextIO) -> RichConsole:
    from rich.console import Console as RichConsole

    # Names and texts come from files: square brackets and colons in them mean themselves.
    width = None if stream.isatty() else _PIPE_WIDTH
    return RichConsole(file=stream, width=width, markup=False, emoji=False, highlight=False)
