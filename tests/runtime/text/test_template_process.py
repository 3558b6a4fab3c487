"""The process that renders templates: what hostile ones may take, and when it begins and ends."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest

from edgeloop.runtime.errors import UsageError
from edgeloop.runtime.text import template_process
from edgeloop.runtime.text.child_memory import _by_ps, resident_bytes
from edgeloop.runtime.text.template_process import Limits, TemplateProcess

LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
SHORT = Limits(seconds=1)


def grow(start: str, step: str, out: str = "ns.x", turns: int = 60) -> str:
    """A template that puts ``step`` into ``ns.x`` many times."""
    return (
        f"{{% set ns = namespace(x={start}) %}}{{% for i in range({turns}) %}}{{% set ns.x = {step} %}}{{% endfor %}}"
        f"{{{{ {out} }}}}"
    )


HOSTILE = {
    "bytes": "{{ ('a'.encode() * 300000000) | length }}",
    "bytes, ljust": "{{ 'a'.encode().ljust(300000000) | length }}",
    "bytes, center": "{{ 'a'.encode().center(300000000) | length }}",
    "bytes, zfill": "{{ 'a'.encode().zfill(300000000) | length }}",
    "bytes, expandtabs": "{{ ('\t' * 999).encode().expandtabs(999999) | length }}",
    "bytes, replace": "{{ ('a' * 99999).encode().replace('a'.encode(), ('b' * 9999).encode()) | length }}",
    "bytes, join": "{{ ('a' * 9999999).encode().join(['b'.encode()] * 99) | length }}",
    "bytes, %": "{{ ('%999999999d'.encode() % 1) | length }}",
    "text": "{{ 'a' * 999999999 }}",
    "text, ljust": "{{ 'a'.ljust(999999999) }}",
    "text, filter": "{{ 'a' | center(999999999) }}",
    "text, format": "{{ '{:999999999}'.format(1) }}",
    "text, format_map": "{{ '{x:999999999}'.format_map({'x': 1}) }}",
    "text, %": "{{ '%999999999d' % 1 }}",
    "text, indent": "{{ ('\n' * 99999) | indent(99999, blank=true) }}",
    "text, translate": "{{ ('a' * 9999).translate({97: 'b' * 99999}) | length }}",
    "to_bytes": "{{ (1).to_bytes(900000000, 'big') | length }}",
    "a large number": "{{ 9 ** (9 ** 9) }}",
    "a shift": grow("3", "ns.x * ns.x", "ns.x.bit_length()"),
    "a number's text": "{{ (10 ** 4000 * 10 ** 4000) | string }}",
    "doubled, ~": grow("'aa'", "ns.x ~ ns.x"),
    "doubled, replace": grow("'aa'", "ns.x | replace('a', ns.x)"),
    "doubled, join": grow("'aa'", "[ns.x, ns.x] | join"),
    "doubled, list": grow("[1]", "ns.x + ns.x", "ns.x | length"),
    "nested, text": grow("[1]", "[ns.x, ns.x]", "ns.x | string | length"),
    "kept": "{% set ns = namespace(x=[]) %}{% for i in range(99999) %}{% set ns.x = ns.x + [i] * 999 %}{% endfor %}",
    "kept texts": (
        "{% set ns = namespace(x=()) %}{% for i in range(99) %}{% set ns.x = (ns.x, 'a' * (9999999 + i)) %}{% endfor %}"
    ),
    "kept by many names": "".join(f"{{% set x{i} = range(99999) | list %}}" for i in range(99)),
    "a block": "{% set x %}{% for i in range(99999) %}{{ 'a' * 9999 }}{% endfor %}{% endset %}{{ x | length }}",
    "a filter block": "{% filter upper %}{% for i in range(99999) %}{{ 'a' * 9999 }}{% endfor %}{% endfilter %}",
    "a macro": (
        "{% macro f(n) %}{% for i in range(9) %}{% if n %}{{ f(n - 1) }}{% else %}{{ 'a' * 99 }}{% endif %}{% endfor %}"
        "{% endmacro %}{% set x = f(9) %}{{ x | length }}"
    ),
    "a call": "{% macro f() %}{{ caller() * 999999 }}{% endmacro %}{% call f() %}{{ 'a' * 999 }}{% endcall %}",
    "a namespace": "{{ namespace(" + ", ".join(f"a{i}='a' * 9999999" for i in range(99)) + ") }}",
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "a loop in itself": "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "macros that double": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(99) }}",
    "a search": "{{ ('a' * 999999).count('a' * 499999 ~ 'b') }}" * 99,
    "wrapping": "{% for i in range(9999) %}{% set x = ('a ' * 99999) | wordwrap(2) | urlize | title %}{% endfor %}",
    "much text": "{% for i in range(99999) %}{{ 'a' * 99 }}{% endfor %}",
    "text without end": "{% for i in range(99999) %}{% for j in range(99999) %}{{ '' }}{% endfor %}{% endfor %}",
    "no text at all": "x" * 300_000,
    "many nodes": "{{a}}" * 50_000,
    "nested blocks": "{% if a %}" * 20_000,
    "nested brackets": "{{ " + "[" * 100_000,
    "nested minus": "{{ " + "-" * 200_000 + "1 }}",
    "chained sums": "{{ 1" + "+1" * 100_000 + " }}",
    "a name": "{{ " + "a" * 200_000 + ".x.y }}",
    "a literal": "{{ 1" + "0" * 200_000 + " }}",
}

PROBE = """
import json, resource, sys, time
from edgeloop.runtime.errors import UsageError
from edgeloop.runtime.text.template_process import Limits, TemplateProcess
limits = Limits(seconds=float(sys.argv[1]))
process = TemplateProcess(limits)
for name, template in json.load(sys.stdin).items():
    start = time.monotonic()
    try:
        told = [len(process.render(template, {"messages": []})), ""]
    except UsageError as error:
        told = [None, str(error)]
    took = time.monotonic() - start
    process.close()  # only a child that was waited for counts
    process = TemplateProcess(limits)
    print(json.dumps([name, *told, took, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024]))
