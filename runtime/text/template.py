"""Chat templates: jinja2 written by strangers, rendered in a sandbox with bounded work.

jinja2's sandbox keeps a template away from Python's internals but lets it loop and allocate at will. So
loops and calls draw on a budget of steps, strings have a largest size, and the filters and methods that
make large strings out of small numbers are not there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any, NoReturn

from ..errors import UsageError

if TYPE_CHECKING:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_TEMPLATE = 256 << 10
MAX_TEXT = 1 << 20
MAX_STEPS, MAX_SECONDS = 200_000, 3.0
"""Characters of a template, characters of a text; loop turns, calls and seconds of one rendering."""

# fmt: off
FILTERS = (
    "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "int", "items", "last",
    "length", "list", "lower", "map", "reject", "rejectattr", "reverse", "safe", "select", "selectattr",
    "sort", "string", "title", "trim", "unique", "upper",
)
# fmt: on
REFUSED_METHODS = {"center", "expandtabs", "format", "format_map", "ljust", "rjust", "translate", "zfill"}


def render_chat(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    bos: str = "",
    eos: str = "",
    *,
    generate: bool = True,
) -> str:
    """The prompt text of ``messages`` ({"role": …, "content": …}).

    ``generate`` asks for the opening of the assistant's turn. UsageError when the template is wrong, refuses
    the messages, or takes more than the bounds above.
    """
    from jinja2 import TemplateError

    if len(template) > MAX_TEMPLATE:
        raise UsageError(f"the chat template has {len(template)} characters, at most {MAX_TEMPLATE} are read")
    try:
        environment = _environment(_Budget())
        compiled = environment.from_string(template)
        parts, size = [], 0
        turns = [dict(message) for message in messages]
        for part in compiled.generate(
            messages=turns, bos_token=bos, eos_token=eos, add_generation_prompt=generate
        ):
            parts.append(part)
            size = _bounded(size + len(part))
        return "".join(parts)
    except UsageError:
        raise
    except TemplateError as error:
        raise UsageError(f"the chat template failed: {error.message or type(error).__name__}") from error
    except Exception as error:  # a template can raise whatever Python's operators do
        raise UsageError(f"the chat template failed: {type(error).__name__}: {error}") from error


class _Budget:
    """The steps and the time that one rendering may still take."""

    def __init__(self) -> None:
        self.left = MAX_STEPS
        self.deadline = monotonic() + MAX_SECONDS

    def spend(self) -> None:
        self.left -= 1
        if self.left < 0 or monotonic() > self.deadline:
            limit = f"{MAX_STEPS} steps" if self.left < 0 else f"{MAX_SECONDS} seconds"
            raise UsageError(f"the chat template takes more than {limit}; it is broken or hostile")


def _environment(budget: _Budget) -> ImmutableSandboxedEnvironment:
    """A sandbox whose loops, calls and growing values are bounded."""
    from jinja2 import nodes, pass_context
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.visitor import NodeTransformer

    # The checks are filters, because a template can give a variable another meaning, but not a filter; and
    # they take the context, because jinja2 would run them once, while compiling, if they did not.
    @pass_context
    def step(context: object, value: Any) -> Any:
        budget.spend()
        return _checked(value)

    @pass_context
    def joined(context: object, values: list[Any]) -> str:
        return _join(values)

    def stepped(value: nodes.Expr) -> nodes.Expr:
        return nodes.Filter(value, "_step", [], [], None, None)

    class Bound(NodeTransformer):
        """Puts a step into every loop turn and before every filter, and a size check into every ``~``."""

        def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802 (jinja2 looks for this name)
            self.generic_visit(node)
            node.body.insert(0, nodes.ExprStmt(stepped(nodes.Const(True))))
            if node.test is not None:
                node.test = nodes.And(stepped(nodes.Const(True)), node.test)
            return node

        def visit_Filter(self, node: nodes.Filter) -> nodes.Node:  # noqa: N802 (jinja2 looks for this name)
            self.generic_visit(node)
            if node.node is not None:
                node.node = stepped(node.node)
            return node

        def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802 (jinja2 looks for this name)
            self.generic_visit(node)
            return nodes.Filter(nodes.List(node.nodes), "_joined", [], [], None, None)

    class Environment(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset({"+", "*", "**", "%"})

        def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
            tree: nodes.Template = Bound().visit(super()._parse(source, name, filename))
            return tree.set_environment(self)  # type: ignore[return-value]

        def call(self, context: Any, obj: Any, *args: Any, **kwargs: Any) -> Any:
            budget.spend()
            _check_call(obj, args)
            return super().call(context, obj, *args, **kwargs)

        def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
            refused = isinstance(obj, str) and attr in REFUSED_METHODS
            return not refused and super().is_safe_attribute(obj, attr, value)

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            budget.spend()
            _check_operator(operator, left, right)
            return super().call_binop(context, operator, left, right)

    environment = Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"], finalize=_checked
    )
    kept = {name: environment.filters[name] for name in FILTERS}
    own = {"tojson": _to_json, "replace": _replace, "join": _join, "_step": step, "_joined": joined}
    environment.filters = kept | own
    environment.globals = {name: environment.globals[name] for name in ("namespace", "range")}
    environment.globals["raise_exception"] = _refuse
    return environment


def _bounded(size: int) -> int:
    if size > MAX_TEXT:
        raise UsageError(f"the chat template makes more than {MAX_TEXT} characters; it is broken or hostile")
    return size


def _checked(value: Any) -> Any:
    """``value``, when its text would not be too long. Lists that hold a list twice grow with every level."""
    from jinja2.utils import Namespace

    size, rest = 0, [value]
    while rest:
        item = rest.pop()
        if isinstance(item, Namespace):
            raise UsageError("the chat template writes out a namespace; write one of its values")
        size = _bounded(size + 1 + (len(item) if isinstance(item, str) else 0))
        if isinstance(item, list | tuple | dict):
            rest.extend(item.values() if isinstance(item, dict) else item)
            _bounded(size + len(rest))
    return value


def _size(value: Any) -> int:
    return len(value) if isinstance(value, str | list | tuple | dict) else 0


def _check_operator(operator: str, left: Any, right: Any) -> None:
    """Refuse an operation whose result could be huge, before it is made."""
    if operator == "**" or (operator == "%" and isinstance(left, str)):
        raise UsageError(f"the chat template uses {operator}, which may not be used here")
    if operator == "+":
        _bounded(_size(left) + _size(right))
    elif operator == "*":
        if isinstance(left, int) and isinstance(right, int):
            _bounded((left.bit_length() + right.bit_length()) * 64)
        else:
            count = left if isinstance(left, int) else right
            _bounded(max(_size(left), _size(right)) * (count if isinstance(count, int) else 0))


def _check_call(function: Any, args: tuple[Any, ...]) -> None:
    """The same for the string methods that can multiply: ``replace`` and ``join``."""
    owner, name = getattr(function, "__self__", None), getattr(function, "__name__", "")
    if isinstance(owner, str) and name == "replace" and len(args) > 1:
        _replace(owner, *args[:2])
    elif isinstance(owner, str) and name == "join" and args:
        if not isinstance(args[0], list | tuple):
            raise UsageError("the chat template joins something that is not a list")
        _join(args[0], owner)


def _replace(text: Any, old: Any, new: Any) -> str:
    whole, part, other = str(text), str(old), str(_checked(new))
    _bounded(len(whole) + (whole.count(part) * len(other) if len(other) > len(part) else 0))
    return whole.replace(part, other)


def _join(items: Iterable[Any], d: str = "") -> str:
    texts = []
    size = 0
    for item in items:
        texts.append(str(_checked(item)))
        size = _bounded(size + len(texts[-1]) + len(d))
    return d.join(texts)


def _to_json(
    value: Any,
    indent: int | None = None,
    ensure_ascii: bool = False,
    sort_keys: bool = False,
) -> str:
    # jinja2's own filter escapes <, > and & for HTML, which a prompt must not.
    if indent is not None and not 0 <= indent <= 16:
        raise UsageError(f"the chat template indents by {indent}, wanted 0 to 16")
    value = _checked(value)
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, sort_keys=sort_keys)


def _refuse(message: str) -> NoReturn:
    raise UsageError(f"the chat template refuses these messages: {message}")
