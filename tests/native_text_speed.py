"""The native tokenizer's speed beside the library's: .venv/bin/python tests/native_text_speed.py TOKENIZER.json

Writes megabytes of UTF-8 a second for the tales and for texts in thirty scripts, one thread each, the best of five:
texts to tokens, and tokens to texts; what the section takes in the file, and how long el_text_open takes.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"
sys.path.insert(0, str(Path(__file__).parent))

from native_texts import made, tales, write_file

from edgeloop.export.targets.native.text.section import tokenizer_tables
from edgeloop.runtime.engines.native.text import NativeText
from edgeloop.runtime.engines.native.text_format import section
from edgeloop.runtime.text.tokenizer import Tokenizer

ROUNDS = 5


def best(call: Callable[[], object]) -> float:
    """Seconds."""
    took = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        call()
        took.append(time.perf_counter() - start)
    return min(took)


def _each(call: Callable[[Any], object], arguments: Sequence[Any]) -> None:
    for each in arguments:
        call(each)


def main(path: Path) -> None:
    """Write the table."""
    wanted = Tokenizer.open(path)
    with tempfile.TemporaryDirectory() as folder:
        file = write_file(Path(folder), path)
        opening = best(lambda: NativeText(file).close())
        found = NativeText(file)
        size = len(section(tokenizer_tables(path, False)))
        sys.stdout.write(f"section {size:,} bytes; file and text opened in {opening * 1e3:.2f} ms\n")
        for name, texts in (("tales", list(tales(2000))), ("thirty scripts", list(made(4000)))):
            size = sum(len(text.encode()) for text in texts) / 1e6
            ids = [wanted.encode(text) for text in texts]
            for what, tokenizer in (("native", found), ("tokenizers", wanted)):
                encode = best(partial(_each, tokenizer.encode, texts))
                decode = best(partial(_each, tokenizer.decode, ids))
                line = f"{name}, {what}: {size / encode:.2f} MB/s to tokens, {size / decode:.2f} MB/s back\n"
                sys.stdout.write(line)
        found.close()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: native_text_speed.py TOKENIZER.json")
    main(Path(sys.argv[1]))
