"""What a user may ask of one target: a frozen class in that target's folder, which nobody else knows the fields of.

A field made with ``option`` is a flag of ``edgeloop export`` and a name in ``export_bundle(options=…)``. Nothing heavy
is imported here, nor by those classes: the command line reads them for its ``--help``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self

from ..quant.recipe import Recipe
from ..runtime.errors import UsageError


def option(default: Any, text: str) -> Any:
    """A field of an ``Options``; ``text`` is for ``--help``.

    ``default``: False of a flag that is off unless it is given, else the number or the text that is meant without it.
    """
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Declared:
    """One option, as its target declares it."""

    name: str
    default: bool | int | str
    help: str

    @property
    def flag(self) -> str:
        """As the command line has it."""
        return f"--{self.name.replace('_', '-')}"


@dataclass(frozen=True)
class Request:
    """What else an export was asked for, which an option may not go with."""

    targets: tuple[str, ...]
    layouts: tuple[str, ...]
    quant: str


@dataclass(frozen=True)
class Options:
    """A target without options; one with some has a class of its own below this."""

    @classmethod
    def declared(cls) -> Iterator[Declared]:
        """The options, in the order of the fields."""
        for each in fields(cls):
            yield Declared(each.name, each.default, each.metadata["help"])  # type: ignore[arg-type]

    @classmethod
    def of(cls, given: Mapping[str, object]) -> Self:
        """Those of ``given`` that are this target's; UsageError for a value of another type."""
        own = {}
        for each in cls.declared():
            own[each.name] = value = given.get(each.name, each.default)
            if type(value) is not type(each.default):
                raise UsageError(
                    f"option {each.name} is {str(value)[:40]!r}, wanted a {type(each.default).__name__}"
                )
        return cls(**own)

    def check(self, request: Request) -> None:
        """UsageError for options that do not go with ``request``; asked whether or not the target is in it."""

    def recipe(self, asked: Recipe) -> Recipe:
        """How the target's weights are stored where ``asked`` is what the user named."""
        return asked
