"""``edgeloop bench``: records that are typed and never written over, what got slower, and contenders in turns."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from bench_records import record

from edgeloop.apps.measure import store
from edgeloop.apps.measure.diff import compare
from edgeloop.apps.measure.interval import Estimate, estimate
from edgeloop.apps.measure.record import Measure
from edgeloop.apps.measure.runner import Opened, Runner, Setup
from edgeloop.apps.measure.tables import markdown
from edgeloop.runtime.engines.table import ENGINES

Command = Callable[..., tuple[int, str, str]]
SIZES = ("-p", "8,16", "-n", 4, "--contexts", "0,8", "--runs", 1)


def rate(name: str, *values: float, unit: str = "tokens/s", better: str = "more") -> Measure:
    return Measure(name, "decode", unit, better, estimate(values))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def measured(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder with a record, and what was printed."""
    from edgeloop.apps.cli import main

    folder = tmp_path_factory.mktemp("runs")
    out = folder / "out.json"
    with pytest.MonkeyPatch.context() as patch, out.open("w") as file:
        patch.setattr("sys.stdout", file)
        words = ("bench", bundle, "--depths", *SIZES, "--save", folder / "runs", "--json")
        assert main([str(word) for word in words]) == 0
    return folder / "runs", json.loads(out.read_text())


def test_a_record_says_everything(measured: tuple[Path, dict[str, Any]], bundle: Path) -> None:
    folder, printed = measured
    (path,) = folder.iterdir()
    assert printed["saved"] == str(path)
    found = store.read(path)
    assert json.loads(msgspec.json.encode(found)) == printed["record"]
    assert (found.mode, found.bundle.name, found.bundle.depths, found.bundle.bits) == (
        "speed",
        bundle.name,
        3,
        4,
    )
    assert found.machine.threads > 0
    assert "numpy" in found.versions
    names = [measure.name for measure in found.measures]
    assert len(set(names)) == len(names)
    assert [m.name for m in found.group("prefill")] == [
        "prefill, 8 tokens", "prefill, 8 tokens behind 8", "prefill, 16 tokens", "prefill, 16 tokens behind 8",
    ]  # fmt: skip
    assert [m.at for m in found.group("decode")] == [8, 16, 24]  # 16 behind 0 and 8 behind 8 are one
    assert [m.name for m in found.group("depth, ms")] == [
        f"a token, exit {r}" for r in ("depth:1", "depth:2", "never")
    ]
    assert [m.at for m in found.group("depth, ms")] == [1, 2, 3]
    stages = [m.name for m in found.group("a token by stages, ms")]
    assert stages[:2] == ["prologue", "block, depth 1"]
    assert {"epilogue", "choice, greedy", "the host's loop"} < set(stages)
    starts = {m.name: m.value.median for m in found.group("start")}
    assert starts["time to first token, warm"] < starts["time to first token, process cold"]
    memory = {m.name: m.value.median for m in found.group("memory")}
    if memory:  # Linux
        assert memory["peak"] >= memory["steady, private"] > memory["before the bundle, private"] / 2
        assert [series.name for series in found.series] == ["private", "file-backed"]
        assert len(found.series[0].points) >= 5
    assert any("energy" in name for name in (*names, *found.notes))
    for measure in found.measures:
        assert measure.value.low <= measure.value.median <= measure.value.high


def test_a_run_is_as_fast_as_itself(measured: tuple[Path, dict[str, Any]], command: Command) -> None:
    folder, _ = measured
    (path,) = folder.iterdir()
    code, out, err = command("bench", "--diff", path, folder)
    assert (code, err) == (0, "")
    assert "unsure" in out  # of one round
    assert "slower" not in out


def test_what_got_slower_is_exit_code_3(tmp_path: Path, command: Command) -> None:
    steady = [9.9, 10.0, 10.1]
    old, new = tmp_path / "old", tmp_path / "new"
    for folder, values, load in ((old, steady, [5.0, 5.1, 5.2]), (new, [7.9, 8.0, 8.1], [5.1, 5.2, 5.3])):
        store.check_folder(folder)
        store.save(folder, record(rate("decode", *values), rate("load", *load, unit="ms", better="less")))
    code, out, err = command("bench", "--diff", old, new)
    assert code == 3
    assert err.count("\n") == 1
    assert "1 of 2 measures got slower or larger, decode most: 0.80 × what it was" in err
    assert out.index("slower") < out.index("same")
    assert command("bench", "--diff", new, old)[0] == 0
    assert command("bench", "--diff", old, new, "--tolerance", 25)[0] == 0
    found = json.loads(command("bench", "--diff", old, new, "--json")[1])
    assert (found["slower"], found["faster"], found["same"], found["unsure"]) == (1, 0, 1, 0)


