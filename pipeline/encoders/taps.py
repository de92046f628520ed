"""Taps: forward hooks that pool a module's tokens or maps on the spot, so that no layer's full tensor is kept.

A tap sits on a module's input or output. Hooks live for one pass and are always removed. A library that hands over all
hidden states keeps [N, T, D] of each of L layers alive until the pass ends; a state that is the very tensor that some
module takes in or gives is pooled there instead. Where that is, one made-up sample shows:

    with watched(model) as seen:
        states = model(x, output_hidden_states=True).hidden_states
    taps = locate({f"hidden_{l}": state for l, state in enumerate(states)}, seen)
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from pipeline.errors import UserError

Reduce = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Tap:
    """A place in a model."""

    module: nn.Module
    """The module whose tensor is taken."""
    side: Literal["input", "output"] = "output"
    """What it takes in or what it gives."""


@contextmanager
def tapped(taps: Mapping[str, Tap], reduce: Reduce) -> Iterator[dict[str, Tensor]]:
    """Yield a dictionary that a forward pass fills with the pooled tensor of each tap.

    Raises:
        UserError: A tapped module gave no tensor, or one that cannot be pooled.
    """
    pooled: dict[str, Tensor] = {}
    handles = []
    try:
        handles += [_attach(name, tap, reduce, pooled) for name, tap in taps.items()]
        yield pooled
    finally:
        for handle in handles:
            handle.remove()
    missing = [name for name in taps if name not in pooled]
    if missing:
        raise UserError(expected=f"a forward pass through {', '.join(missing)}", found="one that leaves them out")


def _attach(name: str, tap: Tap, reduce: Reduce, pooled: dict[str, Tensor]) -> Any:
    def take(value: Any) -> None:
        pooled[name] = reduce(_tensor(value, name))

    def on_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        take(first_argument(args, kwargs))

    def on_output(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        take(output)

    if tap.side == "input":
        return tap.module.register_forward_pre_hook(on_input, with_kwargs=True)
    return tap.module.register_forward_hook(on_output)


def first_argument(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Return what a module is called with, first."""
    return args[0] if args else next(iter(kwargs.values()), None)


def first_tensor(value: Any) -> Tensor | None:
    """Return the tensor of a module's input or output, the first of several; None where there is none."""
    while isinstance(value, (tuple, list)) and value:
        value = value[0]
    value = getattr(value, "last_hidden_state", value)
    return value if isinstance(value, Tensor) else None


def _tensor(value: Any, name: str) -> Tensor:
    tensor = first_tensor(value)
    if tensor is None:
        raise UserError(expected="a tensor", found=type(value).__name__, where=f"layer {name}")
    return tensor


Passing = tuple[Tap, Tensor]
"""A place and the tensor that passed it."""


@contextmanager
def watched(model: nn.Module) -> Iterator[list[Passing]]:
    """Yield a list that a forward pass fills with what each module takes in and gives, in order."""
    seen: list[Passing] = []

    def on_input(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        note(Tap(module=module, side="input"), first_argument(args, kwargs))

    def on_output(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        note(Tap(module=module), output)

    def note(place: Tap, value: Any) -> None:
        tensor = first_tensor(value)
        if tensor is not None:
            seen.append((place, tensor))

    handles: list[Any] = []
    try:
        for module in model.modules():
            handles.append(module.register_forward_pre_hook(on_input, with_kwargs=True))
            handles.append(module.register_forward_hook(on_output))
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def locate(states: Mapping[str, Tensor], seen: Sequence[Passing]) -> dict[str, Tap]:
    """Return the taps of those states that are the very tensor of a place passed once, the first of them."""
    times = Counter((id(place.module), place.side) for place, _ in seen)
    once = {id(tensor): place for place, tensor in reversed(seen) if times[id(place.module), place.side] == 1}
    return {name: once[id(state)] for name, state in states.items() if id(state) in once}
