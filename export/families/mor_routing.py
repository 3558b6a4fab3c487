"""Token routing of the Mixture-of-Recursions code: its section of conf.yaml, where its blocks are, its routers.

With e = 1 behind a first layer outside of the loop, else 0: ``expert`` choice has a module a recursion,
``model.layers.{e + r}.block.{j}``, with a router for one score; ``token`` choice has one for all of them,
``model.layers.{e}.block_list.{r}.{j}``, with one router for R scores.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar

import torch

from ...runtime.errors import CheckpointError
from ...runtime.model.program import Routing
from ...runtime.wording import shown
from ..checkpoint import Checkpoint
from ..family import Loader
from .config_values import flag, number
from .llama_names import LlamaNames
from .ties import MAX_LAYERS

T = TypeVar("T")
Squash = Literal["sigmoid", "tanh", "softmax", "none"]

ROUTERS = {"linear": False, "mlp": True, "wide_mlp": True}
"""By router_type, whether it has a hidden layer. The last two are one architecture."""

EXPERT_SQUASH: dict[str | None, Squash] = {None: "none", "sigmoid": "sigmoid", "tanh": "tanh"}
TOKEN_SQUASH: dict[str | None, Squash] = {None: "softmax", "softmax": "softmax", "sigmoid": "sigmoid"}
TOKEN_ALPHA = {"softmax": 1.0, "sigmoid": 0.1}  # the authors' defaults
GATED = {None: True, "weighted": True, "additive": False}


@dataclass(frozen=True)
class RouterHeads:
    """The routers as canonical heads, and the checkpoint's names that they are made of."""

    tensors: Mapping[str, Loader]
    used: frozenset[str]


class RoutedNames(LlamaNames):
    """The layers of a routed checkpoint, numbered as if unrolled: ``edge``, K × R blocks, ``edge``."""

    def __init__(self, checkpoint: Checkpoint, kind: str, edge: int, repeats: int) -> None:
        super().__init__(checkpoint)
        wanted = 2 * edge + (repeats if kind == "expert" else 1)
        if self.layers != wanted:
            raise CheckpointError(
                f"{checkpoint.folder}: the weights have {self.layers} layers outside of blocks; {kind}-choice "
                f"routing over {repeats} recursions has {wanted}: conf.yaml is not this checkpoint's"
            )
        block = "{0}.block." if kind == "expert" else f"{edge}.block_list.{{1}}."
        self.blocks = [block.format(edge + r, r) for r in range(repeats)]
        self.routed = range(edge, self.layers - edge)
        first = re.compile(re.escape(f"{self.prefix}model.layers.{self.blocks[0]}") + r"(\d{1,6})\.")
        numbers = {int(m[1]) for name in checkpoint.names if (m := first.match(name))}
        if not numbers or numbers != set(range(len(numbers))) or len(numbers) * repeats > MAX_LAYERS:
            raise CheckpointError(
                f"{checkpoint.folder} has no layers numbered 0, 1, 2 … in model.layers.{self.blocks[0]}; "
                f"{kind}-choice checkpoints have them there"
            )
        looped = [f"{block}{j}" for block in self.blocks for j in range(len(numbers))]
        last = [str(self.layers - 1)] if edge else []
        self.places = [*map(str, range(edge)), *looped, *last]
        self.layers = len(self.places)

    def layer_stem(self, layer: int) -> str:
        """Return the part of a layer's names below ``model.layers.``."""
        return self.places[layer]


def read_routing(mor: Mapping[str, Any], repeats: int, where: str) -> Routing:
    """Return the routing of the ``mor`` section, whose keys are known; CheckpointError names a value that is not."""
    if flag(mor, "rand_router", where, False):
        raise CheckpointError(
            f"{where}.rand_router is true: random routing is not supported; wanted a trained router"
        )
    hidden = _one_of(mor, "router_type", ROUTERS, where)
    temperature = number(mor, "temp", where, 1.0)
    kind = mor["type"]
    section, label = mor.get(kind) or {}, f"{where}.{kind}"
    gated = _one_of(section, "gating", GATED, label)
    if kind == "token":
        squash = _one_of(section, "router_func", TOKEN_SQUASH, label)
        alpha = number(section, "alpha", label, TOKEN_ALPHA[squash])
        _one_of(section, "balancing", {None: 0, "loss": 0, "loss_free": 0}, label)
        return Routing(
            kind="token", squash=squash, alpha=alpha, gated=gated, temperature=temperature, hidden=hidden
        )
    squash = _one_of(section, "router_func", EXPERT_SQUASH, label)
    # Without a squash or a gate the authors' alpha is never applied.
    alpha = number(section, "alpha", label) if gated and squash != "none" else 1.0
    return Routing(
        kind="expert",
        squash=squash,
        alpha=alpha,
        gated=gated,
        temperature=temperature,
        hidden=hidden,
        auxiliary=_one_of(section, "sampling", {None: False, "aux_loss": False, "aux_router": True}, label),
        capacity=_capacity(mor.get("capacity"), repeats, where),
    )


