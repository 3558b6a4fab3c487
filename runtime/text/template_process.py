"""A process of its own for chat templates, whose time and memory are limited whatever a template does.

It is started when the first template is rendered and kept for the next ones. It is killed at a deadline, when it takes
too much, when its owner is closed or dropped, and when the interpreter ends.

Memory is limited on Linux by the kernel (``RLIMIT_AS`` and ``RLIMIT_DATA``, which the process lowers for itself before
it sees a template). macOS and Windows have no such limit. There, and on Linux too, the memory of the process is read
every ``POLL`` seconds while it works, and it is killed when it has too much; so for a moment a template may have what
the machine can give in that time.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ..errors import UsageError
from ..wording import reason
from .child_memory import resident_bytes

POLL, START_SECONDS = 0.02, 60.0
"""Seconds between two readings of the memory, and those that its start may take: nothing of a template runs then."""
BOOT = (
    "import sys; sys.path.extend(sys.argv[4:]); from template_worker import main; "
    "main(float(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))"
)
KEPT_VARIABLES = ("DYLD_LIBRARY_PATH", "LD_LIBRARY_PATH", "PYTHONHOME", "SYSTEMROOT", "TZ")
"""Environment variables that a Python may need to start, and the time zone; a template's process gets no others."""
HOSTILE = "it is broken or hostile"


@dataclass(frozen=True)
class Limits:
    """The limits of one rendering: seconds, bytes of its process, characters of source, bytes of values, characters."""

    seconds: float = 2.0
    memory: int = 64 << 20
    template: int = 256 << 10
    request: int = 8 << 20
    text: int = 1 << 20


class TemplateProcess:
    """Renders templates, one at a time, from any thread. After a fork, parent and child each have their own process."""

    def __init__(self, limits: Limits | None = None) -> None:
        """Nothing is started yet."""
        self.limits = limits or Limits()
        # By the id of the process that uses it: setdefault is one step for all threads.
        self._children: dict[int, _Child] = {}
        self._closed = False

    @property
    def pid(self) -> int | None:
        """The id of the process, or None when there is none."""
        child = self._children.get(os.getpid())
        return child.process.pid if child and child.process else None

    def render(self, template: str, values: dict[str, Any]) -> str:
        """Return the text of ``template`` where it sees ``values``, which are JSON.

        UsageError of one line when it is wrong, refuses the values, or exceeds the limits.
        """
        limits = self.limits
        if len(template) > limits.template:
            raise UsageError(
                f"the chat template has {len(template)} characters, at most {limits.template} are read"
            )
        try:
            request = json.dumps({"template": template, "values": values}).encode("ascii")
        except (ValueError, RecursionError) as error:  # a number of thousands of digits
            raise UsageError(f"the conversation cannot be written as JSON: {reason(error)}") from error
        if len(request) > limits.request:
            raise UsageError(
                f"the conversation has {len(request)} bytes as JSON, a chat template takes {limits.request}; "
                "make it shorter"
            )
        child = self._children.setdefault(os.getpid(), _Child())
        for other in [pid for pid in self._children if pid != os.getpid()]:
            self._children.pop(other).abandon()
        with child.lock:
            if self._closed:
                raise UsageError("the session is closed; open it again")
            answer = child.ask(request, limits)
        text = answer[1:].decode("utf-8", "surrogatepass")
        match answer[:1]:
            case b"T":
                return text
            case b"R":
                raise UsageError(f"the chat template refuses these messages: {reason(text)}")
            case b"F":
                raise UsageError(f"the chat template failed: {reason(text)}")
            case b"L":
                raise UsageError(f"the chat template makes more than {limits.text} characters; {HOSTILE}")
            case _:
                raise UsageError(too_much(limits.memory))

    def close(self) -> None:
        """End the process. Closing twice is fine; rendering afterwards is a UsageError."""
        self._closed = True
        child = self._children.get(os.getpid())
        if child is not None:
            with child.lock:
                child.end()


