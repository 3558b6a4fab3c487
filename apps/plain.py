"""Text for a terminal: names, paths and messages come from files of other people, and must only ever be read.

A control character would move the cursor, retitle the window or colour the screen, and a direction mark would show a
name in another order than it is written in. They are shown as what they are: ``\\x1b``.
"""

from __future__ import annotations

import logging
import re

LONGEST = 400
"""Characters of a message. The beginning says what was found, the end what to do: both are kept."""
_END = 160
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def plain(text: str) -> str:
    """``text`` with what steers a terminal written out; new lines and tabs stay."""
    return _UNSEEN.sub(lambda found: repr(found[0])[1:-1], text)


def one_line(text: str, longest: int = LONGEST) -> str:
    """``text`` on one line of at most ``longest`` characters: the middle goes."""
    line = plain(" ".join(text.split()))
    return line if len(line) <= longest else f"{line[: longest - _END - 3]} … {line[-_END:]}"


def json_text(text: str) -> str:
    """JSON in which nothing steers a terminal: the same values, with escapes that JSON has."""
    return _UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


class LogFormatter(logging.Formatter):
    """Records on one line each, like everything else that is printed; tracebacks keep theirs."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record's line."""
        line = one_line(f"edgeloop: {record.levelname}: {record.getMessage()}")
        return f"{line}\n{plain(self.formatException(record.exc_info))}" if record.exc_info else line