@pytest.mark.parametrize(
    ("before", "after", "better", "verdict"),
    [
        ((9.0, 10.0, 11.0), (8.0, 9.0, 10.0), "more", "same"),  # the intervals have something in common
        ((9.9, 10.0, 10.1), (9.7, 9.75, 9.8), "more", "same"),  # less than the tolerance
        ((9.9, 10.0, 10.1), (8.0, 8.1, 8.2), "more", "slower"),
        ((9.9, 10.0, 10.1), (12.0, 12.1, 12.2), "more", "faster"),
        ((9.9, 10.0, 10.1), (12.0, 12.1, 12.2), "less", "slower"),
        ((9.9, 10.0, 10.1), (8.0, 8.1, 8.2), "less", "faster"),
        ((9.9, 10.0, 10.1), (5.0,), "more", "unsure"),
    ],
)
def test_verdicts(before: tuple[float, ...], after: tuple[float, ...], better: str, verdict: str) -> None:
    old, new = (record(rate("x", *values, better=better)) for values in (before, after))
    (change,) = compare(old, new, 0.03)
    assert change.verdict == verdict
    assert change.low <= change.ratio <= change.high


def test_a_folder_gives_the_newest_of_each_kind(tmp_path: Path) -> None:
    early, late = record(rate("x", 1.0)), record(rate("x", 2.0), date="2026-11-28T00:00:00Z")
    other = record(rate("x", 3.0), engine="native")
    for one in (late, early, other):
        store.save(tmp_path, one)
    assert len(list(tmp_path.iterdir())) == 3
    found = store.read_newest(tmp_path)
    assert found == {late.kind: late, other.kind: other}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"format": 2}', "is a record of format 2, and this edgeloop reads format 1; measure again"),
        ('{"format": 1, "mode": 3}', "is no record: "),
        ("[]", "is no record: "),
        ("[" * 100_000, "is no record: "),
        ("\udcff", "is no record: "),
    ],
)
def test_what_is_no_record_is_refused(tmp_path: Path, command: Command, text: str, said: str) -> None:
    path = tmp_path / "record.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    code, out, err = command("bench", "--diff", path, path)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert said in err


def test_an_unknown_key_is_an_error(tmp_path: Path, command: Command) -> None:
    path = store.save(tmp_path, record(rate("x", 1.0)))
    path.write_text(path.read_text().replace('"mode"', '"mood": 1, "mode"'))
    assert "unknown field `mood`" in command("bench", "--diff", path, path)[2]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "a bundle is needed"),
        (("--diff", "none", "none"), "there is no record none"),
        (("--diff", "none", "none", "--save", "x"), "measures nothing; leave --save out"),
        (("--diff", "none", "none", "--device", "local"), "measures nothing; leave --device out"),
        (("--diff", "none", "none", "--users", "2"), "measures nothing; leave --users out"),
        (("--diff", "none", "none", "--markdown"), "leave --markdown out"),
        (("BUNDLE", "--diff", "none", "none"), "measures nothing; leave "),
        (("BUNDLE", "--users", "2", "--chat", 3), "--users and --chat are different benchmarks"),
        (("BUNDLE", "--markdown", "--json"), "give one of them"),
        (("BUNDLE", "--chat", 3, "-p", "4,8"), "takes one length of prompts, not 2"),
        (("BUNDLE", "--users", "2", "--depths"), "--depths is of the speed of one bundle"),
        (("BUNDLE", "-p", "4,x"), "is not numbers of tokens"),
        (("BUNDLE", "--exits", "-p", 4, "-n", 4), "has no calibrated exit rules"),
        (("BUNDLE", "--exit", "probes", "-p", 4, "-n", 4), "exit rule 'probes'"),
        (("--compare", "BUNDLE"), "wanted two or more contenders that differ"),
        (("--compare", "BUNDLE --engin onnx", "BUNDLE"), "unrecognized arguments: --engin onnx"),
        (("--compare", "BUNDLE 'x", "BUNDLE"), "a quotation mark without another"),
        (("BUNDLE", "--save", "FILE/runs"), "no record can be written into FILE/runs"),
    ],
)
def test_what_cannot_be_is_one_line(
    bundle: Path, tmp_path: Path, command: Command, words: tuple[object, ...], said: str
) -> None:
    file = tmp_path / "file"
    file.touch()
    given = [str(word).replace("BUNDLE", str(bundle)).replace("FILE", str(file)) for word in words]
    code, out, err = command("bench", *given)
    assert (code in (1, 2), out, err.count("\n")) == (True, "", 1)
    assert said.replace("FILE", str(file)) in err


