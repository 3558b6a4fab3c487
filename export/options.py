"""The options of one target: a frozen class in that target's folder, whose fields only the target knows.

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
    """Return a field of an ``Options``; ``text`` is for ``--help``.

    ``default``: False of a flag that is off unless it is given, else the number or text that is meant without it.
    """
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class DeclaredOption:
    """One option, as its target declares it."""

    name: str
    default: bool | int | str
    help: str

    @property
    def flag(self) -> str:
        """The flag of the command line."""
        return f"--{self.name.replace('_', '-')}"


@dataclass(frozen=True)
class ExportRequest:
    """The rest of an export's request, with which an option may conflict."""

    targets: tuple[str, ...]
    layouts: tuple[str, ...]
    quant: str


@dataclass(frozen=True)
class Options:
    """The options of a target that has none; others have a subclass."""

    @classmethod
    def declared(cls) -> Iterator[DeclaredOption]:
        """Yield the options, in the order of the fields."""
        for each in fields(cls):
            yield DeclaredOption(each.name, each.default, each.metadata["help"])  # type: ignore[arg-type]

    @classmethod
    def of(cls, given: Mapping[str, object]) -> Self:
        """Return those of ``given`` that are this target's; UsageError for a value of another type."""
        own = {}
        for each in cls.declared():
            own[each.name] = value = given.get(each.name, each.default)
            if type(value) is not type(each.default):
                raise UsageError(
                    f"option {each.name} is {str(value)[:40]!r}, wanted a {type(each.default).__name__}"
                )
        return cls(**own)

    def check(self, request: ExportRequest) -> None:
        """Raise UsageError for options that do not go with ``request``; called whether or not the target is in it."""

    def recipe(self, asked: Recipe) -> Recipe:
        """Return how the target's weights are stored where ``asked`` is what the user named."""
        return asked