def router_heads(names: RoutedNames, routing: Routing, width: int, biased: bool) -> RouterHeads:
    """Return the routers' tensors; ``biased``: token choice was balanced by a bias on the choice.

    CheckpointError for one that is missing or of another shape.
    """
    layers = [f"{names.prefix}model.layers.{i}." for i in names.routed]
    rows = 1 if routing.kind == "expert" else len(names.blocks)

    def router(module: str, prefix: str, factor: float = 1.0) -> tuple[dict[str, Loader], list[str]]:
        stems = [f"{at}{module}." for at in layers]
        return _router(names.checkpoint, stems, prefix, (rows, width), routing.hidden, factor)

    tensors, used = router("mor_router", "router")
    if routing.auxiliary:
        # Its input is not divided by the temperature: undone in the weights that the divided input meets.
        more, read = router("mlp_router", "auxiliary", routing.temperature)
        tensors |= more
        used = [*used, *read]
    if routing.kind == "token":
        tensors["router.bias"] = partial(torch.zeros, rows)
        if biased:
            name = f"{layers[0]}router_bias"
            # The authors choose by α·p + bias, edgeloop by p + bias.
            tensors["router.bias"] = _stacked(names.checkpoint, [name], (rows,), 1 / routing.alpha)
            used = [*used, name]
    return RouterHeads(tensors, frozenset(used))


def _router(
    checkpoint: Checkpoint,
    stems: Sequence[str],
    prefix: str,
    shape: tuple[int, int],
    hidden: bool,
    factor: float,
) -> tuple[dict[str, Loader], list[str]]:
    """Return the loaders and names of a router that is stored in one piece or one a depth.

    Each piece is of ``shape``; the first matrix is multiplied by ``factor``.
    """
    rows, width = shape
    if not hidden:
        names = [f"{stem}router.weight" for stem in stems]
        return {f"{prefix}.weight": _stacked(checkpoint, names, shape, factor)}, names
    first, second = ([f"{stem}router.{i}.weight" for stem in stems] for i in (0, 2))
    middle = (*checkpoint.shape(first[0]), 0)[0]
    tensors = {
        f"{prefix}.hidden": _stacked(checkpoint, first, (middle, width), factor, new=True),
        f"{prefix}.weight": _stacked(checkpoint, second, (rows, middle)),
    }
    return tensors, [*first, *second]


def _stacked(
    checkpoint: Checkpoint,
    names: Sequence[str],
    shape: tuple[int, ...],
    factor: float = 1.0,
    new: bool = False,
) -> Loader:
    """Return a loader of tensors of one shape, concatenated along the first axis, or stacked along a new one."""
    for name in names:
        checkpoint.require(name, shape)
    join: Callable[[list[torch.Tensor]], torch.Tensor] = torch.stack if new else torch.cat
    return lambda: join([checkpoint.tensor(name, shape) for name in names]) * factor


def _capacity(value: object, repeats: int, where: str) -> tuple[float, ...]:
    if value is None:
        return tuple((repeats - r) / repeats for r in range(repeats))
    listed: list[Any] = (
        value.split(",") if isinstance(value, str) else value if isinstance(value, list) else [value]
    )
    try:
        shares = tuple(float(share) for share in listed if not isinstance(share, bool))
    except (TypeError, ValueError, OverflowError):
        shares = ()
    return check_capacity(shares, repeats, f"{where}.capacity is {shown(value)}")


def check_capacity(shares: tuple[float, ...], repeats: int, what: str) -> tuple[float, ...]:
    """Return ``shares``; CheckpointError unless there is one a depth, falling, each above 0 and at most 1."""
    sane = all(math.isfinite(s) and 0 < s <= 1 for s in shares)
    if len(shares) != repeats or not sane or list(shares) != sorted(shares, reverse=True):
        raise CheckpointError(
            f"{what}; wanted the share of tokens for each of {repeats} depths, from 1 down to above 0, none rising"
        )
    return shares


def _one_of(section: Mapping[str, Any], key: str, table: Mapping[Any, T], where: str) -> T:
    value = section.get(key)
    if not isinstance(value, str | None) or value not in table:
        known = ", ".join("null" if v is None else str(v) for v in table)
        raise CheckpointError(f"{where}.{key} is {shown(value)}, which is not understood; known: {known}")
    return table[value]