def test_contenders_take_turns(bundle: Path, command: Command, command_json: Callable[..., Any]) -> None:
    flags = ("-p", 8, "-n", 4, "--runs", 2)
    contenders = (
        f"{bundle} --exit depth:1",
        f"{bundle} --engine onnx",
        f"{bundle} --decode pipelined --engine onnx",
    )
    found = command_json("bench", "--compare", *contenders, *flags)
    assert found["contenders"] == list(contenders)
    measures = {m["name"]: m["value"] for m in found["record"]["measures"]}
    speeds = [measures[f"decode, {text}"] for text in contenders]
    ratio = measures[f"decode, {contenders[1]} ÷ {contenders[0]}"]
    assert ratio["low"] <= ratio["median"] <= ratio["high"]
    assert min(speed["median"] for speed in speeds) > 0
    assert found["record"]["turns"] == 6
    code, out, _ = command("bench", "--compare", *contenders[1:], *flags)
    assert code == 0
    assert "÷ the first" in out


@pytest.mark.parametrize("engine", ["onnx", "native"])
def test_drafts_change_no_token(bundle: Path, engine: str) -> None:
    if reason := ENGINES[engine].unavailable_reason():
        pytest.skip(reason)
    opened, last = Opened.of(Setup(str(bundle), engine)), set()
    for decode in ("sequential", "pipelined"):
        runner = Runner(opened, Setup(str(bundle), engine, decode=decode), 24)
        for _ in range(2):  # the second time over what the first one left
            ids = runner.text(8, seed=3)
            wrote = runner.run(ids, 9, behind=runner.text(5, seed=4))
            assert (len(wrote.tokens), wrote.depths.total()) == (9, 9)
            assert wrote.mean_depth == 3
            last.add(runner._token)
    assert len(last) == 1


def test_every_policy_is_what_is_measured(bundle: Path, command_json: Callable[..., Any]) -> None:
    """An exit rule, drafts and fewer bits of K/V do not only stand in the settings."""
    flags = ("-p", 8, "-n", 6, "--runs", 1)
    found = command_json("bench", bundle, *flags, "--exit", "depth:2")
    assert found["record"]["settings"]["exit"] == "depth:2"
    blocks = [m["name"] for m in found["record"]["measures"] if m["group"] == "each depth, ms"]
    assert blocks == ["block at depth 1", "block at depth 2", "the host's loop, a depth"]
    found = command_json("bench", bundle, *flags, "--exit", "confidence:0.5", "--engine", "onnx")
    counts = {
        m["at"]: m["value"]["median"] for m in found["record"]["measures"] if m["group"] == "tokens by depth"
    }
    assert not counts or sum(counts.values()) == 6


def test_markdown(bundle: Path, command: Command) -> None:
    text = markdown(record(rate("a | b", 1.0, 2.0), rate("bytes", 1e6, unit="bytes")))
    assert "| a \\| b | 1.50 tokens/s |" in text
    assert "b&lt;i>" in text
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert {line.replace("\\|", "").count("|") for line in table} == {6}
    code, out, _ = command("bench", bundle, "-p", 8, "-n", 4, "--runs", 1, "--markdown")
    assert code == 0
    assert "| decode, 4 tokens behind 8 |" in out


def test_an_interval_of_one_is_no_evidence() -> None:
    assert estimate([3.0]) == Estimate(3.0, 3.0, 3.0, 3.0, 0.0, 1)