with open("/proc/self/status") as status:
    (peak,) = [line.split()[1] for line in status if line.startswith("VmHWM:")]
print(json.dumps(["itself", int(peak) * 1024]))
"""


@LINUX
def test_hostile_templates_get_64_mb_and_no_more_time() -> None:
    """In a small process of its own: Linux counts what a child's parent held when it was started as the child's."""
    told = subprocess.run(
        [sys.executable, "-c", PROBE, "0.1"],
        input=json.dumps(HOSTILE),
        capture_output=True,
        text=True,
        check=True,
    )
    *found, (_, itself) = [json.loads(line) for line in told.stdout.splitlines()]
    assert [name for name, *_ in found] == list(HOSTILE)
    assert itself < 64 << 20, "the measurement is no good"
    for name, length, error, _, peak in found:
        assert length is None, (name, length)
        assert error.startswith("the chat template "), (name, error)
        assert "\n" not in error, name
        assert len(error) < 400, name
        assert peak <= 64 << 20, (name, peak)
    errors = {error.partition(";")[0] for _, _, error, _, _ in found}
    assert errors >= {
        "the chat template takes more than 64 MB of memory",
        "the chat template takes more than 0.1 seconds",
        "the chat template makes more than 1048576 characters",
        "the chat template has 300000 characters, at most 262144 are read",
    }


def test_the_usual_limits_are_those_that_are_told() -> None:
    assert Limits().seconds < 3
    assert Limits().memory == 64 << 20
    process = TemplateProcess()
    with pytest.raises(UsageError, match="takes more than 2 seconds"):
        process.render(HOSTILE["loops"], {})
    process.close()


# What is no attack


ECHO = "{% for m in messages %}{{ m }}{% endfor %}"


@pytest.fixture
def process() -> Iterator[TemplateProcess]:
    process = TemplateProcess(SHORT)
    yield process
    process.close()


def gone(pid: int) -> bool:
    """Has the process ended, whoever has to fetch its exit code?"""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_long_conversation_has_room() -> None:
    """As long as a text may be, in characters that Python stores in four bytes; again and again."""
    messages = ["🦊" * 4000 + "ab" * 3000] * 100
    process = TemplateProcess()
    for i in range(10):
        assert process.render(ECHO, {"messages": [*messages, str(i)]}) == "".join(messages) + str(i)
    pid = process.pid
    assert process.render(ECHO, {"messages": ["x"]}) == "x"
    assert process.pid == pid
    process.close()


def test_more_than_the_limits_on_the_way_in(process: TemplateProcess) -> None:
    with pytest.raises(UsageError, match=r"has 8\d+ bytes as JSON, a chat template takes 8388608; make it"):
        process.render(ECHO, {"messages": ["a" * (8 << 20)]})
    assert process.pid is None


def test_one_process_for_many_renderings_and_a_new_one_after_an_attack(process: TemplateProcess) -> None:
    assert process.pid is None
    texts = [process.render(ECHO, {"messages": [str(i)]}) for i in range(20)]
    assert texts == [str(i) for i in range(20)]
    first = process.pid
    for name, template in HOSTILE.items():
        if name in ("a name", "much text", "nested brackets", "a number's text"):
            with pytest.raises(UsageError):
                process.render(template, {})
    assert process.pid == first  # these are answers
    for name in ("loops", "bytes"):
        before = process.pid
        with pytest.raises(UsageError, match="takes more than"):
            process.render(HOSTILE[name], {})
        assert process.pid is None
        assert process.render(ECHO, {"messages": ["on"]}) == "on"
        assert process.pid != before


def test_nothing_is_kept_from_one_rendering_to_the_next(process: TemplateProcess) -> None:
    keep = "{% set x = namespace(y=1) %}{% set namespace.z = 2 %}{{ dict.update }}"
    with pytest.raises(UsageError):
        process.render(keep, {"seen": 1})
    assert process.render("{{ x }}{{ seen }}{{ namespace.z }}", {}) == ""


@LINUX
def test_closing_leaves_nothing(process: TemplateProcess) -> None:
    def files() -> int:
        return len(os.listdir("/proc/self/fd"))

    gc.collect()
    before, threads = files(), threading.active_count()
    for _ in range(3):
        one = TemplateProcess(SHORT)
        one.render(ECHO, {"messages": ["a"]})
        pid = one.pid
        assert pid is not None
        one.close()
        one.close()
        assert not Path(f"/proc/{pid}").exists()  # and is no zombie
        with pytest.raises(UsageError, match="is closed"):
            one.render(ECHO, {"messages": ["a"]})
    dropped = TemplateProcess(SHORT)
    dropped.render(ECHO, {"messages": ["a"]})
    pid = dropped.pid
    del dropped
    gc.collect()
    assert not Path(f"/proc/{pid}").exists()
    with pytest.raises(UsageError):
        process.render(HOSTILE["loops"], {})
    assert files() <= before
    assert threading.active_count() <= threads


SCRIPT = """
import json, sys
from edgeloop.runtime.text.template_process import Limits, TemplateProcess
process = TemplateProcess(Limits(seconds=0.5))
process.render("a", {})
print(process.pid, flush=True)
"""


@LINUX
@pytest.mark.parametrize(
    ("then", "code"),
    [
        ("", 0),
        ("raise SystemExit(3)", 3),
        ("import os; os._exit(4)", 4),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -9),
        (
            "import os, signal, threading; threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGKILL)).start(); "
            "process.render('{% for i in range(99999) %}{% for i in range(99999) %}{% endfor %}{% endfor %}', {})",
            -9,
        ),
    ],
)
def test_the_end_of_the_interpreter_is_its_end(then: str, code: int) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT + then], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (code, "")
    wait_until(lambda: gone(int(done.stdout)))


def test_many_threads(process: TemplateProcess) -> None:
    def render(number: int) -> str:
        try:
            if number % 40 == 7:
                return process.render(HOSTILE["bytes"], {})
            return process.render(ECHO + f"{number % 7}", {"messages": ["x" * number]})
        except UsageError as error:
            return str(error)[:42]

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(render, range(160)))
    hostile = "the chat template takes more than 64 MB of"
    assert found == [hostile if n % 40 == 7 else "x" * n + str(n % 7) for n in range(160)]


@LINUX
def test_after_a_fork_each_has_its_own(process: TemplateProcess) -> None:
    """Also when another thread is in the middle of something at that moment."""
    process.render(ECHO, {"messages": ["a"]})

    def attack() -> None:
        with pytest.raises(UsageError):
            process.render(HOSTILE["loops"], {})

    slow = threading.Thread(target=attack)
    slow.start()
    pid = process.pid
    context = multiprocessing.get_context("fork")
    answers = context.Queue()

    def forked() -> None:
        text = process.render(ECHO, {"messages": ["from the fork"]})
        answers.put((text, process.pid, os.getpid()))
        process.close()

    other = context.Process(target=forked)
    other.start()
    text, others, its = answers.get(timeout=60)
    other.join()
    slow.join()
    assert (text, other.exitcode) == ("from the fork", 0)
    assert others not in (pid, None, its)
    wait_until(lambda: gone(others))
    assert process.render(ECHO, {"messages": ["b"]}) == "b"
    kept = process.pid
    again = context.Process(target=sys.exit)  # one that ends without having used it
    again.start()
    again.join()
    assert process.render(ECHO, {"messages": ["c"]}) == "c"
    assert process.pid == kept


def test_an_interrupt_ends_the_rendering() -> None:
    slow = TemplateProcess(Limits(seconds=60))
    slow.render(ECHO, {"messages": ["a"]})
    main = threading.main_thread().ident
    assert main == threading.get_ident()
    assert main is not None

    def interrupt() -> None:
        wait_until(lambda: any("template-watch" in t.name for t in threading.enumerate()))
        time.sleep(0.05)
        signal.pthread_kill(main, signal.SIGINT)

    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        interrupter = threading.Thread(target=interrupt)
        interrupter.start()
        with pytest.raises(KeyboardInterrupt):
            slow.render(HOSTILE["loops"], {})
    finally:
        signal.signal(signal.SIGINT, former)
    interrupter.join()
    assert slow.pid is None
    assert slow.render(ECHO, {"messages": ["b"]}) == "b"
    slow.close()


def test_a_process_that_dies(process: TemplateProcess) -> None:
    process.render(ECHO, {"messages": ["a"]})
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)  # between two renderings: nobody need know
    assert process.render(ECHO, {"messages": ["b"]}) == "b"
    pid = process.pid
    assert pid is not None
    threading.Timer(0.05, os.kill, (pid, signal.SIGKILL)).start()
    with pytest.raises(UsageError, match="ended its process|more than 1 seconds"):
        process.render(HOSTILE["loops"], {})


@LINUX
def test_where_the_system_holds_no_limit_the_process_is_watched(
    process: TemplateProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = "import sys; sys.modules['resource'] = None; "  # as on Windows
    monkeypatch.setattr(template_process, "BOOT", blocked + template_process.BOOT)
    slow = TemplateProcess(Limits(seconds=60))
    with pytest.raises(UsageError, match="more than 64 MB of memory"):
        slow.render(grow("[1]", "ns.x + [9] * 99999", "ns.x | length", 9999), {})
    assert slow.render(ECHO, {"messages": ["a"]}) == "a"
    slow.close()


@pytest.mark.skipif(not Path("/bin/ps").exists(), reason="no ps")
def test_memory_by_ps() -> None:
    sleep = [sys.executable, "-c", "print(flush=True); import time; time.sleep(600)"]
    with subprocess.Popen(sleep, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        if sys.platform == "linux":
            wait_until(lambda: _by_ps(other) == resident_bytes(other))
        assert 1 << 16 < _by_ps(other) < 1 << 26
        other.kill()
        other.wait()
        assert resident_bytes(other) is None


# Where it is started


def test_any_folder_and_environment(
    process: TemplateProcess, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "jinja2.py").write_text("raise SystemExit('another jinja2')")
    (tmp_path / "json.py").write_text("raise SystemExit('another json')")
    for name, value in {
        "PYTHONPATH": str(tmp_path),
        "LC_ALL": "C",
        "PYTHONIOENCODING": "ascii",
        "HOME": "/nonexistent",
        "PYTHONSTARTUP": str(tmp_path / "json.py"),
        "TZ": "UTC-14",
    }.items():
        monkeypatch.setenv(name, value)
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    here.rmdir()
    zone = timezone(timedelta(hours=14))
    before = datetime.now(zone)
    found = process.render("ä🦊 {{ strftime_now('%d %H') }}", {})
    assert found in {time.strftime("ä🦊 %d %H") for time in (before, datetime.now(zone))}


@pytest.mark.parametrize(
    ("executable", "message"),
    [
        ("/nonexistent/python", "cannot start: .*No such file"),
        ("/bin/false", "does not start .it ended with 1.; name a Python of 3.11 or newer with"),
        ("/bin/echo", "does not start"),
    ],
)
def test_an_interpreter_that_is_none(
    process: TemplateProcess, monkeypatch: pytest.MonkeyPatch, executable: str, message: str
) -> None:
    monkeypatch.setattr(multiprocessing.spawn, "get_executable", lambda: executable)
    with pytest.raises(UsageError, match=message) as caught:
        process.render(ECHO, {})
    assert "\n" not in str(caught.value)
    assert process.pid is None


@pytest.mark.parametrize("change", [("frozen", True), ("executable", "/usr/sbin/server")])
def test_a_program_that_is_no_interpreter_is_not_started_again(
    process: TemplateProcess, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, change: tuple[str, object]
) -> None:
    """Frozen programs and those that embed Python are their own sys.executable."""
    monkeypatch.setattr(sys, *change, raising=False)
    monkeypatch.setattr(multiprocessing.spawn, "get_executable", lambda: sys.executable)
    assert process.render(ECHO, {"messages": ["a"]}) == "a"  # by the Python beside it
    process.close()
    monkeypatch.setattr(sys, "exec_prefix", str(tmp_path))
    with pytest.raises(UsageError, match=r"this program .* is none; name one with multiprocessing"):
        TemplateProcess().render(ECHO, {})


def test_jinja_that_is_not_installed(process: TemplateProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_process.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="chat templates need jinja2, which is not installed: pip install"):
        process.render(ECHO, {})