class _Child:
    """One process at a time, which is started again after its end. The caller holds the lock."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.process: subprocess.Popen[bytes] | None = None
        self._finalize: weakref.finalize[..., _Child] | None = None

    def ask(self, request: bytes, limits: Limits) -> bytes:
        """Return the answer to ``request``; UsageError when there is none."""
        started, answer = time.monotonic(), None
        if self.process is not None and self.process.poll() is None:
            answer = self._ask(request, limits, limits.seconds)
        if answer is None or answer[:1] == b"M":
            # A new one: the last one may have died before, or been full of what earlier renderings left.
            spent = time.monotonic() - started
            self._start(limits)
            answer = self._ask(request, limits, limits.seconds - spent)
        if answer is None:
            raise UsageError(f"the chat template ended its process; {HOSTILE}")
        return answer

    def _ask(self, request: bytes, limits: Limits, seconds: float) -> bytes | None:
        """Return the answer of the process; None when it died. UsageError where it had to be killed."""
        assert self.process is not None
        watch = _Watch(self.process, seconds, limits)
        try:
            with watch:
                answer = _exchange(self.process, request, 4 * limits.text + 4096)
        except OSError:
            answer = None
        except BaseException:
            self.end()  # an answer that nobody waited for would be taken for the next one
            raise
        if answer is None or answer[:1] == b"M":
            self.end()
        if answer is None and watch.reason:
            raise UsageError(watch.reason)
        return answer

    def end(self) -> int | None:
        """Kill the process, wait for it, and return its exit code."""
        process, self.process = self.process, None
        if self._finalize is not None:
            self._finalize.detach()
            self._finalize = None
        if process is not None:
            _end(process, os.getpid())
        return process.returncode if process else None

    def abandon(self) -> None:
        """Forget the process, which belongs to the one that this process was forked from."""
        process, self.process = self.process, None
        if self._finalize is not None:
            self._finalize.detach()
        if process is not None:
            process.returncode = 0  # of this one's view of it: it is no child of ours
            _close_pipes(process)

    def _start(self, limits: Limits) -> None:
        self.end()
        executable = _interpreter()
        folders = [_folder_of("jinja2"), _folder_of("markupsafe"), str(Path(__file__).resolve().parent)]
        numbers = [str(limits.seconds), str(limits.memory), str(limits.text)]
        options = ["-B"] if sys.dont_write_bytecode else []
        try:
            process = subprocess.Popen(
                [executable, "-P", "-s", "-S", *options, "-c", BOOT, *numbers, *folders],
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd=os.sep,
                env={name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ},
                start_new_session=True,  # Ctrl-C is for the one who asked
                creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
            )
        except (OSError, ValueError) as error:
            raise UsageError(
                f"chat templates need a process of {executable}, which cannot start: {reason(error)}"
            ) from error
        self.process = process
        self._finalize = weakref.finalize(self, _end, process, os.getpid())
        watch = _Watch(process, START_SECONDS)
        try:
            with watch:
                ready = _read_frame(process.stdout, 0)
        except BaseException:
            self.end()
            raise
        if ready is None:
            code = self.end()
            raise UsageError(
                f"chat templates need a process of {executable}, which does not start (it ended with {code}); "
                "name a Python of 3.11 or newer with multiprocessing.set_executable"
            )


class _Watch(threading.Thread):
    """Kills the process after ``seconds``, or when it has more memory than ``limits`` allow, and keeps the reason."""

    def __init__(
        self, process: subprocess.Popen[bytes], seconds: float, limits: Limits | None = None
    ) -> None:
        super().__init__(name="edgeloop-template-watch", daemon=True)
        self.reason = ""
        self._process, self._seconds, self._limits = process, seconds, limits
        self._done = threading.Event()

    def __enter__(self) -> None:
        self._deadline = time.monotonic() + self._seconds
        self.start()

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self.join()

    def run(self) -> None:
        """Watch until the process has answered or was killed."""
        while not self._done.wait(POLL):
            limits = self._limits
            if limits and (resident_bytes(self._process) or 0) > limits.memory:
                self.reason = too_much(limits.memory)
            elif time.monotonic() <= self._deadline:
                continue
            elif limits:
                self.reason = f"the chat template takes more than {limits.seconds:g} seconds; {HOSTILE}"
            self._process.kill()
            return


def too_much(memory: int) -> str:
    """Return the message for a template that took more than ``memory`` bytes."""
    return f"the chat template takes more than {memory >> 20} MB of memory; {HOSTILE}"


def _exchange(process: subprocess.Popen[bytes], request: bytes, longest: int) -> bytes | None:
    assert process.stdin is not None
    rest = memoryview(len(request).to_bytes(4) + request)
    while rest:
        rest = rest[process.stdin.write(rest) :]
    return _read_frame(process.stdout, longest) or None


def _read_frame(file: IO[bytes] | None, longest: int) -> bytes | None:
    """Return the next frame; None when the process ended, or wrote no valid frame."""
    assert file is not None
    head = _read(file, 4)
    size = int.from_bytes(head)
    data = _read(file, size) if len(head) == 4 and size <= longest else None
    return data if data is not None and len(data) == size else None


def _read(file: IO[bytes], size: int) -> bytes:
    data = bytearray()
    while len(data) < size and (part := file.read(size - len(data))):
        data += part
    return bytes(data)


def _end(process: subprocess.Popen[bytes], owner: int) -> None:
    if os.getpid() == owner:  # not after a fork: what is not ours we do not end
        process.kill()
        process.wait()
    _close_pipes(process)


def _close_pipes(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def _folder_of(package: str) -> str:
    """Return the folder that must be in sys.path for ``package``; UsageError when it is not installed."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise UsageError(
            f"chat templates need {package}, which is not installed: pip install 'edgeloop[chat]'"
        )
    return str(Path(spec.origin).absolute().parent.parent)


def _interpreter() -> str:
    """Return the Python to start: the one set with ``multiprocessing``, or this one; UsageError in a frozen program."""
    from multiprocessing import spawn

    told, own = os.fsdecode(spawn.get_executable() or ""), sys.executable or ""
    # A frozen program, or one that embeds Python, calls itself sys.executable: it must not be started again.
    frozen = bool(getattr(sys, "frozen", False))
    if told and (told != own or ("py" in Path(own).name.lower() and not frozen)):
        return os.path.abspath(told)
    names = ("python.exe",) if os.name == "nt" else ("bin/python3", "bin/python")
    for path in (Path(sys.exec_prefix) / name for name in names):
        if path.is_file():
            return str(path)
    raise UsageError(
        f"chat templates need a Python interpreter, and this program (sys.executable: {own!r}) is none; "
        "name one with multiprocessing.set_executable"
    )
