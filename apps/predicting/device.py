"""Device profiles: what a processor reads and multiplies, as TOML files with the source of each figure."""

from __future__ import annotations

import difflib
from functools import cache
from pathlib import Path

import msgspec
from msgspec import Struct

from ...runtime.errors import UsageError
from ...runtime.model.limits import within
from ..intake import read_text

FOLDER = Path(__file__).parent / "devices"
SUFFIX = ".toml"
DERIVED = "derived:"
"""How the source of a figure begins that nobody measured or published: it is computed from others, as it says."""
UNCHECKED = "unchecked:"
"""How it begins where the page that it names was not looked at when the profile was made."""
FIGURES = (
    "cores",
    "memory_gb",
    "cache_mb",
    "read_gb_s",
    "cache_gb_s",
    "int8_gops",
    "float_gops",
    "sustained",
)


class Rate(Struct, frozen=True, forbid_unknown_fields=True):
    """Of one core, and of all ``cores`` of the profile together."""

    one: float
    all: float

    def of(self, threads: int) -> float:
        """Return the rate of ``threads`` threads."""
        return min(self.one * threads, self.all)


class Device(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A profile. G is 10⁹, M 10⁶; rates of products count two operations for each.

    ``cores``: those that compute best beside each other, without the small ones of a phone. ``cache_mb``: of the last
    level that the cores share. ``read_gb_s``, ``cache_gb_s``: read from memory, and from that cache. ``int8_gops``,
    ``float_gops``: products of int8 in a matrix, and of float32 in attention, as well-made kernels reach them beside
    loads and stores. ``sustained``: what is left of the rates after minutes of work.
    ``sources``: where each figure is from; one that begins with "derived:" was computed.
    """

    name: str
    chip: str
    cores: int
    memory_gb: float
    cache_mb: float
    read_gb_s: Rate
    cache_gb_s: Rate
    int8_gops: Rate
    float_gops: Rate
    sustained: float
    sources: dict[str, str]

    @property
    def derived(self) -> tuple[str, ...]:
        """The figures that were computed from others."""
        return tuple(name for name in FIGURES if self.sources[name].startswith(DERIVED))


def named() -> tuple[str, ...]:
    """Return the names of the profiles that come with this package, sorted."""
    return tuple(sorted(path.stem for path in FOLDER.glob(f"*{SUFFIX}")))


def device(given: str) -> Device:
    """Return the profile ``given``: a name, or a file that `edgeloop device measure` wrote; UsageError otherwise."""
    if given in named():
        return _shipped(given)
    if given.endswith(SUFFIX) or Path(given).is_file():
        return parsed(read_text(given), given)
    near = difflib.get_close_matches(given.lower(), named(), n=3, cutoff=0.4)
    hint = f"did you mean {', '.join(near)}?" if near else "`edgeloop device list` names those that there are"
    raise UsageError(
        f"there is no device {given!r:.60}: {hint} A file of `edgeloop device measure` can be given, too"
        if near
        else f"there is no device {given!r:.60}, and no file of that name; {hint}"
    )


@cache
def _shipped(name: str) -> Device:
    return parsed((FOLDER / f"{name}{SUFFIX}").read_text(encoding="utf-8"), name)


def parsed(text: str, place: str) -> Device:
    """Return the profile of a TOML ``text``; UsageError for unknown keys, missing ones and numbers out of range."""
    try:
        found = msgspec.toml.decode(text, type=Device)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"{place} is no device profile: {reason:.200}") from error
    for problem in _problems(found):
        raise UsageError(f"{place}: {problem}")
    return found


def _problems(found: Device) -> list[str]:
    most = {"read_gb_s": 1e5, "cache_gb_s": 1e6, "int8_gops": 1e7, "float_gops": 1e6}
    problems = [
        *within("cores", found.cores, 1, 1024),
        *within("memory_gb", found.memory_gb, 0.01, 1e5),
        *within("cache_mb", found.cache_mb, 0.01, 1e4),
        *within("sustained", found.sustained, 0.05, 1),
    ]
    for name, limit in most.items():
        rate: Rate = getattr(found, name)
        problems += [
            *within(f"{name}.one", rate.one, 0.01, limit),
            *within(f"{name}.all", rate.all, 0.01, limit),
        ]
        if rate.one > rate.all:
            problems.append(
                f"{name}.one is {rate.one:g}, and all cores together {rate.all:g}; wanted no less"
            )
    missing = [name for name in FIGURES if not found.sources.get(name, "").strip()]
    strange = sorted(found.sources.keys() - set(FIGURES))
    if missing:
        problems.append(f"sources has nothing about {', '.join(missing)}; say where each figure is from")
    if strange:
        problems.append(f"sources has {strange[0][:60]!r}, which is no figure of a profile")
    return problems


def written(profile: Device) -> str:
    """Return the TOML text of ``profile``."""
    plain = {name: value for name, value in msgspec.structs.asdict(profile).items() if name != "sources"}
    lines = [f"{name} = {_value(value)}" for name, value in plain.items()]
    sources = [f"{name} = {_value(text)}" for name, text in profile.sources.items()]
    return "\n".join([*lines, "", "[sources]", *sources, ""])


def _value(value: object) -> str:
    if isinstance(value, Rate):
        return f"{{ one = {value.one:g}, all = {value.all:g} }}"
    if isinstance(value, str):  # a TOML basic string is a JSON string
        return msgspec.json.encode(value).decode()
    return f"{value:g}" if isinstance(value, float) else str(value)
